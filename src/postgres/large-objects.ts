// Which large objects of the target are ours: those that `dts.large_object` names, written in the transaction that makes
// them. Their OIDs are the source's, so another one of the same OID is somebody else's and stays.
import type { PoolClient } from 'pg';
import { MigrationError } from '../model/errors.ts';
import type { TaskScope } from './task-scope.ts';

/** Of one transaction: each takes a lock, of which a server has few thousands. */
const BATCH = 100;

/**
 * Removes ours from the target, in batches; what is left when it is killed is still known. Idempotent. Errors: those of
 * the target, `aborted`.
 */
export async function unlinkLargeObjects(
  scope: TaskScope,
  signal: AbortSignal = scope.signal,
): Promise<void> {
  const { rows } = await scope.target.query<{ present: boolean }>(
    `select to_regclass('dts.large_object') is not null as present`,
  );
  if (!rows[0]?.present) return;
  while ((await scope.target.transaction((client) => unlinkBatch(scope, client))) > 0)
    if (signal.aborted) throw new MigrationError('aborted', 'stopped on request');
}

/** How many were forgotten; somebody may have removed some of them before. */
async function unlinkBatch({ taskId, incarnation }: TaskScope, client: PoolClient): Promise<number> {
  const { rows } = await client.query<{ oid: string }>(
    `delete from dts.large_object where task_id = $1 and oid in (
       select l.oid from dts.large_object l join dts.task t using (task_id)
       where l.task_id = $1 and t.incarnation = $2 order by l.oid limit $3)
     returning oid::text`,
    [taskId, incarnation, BATCH],
  );
  await client.query('select lo_unlink(oid) from pg_largeobject_metadata where oid = any ($1::oid[])', [
    rows.map(({ oid }) => oid),
  ]);
  return rows.length;
}

/** Whether neither the source has any nor the target one of ours: then there is nothing to copy, to remove, or to compare. */
export async function hasNoLargeObjects({ source, target, taskId }: TaskScope): Promise<boolean> {
  const [ofSource, ours] = await Promise.all([
    source.query('select from pg_largeobject_metadata limit 1'),
    target.query('select from dts.large_object where task_id = $1 limit 1', [taskId]),
  ]);
  return ofSource.rowCount === 0 && ours.rowCount === 0;
}
