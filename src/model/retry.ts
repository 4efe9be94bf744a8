// What an error means for a task. One table, used by the statechart's guards and nowhere else decided again.
import type { ErrorKind } from './errors.ts';

/** `retry`: wait and go on; `pause`: a person must act; `fail`: cannot continue; `ignore`: we stopped it ourselves. */
export type ErrorVerdict = 'retry' | 'pause' | 'fail' | 'ignore';

const verdicts: Record<ErrorKind, ErrorVerdict> = {
  transient: 'retry',
  ambiguous: 'retry', // every activity asks the servers what is true before it goes on
  operator: 'pause',
  lost: 'pause',
  divergence: 'pause',
  aborted: 'ignore',
  bug: 'fail',
};

export function errorVerdict(kind: ErrorKind): ErrorVerdict {
  return verdicts[kind];
}

/** Attempts without progress before a transient error pauses the task. With the delays below: about ten minutes. */
export const MAX_ATTEMPTS = 12;

/** Delay before attempt `attempt` (1-based): 0.5 s doubling to 60 s. `jitter` in [0,1) spreads tasks of one outage. */
export function retryDelayMs(attempt: number, jitter: number): number {
  const base = Math.min(60_000, 500 * 2 ** (attempt - 1));
  return Math.round(base * (0.75 + jitter / 2));
}
