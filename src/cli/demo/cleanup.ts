// What the demo has to take away again. Filled as things are started, run once at the end, on success, failure and
// Ctrl-C alike.

/** Undone in reverse order; one failing step does not keep the others from running. */
export class Cleanup {
  readonly #steps: (() => Promise<void>)[] = [];

  add(step: () => Promise<void>): void {
    this.#steps.push(step);
  }

  async run(onError: (error: unknown) => void): Promise<void> {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop())
      await step().catch(onError);
  }
}
