// The bytes of COPY, without sockets: the walk over what a server sends during COPY TO STDOUT, and the large CopyData
// messages that COPY FROM STDIN gets. copy-stream.ts couples them. A CopyData boundary means nothing to the receiver
// (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY), and each message costs it a wake-up, so
// one message per row is taken apart and put together again as one per 256 KiB: as a rule in the memory into which it was
// read, which has room in front for the header.

import { BufferPool } from './buffer-pool.ts';

const COPY_DATA = 0x64; // d
const READY_FOR_QUERY = 0x5a; // Z
/** CopyOutResponse, CopyDone, CommandComplete, Error, Notice, ParameterStatus, Notification. */
const CONTROL = new Set([0x48, 0x63, 0x43, 0x45, 0x4e, 0x53, 0x41]);
export const HEADER_BYTES = 5;
/** Bytes from which a call is faster than a loop; measured on node 20. */
const MOVE_BY_CALL = 56;
/** Looked up once: of a Buffer it lies four prototypes away, which costs as much as the call. */
const copyWithin: Uint8Array['copyWithin'] = Reflect.get(Uint8Array.prototype, 'copyWithin');

/** Payload bytes of a CopyData message that we send. */
export const FRAME_BYTES = 256 * 1024 - HEADER_BYTES;

/**
 * Memory for a header and FRAME_BYTES. Of all streams, and of the sockets that they read: a copy of thousands of small
 * tables would make new memory for each.
 */
export const frames = new BufferPool(4 * 1024 * 1024);

export function takeFrame(): Buffer {
  return frames.take(HEADER_BYTES + FRAME_BYTES);
}

export interface CopyOutSink {
  /** Rows' bytes without their headers that come before something else; valid during the call only. */
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

  /**
   * Returns how many bytes of payload, which the sink has not been given, now lie at the chunk's front. Throws `RangeError`
   * for bytes that are no message of a COPY.
   */
  push(chunk: Buffer): number {
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
        return 0;
      }
    }
    return kept;
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
    copyWithin.call(chunk, at, from, to);
    return at + to - from;
  }
  // cheaper than a call for short rows; they may overlap, for what is written over has been read
  for (; from + 16 <= to; from += 16, at += 16) {
    const a = view.getInt32(from);
    const b = view.getInt32(from + 4);
    const c = view.getInt32(from + 8);
    const d = view.getInt32(from + 12);
    view.setInt32(at, a);
    view.setInt32(at + 4, b);
    view.setInt32(at + 8, c);
    view.setInt32(at + 12, d);
  }
  for (; from + 4 <= to; from += 4, at += 4) view.setInt32(at, view.getInt32(from));
  for (; from < to; from++) view.setUint8(at++, view.getUint8(from));
  return at;
}

/** Makes payload into CopyData messages of up to FRAME_BYTES. Who has written one gives its frame back to `frames`. */
export class CopyInFramer {
  readonly #write: (message: Buffer, frame: Buffer) => void;
  #frame: Buffer | null = null;
  #fill = 0;

  constructor(write: (message: Buffer, frame: Buffer) => void) {
    this.#write = write;
  }

  /** Copies it behind what has been gathered. */
  append(bytes: Buffer): void {
    for (let from = 0; from < bytes.length; ) {
      this.#frame ??= takeFrame();
      const take = Math.min(bytes.length - from, FRAME_BYTES - this.#fill);
      bytes.copy(this.#frame, HEADER_BYTES + this.#fill, from, from + take);
      from += take;
      this.#fill += take;
      if (this.#fill === FRAME_BYTES) this.flush();
    }
  }

  /** Writes so many bytes of payload that lie in a frame already, behind the room for the header. */
  lend(frame: Buffer, payloadBytes: number): void {
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

  #send(frame: Buffer, payloadBytes: number): void {
    frame[0] = COPY_DATA;
    frame.writeInt32BE(payloadBytes + 4, 1);
    this.#write(frame.subarray(0, HEADER_BYTES + payloadBytes), frame);
  }
}
