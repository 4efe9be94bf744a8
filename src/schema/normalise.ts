// Used by compare.ts: statements of two dumps in one spelling. Pure. What is made equal here:
//
//   always        quotes around names (a suffix may need them), the order of CHECK constraints, which is that of names,
//                 and the alias that a renamed table has in a query
//   loosened      names of NOT NULL constraints (from 18 on), names of multirange types (from 14 on), column qualifiers in
//                 queries of one table (up to 15), white space
export function normalised(text: string): string {
  const bare = text.replaceAll('"', '');
  if (!bare.startsWith('CREATE TABLE') && !bare.startsWith('CREATE UNLOGGED TABLE')) return bare;
  const lines = bare.split('\n').map((line) => line.replace(/,$/, ''));
  const isCheck = (line: string): boolean => line.startsWith('    CONSTRAINT');
  return [...lines.filter((line) => !isCheck(line)), ...lines.filter(isCheck).sort()].join('\n');
}

/** `text` is without column qualifiers already. */
export function loosened(text: string): string {
  return normalised(text)
    .replaceAll(/CONSTRAINT \S+ NOT NULL/g, 'NOT NULL')
    .replaceAll(/,?\n\s*multirange_type_name = [^\n]*/g, '')
    .replaceAll(/\s+/g, ' ');
}
