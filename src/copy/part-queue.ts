// Which part a worker of copy-parts.ts takes next. In memory only: a generation makes its own.
import type { Generation } from './generation.ts';
import type { CopyPart } from './plan.ts';

/**
 * The parts of one generation. Workers spread over the tables: a table whose parts arrive one behind the other lies in the
 * order of its key, so its index builds find it sorted, and no two COPYs extend the same file; only when there are more
 * workers than tables do they share one. Past the age that it may have a generation begins no more parts, except of
 * tables cut by blocks that it has begun: for those the holder outlives its age.
 */
export class PartQueue {
  readonly #generation: Pick<Generation, 'begunAt'>;
  readonly #maxAgeMs: () => number;
  /** By table, in the order of the plan: largest first. */
  readonly #waiting = new Map<string, CopyPart[]>();
  readonly #running = new Map<string, number>();
  readonly #begun = new Set<string>();
  #length: number;

  constructor(generation: Pick<Generation, 'begunAt'>, parts: readonly CopyPart[], maxAgeMs: () => number) {
    this.#generation = generation;
    this.#maxAgeMs = maxAgeMs;
    this.#length = parts.length;
    for (const part of parts) {
      const table = this.#waiting.get(part.relation);
      if (table) table.push(part);
      else this.#waiting.set(part.relation, [part]);
    }
  }

  get length(): number {
    return this.#length;
  }

  /** The next part of the first table with the fewest running parts. */
  take(): CopyPart | undefined {
    // every generation begins a part, or the copy would never end
    const isOld = this.#begun.size > 0 && Date.now() - this.#generation.begunAt >= this.#maxAgeMs();
    let best: readonly [relation: string, running: number] | null = null;
    for (const [relation, [first]] of this.#waiting) {
      if (isOld && !(first?.range?.kind === 'ctid' && this.#begun.has(relation))) continue;
      const running = this.#running.get(relation) ?? 0;
      if (best === null || running < best[1]) best = [relation, running];
      if (running === 0) break;
    }
    if (best === null) return undefined;
    const [relation, running] = best;
    const table = this.#waiting.get(relation) ?? [];
    const part = table.shift();
    if (table.length === 0) this.#waiting.delete(relation);
    this.#length--;
    this.#begun.add(relation);
    this.#running.set(relation, running + 1);
    return part;
  }

  /** The part runs no more. */
  leave({ relation }: CopyPart): void {
    const running = (this.#running.get(relation) ?? 1) - 1;
    if (running === 0) this.#running.delete(relation);
    else this.#running.set(relation, running);
  }

  /** The part runs no more and is to be taken again. */
  putBack(part: CopyPart): void {
    this.leave(part);
    this.#length++;
    const table = this.#waiting.get(part.relation);
    if (table) table.unshift(part);
    else this.#waiting.set(part.relation, [part]);
  }
}
