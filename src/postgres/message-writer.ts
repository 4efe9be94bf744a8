// Messages to the server, one after the other in one buffer that grows. Used by pipeline.ts for every row of the stream: no
// object is made for a field or a message.
import type { BufferPool } from './buffer-pool.ts';

const INITIAL_BYTES = 64 * 1024;

export class MessageWriter {
  readonly #pool: BufferPool;
  #out: Buffer;
  #used = 0;

  constructor(pool: BufferPool) {
    this.#pool = pool;
    this.#out = pool.take(INITIAL_BYTES);
  }

  /** Bytes gathered so far; also where the next one goes. */
  get used(): number {
    return this.#used;
  }

  /** Begins a message; what it returns is for `end`. */
  begin(type: number): number {
    this.#ensure(5);
    this.#out[this.#used] = type;
    const at = this.#used + 1;
    this.#used += 5;
    return at;
  }

  /** Writes the length of the message that began at `at`. */
  end(at: number): void {
    this.#out.writeInt32BE(this.#used - at, at);
  }

  byte(value: number): void {
    this.#ensure(1);
    this.#out[this.#used++] = value;
  }

  int16(value: number): void {
    this.#ensure(2);
    this.#used = this.#out.writeUInt16BE(value & 0xffff, this.#used);
  }

  int32(value: number): void {
    this.#ensure(4);
    this.#used = this.#out.writeInt32BE(value, this.#used);
  }

  bytes(from: Buffer, start: number, end: number): void {
    this.#ensure(end - start);
    from.copy(this.#out, this.#used, start, end);
    this.#used += end - start;
  }

  /** Its length in bytes, and the text. */
  sizedText(text: string): void {
    const bytes = Buffer.byteLength(text);
    this.int32(bytes);
    this.#ensure(bytes);
    this.#used += this.#out.write(text, this.#used);
  }

  cstring(text: string): void {
    this.#ensure(Buffer.byteLength(text) + 1);
    this.#used += this.#out.write(text, this.#used);
    this.#out[this.#used++] = 0;
  }

  /** What was gathered; begins anew. `written`: the socket has it, its memory may be used again. */
  take(): { readonly bytes: Buffer; readonly written: () => void } {
    const full = this.#out;
    const used = this.#used;
    this.#used = 0;
    if (used < INITIAL_BYTES / 4)
      return { bytes: Buffer.from(full.subarray(0, used)), written: () => undefined };
    this.#out = this.#pool.take(INITIAL_BYTES);
    return { bytes: full.subarray(0, used), written: () => this.#pool.give(full) };
  }

  clear(): void {
    this.#used = 0;
  }

  #ensure(bytes: number): void {
    if (this.#used + bytes <= this.#out.length) return;
    const larger = this.#pool.take(Math.max(this.#out.length * 2, this.#used + bytes));
    this.#out.copy(larger, 0, 0, this.#used);
    this.#pool.give(this.#out);
    this.#out = larger;
  }
}
