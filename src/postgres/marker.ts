// The drain marker: something that only we write into the source's WAL, so that its arrival proves that everything
// before it has been applied. From 14 on a transactional logical message; 13's pgoutput has no messages, so there it is
// a row in a table of ours that belongs to the publication. Cutover emits it, sync recognises it.
import { DTS_SCHEMA, ident, identRelation } from './sql.ts';
import type { RelationName } from '../model/relation.ts';
import type { TaskScope } from './task-scope.ts';

/** Prefix of the task's logical messages. */
export function markerPrefix(taskId: string): string {
  return `dts/${taskId}`;
}

/** The marker table on a source of version 13. */
export function markerTable(taskId: string): RelationName {
  return { schema: DTS_SCHEMA, name: `marker_${taskId}` };
}

/** `server_version_num` of the source. */
export async function sourceVersion(scope: TaskScope): Promise<number> {
  const { rows } = await scope.source.query<{ version: number }>(
    `select current_setting('server_version_num')::int as version`,
  );
  return rows[0]?.version ?? 0;
}

/** Whether the source's pgoutput can send logical messages (14+). */
export function hasLogicalMessages(version: number): boolean {
  return version >= 140_000;
}

/**
 * Commits the marker on the source, durably; the stream then writes it to dts.progress (marker, marker_lsn) on the
 * target, in the transaction that applies everything before it. Doing it again with the same id is harmless.
 */
export async function emitMarker(scope: TaskScope, markerId: string): Promise<void> {
  const version = await sourceVersion(scope);
  await scope.source.transaction(async (client) => {
    // A walsender sends only what is flushed: with synchronous_commit = off the marker could lie in the WAL buffers.
    await client.query('set local synchronous_commit = on');
    if (hasLogicalMessages(version))
      await client.query('select pg_logical_emit_message(true, $1, $2::text)', [
        markerPrefix(scope.taskId),
        markerId,
      ]);
    else
      await client.query(
        `insert into ${identRelation(markerTable(scope.taskId))} (${ident('id')}) values ($1) on conflict do nothing`,
        [markerId],
      );
  });
}
