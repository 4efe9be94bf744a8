// The bytes of COPY, without sockets: the walk over what a server sends during COPY TO STDOUT, and the large CopyData
// messages that COPY FROM STDIN gets. copy-stream.ts couples them. A CopyData boundary means nothing to the receiver
// (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY), and each message costs it a wake-up, so
// one message per row is taken apart and put together again as one per 128 KiB.

import { BufferPool } from './buffer-pool.ts';

const COPY_DATA = 0x64; // d
const READY_FOR_QUERY = 0x5a; // Z
/** CopyOutResponse, CopyDone, CommandComplete, Error, Notice, ParameterStatus, Notification. */
const CONTROL = new Set([0x48, 0x63, 0x43, 0x45, 0x4e, 0x53, 0x41]);
const HEADER_BYTES = 5;
/** Bytes from which `copyWithin` is faster than a loop; measured on node 20. */
const MOVE_BY_CALL = 40;

/** Payload bytes of a CopyData message that we send. */
export const FRAME_BYTES = 128 * 1024 - HEADER_BYTES;

export interface CopyOutSink {
  /** Rows' bytes without their headers; valid during the call only. */
  payload(bytes: Buffer): void;
  /** Everything that is not CopyData, header included, possibly in pieces; ours to keep. */
  control(bytes: Buffer): void;
  /** ReadyForQuery has been handed to `control`; `rest` is what follows it. No further push is expected. */
  ready(rest: Buffer): void;
}

/** Walks the 5-byte headers of a server's messages across chunks of any size. Uses the chunks as its workspace. */
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

  /** Throws `RangeError` for bytes that are no message of a COPY. */
  push(chunk: Buffer): void {
    const view = new DataView(chunk.buffer, chunk.byteOffset, chunk.length);
    const end = chunk.length;
    let at = 0;
    let kept = 0; // payload moved to the chunk's front; never ahead of `at`
    for (;;) {
      if (this.#headerFill === 0) {
        const rows = packRows(chunk, view, at, kept);
        this.messages += rows.count;
        ({ at, kept } = rows);
      }
      if (this.#headerFill < HEADER_BYTES) {
        if (at === end) break;
        at = this.#readHeader(chunk, at);
        if (this.#headerFill < HEADER_BYTES) break;
        if (this.#type === COPY_DATA) this.messages++;
        else {
          if (kept > 0) this.#sink.payload(chunk.subarray(0, kept));
          kept = 0;
          this.#sink.control(Buffer.from(this.#header));
        }
      }
      const stop = Math.min(end, at + this.#remaining);
      if (this.#type === COPY_DATA) kept = move(chunk, view, kept, at, stop);
      else if (stop > at) this.#sink.control(Buffer.from(chunk.subarray(at, stop)));
      this.#remaining -= stop - at;
      at = stop;
      if (this.#remaining > 0) break;
      this.#headerFill = 0;
      if (this.#type === READY_FOR_QUERY) {
        this.#sink.ready(chunk.subarray(at));
        return;
      }
    }
    if (kept > 0) this.#sink.payload(chunk.subarray(0, kept));
  }

  #readHeader(chunk: Buffer, from: number): number {
    let at = from;
    while (this.#headerFill < HEADER_BYTES && at < chunk.length)
      this.#header[this.#headerFill++] = chunk[at++] ?? 0;
    if (this.#headerFill < HEADER_BYTES) return at;
    this.#type = this.#header[0] ?? 0;
    this.#remaining = this.#header.readInt32BE(1) - 4; // the length counts itself
    const known = this.#type === COPY_DATA || this.#type === READY_FOR_QUERY || CONTROL.has(this.#type);
    if (!known || this.#remaining < 0)
      throw new RangeError(`unexpected message 0x${this.#type.toString(16)} during COPY`);
    return at;
  }
}

/**
 * Moves the payload of the CopyData messages that lie wholly in the chunk from `at` on to its front, behind `kept`: the
 * loop that most rows go through. Stops at anything else.
 */
function packRows(
  chunk: Buffer,
  view: DataView,
  at: number,
  kept: number,
): { at: number; kept: number; count: number } {
  const end = chunk.length;
  let count = 0;
  for (; at + HEADER_BYTES <= end && view.getUint8(at) === COPY_DATA; count++) {
    const length = view.getInt32(at + 1);
    const stop = at + 1 + length; // the length counts itself, not the type
    if (length < 4 || stop > end) break;
    kept = move(chunk, view, kept, at + HEADER_BYTES, stop);
    at = stop;
  }
  return { at, kept, count };
}

/** Moves `[from, to)` to `at`, which lies before, within the chunk that `view` shows; returns the end of the moved bytes. */
function move(chunk: Buffer, view: DataView, at: number, from: number, to: number): number {
  if (at === from) return to;
  if (to - from >= MOVE_BY_CALL) {
    chunk.copyWithin(at, from, to);
    return at + to - from;
  }
  // cheaper than a call for short rows; words may overlap, for each is read before anything is written over it
  for (; from + 4 <= to; from += 4, at += 4) view.setInt32(at, view.getInt32(from));
  for (; from < to; from++) view.setUint8(at++, view.getUint8(from));
  return at;
}

/** Of all streams: a copy of thousands of small tables would make new memory for each. */
const frames = new BufferPool(4 * 1024 * 1024);

/** Gathers payload into CopyData messages of FRAME_BYTES. Frames are reused: `release` gives one back. */
export class CopyInFramer {
  readonly #write: (message: Buffer, frame: Buffer) => void;
  #frame: Buffer | null = null;
  #fill = 0;

  constructor(write: (message: Buffer, frame: Buffer) => void) {
    this.#write = write;
  }

  append(bytes: Buffer): void {
    for (let from = 0; from < bytes.length; ) {
      this.#frame ??= frames.take(HEADER_BYTES + FRAME_BYTES);
      const take = Math.min(bytes.length - from, FRAME_BYTES - this.#fill);
      bytes.copy(this.#frame, HEADER_BYTES + this.#fill, from, from + take);
      from += take;
      this.#fill += take;
      if (this.#fill === FRAME_BYTES) this.flush();
    }
  }

  /** Writes what has been gathered, if anything. */
  flush(): void {
    const frame = this.#frame;
    if (frame === null || this.#fill === 0) return;
    frame[0] = COPY_DATA;
    frame.writeInt32BE(this.#fill + 4, 1);
    const message = frame.subarray(0, HEADER_BYTES + this.#fill);
    this.#frame = null;
    this.#fill = 0;
    this.#write(message, frame);
  }

  release(frame: Buffer): void {
    frames.give(frame);
  }
}
