// How fast the copy may go: bytes a second over all of its streams, and a stop while standbys of the source lie too far
// behind. Both limits are read from the task's options whenever they are needed: a change holds at once.
import type { StreamPace } from '../postgres/copy-stream.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import type { Waits } from './waits.ts';

/** Longest wait before the limits are looked at again. */
const LOOK_AGAIN_MS = 200;
const LAG_POLL_MS = 1_000;
/** What may be sent at once after a pause, in seconds of the rate. */
const BURST_SECONDS = 0.25;

export class Pace implements StreamPace {
  readonly #scope: Pick<TaskScope, 'spec'>;
  readonly #now: () => number;
  #allowance = 0;
  #at: number;
  #isLagging = false;

  constructor(scope: Pick<TaskScope, 'spec'>, now: () => number = () => performance.now()) {
    this.#scope = scope;
    this.#now = now;
    this.#at = now();
  }

  set isLagging(value: boolean) {
    this.#isLagging = value;
  }

  take(bytes: number): void {
    this.#refill();
    this.#allowance -= bytes;
  }

  waitMs(): number {
    if (this.#isLagging) return LOOK_AGAIN_MS;
    const rate = this.#refill();
    if (rate === null || this.#allowance >= 0) return 0;
    return Math.min(LOOK_AGAIN_MS, Math.ceil((-this.#allowance / rate) * 1_000));
  }

  #refill(): number | null {
    const rate = this.#scope.spec.options.maxBytesPerSecond;
    if (rate === null) {
      this.#allowance = 0; // no debt of a limit that is gone
      return null;
    }
    const now = this.#now();
    const seconds = (now - this.#at) / 1_000;
    this.#at = now;
    this.#allowance = Math.min(rate * BURST_SECONDS, this.#allowance + rate * seconds);
    return rate;
  }
}

/** Watches how far the source's standbys lie behind, until the signal fires. */
export async function watchSourceLag(
  scope: TaskScope,
  pace: Pace,
  waits: Waits,
  signal: AbortSignal,
): Promise<void> {
  let isTold = false;
  while (!signal.aborted) {
    try {
      const limit = scope.spec.options.maxSourceLagBytes;
      const lag = limit === null ? null : await worstLag(scope);
      // the preflight says so, too; but the limit may be newer
      if (lag === 'hidden' && !isTold)
        scope.log.warn({}, 'max_source_lag_bytes has no effect: the role is no member of pg_read_all_stats');
      isTold = lag === 'hidden';
      const isLagging = limit !== null && lag !== null && lag !== 'hidden' && lag.bytes > limit;
      pace.isLagging = isLagging;
      waits.set(
        'source lag',
        isLagging
          ? `the copy waits: ${lag.name} lies ${lag.bytes} bytes behind the source, more than max_source_lag_bytes`
          : null,
      );
    } catch (error) {
      if (!signal.aborted) scope.log.debug({ error }, 'could not look at the lag of the standbys');
    }
    await sleep(LAG_POLL_MS, signal).catch(() => undefined);
  }
}

/**
 * Of the standbys that show one; `hidden` when our role sees none of those that there are. One that is not connected has no
 * row and is not waited for: it may never come back.
 */
async function worstLag({ source }: TaskScope): Promise<{ name: string; bytes: number } | 'hidden' | null> {
  const { rows } = await source.query<{ name: string; bytes: number | null }>(
    `select application_name as name, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::float8 as bytes
       from pg_stat_replication
      where (replay_lsn is not null or state is null) and application_name not like 'dts/%'
      order by 2 desc nulls last limit 1`,
  );
  const [worst] = rows;
  if (!worst) return null;
  return worst.bytes === null ? 'hidden' : { name: worst.name, bytes: worst.bytes };
}
