// Puts rows of the target right while the stream runs: exactly the asked ones, as they are on the source at the position
// that the target has applied. Run by the online validation between its looks, because it reads dts.changed too.
//
//   1 the notes of dts.changed so far
//   2 the barrier: every transaction that ran at that moment has ended. So whatever the target has applied by 1, our read
//     sees, also what the walsender sent before it became visible
//   3 the rows on the source; the position behind the read; wait until it is applied
//   4 one target transaction that holds the applier's lock: keys written down since 1 are left for another attempt; of
//     the others nothing was applied since, so the read is what the target must hold: delete, insert, note for validation
//
// A change that comes later finds the row it expects. Nothing here needs the copy's markers.
import { MigrationError } from '../model/errors.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import type { Repair } from '../model/validation.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { silenceTriggers } from '../postgres/existing-tables.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { allEndedBelow, describeWriters, newTransactionId, writersSince } from '../postgres/writers.ts';
import { changedBeyond, noteNumbers, streamPosition } from './changes.ts';
import { tableNote } from './notes.ts';
import { ask, type TablePair } from './ranges.ts';
import { keysSql, rowsSql, spelledSql, type KeyTexts } from './range-sql.ts';
import type { SidePair } from './sessions.ts';

/** Keys of one target transaction: the applier waits for it. */
const KEYS_AT_ONCE = 500;
const ATTEMPTS = 5;
/** Longest wait for older transactions of the source, and for the stream. */
const WAIT_MS = 30_000;
const POLL_MS = 20;
/** Keys of all ranges of one request. */
const MAX_REPAIR_KEYS = 100_000;

export interface Repaired {
  readonly written: number;
  readonly removed: number;
  /** Keys that changed at every attempt. */
  readonly unsettled: number;
}

/** Errors: `invalid_request` for too many keys, `deadline_exceeded` naming who is waited for, those of the servers. */
export async function repairTable(
  scope: TaskScope,
  pair: SidePair,
  table: TablePair,
  repair: Repair,
): Promise<Repaired> {
  const keys = await wantedKeys(scope, pair, table, repair);
  const done = { written: 0, removed: 0, unsettled: 0 };
  for (let from = 0; from < keys.length; from += KEYS_AT_ONCE) {
    let left: readonly KeyTexts[] = keys.slice(from, from + KEYS_AT_ONCE);
    for (let attempt = 1; left.length > 0 && attempt <= ATTEMPTS; attempt++)
      left = await repairOnce(scope, pair, table, left, done);
    done.unsettled += left.length;
  }
  return done;
}

async function wantedKeys(
  scope: TaskScope,
  pair: SidePair,
  table: TablePair,
  repair: Repair,
): Promise<KeyTexts[]> {
  const wanted = new Map<string, KeyTexts>();
  const want = (key: KeyTexts): void => void wanted.set(JSON.stringify(key), key);
  // what the stream notes of a key is compared with it: see `changed` in repairOnce
  if (repair.keys !== null)
    for (const { key } of await ask<{ key: string[] }>(
      pair.source,
      spelledSql(table.source, repair.keys),
      table,
      'source',
    ))
      want(key);
  if (repair.keys === null && repair.ranges === null)
    for (const { key } of tableNote(scope.checkpoints, table.name).differences) want(key);
  for (const range of repair.ranges ?? [])
    for (const role of ['source', 'target'] as const)
      for (const { key } of await ask<{ key: string[] }>(
        pair[role],
        keysSql(table[role], range, MAX_REPAIR_KEYS + 1),
        table,
        role,
      ))
        want(key);
  if (wanted.size > MAX_REPAIR_KEYS)
    throw new MigrationError('invalid_request', `the ranges hold more than ${MAX_REPAIR_KEYS} keys`, {
      hint: 'ask for smaller ranges, one request after the other',
    });
  return [...wanted.values()];
}

