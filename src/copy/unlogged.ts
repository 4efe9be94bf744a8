// Unlogged tables, whose changes are not in the WAL: copied whole while nobody can write, before the comparison. Every
// cutover begins anew, for writes were allowed in between.
import { setMaxListeners } from 'node:events';
import { asMigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import type { CopyFormat } from '../postgres/binary-form.ts';
import { CopySocket } from '../postgres/copy-socket.ts';
import { copyError, copyStream } from '../postgres/copy-stream.ts';
import { copyJobsOf } from '../postgres/host.ts';
import { emptyTable, writesExisting } from '../postgres/existing-tables.ts';
import { identRelation } from '../postgres/sql.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { readingDeadline, underFence } from '../postgres/under-fence.ts';
import { ONE_SNAPSHOT } from '../postgres/transaction-options.ts';
import { chooseFormats } from './format.ts';
import { copyStatements } from './part.ts';

/** Nobody but us should have a lock on them: the source is fenced, the target is not open. */
const LOCK_TIMEOUT = '10s';

/**
 * Empties and fills them on the target, one transaction a table, `copyJobs` at once. Idempotent.
 * Errors: `copy_failed` with the relation, `source_ddl`, `lock_timeout`, `deadline_exceeded` at `at`, ms since
 * the epoch: the deadline of all reading under the fence.
 */
export async function copyUnlogged(scope: TaskScope, at = readingDeadline(scope)): Promise<void> {
  const { unlogged = [] } = schemaPlanOf(scope);
  if (unlogged.length === 0) return;
  const copyJobs = Math.min(copyJobsOf(scope), unlogged.length);
  await underFence(scope, at, { what: 'the copy of the unlogged tables' }, async (deadline) => {
    const stop = new AbortController();
    const signal = AbortSignal.any([deadline, stop.signal]);
    setMaxListeners(0, signal, scope.signal); // one listener a connection
    const formats = await chooseFormats(scope, unlogged);
    const queue = [...unlogged];
    let first: unknown = null;
    const worker = async (): Promise<void> => {
      try {
        for (let table = queue.shift(); table !== undefined && !signal.aborted; table = queue.shift()) {
          scope.progress.setWaitingFor(`the copy of the unlogged ${relationKey(table.source)}`);
          const format = formats.get(relationKey(table.source));
          if (format) await copyTable(scope, table, format, signal);
          scope.failpoint('copy.mid-unlogged');
        }
      } catch (error) {
        first ??= error;
        stop.abort();
      }
    };
    await Promise.all(Array.from({ length: copyJobs }, () => worker()));
    deadline.throwIfAborted();
    if (first !== null) throw asMigrationError(first);
  });
}

async function copyTable(
  scope: TaskScope,
  table: PlannedTable,
  { format }: CopyFormat,
  signal: AbortSignal,
): Promise<void> {
  const context = { relation: relationKey(table.source) };
  const source = await scope.source.session({ purpose: 'copy', signal, socket: () => new CopySocket() });
  try {
    const target = await scope.target.session({ purpose: 'copy', signal });
    try {
      await source.client.query(ONE_SNAPSHOT.begin);
      await target.client.query('begin');
      try {
        await target.client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
        await emptyTable(scope, target.client, table.target);
      } catch (error) {
        throw copyError(error, 'target', context);
      }
      const statements = copyStatements({ table, range: null }, format, !writesExisting(scope));
      await copyStream({ source, target, sourceSide: scope.source, ...statements, signal, context });
      try {
        await target.client.query(`analyze ${identRelation(table.target)}; commit`);
      } catch (error) {
        throw copyError(error, 'target', context);
      }
      await source.client.query('commit');
    } finally {
      await target.close(); // after an error this is the rollback
    }
  } finally {
    await source.close();
  }
}
