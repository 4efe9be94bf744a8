// Lists of names in messages: some of them and how many more, so that a message stays readable with 2,000 tables.

const SHOWN = 5;

/** `a, b, c, d, e and 12 more`. */
export function nameSome(names: readonly string[]): string {
  const shown = names.slice(0, SHOWN).join(', ');
  return names.length <= SHOWN ? shown : `${shown} and ${names.length - SHOWN} more`;
}
