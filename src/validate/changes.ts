// dts.changed on the target: what the stream has changed since the validation began, and what differed when it was read.
// The applier writes it (sync/changed-keys.ts), the validation takes rows out when their keys are settled.
import { MigrationError } from '../model/errors.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import { askForPosition } from '../postgres/marker.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { PATIENT } from '../postgres/transaction-options.ts';
import type { KeyTexts } from './range-sql.ts';

/**
 * What is looked at together. Rows of dts.changed: of small transactions there are thousands a second, a key in each, and a
 * look takes as long for many as for few. Bytes of keys: they are all in memory.
 */
const ROWS_AT_ONCE = 10_000;
const BYTES_AT_ONCE = 2_000_000;
/** Beyond this the stream is faster than we are, and reading the tables again is cheaper than their keys. */
const MAX_ROWS = 20_000;
const POLL_MS = 20;

export interface ChangedRow {
  readonly n: string;
  readonly relation: string;
  /** Null: the whole table. */
  readonly keys: readonly KeyTexts[] | null;
}

export interface StreamPosition {
  readonly slotIncarnation: string;
  readonly appliedLsn: Lsn;
  /** Whether changes are written down. */
  readonly tracking: boolean;
}

/** Undefined before the stream has begun. */
export async function streamPosition(scope: TaskScope): Promise<StreamPosition | undefined> {
  const { rows } = await scope.target.query<{ slot: string; applied: Lsn; tracking: boolean }>(
    `select slot_incarnation as slot, applied_lsn::text as applied, tracking from dts.progress where task_id = $1`,
    [scope.taskId],
  );
  const row = rows[0];
  return row && { slotIncarnation: row.slot, appliedLsn: row.applied, tracking: row.tracking };
}

export async function hasApplied(scope: TaskScope, lsn: Lsn): Promise<boolean> {
  const position = await streamPosition(scope);
  return position !== undefined && compareLsn(position.appliedLsn, lsn) >= 0;
}

/** False when the stream has not applied `lsn` within `waitMs`. */
export async function waitApplied(
  scope: TaskScope,
  lsn: Lsn,
  waitMs: number,
  signal: AbortSignal,
): Promise<boolean> {
  const deadline = Date.now() + waitMs;
  await askForPosition(scope);
  for (;;) {
    if (await hasApplied(scope, lsn)) return true;
    if (Date.now() > deadline) return false;
    await sleep(POLL_MS, signal);
  }
}

/** From its commit on every batch of the stream writes its keys down: the UPDATE waits for the batch that has the lock. */
export async function startTracking(scope: TaskScope): Promise<void> {
  await scope.target.transaction(async (client) => {
    await client.query('delete from dts.changed where task_id = $1', [scope.taskId]);
    const { rowCount } = await client.query('update dts.progress set tracking = true where task_id = $1', [
      scope.taskId,
    ]);
    if (rowCount !== 1) throw new MigrationError('internal', 'target: the task has no progress');
  }, PATIENT);
}

/** The oldest rows behind `afterN`, not too many. `waiting`: about how many keys the others hold; null: there are no others. */
export async function readChanges(
  scope: TaskScope,
  afterN = '0',
): Promise<{ readonly changes: readonly ChangedRow[]; readonly waiting: number | null }> {
  const { rows } = await scope.target.query<{
    n: string;
    relation: string;
    keys: string | null;
    left_rows: number;
    left_bytes: number;
  }>(
    // octet_length does not read what lies out of line
    `with known as (select n, relation, keys, octet_length(keys) as bytes from dts.changed where task_id = $1 and n > $2::bigint),
       first as (select *, row_number() over w as at, sum(bytes) over w as upto
         from (select * from known order by n limit $3) as k window w as (order by n)),
       taken as (select * from first where at = 1 or coalesce(upto, 0) <= $4),
       others as (select count(*) as left_rows, coalesce(sum(bytes), 0) as left_bytes from known
         where n > (select max(n) from taken))
     select n::text, relation, keys, left_rows::float8, left_bytes::float8 from taken, others order by n`,
    [scope.taskId, afterN, ROWS_AT_ONCE, BYTES_AT_ONCE],
  );
  const changes = rows.map(({ n, relation, keys }) => ({
    n,
    relation,
    keys: keys === null ? null : (JSON.parse(keys) as string[][]),
  }));
  if (!rows[0] || rows[0].left_rows === 0) return { changes, waiting: null };
  const count = changes.reduce((sum, { keys }) => sum + (keys?.length ?? 0), 0);
  const bytes = rows.reduce((sum, { keys }) => sum + Buffer.byteLength(keys ?? ''), 0);
  return { changes, waiting: Math.round((rows[0].left_bytes * count) / Math.max(1, bytes)) };
}

/** Every row that is there. */
export async function noteNumbers(scope: TaskScope): Promise<Set<string>> {
  const { rows } = await scope.target.query<{ n: string }>(
    'select n::text from dts.changed where task_id = $1',
    [scope.taskId],
  );
  return new Set(rows.map(({ n }) => n));
}

/** Keys of `relations` written down in other rows than `known`; null: the whole table. As `JSON.stringify` of the key. */
export async function changedBeyond(
  scope: TaskScope,
  known: Iterable<string>,
  relations: readonly string[],
): Promise<Map<string, Set<string> | null>> {
  const found = new Map<string, Set<string> | null>();
  const { rows } = await scope.target.query<{ relation: string; keys: string | null }>(
    // not `n <> all`: before 15 every row is compared with every number
    `select c.relation, c.keys from dts.changed c where c.task_id = $1 and c.relation = any ($3)
       and not exists (select from unnest($2::bigint[]) as known(n) where known.n = c.n)`,
    [scope.taskId, [...known], relations],
  );
  for (const { relation, keys } of rows) {
    const before = found.get(relation);
    if (before === null) continue;
    if (keys === null) found.set(relation, null);
    else {
      const set = before ?? new Set<string>();
      for (const key of JSON.parse(keys) as string[][]) set.add(JSON.stringify(key));
      found.set(relation, set);
    }
  }
  return found;
}

/** Takes settled rows out and puts the keys in that are to be looked at again. */
export async function replaceChanges(
  scope: TaskScope,
  settled: readonly string[],
  again: ReadonlyMap<string, readonly KeyTexts[]>,
): Promise<void> {
  await scope.target.transaction(async (client) => {
    await client.query('delete from dts.changed where task_id = $1 and n = any ($2::bigint[])', [
      scope.taskId,
      settled,
    ]);
    for (const [relation, keys] of again)
      if (keys.length > 0)
        await client.query('insert into dts.changed (task_id, relation, keys) values ($1, $2, $3)', [
          scope.taskId,
          relation,
          JSON.stringify(keys),
        ]);
  });
}

/** Every row, when there are too many to look at one by one: whoever takes them out reads their tables again first. */
export async function overflow(scope: TaskScope): Promise<{ n: string; relation: string }[]> {
  const { rows } = await scope.target.query<{ n: string; relation: string }>(
    `select n::text, relation from dts.changed where task_id = $1
       and (select count(*) from dts.changed where task_id = $1 and keys is not null) > $2`,
    [scope.taskId, MAX_ROWS],
  );
  return rows;
}
