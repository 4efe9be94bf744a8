// Which keys a repair has to put right, batch by batch: the named ones, the known differences, or whatever lies in ranges of
// the key on either side. Of a range there may be millions, so they are walked in the order of the index, and only rows that are
// not the same are put right: first the source's keys, then the target's that the source does not have. A row that comes
// or goes behind the walk is the stream's.
import type { Role } from '../model/endpoint.ts';
import type { KeyRange, Repair, RepairPosition } from '../model/validation.ts';
import type { Checkpoints } from '../postgres/task-scope.ts';
import { readHashes } from './keys.ts';
import { tableNote } from './notes.ts';
import { keysSql, spelledSql, type KeyTexts } from './range-sql.ts';
import { ask, type TablePair } from './ranges.ts';
import type { SidePair } from './sessions.ts';

/** Keys of one target transaction: the applier waits for it. */
const KEYS_AT_ONCE = 500;
/** Keys of a range that are looked at together. */
const PAGE_KEYS = 5_000;

export interface RepairBatch {
  readonly keys: readonly KeyTexts[];
  /** Where to go on behind it; null: from the beginning, for the keys are few. */
  readonly position: RepairPosition | null;
}

/** From `repair.position` on. Errors: those of the servers. */
export async function* repairKeys(
  checkpoints: Pick<Checkpoints, 'get'>,
  pair: SidePair,
  table: TablePair,
  repair: Repair,
): AsyncGenerator<RepairBatch> {
  if (repair.ranges === null || repair.keys !== null) {
    const keys = await namedKeys(checkpoints, pair, table, repair);
    for (const batch of batchesOf(keys)) yield { keys: batch, position: null };
  }
  const begun = repair.position ?? { range: 0, role: 'source', after: null };
  for (const [range, bounds] of (repair.ranges ?? []).entries()) {
    if (range < begun.range) continue;
    for (const role of ['source', 'target'] as const) {
      const isBegun = range === begun.range;
      if (isBegun && begun.role === 'target' && role === 'source') continue;
      const after = isBegun && begun.role === role ? begun.after : null;
      yield* keysOfRange(pair, table, role, { ...bounds, after: after ?? bounds.after }, range);
    }
  }
}

async function* keysOfRange(
  pair: SidePair,
  table: TablePair,
  role: Role,
  { after, upTo }: KeyRange,
  range: number,
): AsyncGenerator<RepairBatch> {
  for (let from = after; ; ) {
    const found = await ask<{ key: string[] }>(
      pair[role],
      keysSql(table[role], { after: from, upTo }, PAGE_KEYS),
      table,
      role,
    );
    const keys = found.map(({ key }) => key);
    const last = keys.at(-1);
    if (!last) return;
    const source = await readHashes(pair, table, keys, 'source');
    const target = role === 'source' ? await readHashes(pair, table, keys, 'target') : [];
    const unlike = keys.filter((_, n) =>
      role === 'source' ? source[n] !== target[n] : source[n] === undefined,
    );
    const batches = batchesOf(unlike);
    for (const batch of batches.slice(0, -1)) yield { keys: batch, position: { range, role, after: from } };
    yield { keys: batches.at(-1) ?? [], position: { range, role, after: last } };
    from = last;
  }
}

function batchesOf(keys: readonly KeyTexts[]): (readonly KeyTexts[])[] {
  const count = Math.ceil(keys.length / KEYS_AT_ONCE);
  return Array.from({ length: count }, (_, n) => keys.slice(n * KEYS_AT_ONCE, (n + 1) * KEYS_AT_ONCE));
}

async function namedKeys(
  checkpoints: Pick<Checkpoints, 'get'>,
  pair: SidePair,
  table: TablePair,
  { keys }: Repair,
): Promise<KeyTexts[]> {
  // what the stream notes of a key is compared with it: see `changed` in repair.ts
  const named =
    keys === null
      ? tableNote(checkpoints, table.name).differences
      : await ask<{ key: string[] }>(pair.source, spelledSql(table.source, keys), table, 'source');
  return [...new Map(named.map(({ key }) => [JSON.stringify(key), key])).values()];
}
