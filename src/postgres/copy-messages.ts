// The bytes of COPY, without sockets: the walk over what a server sends during COPY TO STDOUT, and the large CopyData
// messages that COPY FROM STDIN gets. copy-stream.ts couples them. A CopyData boundary means nothing to the receiver
// (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY), and each message costs it a wake-up, so
// one message per row is taken apart and put together again as one per 256 KiB: as a rule in the memory into which it was
// read, which has room in front for the header.

import { FRAME_BYTES, type Frame, frames, HEADER_BYTES } from './frames.ts';

const COPY_DATA = 0x64; // d
const READY_FOR_QUERY = 0x5a; // Z
/** CopyOutResponse, CopyDone, CommandComplete, Error, Notice, ParameterStatus, Notification. */
const CONTROL = new Set([0x48, 0x63, 0x43, 0x45, 0x4e, 0x53, 0x41]);

export interface CopyOutSink {
  /** Rows' bytes without their headers that come before something else; valid during the call only. */
  payload(bytes: Buffer): void;
  /** Everything that is not CopyData, header included, possibly in pieces; ours to keep. */
  control(bytes: Buffer): void;
  /** ReadyForQuery has been handed to `control`; `rest` is what follows it. No further push is expected. */
  ready(rest: Buffer): void;
}

/** Walks the 5-byte headers of a server's messages across chunks of any size. */
export class CopyOutWalker {
  /** CopyData messages seen: one a row, plus one for the trailer of the binary format. */
  messages = 0;
  readonly #sink: CopyOutSink;
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #headerFill = 0;
  #type = 0;
  #remaining = 0;

  constructor(sink: CopyOutSink) {
    this.#sink = sink;
  }

  /**
   * Of the `length` bytes behind the frame's room for a header; returns how many bytes of payload, which the sink has not
   * been given, now lie there. Throws `RangeError` for bytes that are no message of a COPY.
   */
  push(frame: Frame, length: number): number {
    const { bytes } = frame;
    const end = HEADER_BYTES + length;
    let at = HEADER_BYTES;
    let kept = HEADER_BYTES; // end of the payload; never ahead of `at`
    for (;;) {
      if (this.#headerFill === 0) {
        const rows = frame.pack(at, end, kept);
        this.messages += rows.count;
        ({ at, kept } = rows);
      }
      if (this.#headerFill < HEADER_BYTES) {
        if (at === end) break;
        at = this.#readHeader(bytes, at, end);
        if (this.#headerFill < HEADER_BYTES) break;
        if (this.#type === COPY_DATA) this.messages++;
        else {
          if (kept > HEADER_BYTES) this.#sink.payload(bytes.subarray(HEADER_BYTES, kept));
          kept = HEADER_BYTES;
          this.#sink.control(Buffer.from(this.#header));
        }
      }
      const stop = Math.min(end, at + this.#remaining);
      if (this.#type === COPY_DATA) {
        bytes.copyWithin(kept, at, stop);
        kept += stop - at;
      } else if (stop > at) this.#sink.control(Buffer.from(bytes.subarray(at, stop)));
      this.#remaining -= stop - at;
      at = stop;
      if (this.#remaining > 0) break;
      this.#headerFill = 0;
      if (this.#type === READY_FOR_QUERY) {
        this.#sink.ready(bytes.subarray(at, end));
        return 0;
      }
    }
    return kept - HEADER_BYTES;
  }

  #readHeader(bytes: Buffer, from: number, end: number): number {
    let at = from;
    while (this.#headerFill < HEADER_BYTES && at < end) this.#header[this.#headerFill++] = bytes[at++] ?? 0;
    if (this.#headerFill < HEADER_BYTES) return at;
    this.#type = this.#header[0] ?? 0;
    this.#remaining = this.#header.readInt32BE(1) - 4; // the length counts itself
    const known = this.#type === COPY_DATA || this.#type === READY_FOR_QUERY || CONTROL.has(this.#type);
    if (!known || this.#remaining < 0)
      throw new RangeError(`unexpected message 0x${this.#type.toString(16)} during COPY`);
    return at;
  }
}

/** Makes payload into CopyData messages of up to FRAME_BYTES. Who has written one gives its frame back to `frames`. */
export class CopyInFramer {
  readonly #write: (message: Buffer, frame: Frame) => void;
  #frame: Frame | null = null;
  #fill = 0;

  constructor(write: (message: Buffer, frame: Frame) => void) {
    this.#write = write;
  }

  /** Copies it behind what has been gathered. */
  append(bytes: Buffer): void {
    for (let from = 0; from < bytes.length; ) {
      this.#frame ??= frames.take();
      const take = Math.min(bytes.length - from, FRAME_BYTES - this.#fill);
      bytes.copy(this.#frame.bytes, HEADER_BYTES + this.#fill, from, from + take);
      from += take;
      this.#fill += take;
      if (this.#fill === FRAME_BYTES) this.flush();
    }
  }

  /** Writes so many bytes of payload that lie in a frame already, behind the room for the header. */
  lend(frame: Frame, payloadBytes: number): void {
    this.flush();
    this.#send(frame, payloadBytes);
  }

  /** Writes what has been gathered, if anything. */
  flush(): void {
    const frame = this.#frame;
    const fill = this.#fill;
    if (frame === null || fill === 0) return;
    this.#frame = null;
    this.#fill = 0;
    this.#send(frame, fill);
  }

  #send(frame: Frame, payloadBytes: number): void {
    const { bytes } = frame;
    bytes[0] = COPY_DATA;
    bytes.writeInt32BE(payloadBytes + 4, 1);
    this.#write(bytes.subarray(0, HEADER_BYTES + payloadBytes), frame);
  }
}
