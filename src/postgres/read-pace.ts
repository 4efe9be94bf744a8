// When a feed's socket is read. A server that sends every change, or every 8 kB, by itself wakes both sides for each: read at
// once, that costs more than what is read. So while small pieces come fast the socket is left alone for a moment, and then
// read in one large gulp. Used by wal-stream.ts and slot-feed.ts.

import type { Socket } from 'node:net';
import { MigrationError } from '../model/errors.ts';
import type { GulpQueue } from './gulp-queue.ts';
import { GulpSocket } from './gulp-socket.ts';
import type { Lease } from './lease.ts';
import type { WalWalker } from './wal-walker.ts';

/** What is received in less than this, within two paces of the last (and what a timer is late), is worth waiting for more. */
const SMALL_CHUNK_BYTES = 32 * 1024;
/** The end of a transaction that comes alone, in several pieces, is not kept waiting; a load that lasts is. */
const FIRST_PAUSE_MS = 1;

interface Readable {
  pause(): unknown;
  resume(): unknown;
  readonly readableLength: number;
}

export class ReadPace {
  readonly #socket: Readable;
  readonly #paceMs: number;
  readonly #isHeld: () => boolean;
  #timer: NodeJS.Timeout | null = null;
  /** TLS gives what one read brought in pieces of its own, a message each: all of them have been taken by then. */
  #decision: NodeJS.Immediate | null = null;
  #chunkAt = 0;
  /** Between the last gulp and this one. */
  #sinceMs = 0;
  #gulped = 0;
  #pauseMs = FIRST_PAUSE_MS;

  /** `paceMs`: the longest pause. `isHeld`: the socket is paused for another reason, and whoever paused it calls `resume`. */
  constructor(socket: Readable, paceMs: number, isHeld: () => boolean) {
    this.#socket = socket;
    this.#paceMs = paceMs;
    this.#isHeld = isHeld;
  }

  /** After every chunk has been taken. */
  chunk(bytes: number): void {
    const now = performance.now();
    if (this.#gulped === 0) this.#sinceMs = now - this.#chunkAt;
    this.#chunkAt = now;
    this.#gulped += bytes;
    this.#decision ??= setImmediate(() => this.#decide());
  }

  #decide(): void {
    this.#decision = null;
    // those that wait in memory already cost nothing more
    if (this.#socket.readableLength > 0 || this.#isHeld()) return;
    const small = this.#gulped < SMALL_CHUNK_BYTES;
    this.#gulped = 0;
    if (this.#sinceMs > 2 * this.#paceMs + 1) this.#pauseMs = FIRST_PAUSE_MS;
    else if (small && this.#timer === null) this.#pause();
  }

  #pause(): void {
    this.#socket.pause();
    this.#timer = setTimeout(() => {
      this.#timer = null;
      if (!this.#isHeld()) this.#socket.resume();
    }, this.#pauseMs);
    this.#pauseMs = Math.min(2 * this.#pauseMs, this.#paceMs);
  }

  /** The other reason is gone. */
  resume(): void {
    if (this.#timer === null) this.#socket.resume();
  }

  stop(): void {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#decision) clearImmediate(this.#decision);
    this.#decision = null;
  }
}

/** From now on the socket's bytes go to the walker alone, paced unless `isHeld`: as `ReadPace` says. */
export function readPaced(
  socket: Socket,
  {
    paceMs,
    queue,
    isHeld = () => queue.paused,
    walker,
    fail,
  }: {
    readonly paceMs: number;
    readonly queue: GulpQueue;
    readonly isHeld?: () => boolean;
    readonly walker: WalWalker;
    readonly fail: (failure: MigrationError) => void;
  },
): ReadPace {
  const pace = new ReadPace(socket, paceMs, isHeld);
  socket.removeAllListeners('data');
  const take = (chunk: Buffer, lease?: Lease): void => {
    queue.heard();
    try {
      walker.push(chunk, lease);
    } catch (error) {
      fail(new MigrationError('internal', `source: ${String(error)}`, { cause: error }));
    }
    pace.chunk(chunk.length);
  };
  if (socket instanceof GulpSocket) socket.lendTo(take);
  else socket.on('data', take);
  return pace;
}
