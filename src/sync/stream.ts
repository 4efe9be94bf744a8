// The one long-lived activity of a task: owns publication, slot and walsender from before the first part is read until
// the task is past its cutover. Called by the runtime; the statechart hears of it by StreamEvents.
//
//   replica identities, publication, slot, barrier → SLOT_READY → wait for the copy → connect → replay ⟲ (reconnect on a lost connection)
//
// Before every connection both servers are asked what is true: the source still the same cluster, the slot still ours, the
// publication as we made it, dts.progress where to go on.
import { MigrationError } from '../model/errors.ts';
import { compareLsn, lagBytes, ZERO_LSN, type Lsn } from '../model/lsn.ts';
import { retryDelayMs } from '../model/retry.ts';
import type { StreamEvent } from '../model/stream.ts';
import { upgradeBookkeeping } from '../postgres/bookkeeping.ts';
import { catchUpIsCheap, catchUpSizes, type CatchUpSizes } from '../postgres/call-size.ts';
import { isCopyComplete, unfinishedTables } from '../postgres/copy-state.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { readHolds, settleTable, type Holds } from '../postgres/held-tables.ts';
import { sampleSlot, type SlotHealth } from '../postgres/lag.ts';
import { hasLogicalMessages, markerTable, sourceVersion } from '../postgres/marker.ts';
import { ensurePublication, extendPublication } from '../postgres/publication.ts';
import { makeIdentitiesFull } from '../postgres/replica-identity.ts';
import { ensureSlot } from '../postgres/slot.ts';
import { findSlot, slotOf, type SlotRecord } from '../postgres/slot-record.ts';
import { releaseSlot } from '../postgres/slot-removal.ts';
import { SlotFeed } from '../postgres/slot-feed.ts';
import { SentRolledBack } from '../postgres/sent-rolled-back.ts';
import { SpillFailed } from '../postgres/spill-file.ts';
import { schemaPlanOf, sleep, type TaskScope } from '../postgres/task-scope.ts';
import { taskObjectName } from '../postgres/sql.ts';
import { WalStream, type WalStreamOptions } from '../postgres/wal-stream.ts';
import { Applier } from './apply.ts';
import { openApplySession } from './apply-session.ts';
import { CATCH_UP_REFUSED, catchUpRefused } from './catch-up-refused.ts';
import { drainHeld } from './drain-held.ts';
import { CopyFilter } from './filter.ts';
import { HOLDS_CHANGED } from './held-changes.ts';
import { runHeartbeat } from './heartbeat.ts';
import { OldSnapshots } from './old-snapshots.ts';
import { streamPosition } from './position.ts';
import { loadDurableProgress, loadParts, loadProgress } from './progress.ts';
import { RelationMap } from './relations.ts';
import { Replay, ReplayInOrder } from './replay.ts';
import { newFigures, type ReplayFigures } from './replay-figures.ts';
import { sampleReplay, sampleUntilCopied, type ReplayView } from './sampler.ts';
import { newPartitionsOf } from './catalog-watch.ts';
import { followDdl, noteFilenodes } from './source-ddl.ts';
import { chooseStreamFormat } from './stream-format.ts';
import { SPILL_REFUSED, spillRefused } from './spill-refused.ts';
import { wasWidenedBehind, widenedBehind } from './widen-columns.ts';

/** Of `server_version_num`. */
const STREAMING_SINCE = 140_000;
const HOLDS_POLL_MS = 250;
/** Connections in a row that brought no progress before the error goes to the statechart, which waits longer. */
const MAX_RECONNECTS = 5;

/** Has partitions that the source has got added to the task, by exact names. Errors: why they cannot be. */
export type AddPartitions = (names: readonly string[]) => Promise<void>;

/**
 * Streams the source's changes to the target until `scope.signal` aborts; resolves then, within two seconds, with nothing
 * left open. Slot and publication stay. Emits SLOT_READY once, CAUGHT_UP and FELL_BEHIND as the lag crosses
 * `cutoverMaxLagBytes`, STREAM_PROGRESS after the first position made durable by every connection, FINDING as the slot is in
 * danger and the slot functions are refused, or no longer.
 * Errors: `source_replaced`, `slot_lost`, `slot_stranger`, `slot_creation_timeout`, `publication_lost`, `source_ddl`, `unexpected_row`, and
 * what fromPostgres says of a statement or of a connection that stays away.
 */
