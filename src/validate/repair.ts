// Puts rows of the target right while the stream runs: exactly the asked ones, as they are on the source at the position
// that the target has applied. Run by the online validation between its looks, because it reads dts.changed too; some
// batches of keys (repair-keys.ts) at a time, each like this:
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
import type { Repair } from '../model/validation.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { silenceTriggers } from '../postgres/existing-tables.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { describeWriters, passBarrier, writersSince } from '../postgres/writers.ts';
import { changedBeyond, noteNumbers, waitApplied } from './changes.ts';
import { repairKeys } from './repair-keys.ts';
import { ask, type TablePair } from './ranges.ts';
import { rowsSql, type KeyTexts } from './range-sql.ts';
import { positionBehind, type SidePair } from './sessions.ts';

const ATTEMPTS = 5;
/** Longest wait for older transactions of the source, and for the stream. */
const WAIT_MS = 30_000;
const POLL_MS = 20;
/** Before the validation looks at what has changed meanwhile. */
const SLICE_MS = 2_000;

/**
 * Goes on with the repair where it stands, for a while; `save` notes how far it has come. Errors: `deadline_exceeded` naming
 * who is waited for, those of the servers.
 */
export async function repairSome(
  scope: TaskScope,
  pair: SidePair,
  table: TablePair,
  repair: Repair,
  save: (repair: Repair) => void,
): Promise<void> {
  const untilMs = Date.now() + SLICE_MS;
  let now = repair;
  for await (const { keys, position } of repairKeys(scope.checkpoints, pair, table, repair)) {
    const done = { written: 0, removed: 0 };
    let left: readonly KeyTexts[] = keys;
    for (let attempt = 1; left.length > 0 && attempt <= ATTEMPTS; attempt++)
      left = await repairOnce(scope, pair, table, left, done);
    now = {
      ...now,
      rowsWritten: now.rowsWritten + done.written,
      rowsRemoved: now.rowsRemoved + done.removed,
      keysUnsettled: now.keysUnsettled + left.length,
    };
    if (position === null) continue;
    now = { ...now, position, error: null };
    save(now);
    scope.failpoint('repair.batch-noted');
    if (Date.now() >= untilMs) return;
  }
  save({ ...now, state: 'done', endedAt: new Date().toISOString() });
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
  await passBarrierOrGiveUp(scope);
  const rows = await ask<{ n: number; row: (string | null)[] }>(
    pair.source,
    rowsSql(table.source, keys),
    table,
    'source',
  );
  const lsn = await positionBehind(pair);
  if (!(await waitApplied(scope, lsn, WAIT_MS, scope.signal)))
    throw new MigrationError('deadline_exceeded', `target: the stream has not applied ${lsn} yet`, {
      hint: 'ask for the repair again when the lag is smaller',
    });
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

async function passBarrierOrGiveUp(scope: TaskScope): Promise<void> {
  const startedMs = Date.now();
  await passBarrier(scope.source, async () => {
    if (Date.now() - startedMs > WAIT_MS)
      throw new MigrationError(
        'deadline_exceeded',
        `source: the repair waits for ${describeWriters(await writersSince(scope.source, startedMs))}`,
        { hint: 'end these transactions, then ask for the repair again', details: { role: 'source' } },
      );
    await sleep(POLL_MS, scope.signal);
  });
}
