// Transactions of others that stay open on the target: asked for while it lags. A row that is updated again and again leaves
// versions behind, which its page is cleared of as soon as nobody can see them (HOT pruning). An old snapshot could: so
// every update walks past all versions since, and a few hot rows are applied ten times slower.
import { oldestSnapshot } from '../postgres/old-snapshots.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

/** Behind for less than this, nobody wonders why. */
const LAGGING_SECONDS = 3;
const ASK_EVERY_MS = 10_000;

export class OldSnapshots {
  readonly #scope: TaskScope;
  readonly #olderThanSeconds: number | undefined;
  #askedAtMs = -Infinity;
  #reason: string | null = null;

  constructor(scope: TaskScope, olderThanSeconds?: number) {
    this.#scope = scope;
    this.#olderThanSeconds = olderThanSeconds;
  }

  /** Why the target may be slow, in words; null: it does not lag, or for another reason. */
  async reason(nowMs: number, lagSeconds: number): Promise<string | null> {
    if (lagSeconds < LAGGING_SECONDS) this.#reason = null;
    else if (nowMs - this.#askedAtMs >= ASK_EVERY_MS) {
      this.#askedAtMs = nowMs;
      this.#reason = await this.#ask();
    }
    return this.#reason;
  }

  async #ask(): Promise<string | null> {
    const { taskId, target } = this.#scope;
    const oldest = await oldestSnapshot(
      async (sql, params) => (await target.query(sql, params)).rows as never,
      taskId,
      this.#olderThanSeconds,
    );
    if (oldest === null) return null;
    const { pid, user, seconds, query } = oldest;
    return `the target: pid ${pid} (${user}) has kept a transaction open for ${seconds} s, which slows down updates of the same rows: ${query}`;
  }
}
