// Keeps the slot of an idle source moving: without WAL there is no keepalive with a new position, and WAL written
// elsewhere in the cluster would be retained for a slot that stands still. Runs beside the replay, 14+ only (13 cannot
// write a logical message; its walsender still reports the WAL of other databases).
import { hasLogicalMessages, markerPrefix } from '../postgres/marker.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';

const HEARTBEAT_MS = 10_000;

/** Emits a non-transactional message now and then until `signal` aborts; throws what the source answers. */
export async function runHeartbeat(
  scope: TaskScope,
  sourceVersion: number,
  signal: AbortSignal,
): Promise<void> {
  if (!hasLogicalMessages(sourceVersion)) return;
  for (;;) {
    await sleep(HEARTBEAT_MS, signal);
    await scope.source.query('select pg_logical_emit_message(false, $1, $2::text)', [
      `${markerPrefix(scope.taskId)}/heartbeat`,
      '',
    ]);
  }
}