export async function runStream(
  scope: TaskScope,
  emit: (event: StreamEvent) => void,
  sizes: CatchUpSizes = catchUpSizes,
  addPartitions: AddPartitions | null = null,
): Promise<void> {
  try {
    await upgradeBookkeeping(scope);
    // A cluster that is not the slot's has no publication either, and that is not the reason to report.
    if (findSlot(scope)) await ensureSlot(scope);
    await noteFilenodes(scope);
    const { findings } = await followDdl(scope);
    if (findings.length > 0) emit({ type: 'SCHEMA_CHANGED', findings });
    await makeIdentitiesFull(scope);
    // beside a stream that runs, the copy of added tables does it
    if (!isCopyComplete(scope)) await extendPublication(scope);
    await ensurePublication(scope);
    if (!findSlot(scope)) await ensureSlot(scope);
    emit({ type: 'SLOT_READY' });
    await keepStreaming(scope, sizes, emit, addPartitions);
  } catch (error) {
    if (scope.signal.aborted) return;
    throw fromPostgres(error);
  } finally {
    scope.progress.setWaitingFor(null);
  }
}

/** What one connection leaves to the next. */
interface StreamMemory {
  /** Slot and publication have been looked at since the last one. */
  isChecked: boolean;
  /** The sets of the changes up to here failed. */
  orderedUntil: Lsn | null;
  /** False once the slot functions were refused. */
  mayCatchUp: boolean;
  /** False once transactions in progress cannot be kept here, or the source cannot be trusted with them. */
  mayGather: boolean;
  /** Up to here they are not for the backlog. */
  unfitUntil: Lsn;
  readonly sizes: CatchUpSizes;
}

