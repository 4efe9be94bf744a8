// What the positions of source and target say over time: the lag in seconds, the rates of both, when they will meet, and
// how long the slot still lives. Pure; the sampler feeds it the positions and a time, twice a second.
import { SLOT_ENDANGERED, type Finding } from '../model/finding.ts';
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

  /** `oldestLsn`: what secondsBehind is asked for is not behind it. */
  add(atMs: number, sourceLsn: Lsn, appliedLsn: Lsn, oldestLsn = appliedLsn): LagFigures {
    const now: Sample = { atMs, source: lsnToBigint(sourceLsn), applied: lsnToBigint(appliedLsn) };
    this.#samples.push(now);
    this.#forget(now, lsnToBigint(oldestLsn));
    const first = this.#samples.find((sample) => sample.atMs >= atMs - WINDOW_MS) ?? now;
    const seconds = (atMs - first.atMs) / 1_000;
    const rate = (from: bigint, to: bigint): number =>
      seconds > 0 ? Math.max(0, Math.round(Number(to - from) / seconds)) : 0;
    const sourceBytesPerSecond = rate(first.source, now.source);
    const appliedBytesPerSecond = rate(first.applied, now.applied);
    const left = Number(now.source - now.applied);
    const gain = appliedBytesPerSecond - sourceBytesPerSecond;
    return {
      lagSeconds: this.secondsBehind(appliedLsn),
      sourceBytesPerSecond,
      appliedBytesPerSecond,
      catchUpSeconds: left <= 0 ? 0 : gain > 0 ? Math.ceil(left / gain) : null,
    };
  }

  /** At the last sample: since when the source was beyond `lsn`. */
  secondsBehind(lsn: Lsn): number {
    const position = lsnToBigint(lsn);
    const passed = this.#samples.find((sample) => sample.source > position);
    const now = this.#samples.at(-1);
    return passed && now ? (now.atMs - passed.atMs) / 1_000 : 0;
  }

  /** Kept: the window, and what is needed to tell since when a position from `oldest` on is behind. */
  #forget(now: Sample, oldest: bigint): void {
    const { length } = this.#samples;
    let drop = 0;
    while (drop < length - 2) {
      const next = this.#samples[drop + 1];
      if (!next || next.source > oldest || next.atMs >= now.atMs - WINDOW_MS) break;
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

interface SlotFigures {
  readonly walStatus: string | null;
  readonly safeWalBytes: number | null;
  readonly retainedBytes: number;
}

export interface SlotOutlook {
  readonly secondsUntilLost: number | null;
  readonly warning: string | null;
}

/** Warned of from here on. */
const SOON_SECONDS = 3_600;
/** A source's rate goes up and down: a finding is taken back when the slot has not been in danger for so long. */
const CALM_MS = 60_000;

const KEEP_SIZE_REMEDY =
  'raise max_slot_wal_keep_size on the source (a reload is enough), or let its writers pause';
const CAP_REMEDY = 'raise max_retained_wal_bytes (PATCH …/options), or let the writers of the source pause';

/** What may still be written, and whether that is our own limit. */
function roomOf(slot: SlotFigures, capBytes: number | null): { room: number; isCapped: boolean } {
  const capRoom = capBytes === null ? Infinity : Math.max(0, capBytes - slot.retainedBytes);
  const serverRoom = slot.safeWalBytes ?? Infinity;
  return { room: Math.min(capRoom, serverRoom), isCapped: capRoom < serverRoom };
}

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
  slot: SlotFigures,
  sourceBytesPerSecond: number,
  capBytes: number | null,
): SlotOutlook {
  const { room, isCapped } = roomOf(slot, capBytes);
  const remedy = isCapped ? CAP_REMEDY : KEEP_SIZE_REMEDY;
  const secondsUntilLost =
    room === Infinity || sourceBytesPerSecond <= 0
      ? null
      : Math.max(0, Math.floor(room / sourceBytesPerSecond));
  if (slot.walStatus === 'unreserved')
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

/**
 * The warning as a finding. It has no figures, so that it is another one only when something else is so. Null takes back
 * what was said; undefined: nothing is to be said. `dangerAtMs`: when the slot was in danger last, or we began to look.
 */
export function slotFinding(
  slot: SlotFigures,
  { warning }: SlotOutlook,
  capBytes: number | null,
  { atMs, dangerAtMs }: { readonly atMs: number; readonly dangerAtMs: number },
): Finding | null | undefined {
  if (warning === null) return atMs - dangerAtMs >= CALM_MS ? null : undefined;
  const isNext = slot.walStatus === 'unreserved';
  const when = isNext
    ? 'at the next checkpoint of the source'
    : 'within an hour, as fast as the source writes';
  return {
    code: SLOT_ENDANGERED,
    severity: 'warning',
    object: 'source',
    message: `source: the slot is lost ${when}, unless the target catches up; what it has not read then cannot be had any more`,
    remedy: !isNext && roomOf(slot, capBytes).isCapped ? CAP_REMEDY : KEEP_SIZE_REMEDY,
  };
}
