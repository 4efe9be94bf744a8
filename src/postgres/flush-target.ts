// Commits of ours that did not wait for the target's disk become durable: the copy's before it counts on its markers, the
// stream's before a new connection tells the source how far the target is.
import type { Client } from 'pg';
import type { TaskScope } from './task-scope.ts';

/**
 * What `read` sees is durable when it resolves, for it lies before in the WAL: of one session, because a server that
 * crashed in between would have taken back what was read.
 */
export async function flushTarget<T>(
  { target, progress }: Pick<TaskScope, 'target' | 'progress'>,
  read: (client: Pick<Client, 'query'>) => Promise<T>,
): Promise<T> {
  progress.setWaitingFor('the target makes durable what was committed');
  try {
    return await target.transaction(async (client) => {
      await client.query('set local synchronous_commit = on');
      await client.query(`select pg_logical_emit_message(true, 'dts.flush', '')`); // a commit without WAL flushes nothing
      return read(client);
    });
  } finally {
    progress.setWaitingFor(null);
  }
}
