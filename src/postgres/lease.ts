// Memory that several have a part of: it is used again when the last of them has let go. Whoever forgets to costs new memory,
// no more.

export class Lease {
  readonly #onFree: () => void;
  #holders = 1;

  /** `onFree`: nobody will look at the memory any more. Held by whoever makes it. */
  constructor(onFree: () => void) {
    this.#onFree = onFree;
  }

  hold(): void {
    this.#holders++;
  }

  /** Once for having made it, and once for each `hold`. */
  release(): void {
    if (--this.#holders === 0) this.#onFree();
  }
}
