// What a feed has received and the applier has not taken yet: bounded, because the socket behind it is paused while too
// much waits. One reader takes a few megabytes at once and waits when there is nothing. Filled by wal-stream.ts and
// slot-feed.ts.
import type { MigrationError } from '../model/errors.ts';
import type { Gulp } from './wal-walker.ts';

/** Above it the socket is paused until half of it is taken. */
const PAUSE_ABOVE_BYTES = 8 * 1024 * 1024;
/** Taken at once: what the reader has in hand is not counted any more. */
const TAKE_BYTES = 4 * 1024 * 1024;

export class GulpQueue {
  readonly #socket: { readonly pause: () => void; readonly resume: () => void };
  #gulps: Gulp[] = [];
  #bytes = 0;
  #paused = false;
  #ended = false;
  #failure: MigrationError | null = null;
  #wake: (() => void) | null = null;
  #heardAt = Date.now();

  constructor(socket: { readonly pause: () => void; readonly resume: () => void }) {
    this.#socket = socket;
  }

  /** Whether nothing waits to be taken. */
  get drained(): boolean {
    return this.#gulps.length === 0;
  }

  /** Whether the socket is paused because too much waits. */
  get paused(): boolean {
    return this.#paused;
  }

  get ended(): boolean {
    return this.#ended;
  }

  get failure(): MigrationError | null {
    return this.#failure;
  }

  /** How long nothing has been heard although we were listening. */
  get silentMs(): number {
    return this.#paused || this.#ended ? 0 : Date.now() - this.#heardAt;
  }

  /** The other side has said something, or has been asked. */
  heard(): void {
    this.#heardAt = Date.now();
  }

  push(gulp: Gulp): void {
    this.#gulps.push(gulp);
    this.#bytes += gulp.buffer.length;
    if (!this.#paused && this.#bytes > PAUSE_ABOVE_BYTES) {
      this.#paused = true;
      this.#socket.pause();
    }
    this.poke();
  }

  /**
   * What has arrived, in order; waits for something up to `waitMs` and then returns an empty list. Throws what `fail` was
   * given.
   */
  async take(waitMs: number): Promise<readonly Gulp[]> {
    if (this.drained && this.#failure === null && !this.#ended && waitMs > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, waitMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = null;
    }
    if (this.#failure) throw this.#failure;
    let count = 0;
    for (let taken = 0; count < this.#gulps.length && taken < TAKE_BYTES; count++)
      taken += this.#gulps[count]?.buffer.length ?? 0;
    const gulps = this.#gulps.splice(0, count);
    for (const { buffer } of gulps) this.#bytes -= buffer.length;
    if (this.#paused && this.#bytes <= PAUSE_ABOVE_BYTES / 2) {
      this.#paused = false;
      this.heard();
      this.#socket.resume();
    }
    return gulps;
  }

  /** Ends a `take` that waits. */
  poke(): void {
    this.#wake?.();
  }

  /** Nothing more will come. */
  end(): void {
    this.#ended = true;
    this.poke();
  }

  /** The first failure is what `take` throws from now on. */
  fail(failure: MigrationError): void {
    this.#failure ??= failure;
    this.poke();
  }
}
