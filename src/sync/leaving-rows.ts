// Which rows of a batch leave as what, and in which order. Pure; set-writer.ts sends them, and may ask before their turn has
// come: of a large batch it takes as long as the target waits for the first of them.
import { inKeyOrder } from './key-order.ts';
import { DELETE, INSERT, REPLACE, UPDATE, type TableBatch } from './table-batch.ts';

/** Up to so many rows leave as a statement each, in source order: little dearer for the target than a set, and it fails less. */
export const FEW_ROWS = 12;

/** Entries of a batch. */
export interface LeavingRows {
  /** In the order of their keys, as are those of `updates`; a few of them, which are statements of their own, in source order. */
  readonly deletes: readonly number[];
  /** By the positions of the values that the updates lack: as a rule there are none, and one group. */
  readonly updates: ReadonlyMap<string, readonly number[]>;
  /** In source order. */
  readonly inserts: readonly number[];
}

export function leavingRows(batch: TableBatch): LeavingRows {
  const deletes: number[] = [];
  const inserts: number[] = [];
  const updates = new Map<string, number[]>();
  for (let entry = 0; entry < batch.count; entry++) {
    const op = batch.ops[entry];
    if (op === DELETE || op === REPLACE) deletes.push(entry);
    if (op === INSERT || op === REPLACE) inserts.push(entry);
    if (op !== UPDATE) continue;
    const word = batch.hasUnchanged ? batch.unchangedOf(entry) : '';
    const group = updates.get(word);
    if (group) group.push(entry);
    else updates.set(word, [entry]);
  }
  const ordered = (entries: readonly number[]): readonly number[] =>
    entries.length <= FEW_ROWS ? entries : inKeyOrder(entries, batch.keyOf);
  return {
    deletes: ordered(deletes),
    updates: new Map([...updates].map(([word, entries]) => [word, ordered(entries)])),
    inserts,
  };
}
