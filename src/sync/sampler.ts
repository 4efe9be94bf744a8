// Looks at source and slot beside the copy and the replay: live figures, the gate of the cutover, a lost slot noticed at
// once instead of at the next reconnection, and the reason when nothing moves.
import { MigrationError } from '../model/errors.ts';
import { SLOT_ENDANGERED } from '../model/finding.ts';
import { compareLsn, lagBytes, type Lsn } from '../model/lsn.ts';
import type { InProgress } from '../model/progress.ts';
import type { StreamEvent } from '../model/stream.ts';
import { readSpill, sampleSlot, type SlotHealth } from '../postgres/lag.ts';
import { ensurePublication } from '../postgres/publication.ts';
import { verifySlot } from '../postgres/slot.ts';
import type { SlotRecord } from '../postgres/slot-record.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { enforceWalCap } from '../postgres/wal-cap.ts';
import { checkCatalog } from './catalog-watch.ts';
import { LagClock, slotFinding, slotOutlook, type SlotOutlook } from './lag-clock.ts';
import type { OldSnapshots } from './old-snapshots.ts';
import { newFigures, type ReplayFigures } from './replay-figures.ts';

const SAMPLE_MS = 500;
/** DROP TABLE and a changed publication send nothing: looked up now and then, beside every reconnection. */
const PUBLICATION_CHECK_MS = 30_000;
/** DDL that no message tells; only once the stream has caught up, so that it comes to the change itself if it can. */
const CATALOG_CHECK_MS = 10_000;
const SPILL_CHECK_MS = 10_000;
const COPY_SAMPLE_MS = 1_000;
const COPY_POLL_MS = 100;
/** Without an answer for so long, the wait is shown. */
const SHOW_WAIT_AFTER_MS = 3_000;
const SHOW_SILENCE_AFTER_MS = 20_000;

/** What the sampler reads of a running replay. */
export interface ReplayView {
  readonly receivedLsn: () => Lsn;
  readonly position: () => Lsn;
  readonly waitingMs: () => number;
  readonly silentMs: () => number;
  readonly applyPid: number;
  readonly feed: 'live' | 'catch-up';
  /** Null: transactions are sent when they have committed. */
  readonly inProgress: () => InProgress | null;
  readonly oldSnapshots: OldSnapshots;
  /** Called with every sample. */
  readonly onSample: (lagBytes: number, slot: SlotHealth['slot']) => void;
  readonly figures: ReplayFigures;
}

class Sampler {
  readonly #scope: TaskScope;
  readonly #slot: SlotRecord;
  readonly #version: number;
  readonly #clock = new LagClock();
  #spill: number | null = null;
  #spillAt = 0;
  #warned: string | null = null;
  #dangerAtMs = Date.now();
  /** The last finding, as it was said. */
  #said: string | undefined;
  readonly #emit: (event: StreamEvent) => void;

  constructor(scope: TaskScope, slot: SlotRecord, version: number, emit: (event: StreamEvent) => void) {
    this.#scope = scope;
    this.#slot = slot;
    this.#version = version;
    this.#emit = emit;
  }