/** Returns the keys that changed meanwhile. */
async function repairOnce(
  scope: TaskScope,
  pair: SidePair,
  table: TablePair,
  keys: readonly KeyTexts[],
  done: { written: number; removed: number },
): Promise<KeyTexts[]> {
  const known = await noteNumbers(scope);
  await passBarrier(scope);
  const rows = await ask<{ n: number; row: (string | null)[] }>(
    pair.source,
    rowsSql(table.source, keys),
    table,
    'source',
  );
  const { rows: lsns } = await pair.source.client.query<{ lsn: Lsn }>(
    'select pg_current_wal_insert_lsn()::text as lsn',
  );
  await waitApplied(scope, lsns[0]?.lsn ?? '0/0');
  const { client } = pair.target;
  try {
    await client.query('begin');
    await silenceTriggers(client, { local: true });
    // The applier takes it at the beginning of each batch: from here on none is open.
    await client.query('select 1 from dts.progress where task_id = $1 for update', [scope.taskId]);
    const since = (await changedBeyond(scope, known, [table.name])).get(table.name);
    const changed = (key: KeyTexts): boolean => since === null || since?.has(JSON.stringify(key)) === true;
    const settled = keys.filter((key) => !changed(key));
    const values = rows.filter(({ n }) => settled.includes(keys[n - 1] ?? [])).map(({ row }) => row);
    done.removed += await deleteRows(pair, table, settled);
    done.written += await insertRows(pair, table, values);
    await client.query('insert into dts.changed (task_id, relation, keys) values ($1, $2, $3)', [
      scope.taskId,
      table.name,
      JSON.stringify(settled),
    ]);
    scope.failpoint('repair.before-commit');
    await client.query('commit');
    return keys.filter(changed);
  } catch (error) {
    await client.query('rollback').catch(() => undefined);
    throw fromPostgres(error, { role: 'target', relation: table.name });
  }
}

async function deleteRows(pair: SidePair, table: TablePair, keys: readonly KeyTexts[]): Promise<number> {
  const { key } = table.target;
  const { rowCount } = await pair.target.client.query(
    `delete from only ${identRelation(table.target.relation)} as t
     using unnest(${key.map((_, n) => `$${n + 1}::text[]`).join(', ')}) as w(${key.map((_, n) => `k${n}`).join(', ')})
     where ${key.map((column, n) => `t.${ident(column.name)} = w.k${n}::${column.type}`).join(' and ')}`,
    key.map((_, n) => keys.map((texts) => texts[n])),
  );
  return rowCount ?? 0;
}

async function insertRows(
  pair: SidePair,
  table: TablePair,
  rows: readonly (readonly (string | null)[])[],
): Promise<number> {
  const columns = table.plan.columns.flatMap((column, at) => (column.generated ? [] : [{ column, at }]));
  const { rowCount } = await pair.target.client.query(
    `insert into ${identRelation(table.target.relation)} (${columns.map(({ column }) => ident(column.name)).join(', ')})
     overriding system value
     select ${columns.map(({ column }, n) => `w.v${n}::${column.type}`).join(', ')}
     from unnest(${columns.map((_, n) => `$${n + 1}::text[]`).join(', ')}) as w(${columns.map((_, n) => `v${n}`).join(', ')})`,
    columns.map(({ at }) => rows.map((row) => row[at])),
  );
  return rowCount ?? 0;
}

async function passBarrier(scope: TaskScope): Promise<void> {
  const startedMs = Date.now();
  const id = await newTransactionId(scope.source);
  while (!(await allEndedBelow(scope.source, id))) {
    if (Date.now() - startedMs > WAIT_MS)
      throw new MigrationError(
        'deadline_exceeded',
        `source: the repair waits for ${describeWriters(await writersSince(scope.source, startedMs))}`,
        { hint: 'end these transactions, then ask for the repair again', details: { role: 'source' } },
      );
    await sleep(POLL_MS, scope.signal);
  }
}

async function waitApplied(scope: TaskScope, lsn: Lsn): Promise<void> {
  const deadline = Date.now() + WAIT_MS;
  for (;;) {
    const position = await streamPosition(scope);
    if (position && compareLsn(position.appliedLsn, lsn) >= 0) return;
    if (Date.now() > deadline)
      throw new MigrationError('deadline_exceeded', `target: the stream has not applied ${lsn} yet`, {
        hint: 'ask for the repair again when the lag is smaller',
      });
    await sleep(POLL_MS, scope.signal);
  }
}
