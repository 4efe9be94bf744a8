// From a server's bytes to messages of pgoutput, without a copy and without an object for each: for the walsender's
// CopyData and for COPY TO STDOUT of the slot functions. Pure; wal-stream.ts and slot-feed.ts feed it what their sockets
// receive, in large gulps.
import type { Lease } from './lease.ts';

/**
 * Messages that arrived together. `bounds` holds start and end of each in `buffer`, in pairs. A message of tag `k` is the
 * walsender's keepalive: int64 end of WAL at 1, int64 time, byte at 17 whether it wants an answer.
 */
export interface Gulp {
  readonly buffer: Buffer;
  readonly bounds: Int32Array;
  /** Of its memory, to be released when nobody will look at the gulp any more. */
  readonly lease?: Lease;
}

export const KEEPALIVE = 0x6b; // k
const COPY_DATA = 0x64; // d
const XLOG_DATA = 0x77; // w
const HEADER_BYTES = 5;
/** Tag, start of WAL, end of WAL, time: before the message in XLogData. */
const XLOG_HEADER_BYTES = 25;
const COPY_SIGNATURE_BYTES = 19;
/** int16 one column, int32 its length. */
const ROW_HEADER_BYTES = 6;

export interface WalkerSink {
  readonly gulp: (gulp: Gulp) => void;
  /** A keepalive, before the gulp that holds it. */
  readonly keepalive: (replyRequested: boolean) => void;
  /** Any other message, header included. */
  readonly control: (message: Buffer) => void;
}

export class WalWalker {
  readonly #source: 'walsender' | 'rows';
  readonly #sink: WalkerSink;
  /** A message that has not arrived whole: its memory, and how much of it is filled. */
  #partial: Buffer | null = null;
  #filled = 0;
  #atSignature = true;
  /** Where bounds are gathered: arrays that grow would be most of the garbage of a stream. */
  #scratch = new Int32Array(2_048);
  #count = 0;

  /** `rows`: COPY (select data …) TO STDOUT (format binary). */
  constructor(source: 'walsender' | 'rows', sink: WalkerSink) {
    this.#source = source;
    this.#sink = sink;
  }

  /** Before the next COPY. */
  restart(): void {
    this.#atSignature = true;
  }

  /**
   * Takes a chunk, whose memory belongs to the gulps from now on, until they have released the lease. Throws `RangeError` for
   * what is no message.
   */
  push(chunk: Buffer, lease?: Lease): void {
    let bytes = chunk;
    let lent = lease;
    if (this.#partial !== null) {
      if (this.#filled < HEADER_BYTES) {
        bytes = Buffer.concat([this.#partial.subarray(0, this.#filled), chunk]);
        this.#partial = null;
        lent = undefined;
      } else {
        const taken = chunk.copy(this.#partial, this.#filled);
        this.#filled += taken;
        if (this.#filled < this.#partial.length) return;
        const whole = this.#partial;
        this.#partial = null;
        this.#walk(whole);
        bytes = chunk.subarray(taken);
      }
    }
    const rest = this.#walk(bytes, lent);
    if (rest.length === 0) return;
    // A large message is gathered once, not concatenated with every chunk.
    const size = rest.length < HEADER_BYTES ? HEADER_BYTES : 1 + rest.readInt32BE(1);
    this.#partial = Buffer.allocUnsafeSlow(size);
    this.#filled = rest.copy(this.#partial);
  }

  /** Returns what is left of an incomplete message. */
  #walk(buffer: Buffer, lease?: Lease): Buffer {
    let at = 0;
    while (at + HEADER_BYTES <= buffer.length) {
      const length = buffer.readInt32BE(at + 1);
      if (length < 4) throw new RangeError(`a message of ${length} bytes`);
      const end = at + 1 + length;
      if (end > buffer.length) break;
      if (buffer[at] === COPY_DATA) this.#payload(buffer, at + HEADER_BYTES, end);
      else {
        this.#give(buffer, lease);
        this.#sink.control(Buffer.from(buffer.subarray(at, end)));
      }
      at = end;
    }
    this.#give(buffer, lease);
    return buffer.subarray(at);
  }

  #give(buffer: Buffer, lease?: Lease): void {
    if (this.#count === 0) return;
    const bounds = this.#scratch.slice(0, this.#count);
    this.#count = 0;
    lease?.hold();
    this.#sink.gulp(lease ? { buffer, bounds, lease } : { buffer, bounds });
  }

  #note(start: number, end: number): void {
    if (this.#count + 2 > this.#scratch.length) {
      const larger = new Int32Array(this.#scratch.length * 2);
      larger.set(this.#scratch);
      this.#scratch = larger;
    }
    this.#scratch[this.#count++] = start;
    this.#scratch[this.#count++] = end;
  }

  #payload(buffer: Buffer, start: number, end: number): void {
    if (this.#source === 'walsender') {
      if (buffer[start] === XLOG_DATA && end - start > XLOG_HEADER_BYTES)
        this.#note(start + XLOG_HEADER_BYTES, end);
      else if (buffer[start] === KEEPALIVE && end - start === 18) {
        this.#sink.keepalive(buffer[start + 17] === 1);
        this.#note(start, end);
      } else
        throw new RangeError(`an unknown message 0x${(buffer[start] ?? 0).toString(16)} of the walsender`);
      return;
    }
    let at = start;
    if (this.#atSignature) {
      if (buffer.toString('latin1', at, at + 6) !== 'PGCOPY') throw new RangeError('rows without a header');
      at += COPY_SIGNATURE_BYTES;
      this.#atSignature = false;
    }
    // Every row is a message of its own; the trailer is int16 -1. The header may come alone.
    if (end - at < ROW_HEADER_BYTES) return;
    if (buffer.readInt16BE(at) !== 1 || at + ROW_HEADER_BYTES + buffer.readInt32BE(at + 2) !== end)
      throw new RangeError('a row that is not one value');
    this.#note(at + ROW_HEADER_BYTES, end);
  }
}