async function keepStreaming(
  scope: TaskScope,
  sizes: CatchUpSizes,
  emit: (event: StreamEvent) => void,
  addPartitions: AddPartitions | null,
): Promise<void> {
  const figures = newFigures();
  let attempt = 0;
  // A copy of the slot is no failover slot: what is read from it has not waited for the standbys.
  const mayCatchUp = findSlot(scope)?.failover !== true;
  const memory: StreamMemory = {
    isChecked: true,
    orderedUntil: null,
    mayCatchUp,
    mayGather: true,
    unfitUntil: ZERO_LSN,
    sizes,
  };
  let caughtUp = false;
  for (;;) {
    try {
      await streamOnce(scope, figures, memory, (event) => {
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
        memory.orderedUntil = error.until;
        continue;
      }
      if (error === HOLDS_CHANGED) continue;
      const failure = fromPostgres(error);
      // a row with a new enum value may be refused before the catalog has been looked at
      if (failure.code === 'source_ddl' || failure.code === 'sql_failed') {
        await follow(scope, failure, emit, addPartitions);
        continue;
      }
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

/** Returns when the plan is as the source is again: the stream goes on. Throws `failure`, and why it could not be followed. */
async function follow(
  scope: TaskScope,
  failure: MigrationError,
  emit: (event: StreamEvent) => void,
  addPartitions: AddPartitions | null,
): Promise<void> {
  const partitions = newPartitionsOf(failure);
  if (partitions.length > 0 && scope.spec.options.onDdl === 'apply-additive' && addPartitions !== null) {
    scope.log.info({ partitions }, 'the source has got partitions: they are added');
    return addPartitions(partitions);
  }
  const { findings, refused } = await followDdl(scope);
  if (findings.length === 0 && refused === null) throw failure;
  if (refused !== null)
    throw new MigrationError(failure.code, failure.message, {
      hint: `${refused}; ${failure.hint ?? 'undo it on the source and resume'}`,
      ...(failure.details === undefined ? {} : { details: failure.details }),
      cause: failure,
    });
  emit({ type: 'SCHEMA_CHANGED', findings });
}

/**
 * One connection, from asking both servers to the first error, or until another kind of connection is better: then it
 * returns. Everything that it opened is closed.
 */
async function streamOnce(
  scope: TaskScope,
  figures: ReplayFigures,
  memory: StreamMemory,
  emit: (event: StreamEvent) => void,
): Promise<void> {
  if (!memory.isChecked) {
    await ensureSlot(scope);
    await ensurePublication(scope);
  }
  memory.isChecked = false;
  const slot = slotOf(scope);
  const waiting = await loadProgress(scope, slot);
  const version = await sourceVersion(scope);
  await sampleUntilCopied(scope, slot, version, waiting.appliedLsn, () => isCopyComplete(scope), emit);
  const holds = await settleReleased(scope);
  const held = new Set(holds.tables.filter(({ state }) => state !== 'done').map(({ relation }) => relation));
  const filter = new CopyFilter(await loadParts(scope, slot, held));
  // Who holds a table removes its markers: both must be of one moment, or the filter knows nothing of a table that it is asked for.
  if ((await readHolds(scope)).number !== holds.number) throw HOLDS_CHANGED;
  const marker = hasLogicalMessages(version) ? null : markerTable(scope.taskId);
  const isComing = (table: string): boolean => unfinishedTables(scope).includes(table);

  const ending = new AbortController();
  const signal = AbortSignal.any([scope.signal, ending.signal]);
  const heldBack = held.size > 0 ? 'changes that are set aside are compared with a copy' : null;
  const choosing = chooseStreamFormat(scope, version, heldBack);
  choosing.catch(() => undefined); // awaited below, unless something else fails first
  const session = await openApplySession(scope, signal);
  let feed: WalStream | SlotFeed | null = null;
  const tasks: Promise<void>[] = [];
  try {
    // A walsender of ours that outlived its connection would keep the slot busy.
    await releaseSlot(scope, slot.name);
    const progress = await loadDurableProgress(scope, slot);
    // A transaction that commits where the target stands has been applied: the next one commits behind it.
    const tables = widenedBehind(schemaPlanOf(scope).tables, progress.appliedLsn);
    const relations = new RelationMap(scope, tables, marker, { held, isComing });
    const textUntil = (position: Lsn): string | null =>
      wasWidenedBehind(tables, position) ? 'changes may come under a type that was widened since' : null;
    const passing = textUntil(progress.appliedLsn);
    const lasting = await choosing;
    const format = passing === null ? lasting : await chooseStreamFormat(scope, version, passing);
    const opened = await openFeed(
      scope,
      {
        slot,
        publication: taskObjectName(scope.taskId),
        startLsn: progress.appliedLsn,
        ackedLsn: progress.ackedLsn,
        sourceVersion: version,
        binary: format.binary,
        streaming: memory.mayGather && version >= STREAMING_SINCE,
      },
      memory,
      emit,
      signal,
    );
    feed = opened;
    const isCatchUp = opened instanceof SlotFeed;
    const kind = isCatchUp ? 'catch-up' : 'live';
    scope.log.info({ ...format, feed: kind, from: progress.appliedLsn }, 'the stream begins');
    const applier = new Applier(
      scope,
      session,
      streamPosition(scope, slot, holds.number),
      progress,
      format.binary,
    );
    let stored = false;
    const replay = new Replay({
      scope,
      feed: opened,
      applier,
      relations,
      filter,
      figures,
      orderedUntil: memory.orderedUntil,
      onStored: () => {
        if (!stored) emit({ type: 'STREAM_PROGRESS' });
        stored = true;
      },
    });
    // The slot functions would have all of it decoded again.
    const isGathering = (): boolean => (opened.inProgress?.transactions ?? 0) > 0;
    const view: ReplayView = {
      receivedLsn: () => opened.receivedLsn,
      position: () => replay.position,
      waitingMs: () => applier.waitingMs,
      silentMs: () => opened.silentMs,
      applyPid: session.pid,
      feed: kind,
      inProgress: () => opened.inProgress,
      oldSnapshots: new OldSnapshots(scope),
      figures,
      onSample: (lag, found) => {
        const isBehind =
          !isCatchUp && !isGathering() && shouldCatchUp(memory, slot, replay.position, lag / 2, found);
        const mayBeBinary = passing !== null && lasting.binary && textUntil(replay.position) === null;
        if (isBehind || mayBeBinary) replay.leave();
      },
    };
    const replayed = replay.run();
    tasks.push(
      replayed,
      watchHolds(scope, holds.number, () => replay.leave(), signal),
      sampleReplay(scope, slot, version, view, emit, signal),
      runHeartbeat(scope, version, signal),
    );
    // Rejects with the first error; a task that merely has nothing to do (no heartbeat on 13) may end.
    await Promise.race([Promise.all(tasks), replayed]);
    if (opened instanceof SlotFeed) {
      memory.unfitUntil = opened.unfitUntil ?? memory.unfitUntil;
      await opened.advance();
    }
  } catch (error) {
    scope.signal.throwIfAborted();
    if (error instanceof ReplayInOrder) throw error;
    const failure = fromPostgres(error);
    if (feed instanceof WalStream && feed.inProgress !== null && isOfParts(feed, error, failure)) {
      memory.mayGather = false;
      if (error instanceof SpillFailed)
        emit({ type: 'FINDING', code: SPILL_REFUSED, finding: spillRefused(error) });
      scope.log.warn(
        { err: error },
        'transactions are not read in parts any more, but when they have committed',
      );
      return;
    }
    if (feed instanceof SlotFeed && isOutOfResources(failure)) {
      memory.mayCatchUp = false;
      emit({ type: 'FINDING', code: CATCH_UP_REFUSED, finding: catchUpRefused(failure) });
      scope.log.warn(
        { err: failure },
        'the source cannot hold what a call returns: the walsender feeds alone',
      );
      return;
    }
    throw await explain(scope, failure);
  } finally {
    ending.abort();
    await Promise.all([feed?.close(), session.close()]);
    await Promise.allSettled(tasks);
  }
}

/**
 * Applies what is set aside of tables whose copy is complete. Before the connection: nothing else is applied meanwhile. What
 * the copy has left of it is little.
 */
async function settleReleased(scope: TaskScope): Promise<Holds> {
  for (;;) {
    const holds = await readHolds(scope);
    const released = holds.tables.filter(({ state }) => state === 'released');
    if (released.length === 0) return holds;
    for (const { relation } of released) {
      await drainHeld(scope, relation);
      scope.failpoint('held.drained');
      await settleTable(scope, relation);
      scope.failpoint('held.settled');
    }
  }
}

/** Calls `leave` when other tables are to be set aside; a batch finds out by itself, but there may be none. */
async function watchHolds(
  scope: TaskScope,
  number: number,
  leave: () => void,
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    await sleep(HOLDS_POLL_MS, signal);
    if (unfinishedTables(scope).length === 0) continue;
    const { rows } = await scope.target.query<{ holds: number }>(
      'select holds from dts.progress where task_id = $1',
      [scope.taskId],
    );
    if (rows[0] !== undefined && rows[0].holds !== number) {
      leave();
      return;
    }
  }
}

/** Worth the slot functions, cheap for the source, and nothing that is before the slot's beginning would be decoded. */
function shouldCatchUp(
  memory: StreamMemory,
  { consistentLsn }: SlotRecord,
  position: Lsn,
  lag: number,
  slot: SlotHealth['slot'],
): boolean {
  if (!memory.mayCatchUp || compareLsn(position, memory.unfitUntil) < 0) return false;
  if (lag < memory.sizes.fromBytes || !slot?.restartLsn || !slot.confirmedFlushLsn) return false;
  if (compareLsn(slot.confirmedFlushLsn, consistentLsn) < 0) return false;
  return catchUpIsCheap(lagBytes(slot.confirmedFlushLsn, slot.restartLsn), lag, memory.sizes);
}

/** The walsender, or the slot functions while far behind. Where those are not to be had, the walsender alone. */
async function openFeed(
  scope: TaskScope,
  options: WalStreamOptions,
  memory: StreamMemory,
  emit: (event: StreamEvent) => void,
  signal: AbortSignal,
): Promise<WalStream | SlotFeed> {
  const { slot, sourceLsn } = await sampleSlot(scope, options.slot.name);
  if (shouldCatchUp(memory, options.slot, options.startLsn, lagBytes(sourceLsn, options.startLsn), slot)) {
    try {
      const feed = await SlotFeed.open(scope, options, memory.sizes, signal);
      emit({ type: 'FINDING', code: CATCH_UP_REFUSED, finding: null });
      return feed;
    } catch (error) {
      signal.throwIfAborted();
      const failure = fromPostgres(error);
      if (failure.kind === 'transient') throw failure;
      memory.mayCatchUp = false;
      emit({ type: 'FINDING', code: CATCH_UP_REFUSED, finding: catchUpRefused(failure) });
      scope.log.warn({ err: failure }, 'the slot functions are not to be had: the walsender feeds alone');
    }
  }
  const feed = await WalStream.open(scope, options, signal);
  if (options.streaming) emit({ type: 'FINDING', code: SPILL_REFUSED, finding: null });
  return feed;
}

/** Without parts it does not happen, or may not: else it happens again. Not for a disk of the source that is full: it gets more then. */
function isOfParts({ brokenBy }: WalStream, error: unknown, failure: MigrationError): boolean {
  if (error instanceof SpillFailed || error instanceof SentRolledBack) return true;
  const { kind, details } = failure;
  const isRefused = kind !== 'transient' && details?.['sqlstate'] !== undefined;
  return error === brokenBy && isRefused && !isOutOfResources(failure);
}

/** Class 53 of the source, insufficient resources: temp_file_limit, a full disk. The walsender needs no temporary file. */
function isOutOfResources({ details }: MigrationError): boolean {
  const { role, sqlstate } = details ?? {};
  return role === 'source' && typeof sqlstate === 'string' && sqlstate.startsWith('53');
}

/**
 * An error of the walsender often only shows that slot or publication are gone, and that they are gone that the source is
 * another one: then that is what is reported.
 */
async function explain(scope: TaskScope, failure: MigrationError): Promise<MigrationError> {
  if (!['sql_failed', 'connection_failed', 'publication_lost'].includes(failure.code)) return failure;
  try {
    await ensureSlot(scope);
    await ensurePublication(scope);
  } catch (error) {
    const found = fromPostgres(error);
    if (found.kind === 'lost' || found.code === 'source_replaced') return found;
  }
  return failure;
}
