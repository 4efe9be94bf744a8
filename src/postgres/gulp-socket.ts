// The socket of a session whose bytes become gulps. Those of a stream live until the target has committed what they hold;
// their memory then takes the next read. Opened by slot-copy.ts, read by read-pace.ts.
import type { BufferPool } from './buffer-pool.ts';
import { Lease } from './lease.ts';
import { ReadSocket } from './read-socket.ts';

const READ_BYTES = 256 * 1024;
/** What is read at once leaves in the memory that it was read into from here on: at most half of that is kept for nothing. */
const LEND_FROM_BYTES = READ_BYTES / 2;

export class GulpSocket extends ReadSocket<Buffer> {
  readonly #pool: BufferPool;

  constructor(pool: BufferPool) {
    super({ take: () => pool.take(READ_BYTES), give: (memory) => pool.give(memory) }, (memory) => memory);
    this.#pool = pool;
  }

  /** From now on `take` gets what is read; no lease: the chunk is nobody else's. */
  lendTo(take: (chunk: Buffer, lease?: Lease) => void): void {
    this.onRead = (memory, length) => {
      const chunk = memory.subarray(0, length);
      if (length < LEND_FROM_BYTES) {
        take(Buffer.from(chunk));
        return false;
      }
      const lease = new Lease(() => this.#pool.give(memory));
      take(chunk, lease);
      lease.release();
      return true;
    };
  }
}
