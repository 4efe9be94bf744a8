// Transactions that the walsender sends before they have committed (`streaming 'on'`, from 14 on): what does not fit into its
// logical_decoding_work_mem comes in parts, between those of others, instead of being written to the source's disk and read
// again behind the commit. Here each is gathered until its end is known: a commit gives it on as the transaction that it
// would have been otherwise, Begin, messages and Commit; a rollback forgets it.
//
//   S xid first … E    a part: messages with the id of their (sub)transaction     (in spilled-messages.ts)
//   c xid              it has committed: in order among the other transactions
//   A xid subXid       rolled back: all of it, or a sub-transaction; what comes of it then cannot be trusted (sent-rolled-back.ts)
//
// Positions are those of a stream without parts: of a transaction in progress nothing is acknowledged, and a new connection
// is sent all of it again. Driven by wal-stream.ts, for each connection anew.
import { MigrationError } from '../model/errors.ts';
import { lsnToBigint } from '../model/lsn.ts';
import type { InProgress } from '../model/progress.ts';
import { BufferPool } from './buffer-pool.ts';
import { beginMessage, commitMessage } from './pgoutput-ends.ts';
import { decodePgoutput } from './pgoutput.ts';
import type { StreamAbortMessage, StreamCommitMessage, StreamStartMessage } from './pgoutput-messages.ts';
import { SentRolledBack } from './sent-rolled-back.ts';
import { SpilledMessages } from './spilled-messages.ts';
import { KEEPALIVE, type Gulp } from './wal-walker.ts';

/** Taken by all of them; above it the largest is written to its file. */
const MEMORY_BYTES = 8 * 1024 * 1024;

const START = 0x53; // S
const STOP = 0x45; // E
const COMMIT = 0x63; // c
const ABORT = 0x41; // A
/** Origin and Type, which nobody asks for. */
const UNUSED = new Set([0x4f, 0x59]);
/** Relation, Insert, Update, Delete, Truncate, Message: with an id behind their tag. */
const CARRIED = new Set([0x52, 0x49, 0x55, 0x44, 0x54, 0x4d]);
const LEAST_BYTES = 5;
/** What is given of a gulp is copied when it is at most this share: it may be kept for long, and the gulp with it. */
const COPIED_SHARE = 1 / 4;

export interface GatherOptions {
  /** For their files. */
  readonly folder: string;
  /** Whether one of these sub-transactions, of a transaction that has committed, was rolled back all the same. */
  readonly wasRolledBack: (xids: readonly number[]) => Promise<boolean>;
  /** One has been written to its file. */
  readonly onSpilled?: () => void;
  readonly memoryBytes?: number;
}

export class TransactionsInProgress {
  readonly #options: GatherOptions;
  readonly #memoryBytes: number;
  readonly #pool: BufferPool;
  readonly #open = new Map<number, SpilledMessages>();
  /** The one whose part comes. */
  #part: SpilledMessages | null = null;
  #failure: { readonly error: unknown } | null = null;

  constructor(options: GatherOptions) {
    this.#options = options;
    this.#memoryBytes = options.memoryBytes ?? MEMORY_BYTES;
    this.#pool = new BufferPool(this.#memoryBytes);
  }

