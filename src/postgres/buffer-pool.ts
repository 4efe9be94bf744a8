// Memory that is used again: what is written to the target lies in buffers of megabytes, and memory that is new costs a page
// fault every 4 kB. Used by pipeline.ts and by the batches of sync.

const LEAST_BYTES = 16 * 1024;

export class BufferPool {
  readonly #mostBytes: number;
  readonly #free: Buffer[] = [];
  #bytes = 0;

  /** Keeps up to `mostBytes`. */
  constructor(mostBytes = 32 * 1024 * 1024) {
    this.#mostBytes = mostBytes;
  }

  /** A buffer of at least so many bytes, with anything in it. */
  take(bytes: number): Buffer {
    let best = -1;
    let least = Infinity;
    for (let at = 0; at < this.#free.length && least > bytes; at++) {
      const length = this.#free[at]?.length ?? 0;
      if (length < bytes || length >= least) continue;
      best = at;
      least = length;
    }
    const [found] = best === -1 ? [] : this.#free.splice(best, 1);
    if (!found) return Buffer.allocUnsafeSlow(Math.max(LEAST_BYTES, 2 ** Math.ceil(Math.log2(bytes))));
    this.#bytes -= found.length;
    return found;
  }

  /** Nobody uses it any more. */
  give(buffer: Buffer): void {
    if (buffer.length < LEAST_BYTES || this.#bytes + buffer.length > this.#mostBytes) return;
    this.#free.push(buffer);
    this.#bytes += buffer.length;
  }
}
