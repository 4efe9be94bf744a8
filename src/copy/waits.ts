// Why the copy stands still. Parts, generations and index builds wait at the same time and the task has one line to
// show, so each waiter has a key here and the oldest reason is shown.
import { sleep, type TaskScope } from '../postgres/task-scope.ts';

/** A wait shorter than this is not worth a line. */
const SHOW_AFTER_MS = 1_000;

export class Waits {
  readonly #scope: TaskScope;
  readonly #reasons = new Map<string, string>();
  #shown: string | null = null;

  constructor(scope: TaskScope) {
    this.#scope = scope;
  }

  /** Sets or, with null, removes the reason of one waiter. */
  set(key: string, reason: string | null): void {
    if (reason === null) this.#reasons.delete(key);
    else this.#reasons.set(key, reason);
    const next = this.#reasons.values().next().value ?? null;
    if (next === this.#shown) return;
    this.#shown = next;
    this.#scope.progress.setWaitingFor(next);
  }

  clear(): void {
    this.#reasons.clear();
    this.set('', null);
  }

  /** Shows `reason` while `work` runs, once it has taken a second. */
  async during<T>(key: string, reason: string, work: Promise<T>): Promise<T> {
    const timer = setTimeout(() => this.set(key, reason), SHOW_AFTER_MS);
    try {
      return await work;
    } finally {
      clearTimeout(timer);
      this.set(key, null);
    }
  }

  /** Sleeps with `reason` shown. Rejects with `aborted` when the signal fires. */
  async pause(key: string, reason: string, ms: number, signal: AbortSignal): Promise<void> {
    this.set(key, reason);
    try {
      await sleep(ms, signal);
    } finally {
      this.set(key, null);
    }
  }
}