  /** What is gathered of transactions that have not ended. */
  get figures(): InProgress {
    const figures = { transactions: this.#open.size, bytes: 0, spilledBytes: 0 };
    for (const { bytes, fileBytes } of this.#open.values()) {
      figures.bytes += bytes;
      figures.spilledBytes += fileBytes;
    }
    return figures;
  }

  /**
   * Whole transactions, and what lies between them, of what the walsender has sent. Errors, from then on for ever:
   * SpillFailed; SentRolledBack, which may come within a transaction; `internal` for what no walsender sends; `aborted` after `close`.
   */
  async *whole(gulps: readonly Gulp[]): AsyncGenerator<Gulp> {
    try {
      for (const gulp of gulps) {
        if (this.#failure !== null) throw this.#failure.error;
        yield* this.#wholeOf(gulp);
        await this.#makeRoom();
      }
    } catch (error) {
      this.#failure ??= { error };
      throw this.#failure.error;
    }
  }

  /** Idempotent. */
  async close(): Promise<void> {
    this.#failure ??= { error: new MigrationError('aborted', 'source: the stream was closed') };
    const open = [...this.#open.values()];
    this.#open.clear();
    this.#part = null;
    await Promise.all(open.map((messages) => messages.close()));
  }

  async *#wholeOf(gulp: Gulp): AsyncGenerator<Gulp> {
    const { buffer, bounds, lease } = gulp;
    let from = 0;
    let isWhole = true;
    for (let i = 0; i < bounds.length; i += 2) {
      const start = bounds[i] ?? 0;
      const end = bounds[i + 1] ?? 0;
      if (this.#failure !== null) throw this.#failure.error; // closed, while what was given was looked at
      const tag = buffer[start] ?? 0;
      if (this.#part === null ? !isOfParts(tag) : tag === KEEPALIVE) continue;
      isWhole = false;
      if (i > from) yield partOf(gulp, from, i);
      from = i + 2;
      if (this.#part !== null && CARRIED.has(tag) && end - start >= LEAST_BYTES)
        this.#part.add(buffer, start, end);
      else if (this.#part === null || !UNUSED.has(tag)) yield* this.#onEdge(buffer.subarray(start, end));
    }
    if (isWhole) {
      yield gulp;
      return;
    }
    if (bounds.length > from) yield partOf(gulp, from, bounds.length);
    lease?.release();
  }

  /** Where a part begins or ends, or a transaction does. */
  async *#onEdge(bytes: Buffer): AsyncGenerator<Gulp> {
    const message = decodePgoutput(bytes);
    const isWithin = this.#part !== null;
    if (message.tag === 'stream-stop' && isWithin) this.#part = null;
    else if (message.tag === 'stream-start' && !isWithin) this.#part = this.#begin(message);
    else if (message.tag === 'stream-commit' && !isWithin) yield* this.#commit(message);
    else if (message.tag === 'stream-abort' && !isWithin) await this.#abort(message);
    else throw unexpected(`${message.tag} ${isWithin ? 'within' : 'outside of'} a part`);
  }

  #begin({ xid, first }: StreamStartMessage): SpilledMessages {
    const known = this.#open.get(xid);
    if (known?.isDoubtful) throw new SentRolledBack(xid);
    if (first === (known !== undefined))
      throw unexpected(`${first ? 'the first' : 'another'} part of the transaction ${xid}`);
    const messages = known ?? new SpilledMessages(xid, this.#options.folder, this.#pool);
    this.#open.set(xid, messages);
    return messages;
  }

  async *#commit({ xid, commitLsn, endLsn }: StreamCommitMessage): AsyncGenerator<Gulp> {
    const messages = this.#open.get(xid);
    if (!messages) throw unexpected(`the commit of the transaction ${xid}`);
    if (messages.isDoubtful) throw new SentRolledBack(xid);
    const commit = lsnToBigint(commitLsn);
    yield single(beginMessage(commit, xid));
    let known: ReadonlySet<number> = new Set();
    for await (const { gulp, subXids } of messages.given()) {
      const asked = [...subXids].filter((subXid) => !known.has(subXid));
      if (asked.length > 0 && (await this.#options.wasRolledBack(asked))) throw new SentRolledBack(xid);
      known = subXids; // of all of them, they could be as many as there are changes
      yield gulp;
    }
    yield single(commitMessage(commit, lsnToBigint(endLsn)));
    this.#open.delete(xid);
    await messages.close();
  }

  /** Of a transaction that is rolled back as a whole its sub-transactions come first; 18 also tells of some that it has not sent. */
  async #abort({ xid, subXid }: StreamAbortMessage): Promise<void> {
    const messages = this.#open.get(xid);
    if (messages === undefined) return;
    if (xid !== subXid) {
      messages.isDoubtful = true;
      return;
    }
    this.#open.delete(xid);
    await messages.close();
  }

  async #makeRoom(): Promise<void> {
    for (;;) {
      let all = 0;
      let largest: SpilledMessages | null = null;
      for (const messages of this.#open.values()) {
        all += messages.memoryBytes;
        if (messages.memoryBytes > (largest?.memoryBytes ?? 0)) largest = messages;
      }
      if (all <= this.#memoryBytes || largest === null) return;
      await largest.spill();
      this.#options.onSpilled?.();
    }
  }
}

function isOfParts(tag: number): boolean {
  return tag === START || tag === COMMIT || tag === ABORT || tag === STOP;
}

function partOf({ buffer, bounds, lease }: Gulp, from: number, to: number): Gulp {
  const some = bounds.subarray(from, to);
  const [start, end] = [some[0] ?? 0, some.at(-1) ?? 0];
  if (end - start <= buffer.length * COPIED_SHARE)
    return { buffer: Buffer.from(buffer.subarray(start, end)), bounds: some.map((at) => at - start) };
  lease?.hold();
  return lease ? { buffer, bounds: some, lease } : { buffer, bounds: some };
}

function single(message: Buffer): Gulp {
  return { buffer: message, bounds: Int32Array.of(0, message.length) };
}

function unexpected(what: string): MigrationError {
  return new MigrationError('internal', `source: it sent ${what}, which is out of place`);
}
