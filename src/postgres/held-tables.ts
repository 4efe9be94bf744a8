// Tables whose changes the stream sets aside instead of applying them: those that are copied while it runs (added, or
// copied again). The copy and the stream agree about them by rows on the target, so that whoever is killed when, both
// find the same truth:
//
//   dts.held_table    one row a table
//     held       changes are set aside in dts.held_change, in the target transaction of their batch
//     released   the copy is complete: the stream's next connection applies what is set aside, then
//     done       applies the table's changes as any other's
//   dts.progress.holds   a number that rises with every change of the above. The stream locks the row at the beginning of
//                        every batch and compares; so a batch that began before has ended, and one that begins later is
//                        rolled back and read again by a connection that knows.
import type { PoolClient } from 'pg';
import { MigrationError } from '../model/errors.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import type { TaskScope } from './task-scope.ts';
import { PATIENT } from './transaction-options.ts';

export type HeldState = 'held' | 'released' | 'done';

export interface HeldTable {
  /** `relationKey` of the source table. */
  readonly relation: string;
  readonly state: HeldState;
  /** What is set aside and commits before is applied already. */
  readonly appliedLsn: Lsn;
}

export interface Holds {
  readonly number: number;
  readonly tables: readonly HeldTable[];
}

/** How long one attempt waits for a batch of the stream. */
const LOCK_TIMEOUT = '5s';

/** In one statement: a number and the tables that it stands for. */
export async function readHolds(scope: TaskScope): Promise<Holds> {
  const { rows } = await scope.target.query<{
    holds: number;
    relation: string | null;
    state: HeldState;
    applied: Lsn;
  }>(
    `select p.holds, h.relation, h.state, h.applied_lsn::text as applied
       from dts.progress p left join dts.held_table h using (task_id) where p.task_id = $1 order by h.relation`,
    [scope.taskId],
  );
  return {
    number: rows[0]?.holds ?? 0,
    tables: rows.flatMap(({ relation, state, applied }) =>
      relation === null ? [] : [{ relation, state, appliedLsn: applied }],
    ),
  };
}

/** Runs `work` while no batch of the stream is open, also none of a session that was cut off; false: try again. */
async function betweenBatches(
  scope: TaskScope,
  work: (client: PoolClient, appliedLsn: Lsn) => Promise<boolean>,
): Promise<void> {
  await scope.target.transaction(async (client) => {
    await client.query(`set local lock_timeout = '${LOCK_TIMEOUT}'`);
    const { rows } = await client.query<{ applied: Lsn }>(
      'select applied_lsn::text as applied from dts.progress where task_id = $1 for update',
      [scope.taskId],
    );
    const [progress] = rows;
    if (!progress) throw new MigrationError('connection_failed', 'target: the stream has not begun yet');
    if (await work(client, progress.applied))
      await client.query('update dts.progress set holds = holds + 1 where task_id = $1', [scope.taskId]);
  }, PATIENT);
}

/**
 * From its commit the stream sets the changes of `relations` aside. Tables that are held already stay as they are unless
 * `anew`: then what was copied and set aside of them is forgotten. Errors: `lock_timeout` while a batch is long.
 */
export async function holdTables(
  scope: TaskScope,
  relations: readonly string[],
  anew: boolean,
): Promise<void> {
  await betweenBatches(scope, async (client, appliedLsn) => {
    const { rows } = await client.query<{ relation: string }>(
      'select relation from dts.held_table where task_id = $1',
      [scope.taskId],
    );
    const known = new Set(rows.map(({ relation }) => relation));
    const fresh = anew ? relations : relations.filter((relation) => !known.has(relation));
    if (fresh.length === 0) return false;
    for (const table of ['dts.held_change', 'dts.held_table', 'dts.part'])
      await client.query(`delete from ${table} where task_id = $1 and relation = any ($2::text[])`, [
        scope.taskId,
        fresh,
      ]);
    await client.query(
      `insert into dts.held_table (task_id, relation, state, applied_lsn)
       select $1, relation, 'held', $3::pg_lsn from unnest($2::text[]) as w(relation)`,
      [scope.taskId, fresh, appliedLsn],
    );
    return true;
  });
}

/** From its commit the next connection of the stream takes over what is still set aside. */
export async function releaseTables(scope: TaskScope): Promise<void> {
  await betweenBatches(scope, async (client) => {
    const { rowCount } = await client.query(
      `update dts.held_table set state = 'released' where task_id = $1 and state = 'held'`,
      [scope.taskId],
    );
    return rowCount !== 0;
  });
}

/**
 * The table's changes are applied as any other's from now on. False when something is set aside still: a session that was
 * cut off has committed its batch in the meantime.
 */
export async function settleTable(scope: TaskScope, relation: string): Promise<boolean> {
  let settled = false;
  await betweenBatches(scope, async (client) => {
    const left = await client.query(
      'select from dts.held_change where task_id = $1 and relation = $2 limit 1',
      [scope.taskId, relation],
    );
    settled = left.rowCount === 0;
    if (!settled) return false;
    await client.query(`update dts.held_table set state = 'done' where task_id = $1 and relation = $2`, [
      scope.taskId,
      relation,
    ]);
    // whatever a validation has found out about the table was about other rows
    await client.query(
      `insert into dts.changed (task_id, relation, keys)
       select task_id, $2, null from dts.progress where task_id = $1 and tracking`,
      [scope.taskId, relation],
    );
    return true;
  });
  return settled;
}

/** Once the copy has noted that it is over. */
export async function forgetHolds(scope: TaskScope): Promise<void> {
  await scope.target.query(`delete from dts.held_table where task_id = $1 and state = 'done'`, [
    scope.taskId,
  ]);
}

/** Bytes that are set aside of all tables. */
export async function heldBytes(scope: TaskScope): Promise<number> {
  const { rows } = await scope.target.query<{ bytes: string }>(
    'select coalesce(sum(octet_length(messages)), 0)::text as bytes from dts.held_change where task_id = $1',
    [scope.taskId],
  );
  return Number(rows[0]?.bytes ?? 0);
}

/**
 * Whether everything of the table that commits before `horizon` is applied: the stream has passed it, and nothing that it
 * has set aside before is left.
 */
export async function heldTablePassed(scope: TaskScope, relation: string, horizon: Lsn): Promise<boolean> {
  // the stream's position first: what it sets aside later commits behind it
  const { rows: progress } = await scope.target.query<{ applied: Lsn }>(
    'select applied_lsn::text as applied from dts.progress where task_id = $1',
    [scope.taskId],
  );
  if (progress[0] === undefined || compareLsn(progress[0].applied, horizon) < 0) return false;
  const { rows } = await scope.target.query<{ passed: boolean }>(
    `select coalesce(applied_lsn >= $3::pg_lsn, false) or not exists (
              select from dts.held_change c where c.task_id = $1 and c.relation = $2) as passed
       from dts.held_table where task_id = $1 and relation = $2`,
    [scope.taskId, relation, horizon],
  );
  return rows[0]?.passed === true;
}
