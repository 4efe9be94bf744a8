// The messages of one transaction that is not committed yet, in the order in which they came: in memory, and from its
// beginning on in a file once transactions-in-progress.ts wants the memory for others.
//
// They lie in chunks, each message as a frame: int32 its length, int32 id of its (sub)transaction, the message without it.
import type { BufferPool } from './buffer-pool.ts';
import { copySmall, LastView, SMALL_BYTES } from './byte-views.ts';
import { Lease } from './lease.ts';
import { SpillFile } from './spill-file.ts';
import type { Gulp } from './wal-walker.ts';

/** Larger only for one message that is. */
const CHUNK_BYTES = 1024 * 1024;
/** Of a transaction that is small yet. */
const LEAST_CHUNK_BYTES = 64 * 1024;
const FRAME_BYTES = 8;
/** Of a message within a stream: the id that follows its tag. */
const XID_BYTES = 4;

interface Chunk {
  /** Null: it is in the file. */
  memory: Buffer | null;
  bytes: number;
  /** Where it is in the file. */
  at: number;
  messages: number;
}

export class SpilledMessages {
  readonly #xid: number;
  readonly #pool: BufferPool;
  readonly #file: SpillFile;
  /** A sub-transaction of it was rolled back, and maybe the rest of it is going to be: see sent-rolled-back.ts. */
  isDoubtful = false;
  /** Those in the file come first. */
  #chunks: Chunk[] = [];
  readonly #from = new LastView();
  readonly #to = new LastView();
  #bytes = 0;
  #memoryBytes = 0;
  #fileBytes = 0;

  /** `xid`: of the top-level transaction. `folder`: for the file. */
  constructor(xid: number, folder: string, pool: BufferPool) {
    this.#xid = xid;
    this.#pool = pool;
    this.#file = new SpillFile(folder);
  }

  /** Of its messages. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Taken by those that are not in the file. */
  get memoryBytes(): number {
    return this.#memoryBytes;
  }

  get fileBytes(): number {
    return this.#fileBytes;
  }

  /** A message of at least five bytes as it came within a stream. */
  add(buffer: Buffer, start: number, end: number): void {
    const length = end - start - XID_BYTES;
    const chunk = this.#chunkFor(FRAME_BYTES + length);
    const memory = chunk.memory as Buffer;
    const at = chunk.bytes;
    const [from, to] = [this.#from.of(buffer), this.#to.of(memory)];
    to.setInt32(at, length);
    to.setUint32(at + 4, from.getUint32(start + 1));
    to.setUint8(at + FRAME_BYTES, from.getUint8(start));
    const [body, into] = [start + 1 + XID_BYTES, at + FRAME_BYTES + 1];
    if (end - body < SMALL_BYTES) copySmall(from, body, to, into, end - body);
    else buffer.copy(memory, into, body, end);
    chunk.bytes += FRAME_BYTES + length;
    this.#bytes += FRAME_BYTES + length;
    chunk.messages++;
  }

  /** Moves all that is in memory to the file. Errors: SpillFailed. */
  async spill(): Promise<void> {
    for (const chunk of this.#chunks) {
      const { memory, bytes } = chunk;
      if (memory === null) continue;
      await this.#file.write(memory.subarray(0, bytes), this.#fileBytes);
      chunk.at = this.#fileBytes;
      this.#fileBytes += bytes;
      this.#free(chunk);
    }
  }

  /**
   * The messages as they would have come outside of a stream, with the ids of the sub-transactions among them; once. Errors:
   * SpillFailed.
   */
  async *given(): AsyncGenerator<{ readonly gulp: Gulp; readonly subXids: ReadonlySet<number> }> {
    for (const chunk of this.#chunks) {
      const buffer = chunk.memory ?? (await this.#read(chunk));
      const bounds = new Int32Array(2 * chunk.messages);
      const subXids = new Set<number>();
      let last = this.#xid;
      for (let at = 0, n = 0; at < chunk.bytes; ) {
        const xid = buffer.readUInt32BE(at + 4);
        if (xid !== last && xid !== this.#xid) subXids.add(xid);
        last = xid;
        bounds[n++] = at + FRAME_BYTES;
        at = nextFrame(buffer, at);
        bounds[n++] = at;
      }
      if (chunk.memory !== null) this.#memoryBytes -= buffer.length;
      chunk.memory = null; // the gulp's now
      yield { gulp: { buffer, bounds, lease: new Lease(() => this.#pool.give(buffer)) }, subXids };
    }
  }

  /** Idempotent. */
  async close(): Promise<void> {
    for (const chunk of this.#chunks) this.#free(chunk);
    this.#chunks = [];
    await this.#file.close();
  }

  #chunkFor(frame: number): Chunk {
    const last = this.#chunks.at(-1);
    if (last?.memory && last.bytes + frame <= last.memory.length) return last;
    const memory = this.#take(
      Math.max(frame, Math.min(CHUNK_BYTES, Math.max(LEAST_CHUNK_BYTES, this.#bytes))),
    );
    const chunk = { memory, bytes: 0, at: 0, messages: 0 };
    this.#memoryBytes += memory.length;
    this.#chunks.push(chunk);
    return chunk;
  }

  #take(bytes: number): Buffer {
    return bytes > CHUNK_BYTES ? Buffer.allocUnsafeSlow(bytes) : this.#pool.take(bytes);
  }

  #free(chunk: Chunk): void {
    if (chunk.memory === null) return;
    this.#memoryBytes -= chunk.memory.length;
    this.#pool.give(chunk.memory);
    chunk.memory = null;
  }

  async #read(chunk: Chunk): Promise<Buffer> {
    const memory = this.#take(chunk.bytes);
    await this.#file.read(memory.subarray(0, chunk.bytes), chunk.at);
    return memory;
  }
}

function nextFrame(memory: Buffer, at: number): number {
  return at + FRAME_BYTES + memory.readInt32BE(at);
}
