// Wakes the readers of events when the journal grew. The journal itself is the queue: a slow reader costs no memory, it
// only reads later. Progress is not queued at all: a reader comes round now and then and gets the newest figures.
export interface EventReader {
  /** Tasks whose figures changed since the last call. */
  takeDirty(): string[];
  /** Resolves when the journal grew since the last wait, or after `maxMs`. */
  wait(maxMs: number): Promise<void>;
  close(): void;
}

interface Subscriber {
  readonly dirty: Set<string>;
  pending: boolean;
  wake: (() => void) | null;
}

export class EventHub {
  readonly #subscribers = new Set<Subscriber>();

  /** A row was added to the journal. */
  journalGrew(): void {
    for (const subscriber of this.#subscribers) this.#wake(subscriber);
  }

  /** Wakes nobody: readers look for figures when they come round. */
  progressChanged(taskId: string): void {
    for (const subscriber of this.#subscribers) subscriber.dirty.add(taskId);
  }

  subscribe(): EventReader {
    const subscriber: Subscriber = { dirty: new Set(), pending: true, wake: null };
    this.#subscribers.add(subscriber);
    return {
      takeDirty() {
        const ids = [...subscriber.dirty];
        subscriber.dirty.clear();
        return ids;
      },
      wait: (maxMs) =>
        new Promise((resolve) => {
          const done = (): void => {
            clearTimeout(timer);
            subscriber.wake = null;
            subscriber.pending = false;
            resolve();
          };
          const timer = setTimeout(done, maxMs);
          if (subscriber.pending) done();
          else subscriber.wake = done;
        }),
      close: () => {
        this.#subscribers.delete(subscriber);
        this.#wake(subscriber);
      },
    };
  }

  #wake(subscriber: Subscriber): void {
    subscriber.pending = true;
    subscriber.wake?.();
  }
}
