// Runs the activities of all tasks and knows which of them have really ended. Stopping an actor aborts its activity but
// does not wait for it; so whatever starts next for the same task waits here until the aborted ones are gone. That is
// how an un-fence never overtakes an arming, a new stream never meets the old walsender, and a clean-up finds nobody
// at work.
import { asMigrationError, MigrationError } from '../model/errors.ts';
import type { Log } from '../postgres/task-scope.ts';

/** Aborted activities are written to end within two seconds. What takes longer waits for a server that is silent. */
const CUT_AFTER_MS = 5_000;
/** Longest wait for an aborted activity whose connections were cut. */
const SETTLE_TIMEOUT_MS = 30_000;

interface Run {
  readonly name: string;
  readonly signal: AbortSignal;
  readonly settled: Promise<void>;
}

export class ActivityRunner {
  readonly #runs = new Map<string, Set<Run>>();
  readonly #log: Log;
  readonly #cutConnections: (taskId: string) => Promise<void>;

  /** `cutConnections` closes whatever the task has open, so that statements in flight end. */
  constructor(log: Log, cutConnections: (taskId: string) => Promise<void>) {
    this.#log = log;
    this.#cutConnections = cutConnections;
  }

  /** Runs `work` once the task's aborted activities have ended. Rejects with a MigrationError. */
  async run<T>(taskId: string, name: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const earlier = this.#abortedRuns(taskId);
    const outcome = (async (): Promise<T> => {
      if (earlier.length > 0) await this.#settle(taskId, earlier);
      if (signal.aborted) throw new MigrationError('aborted', `${name} was stopped before it began`);
      return work();
    })();
    const run: Run = {
      name,
      signal,
      settled: outcome.then(
        () => undefined,
        () => undefined,
      ),
    };
    const runs = this.#runs.get(taskId) ?? new Set();
    this.#runs.set(taskId, runs.add(run));
    try {
      return await outcome;
    } catch (error) {
      const known = signal.aborted
        ? new MigrationError('aborted', `${name} was stopped`, { cause: error })
        : asMigrationError(error);
      if (known.kind === 'aborted') this.#log.debug({ taskId, activity: name }, 'activity stopped');
      else
        this.#log.warn({ taskId, activity: name, err: known, report: known.toReport() }, 'activity failed');
      throw known;
    } finally {
      runs.delete(run);
      if (runs.size === 0) this.#runs.delete(taskId);
    }
  }

  /** Resolves when nothing of the task runs any more, or after the time given. */
  async idle(taskId: string, timeoutMs: number): Promise<boolean> {
    return withTimeout(Promise.all([...(this.#runs.get(taskId) ?? [])].map((run) => run.settled)), timeoutMs);
  }

  get busyTasks(): string[] {
    return [...this.#runs.keys()];
  }

  #abortedRuns(taskId: string): Run[] {
    return [...(this.#runs.get(taskId) ?? [])].filter((run) => run.signal.aborted);
  }

  async #settle(taskId: string, runs: readonly Run[]): Promise<void> {
    const settled = Promise.all(runs.map((run) => run.settled));
    if (await withTimeout(settled, CUT_AFTER_MS)) return;
    this.#log.warn({ taskId, activities: runs.map((run) => run.name) }, 'a stopped activity is cut off');
    await this.#cutConnections(taskId);
    if (await withTimeout(settled, SETTLE_TIMEOUT_MS)) return;
    throw new MigrationError(
      'deadline_exceeded',
      `${runs.map((run) => run.name).join(', ')} did not end when stopped`,
    );
  }
}

async function withTimeout(work: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), timeoutMs);
  });
  try {
    return await Promise.race([work.then(() => true as const), timeout]);
  } finally {
    clearTimeout(timer);
  }
}
