// Which keys a repair has to put right, batch by batch: the named ones, the known differences, or whatever lies in ranges of
// the key on either side. Of a range there may be millions, so they are walked in the order of the index: first the source's
// keys, then the target's that the source does not have. A row that comes or goes behind the walk is the stream's.
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
    for (let from = 0; from < keys.length; from += KEYS_AT_ONCE)
      yield { keys: keys.slice(from, from + KEYS_AT_ONCE), position: null };
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
      keysSql(table[role], { after: from, upTo }, KEYS_AT_ONCE),
      table,
      role,
    );
    const keys = found.map(({ key }) => key);
    const last = keys.at(-1);
    if (!last) return;
    const position = { range, role, after: last };
    const known = role === 'target' ? await readHashes(pair, table, keys, 'source') : [];
    yield { keys: keys.filter((_, n) => known[n] === undefined), position };
    from = last;
  }
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
