// Waits, under the fence, until the target has applied everything up to it. Called by the statechart's stoppingWrites.
// No guessing by lag: a marker is committed on the source behind the last writer, and the stream notes it on the target
// in the transaction that applies all that came before it.
import { randomUUID } from 'node:crypto';
import { cutoverNotes, type DrainNote, type FenceNote } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import { compareLsn, lagBytes, type Lsn } from '../model/lsn.ts';
import { emitMarker } from '../postgres/marker.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { cutoverDeadline } from '../postgres/under-fence.ts';

/** Writers wait, too. */
const POLL_MS = 3;
const SHOW_EVERY_MS = 500;

/**
 * Emits a marker and waits until it has been applied. Every call makes a new one: an older one may lie before the
 * present fence. Errors: `cutover_timeout` at the deadline, ms since the epoch.
 */
export async function drain(
  scope: TaskScope,
  deadline = cutoverDeadline(scope),
): Promise<{ markerLsn: Lsn }> {
  const fence = scope.checkpoints.get<FenceNote>(cutoverNotes.fence);
  if (!fence) throw new MigrationError('internal', 'drain without a fence');
  const markerId = randomUUID();
  scope.checkpoints.set(cutoverNotes.drain, { markerId, markerLsn: null } satisfies DrainNote);
  await emitMarker(scope, markerId);
  scope.failpoint('drain.marker-emitted');
  const markerLsn = await waitForMarker(scope, markerId, deadline);
  if (compareLsn(markerLsn, fence.fenceLsn) < 0) {
    throw new MigrationError(
      'internal',
      `the marker at ${markerLsn} lies before the fence at ${fence.fenceLsn}`,
    );
  }
  scope.checkpoints.set(cutoverNotes.drain, {
    markerId,
    markerLsn,
    appliedAt: new Date().toISOString(),
  } satisfies DrainNote);
  scope.failpoint('drain.marker-applied');
  return { markerLsn };
}

async function waitForMarker(scope: TaskScope, markerId: string, deadline: number): Promise<Lsn> {
  let nextShow = Date.now() + SHOW_EVERY_MS;
  let reason = 'the marker to be applied on the target';
  try {
    for (;;) {
      const { rows } = await scope.target.query<{ marker: string | null; lsn: Lsn | null; applied: Lsn }>(
        `select marker, marker_lsn::text as lsn, applied_lsn::text as applied from dts.progress where task_id = $1`,
        [scope.taskId],
      );
      const row = rows[0];
      if (row?.marker === markerId && row.lsn !== null) return row.lsn;
      if (Date.now() >= nextShow) {
        nextShow = Date.now() + SHOW_EVERY_MS;
        const lag = row
          ? `${lagBytes(await sourceLsn(scope), row.applied)} bytes behind`
          : 'without progress';
        reason = `the marker to be applied on the target, which is ${lag}`;
        scope.progress.setWaitingFor(reason);
      }
      if (Date.now() > deadline) {
        throw new MigrationError('cutover_timeout', `still waiting for ${reason}`, {
          hint: 'request the cutover when the lag is smaller, or raise cutover_timeout_ms: PATCH …/options',
          details: { markerId },
        });
      }
      await sleep(POLL_MS, scope.signal);
    }
  } finally {
    scope.progress.setWaitingFor(null);
  }
}

async function sourceLsn(scope: TaskScope): Promise<Lsn> {
  const { rows } = await scope.source.query<{ lsn: Lsn }>('select pg_current_wal_lsn()::text as lsn');
  return rows[0]?.lsn ?? '0/0';
}
