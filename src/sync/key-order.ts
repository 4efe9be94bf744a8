// In which order a set's rows leave for the target. One behind the other in the order of their key they meet the pages of
// its index, and as a rule of its heap, one behind the other, which takes a third off the time of an update. Pure; used
// by set-writer.ts.

/** Keys are told apart by so many steps: the order need not be exact, and what is sorted is to be a whole double. */
const PLACES = 2 ** 31;
/** Most rows, beside PLACES in the 53 bits of a double. */
const MOST_ROWS = 2 ** 21;

/**
 * `entries` in the order of their keys, near enough. As they are where they are in order already, or where a key is no
 * number.
 */
export function inKeyOrder(
  entries: readonly number[],
  keyOf: (entry: number) => number | string,
): readonly number[] {
  const { length } = entries;
  if (length > MOST_ROWS) return entries;
  const keys = new Float64Array(length);
  let least = Infinity;
  let most = -Infinity;
  for (let at = 0; at < length; at++) {
    const key = keyOf(entries[at] ?? 0);
    if (typeof key !== 'number') return entries;
    keys[at] = key;
    if (key < least) least = key;
    if (key > most) most = key;
  }
  if (isAscending(keys)) return entries;
  const step = Math.min(1, PLACES / (most - least + 1));
  // sorted in place, natively: the key in front, where its entry is behind
  for (let at = 0; at < length; at++)
    keys[at] = Math.floor(((keys[at] ?? 0) - least) * step) * MOST_ROWS + at;
  keys.sort();
  const ordered: number[] = [];
  for (let at = 0; at < length; at++) ordered.push(entries[(keys[at] ?? 0) % MOST_ROWS] ?? 0);
  return ordered;
}

export function isAscending(numbers: ArrayLike<number>): boolean {
  for (let at = 1; at < numbers.length; at++) if ((numbers[at] ?? 0) < (numbers[at - 1] ?? 0)) return false;
  return true;
}
