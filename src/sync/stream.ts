// The one long-lived activity of a task: owns publication, slot and walsender from before the first part is read until
// the task is past its cutover. Called by the runtime; the statechart hears of it by StreamEvents.
//
//   publication, slot, barrier → SLOT_READY → wait for the copy → connect → replay ⟲ (reconnect on a lost connection)
//
// Before every connection both servers are asked what is true: the source still the same cluster, the slot still ours, the
// publication as we made it, dts.progress where to go on.
import type { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import { retryDelayMs } from '../model/retry.ts';
import type { StreamEvent } from '../model/stream.ts';
import { isCopyComplete } from '../postgres/copy-state.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { hasLogicalMessages, markerTable, sourceVersion } from '../postgres/marker.ts';
import { ensurePublication } from '../postgres/publication.ts';
import { ensureSlot, findSlot, releaseSlot, verifySlot, type SlotRecord } from '../postgres/slot.ts';
import { schemaPlanOf, sleep, type TaskScope } from '../postgres/task-scope.ts';
import { taskObjectName } from '../postgres/sql.ts';
import { WalStream } from '../postgres/wal-stream.ts';
import { Applier } from './apply.ts';
import { openApplySession } from './apply-session.ts';
import { CopyFilter } from './filter.ts';
import { runHeartbeat } from './heartbeat.ts';
import { loadParts, loadProgress } from './progress.ts';
import { RelationMap } from './relations.ts';
import { Replay, ReplayInOrder, type ReplayFigures } from './replay.ts';
import { sampleReplay, sampleUntilCopied } from './sampler.ts';
import { chooseStreamFormat } from './stream-format.ts';

/** Connections in a row that brought no progress before the error goes to the statechart, which waits longer. */
const MAX_RECONNECTS = 5;

/**
 * Streams the source's changes to the target until `scope.signal` aborts; resolves then, within two seconds, with nothing
 * left open. Slot and publication stay. Emits SLOT_READY once, CAUGHT_UP and FELL_BEHIND as the lag crosses
 * `cutoverMaxLagBytes`, STREAM_PROGRESS after the first position made durable by every connection.
 * Errors: `source_replaced`, `slot_lost`, `slot_stranger`, `slot_creation_timeout`, `publication_lost`, `source_ddl`, `unexpected_row`, and
 * what fromPostgres says of a statement or of a connection that stays away.
 */
export async function runStream(scope: TaskScope, emit: (event: StreamEvent) => void): Promise<void> {
  try {
    // A cluster that is not the slot's has no publication either, and that is not the reason to report.
    if (findSlot(scope)) await ensureSlot(scope);
    await ensurePublication(scope);
    const slot = findSlot(scope) ?? (await ensureSlot(scope));
    emit({ type: 'SLOT_READY' });
    await keepStreaming(scope, slot, emit);
  } catch (error) {
    if (scope.signal.aborted) return;
    throw fromPostgres(error);
  } finally {
    scope.progress.setWaitingFor(null);
  }
}

async function keepStreaming(
  scope: TaskScope,
  slot: SlotRecord,
  emit: (event: StreamEvent) => void,
): Promise<void> {
  const figures: ReplayFigures = { transactionsApplied: 0, changesApplied: 0, batchesInOrder: 0 };
  let attempt = 0;
  let orderedUntil: Lsn | null = null;
  let caughtUp = false;
  for (;;) {
    try {
      await streamOnce(scope, slot, figures, orderedUntil, (event) => {
        if (event.type === 'STREAM_PROGRESS') attempt = 0;
        // A new connection begins to count afresh; the statechart hears only of changes.
        if (event.type === 'CAUGHT_UP' || event.type === 'FELL_BEHIND') {
          if (caughtUp === (event.type === 'CAUGHT_UP')) return;
          caughtUp = event.type === 'CAUGHT_UP';
        }
        emit(event);
      });
    } catch (error) {
      scope.signal.throwIfAborted();
      if (error instanceof ReplayInOrder) {
        orderedUntil = error.until;
        continue;
      }
      const failure = fromPostgres(error);
      attempt++;
      const mayPass = failure.kind === 'transient' || failure.kind === 'ambiguous';
      if (!mayPass || attempt > MAX_RECONNECTS) throw failure;
      const delayMs = retryDelayMs(attempt, Math.random());
      scope.log.warn({ err: failure, attempt, delayMs }, 'the stream broke and connects again');
      scope.progress.setWaitingFor(`the stream connects again in ${delayMs} ms: ${failure.message}`);
      if (caughtUp) {
        // Nothing is measured while nothing is connected: the gate is closed until it is.
        caughtUp = false;
        emit({ type: 'FELL_BEHIND' });
      }
      await sleep(delayMs, scope.signal);
      scope.progress.setWaitingFor(null);
    }
  }
}

/** One connection, from asking both servers to the first error. Returns never; everything that it opened is closed. */
async function streamOnce(
  scope: TaskScope,
  slot: SlotRecord,
  figures: ReplayFigures,
  orderedUntil: Lsn | null,
  emit: (event: StreamEvent) => void,
): Promise<void> {
  await verifySlot(scope, slot);
  await ensurePublication(scope);
  const waiting = await loadProgress(scope, slot);
  await sampleUntilCopied(scope, slot, waiting.appliedLsn, () => isCopyComplete(scope));
  const version = await sourceVersion(scope);
  const filter = new CopyFilter(await loadParts(scope, slot));
  const marker = hasLogicalMessages(version) ? null : markerTable(scope.taskId);
  const relations = new RelationMap(scope, schemaPlanOf(scope).tables, marker);

  const ending = new AbortController();
  const signal = AbortSignal.any([scope.signal, ending.signal]);
  const session = await openApplySession(scope, signal);
  let stream: WalStream | null = null;
  const tasks: Promise<void>[] = [];
  try {
    // A walsender of ours that outlived its connection would keep the slot busy.
    await releaseSlot(scope, slot.name);
    const progress = await loadProgress(scope, slot);
    // A transaction that commits where the target stands has been applied: the next one commits behind it.
    const filtered = filter.concerns({ xid: 0, commitLsn: progress.appliedLsn });
    const format = await chooseStreamFormat(scope, version, filtered);
    scope.log.info(format, 'the stream begins');
    const wal = await WalStream.open(
      scope,
      {
        slot,
        publication: taskObjectName(scope.taskId),
        startLsn: progress.appliedLsn,
        ackedLsn: progress.ackedLsn,
        sourceVersion: version,
        binary: format.binary,
      },
      signal,
    );
    stream = wal;
    const applier = new Applier(scope, session, slot, progress.appliedLsn, format.binary);
    let stored = false;
    const replay = new Replay({
      scope,
      feed: wal,
      applier,
      relations,
      filter,
      figures,
      orderedUntil,
      onStored: () => {
        if (!stored) emit({ type: 'STREAM_PROGRESS' });
        stored = true;
      },
    });
    const view = {
      receivedLsn: () => wal.receivedLsn,
      position: () => replay.position,
      waitingMs: () => applier.waitingMs,
      silentMs: () => wal.silentMs,
      applyPid: session.pid,
      figures,
    };
    tasks.push(
      replay.run(),
      sampleReplay(scope, slot, view, emit, signal),
      runHeartbeat(scope, version, signal),
    );
    // Rejects with the first error; a task that merely has nothing to do (no heartbeat on 13) may end.
    await Promise.all(tasks);
  } catch (error) {
    scope.signal.throwIfAborted();
    if (error instanceof ReplayInOrder) throw error;
    throw await explain(scope, slot, fromPostgres(error));
  } finally {
    ending.abort();
    await Promise.all([stream?.close(), session.close()]);
    await Promise.allSettled(tasks);
  }
}

/**
 * An error of the walsender often only shows that slot or publication are gone, and that they are gone that the source is
 * another one: then that is what is reported.
 */
async function explain(scope: TaskScope, slot: SlotRecord, failure: MigrationError): Promise<MigrationError> {
  if (!['sql_failed', 'connection_failed', 'publication_lost'].includes(failure.code)) return failure;
  try {
    await verifySlot(scope, slot);
    await ensurePublication(scope);
  } catch (error) {
    const found = fromPostgres(error);
    if (found.kind === 'lost' || found.code === 'source_replaced') return found;
  }
  return failure;
}
