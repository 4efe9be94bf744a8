// How many changes a batch should have: as many as the target takes in about half a second. Smaller ones spend
// their time on commits, larger ones hold locks for longer and repeat more after a failure. Pure; replay.ts asks it.

const GOAL_MS = 500;
const LEAST = 1_000;
const MOST = 100_000;
const AT_FIRST = 10_000;

export class BatchSize {
  #changes = AT_FIRST;

  get changes(): number {
    return Math.round(this.#changes);
  }

  /** A batch of `changes` took the target `ms`. Small ones say nothing: their time is that of a commit. */
  learn(changes: number, ms: number): void {
    if (changes < LEAST / 2) return;
    const goal = (changes * GOAL_MS) / Math.max(1, ms);
    // At most twice as large, and halfway down: one slow or fast batch is not a trend.
    const next = goal > this.#changes ? Math.min(goal, this.#changes * 2) : (this.#changes + goal) / 2;
    this.#changes = Math.min(MOST, Math.max(LEAST, next));
  }
}
