// The socket of a session whose bytes become gulps. Those of a stream live until the target has committed what they hold;
// their memory then takes the next reads. Opened by slot-copy.ts and wal-stream.ts.
import type { BufferPool } from './buffer-pool.ts';
import { Lease } from './lease.ts';
import { ReadSocket } from './read-socket.ts';

const MEMORY_BYTES = 256 * 1024;
/** With less room than this the next read takes other memory. */
const LEAST_ROOM_BYTES = 64 * 1024;

/** Read into from its beginning to its end. */
interface Memory {
  readonly bytes: Buffer;
  used: number;
  /** Held by whoever has a part of it. */
  readonly lease: Lease;
}

export class GulpSocket extends ReadSocket<Memory> {
  constructor(pool: BufferPool) {
    const take = (): Memory => {
      const bytes = pool.take(MEMORY_BYTES);
      return { bytes, used: 0, lease: new Lease(() => pool.give(bytes)) };
    };
    super({ take, give: ({ lease }) => lease.release() }, ({ bytes, used }) => bytes.subarray(used));
  }

  /** From now on `take` gets what is read; it may hold the lease, until when the chunk stays as it is. */
  lendTo(take: (chunk: Buffer, lease: Lease) => void): void {
    this.onRead = (memory, length) => {
      const { bytes, used, lease } = memory;
      memory.used += length;
      take(bytes.subarray(used, memory.used), lease);
      if (bytes.length - memory.used >= LEAST_ROOM_BYTES) return false;
      lease.release();
      return true;
    };
  }
}
