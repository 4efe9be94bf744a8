// Commits that did not wait for their server's disk become durable: a synchronous commit flushes everything before it. The
// target's, before the copy counts on its markers, and before a stream tells the source how far the target is; the
// source's, for copy-flush.ts and slot-beginning.ts.
import type { QueryResult, QueryResultRow } from 'pg';
import type { TaskScope } from './task-scope.ts';

/** What a side and a session of it have in common. */
export interface Queryable {
  query<R extends QueryResultRow>(sql: string, values: unknown[]): Promise<Pick<QueryResult<R>, 'rows'>>;
}

/** Within a transaction, whose commit then flushes the WAL; `local`: without the server's standbys. */
export async function flushAtCommit(
  client: { query(sql: string): Promise<unknown> },
  level: 'on' | 'local',
): Promise<void> {
  await client.query(`set local synchronous_commit = ${level}`);
  await client.query(`select pg_logical_emit_message(true, 'dts.flush', '')`); // a commit without WAL flushes nothing
}

/**
 * What `read` sees is durable when it resolves, for it lies before in the WAL: of one session, because a server that
 * crashed in between would have taken back what was read.
 */
export async function flushTarget<T>(
  { target, progress }: Pick<TaskScope, 'target' | 'progress'>,
  read: (client: Queryable) => Promise<T>,
): Promise<T> {
  progress.setWaitingFor('the target makes durable what was committed');
  try {
    return await target.transaction(async (client) => {
      await flushAtCommit(client, 'on');
      return read(client);
    });
  } finally {
    progress.setWaitingFor(null);
  }
}
