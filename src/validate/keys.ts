// Compares single rows by their keys, and says how they differ. Called by the online validation for keys that changed or
// differed when they were read, and by the delta comparison under the fence, where the answer is final.
import type { DifferenceKind, RowDifference } from '../model/validation.ts';
import { ask, onBoth, type TablePair } from './ranges.ts';
import { hashesSql, rowsSql, type KeyTexts } from './range-sql.ts';
import type { SidePair } from './sessions.ts';

/** Keys of one statement. */
const KEYS_AT_ONCE = 5_000;

/** Hash of each row by its position in `keys`; undefined: there is none. */
export type RowHashes = readonly (string | undefined)[];

export async function readHashes(
  pair: SidePair,
  table: TablePair,
  keys: readonly KeyTexts[],
  role: 'source' | 'target',
): Promise<RowHashes> {
  const hashes: (string | undefined)[] = Array.from({ length: keys.length });
  for (let from = 0; from < keys.length; from += KEYS_AT_ONCE) {
    const batch = keys.slice(from, from + KEYS_AT_ONCE);
    const rows = await ask<{ n: number; hash: string }>(
      pair[role],
      hashesSql(table[role], batch),
      table,
      role,
    );
    for (const { n, hash } of rows) hashes[from + n - 1] = hash;
  }
  return hashes;
}

/** How the rows of a key differ; null when they do not. */
export function differenceOf(source: string | undefined, target: string | undefined): DifferenceKind | null {
  if (source === target) return null;
  if (target === undefined) return 'missing';
  return source === undefined ? 'extra' : 'changed';
}

/** The same differences, with the columns that differ for the `changed` ones. */
export async function withColumns(
  pair: SidePair,
  table: TablePair,
  differences: readonly RowDifference[],
): Promise<RowDifference[]> {
  const changed = differences.filter((difference) => difference.kind === 'changed');
  if (changed.length === 0) return [...differences];
  const keys = changed.map((difference) => difference.key);
  const [source, target] = await onBoth<{ n: number; row: (string | null)[] }>(pair, table, (side) =>
    rowsSql(side, keys),
  );
  const byPosition = (
    rows: readonly { n: number; row: (string | null)[] }[],
  ): Map<number, (string | null)[]> => new Map(rows.map(({ n, row }) => [n, row]));
  const left = byPosition(source);
  const right = byPosition(target);
  const columns = new Map<RowDifference, string[]>();
  for (const [index, difference] of changed.entries()) {
    const was = left.get(index + 1);
    const is = right.get(index + 1);
    if (!was || !is) continue; // it changed meanwhile
    const names = table.plan.columns.filter((_, n) => was[n] !== is[n]).map((column) => column.name);
    columns.set(difference, names);
  }
  return differences.map((difference) => {
    const names = columns.get(difference);
    return names === undefined ? difference : { ...difference, columns: names };
  });
}
