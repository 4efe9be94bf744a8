// What the positions of source and target say over time: the lag in seconds, the rates of both, when they will meet, and
// how long the slot still lives. Pure; the sampler feeds it two positions and a time, twice a second.
import { lsnToBigint, type Lsn } from '../model/lsn.ts';

interface Sample {
  readonly atMs: number;
  readonly source: bigint;
  readonly applied: bigint;
}

/** Rates are of this window; the lag in seconds may reach further back. */
const WINDOW_MS = 60_000;
const MAX_SAMPLES = 10_000;

export interface LagFigures {
  readonly lagSeconds: number;
  readonly sourceBytesPerSecond: number;
  readonly appliedBytesPerSecond: number;
  /** Null: never at these rates, or too early to say. */
  readonly catchUpSeconds: number | null;
}

export class LagClock {
  readonly #samples: Sample[] = [];

  add(atMs: number, sourceLsn: Lsn, appliedLsn: Lsn): LagFigures {
    const now: Sample = { atMs, source: lsnToBigint(sourceLsn), applied: lsnToBigint(appliedLsn) };
    this.#samples.push(now);
    this.#forget(now);
    const first = this.#samples.find((sample) => sample.atMs >= atMs - WINDOW_MS) ?? now;
    const seconds = (atMs - first.atMs) / 1_000;
    const rate = (from: bigint, to: bigint): number =>
      seconds > 0 ? Math.max(0, Math.round(Number(to - from) / seconds)) : 0;
    const sourceBytesPerSecond = rate(first.source, now.source);
    const appliedBytesPerSecond = rate(first.applied, now.applied);
    const left = Number(now.source - now.applied);
    const gain = appliedBytesPerSecond - sourceBytesPerSecond;
    return {
      lagSeconds: this.#secondsBehind(now),
      sourceBytesPerSecond,
      appliedBytesPerSecond,
      catchUpSeconds: left <= 0 ? 0 : gain > 0 ? Math.ceil(left / gain) : null,
    };
  }

  /** Since the source first went beyond what is applied. */
  #secondsBehind(now: Sample): number {
    if (now.source <= now.applied) return 0;
    const passed = this.#samples.find((sample) => sample.source > now.applied) ?? now;
    return (now.atMs - passed.atMs) / 1_000;
  }

  /** Kept: the window, and what is needed to tell since when the target is behind. */
  #forget(now: Sample): void {
    const { length } = this.#samples;
    let drop = 0;
    while (drop < length - 2) {
      const next = this.#samples[drop + 1];
      if (!next || next.source > now.applied || next.atMs >= now.atMs - WINDOW_MS) break;
      drop++;
    }
    if (drop > 0) this.#samples.splice(0, drop);
    // Behind for hours: every second sample will do.
    if (this.#samples.length > MAX_SAMPLES) {
      const thinned = this.#samples.filter((_, at) => at % 2 === 0 || at === this.#samples.length - 1);
      this.#samples.splice(0, this.#samples.length, ...thinned);
    }
  }
}

export interface SlotOutlook {
  readonly secondsUntilLost: number | null;
  readonly warning: string | null;
}

/** Warned of from here on. */
const SOON_SECONDS = 3_600;

/**
 *   wal_status   room                      warning
 *   lost                                   none: it is an error by then
 *   unreserved                             the next checkpoint removes its WAL
 *   others       no limit                  none
 *   others       lasts less than an hour   when it is used up
 *
 * Room is what may still be written: `safe_wal_size` (max_slot_wal_keep_size), or what `capBytes` (max_retained_wal_bytes) leaves,
 * whichever is less.
 */
export function slotOutlook(
  slot: {
    readonly walStatus: string | null;
    readonly safeWalBytes: number | null;
    readonly retainedBytes: number;
  },
  sourceBytesPerSecond: number,
  capBytes: number | null,
): SlotOutlook {
  const { walStatus, safeWalBytes } = slot;
  const capRoom = capBytes === null ? Infinity : Math.max(0, capBytes - slot.retainedBytes);
  const isCapped = capRoom < (safeWalBytes ?? Infinity);
  const room = Math.min(capRoom, safeWalBytes ?? Infinity);
  const remedy = isCapped
    ? 'raise max_retained_wal_bytes (PATCH …/options), or let the writers of the source pause'
    : 'raise max_slot_wal_keep_size on the source (a reload is enough), or let its writers pause';
  const secondsUntilLost =
    room === Infinity || sourceBytesPerSecond <= 0
      ? null
      : Math.max(0, Math.floor(room / sourceBytesPerSecond));
  if (walStatus === 'unreserved')
    return {
      secondsUntilLost: 0,
      warning:
        'the slot is lost at the next checkpoint of the source: raise max_slot_wal_keep_size there (a reload is enough), or let its writers pause',
    };
  if (secondsUntilLost === null || secondsUntilLost > SOON_SECONDS)
    return { secondsUntilLost, warning: null };
  return {
    secondsUntilLost,
    warning: `the slot is lost in about ${Math.ceil(secondsUntilLost / 60)} min unless the target catches up: ${remedy}`,
  };
}