  /** Throws `slot_lost` when it is gone, also when it is dropped here because of `max_retained_wal_bytes`. */
  async sample(
    at: { readonly receivedLsn: Lsn; readonly appliedLsn: Lsn },
    rates: {
      readonly changesPerSecond: number;
      readonly figures: ReplayFigures;
      readonly limitedBy: 'source' | 'target' | null;
      readonly feed: 'live' | 'catch-up' | null;
      readonly inProgress: InProgress | null;
    },
  ): Promise<{ readonly lag: number; readonly lagSeconds: number; readonly slot: SlotHealth['slot'] }> {
    const scope = this.#scope;
    const health = await sampleSlot(scope, this.#slot.name);
    if (health.slot === null || health.slot.walStatus === 'lost') {
      await verifySlot(scope, this.#slot);
      throw new MigrationError('internal', 'source: the slot was lost and is back');
    }
    await enforceWalCap(scope, this.#slot, health.slot.retainedBytes);
    const now = Date.now();
    if (now - this.#spillAt >= SPILL_CHECK_MS) {
      this.#spillAt = now;
      this.#spill = await readSpill(scope, this.#slot.name, this.#version);
    }
    const lag = lagBytes(health.sourceLsn, at.appliedLsn);
    const { sentLsn } = health;
    const flushedLsn = health.slot.confirmedFlushLsn;
    const oldestLsn =
      flushedLsn !== null && compareLsn(flushedLsn, at.appliedLsn) < 0 ? flushedLsn : at.appliedLsn;
    const figures = this.#clock.add(now, health.sourceLsn, at.appliedLsn, oldestLsn);
    const secondsBehind = (lsn: Lsn | null): number | null =>
      lsn === null ? null : this.#clock.secondsBehind(lsn);
    const outlook = slotOutlook(
      health.slot,
      figures.sourceBytesPerSecond,
      scope.spec.options.maxRetainedWalBytes,
    );
    if (outlook.warning !== null && outlook.warning !== this.#warned)
      scope.log.warn({ slot: this.#slot.name, ...health.slot }, outlook.warning);
    this.#warned = outlook.warning;
    this.#tell(health.slot, outlook, now);
    scope.progress.setSync({
      feed: rates.feed,
      sourceLsn: health.sourceLsn,
      sentLsn,
      receivedLsn: at.receivedLsn,
      appliedLsn: at.appliedLsn,
      flushedLsn,
      lagBytes: lag,
      ...figures,
      sentLagSeconds: secondsBehind(sentLsn),
      receivedLagSeconds: this.#clock.secondsBehind(at.receivedLsn),
      flushedLagSeconds: secondsBehind(flushedLsn),
      limitedBy: lag > 0 ? rates.limitedBy : null,
      changesPerSecond: rates.changesPerSecond,
      inProgress: rates.inProgress,
      transactionsApplied: rates.figures.transactionsApplied,
      changesApplied: rates.figures.changesApplied,
      slot: { ...health.slot, ...outlook, spillBytes: this.#spill },
      sampledAt: new Date(now).toISOString(),
    });
    return { lag, lagSeconds: figures.lagSeconds, slot: health.slot };
  }

  /** The danger of the slot as a finding of the task, when it is another than before. */
  #tell(slot: NonNullable<SlotHealth['slot']>, outlook: SlotOutlook, atMs: number): void {
    const cap = this.#scope.spec.options.maxRetainedWalBytes;
    const finding = slotFinding(slot, outlook, cap, { atMs, dangerAtMs: this.#dangerAtMs });
    if (finding === undefined) return;
    if (finding !== null) this.#dangerAtMs = atMs;
    const said = JSON.stringify(finding);
    if (said !== this.#said) this.#emit({ type: 'FINDING', code: SLOT_ENDANGERED, finding });
    this.#said = said;
  }
}

/** Until the copy is complete: nothing is streamed yet, the slot retains WAL. */
export async function sampleUntilCopied(
  scope: TaskScope,
  slot: SlotRecord,
  version: number,
  appliedLsn: Lsn,
  isCopied: () => boolean,
  emit: (event: StreamEvent) => void,
): Promise<void> {
  const figures = newFigures();
  const sampler = new Sampler(scope, slot, version, emit);
  for (let sampledAt = 0; !isCopied(); ) {
    if (Date.now() - sampledAt >= COPY_SAMPLE_MS) {
      sampledAt = Date.now();
      await sampler.sample(
        { receivedLsn: appliedLsn, appliedLsn },
        { changesPerSecond: 0, figures, limitedBy: null, feed: null, inProgress: null },
      );
    }
    await sleep(COPY_POLL_MS, scope.signal);
  }
}

/** Beside the replay, until `signal` aborts; throws what the source or a lost slot answers. */
export async function sampleReplay(
  scope: TaskScope,
  slot: SlotRecord,
  version: number,
  view: ReplayView,
  emit: (event: StreamEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  const sampler = new Sampler(scope, slot, version, emit);
  // The first sample tells in any case: the connection before may have been caught up, and the source has written since.
  let caughtUp: boolean | null = null;
  let last = { at: Date.now(), ...view.figures };
  let shown: string | null = null;
  let limitedBy: 'source' | 'target' | null = null;
  let checkedAt = Date.now();
  let catalogCheckedAt = Date.now();
  for (;;) {
    const now = Date.now();
    if (now - checkedAt >= PUBLICATION_CHECK_MS) {
      checkedAt = now;
      await ensurePublication(scope);
    }
    const seconds = (now - last.at) / 1_000;
    const changes = view.figures.changesApplied;
    const changesPerSecond = seconds > 0 ? Math.round((changes - last.changesApplied) / seconds) : 0;
    const { feedWaitMs, targetWaitMs } = view.figures;
    const ofFeed = feedWaitMs - last.feedWaitMs;
    const ofTarget = targetWaitMs - last.targetWaitMs;
    // a wait is counted when it ends: while none has, it is the one that was
    if (ofFeed + ofTarget > 0) limitedBy = ofFeed >= ofTarget ? 'source' : 'target';
    last = { at: now, ...view.figures };
    // The applied position first: sampled later it could lie beyond the source's.
    const at = { appliedLsn: view.position(), receivedLsn: view.receivedLsn() };
    const { figures, feed } = view;
    const inProgress = view.inProgress();
    const sampled = await sampler.sample(at, { changesPerSecond, figures, limitedBy, feed, inProgress });
    const { lag, lagSeconds } = sampled;
    view.onSample(lag, sampled.slot);
    if (caughtUp === true && now - catalogCheckedAt >= CATALOG_CHECK_MS) {
      catalogCheckedAt = now;
      await checkCatalog(scope);
    }
    const within = lag <= scope.spec.options.cutoverMaxLagBytes;
    if (within !== caughtUp) {
      caughtUp = within;
      emit({ type: within ? 'CAUGHT_UP' : 'FELL_BEHIND' });
    }
    const reason = (await waitReason(scope, view)) ?? (await view.oldSnapshots.reason(now, lagSeconds));
    if (reason !== shown) scope.progress.setWaitingFor(reason);
    shown = reason;
    await sleep(SAMPLE_MS, signal);
  }
}

async function waitReason(scope: TaskScope, view: ReplayView): Promise<string | null> {
  const waitingMs = view.waitingMs();
  if (waitingMs > SHOW_WAIT_AFTER_MS) {
    const { rows } = await scope.target.query<{ pid: number; usename: string | null; query: string }>(
      `select pid, usename::text, left(query, 100) as query from pg_stat_activity
       where pid = any (pg_blocking_pids($1)) order by xact_start limit 1`,
      [view.applyPid],
    );
    const blocker = rows[0];
    const seconds = Math.round(waitingMs / 1_000);
    return blocker
      ? `the target: pid ${blocker.pid} (${blocker.usename ?? 'unknown'}) holds a lock for ${seconds} s: ${blocker.query}`
      : `the target: a batch has been running for ${seconds} s`;
  }
  const silentMs = view.silentMs();
  if (silentMs > SHOW_SILENCE_AFTER_MS)
    return `the source: its walsender has said nothing for ${Math.round(silentMs / 1_000)} s`;
  return null;
}
