// The drain marker: something that only we write into the source's WAL, so that its arrival proves that everything
// before it has been applied. From 14 on a transactional logical message; 13's pgoutput has no messages, so there it is
// a row in a table of ours that belongs to the publication. Cutover emits it, sync recognises it.
import { DTS_SCHEMA, ident, identRelation, literal } from './sql.ts';
import type { RelationName } from '../model/relation.ts';
import type { Side } from './connections.ts';
import type { TaskScope } from './task-scope.ts';

/** Prefix of the task's logical messages. */
export function markerPrefix(taskId: string): string {
  return `dts/${taskId}`;
}

/** The marker table on a source of version 13. */
export function markerTable(taskId: string): RelationName {
  return { schema: DTS_SCHEMA, name: `marker_${taskId}` };
}

/** Of the connections of one task; another server, of another version, behind the address is another cluster and found out as such. */
const versions = new WeakMap<Side, number>();

/** `server_version_num` of the source. */
export async function sourceVersion(scope: Pick<TaskScope, 'source'>): Promise<number> {
  const known = versions.get(scope.source);
  if (known !== undefined) return known;
  const { rows } = await scope.source.query<{ version: number }>(
    `select current_setting('server_version_num')::int as version`,
  );
  const version = rows[0]?.version ?? 0;
  versions.set(scope.source, version);
  return version;
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
  const marker = hasLogicalMessages(await sourceVersion(scope))
    ? `select pg_logical_emit_message(true, ${literal(markerPrefix(scope.taskId))}, ${literal(markerId)})`
    : `insert into ${identRelation(markerTable(scope.taskId))} (${ident('id')}) values (${literal(markerId)}) on conflict do nothing`;
  // One round trip. A walsender sends only what is flushed: with synchronous_commit = off the marker could lie in the
  // WAL buffers.
  await scope.source.query(`begin; set local synchronous_commit = on; ${marker}; commit`);
}

/** Prefix of the message that has the stream store its position on the target at once. */
export function positionPrefix(taskId: string): string {
  return `${markerPrefix(taskId)}/position`;
}

/**
 * For whoever waits until the stream has applied a position: it stores one that no change has brought only every two seconds.
 * Version 13 has no message for it. Not durable on standbys, for which a commit may wait: it only has to be flushed here.
 */
export async function askForPosition(scope: TaskScope): Promise<void> {
  if (!hasLogicalMessages(await sourceVersion(scope))) return;
  const message = `select pg_logical_emit_message(true, ${literal(positionPrefix(scope.taskId))}, '')`;
  await scope.source.query(`begin; set local synchronous_commit = local; ${message}; commit`);
}
