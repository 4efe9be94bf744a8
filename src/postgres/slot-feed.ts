// The catch-up feed: changes by the SQL slot functions instead of the walsender, for a stream that is far behind. A
// walsender sends every change as a message of its own and both sides wake up for it; a COPY of a function's result comes
// in large pieces. It reads from temporary copies of the task's slot (slot-copy.ts), so that the slot itself moves only to
// what the target has committed. Opened by sync, which goes on with wal-stream.ts when this one has ended.
//
// One call after the other: the server decodes the next while the target takes the last. The first one is what the target
// waits for, so it covers a part only, and the second begins beside it, on a copy of its own, which has been moved to
// where the first one ends.
//
// Every call decodes again from its slot's restart_lsn and holds what it returns on the source: call-size.ts says how much
// a call may cover.
import { MigrationError } from '../model/errors.ts';
import { bigintToLsn, compareLsn, lsnToBigint, type Lsn } from '../model/lsn.ts';
import {
  isForWalsender,
  nextCallBytes,
  secondCallBytes,
  type CallResult,
  type CatchUpSizes,
} from './call-size.ts';
import { endSessions } from './end-sessions.ts';
import { fromPostgres } from './errors.ts';
import { GulpQueue } from './gulp-queue.ts';
import { mayAdvance } from './slot-advance.ts';
import { CATCH_UP_PURPOSE, DECODING_TIMEOUT_MS, SlotCopy } from './slot-copy.ts';
import type { TaskScope } from './task-scope.ts';
import { KEEPALIVE, type Gulp } from './wal-walker.ts';
import type { WalStreamOptions } from './wal-stream.ts';

/** Received and not taken: about what the target takes while the source decodes the next call. */
const QUEUE_BYTES = 32 * 1024 * 1024;
const ADVANCE_INTERVAL_MS = 10_000;
/** Slots that must be free before the feed takes a second one: the last is somebody else's to take. */
const FREE_SLOTS = 2;

/** What a copy decodes now. */
interface Call {
  readonly copy: SlotCopy;
  readonly from: bigint;
  readonly upto: bigint;
  /** Where the source was. */
  readonly source: bigint;
  /** It goes up to there. */
  readonly isLast: boolean;
}

function callOf(copy: SlotCopy, from: bigint, bytes: number, source: bigint): Call {
  const wanted = from + BigInt(bytes);
  const isLast = wanted >= source;
  return { copy, from, upto: isLast ? source : wanted, source, isLast };
}

export class SlotFeed {
  readonly #scope: TaskScope;
  readonly #options: WalStreamOptions;
  readonly #sizes: CatchUpSizes;
  readonly #signal: AbortSignal;
  readonly #copies = new Set<SlotCopy>();
  #reading: SlotCopy | null = null;
  readonly #queue = new GulpQueue(
    { pause: () => this.#reading?.pause(), resume: () => this.#reading?.resume() },
    QUEUE_BYTES,
  );
  #unfitUntil: Lsn | null = null;
  #receivedLsn: Lsn;
  #acknowledged: Lsn | null = null;
  #advancedAt = Date.now();
  #resultBytes = 0;
  #last: CallResult | null = null;
  readonly #run: Promise<void>;

  private constructor(
    scope: TaskScope,
    first: SlotCopy,
    options: WalStreamOptions,
    sizes: CatchUpSizes,
    signal: AbortSignal,
  ) {
    this.#scope = scope;
    this.#options = options;
    this.#sizes = sizes;
    this.#signal = signal;
    this.#receivedLsn = options.startLsn;
    this.#copies.add(first);
    this.#run = this.#feed(first).catch((error: unknown) => this.#fail(error));
  }

  /** Errors: those of SlotCopy.open. */
  static async open(
    scope: TaskScope,
    options: WalStreamOptions,
    sizes: CatchUpSizes,
    signal: AbortSignal,
  ): Promise<SlotFeed> {
    await endSessions(scope, scope.source, [CATCH_UP_PURPOSE]); // of a killed process: it may decode for minutes, and holds a slot
    return new SlotFeed(scope, await SlotCopy.open(scope, options, signal), options, sizes, signal);
  }

  /** Up to here everything has been received. */
  get receivedLsn(): Lsn {
    return this.#receivedLsn;
  }

  get silentMs(): number {
    return this.#queue.silentMs;
  }

  get drained(): boolean {
    return this.#queue.drained;
  }

  /** Nothing more will come: the rest is the walsender's. */
  get ended(): boolean {
    return this.#queue.ended;
  }

  /**
   * Null, or up to where the backlog is the walsender's: a call returned more than the source should hold, or calls returned
   * nothing, as in the middle of a transaction that is larger than they are, and would decode its WAL again for nothing.
   */
  get unfitUntil(): Lsn | null {
    return this.#unfitUntil;
  }

  take(waitMs: number): Promise<readonly Gulp[]> {
    return this.#queue.take(waitMs);
  }

  poke(): void {
    this.#queue.poke();
  }

  /** The slot itself moves now and then: each time, the server reads the WAL in between. */
  acknowledge(lsn: Lsn): void {
    this.#acknowledged = lsn;
    if (Date.now() - this.#advancedAt < ADVANCE_INTERVAL_MS) return;
    this.#advancedAt = Date.now();
    void this.advance().catch((error: unknown) => this.#fail(error));
  }

  /** Moves the task's slot to what has been acknowledged; where that is not sound, the walsender will. */
  async advance(): Promise<void> {
    const lsn = this.#acknowledged;
    this.#acknowledged = null;
    if (lsn === null || !mayAdvance(this.#options.sourceVersion)) return;
    await this.#scope.source.query(
      `select pg_replication_slot_advance(slot_name, $2::pg_lsn) from pg_replication_slots
       where slot_name = $1 and not active and confirmed_flush_lsn < $2::pg_lsn`,
      [this.#options.slot.name, lsn],
      { timeoutMs: DECODING_TIMEOUT_MS },
    );
  }

  async close(): Promise<void> {
    this.#fail(new MigrationError('aborted', 'source: the feed was closed'));
    await Promise.all([...this.#copies].map((copy) => this.#drop(copy)));
    await this.#run;
  }

  async #feed(copy: SlotCopy): Promise<void> {
    let call = await this.#begin(copy);
    let beside = call === null ? null : this.#beginBeside(call);
    try {
      while (call !== null) {
        const result = await this.#read(call);
        const second: Call | null = await beside;
        beside = null;
        // nothing: a transaction is larger than the first call, and the second has no more of it than its end
        if (second !== null && result.resultBytes > 0 && this.#unfitUntil === null) {
          await this.#drop(call.copy);
          call = second;
          continue;
        }
        if (second !== null) await this.#drop(second.copy);
        call = call.isLast ? null : await this.#begin(call.copy);
      }
    } finally {
      const second = await beside;
      if (second) await this.#drop(second.copy);
    }
    this.#queue.end();
  }

  /** The next call, behind the last one; null: nothing more is to be had by calls, or the feed was closed. */
  async #begin(copy: SlotCopy): Promise<Call | null> {
    const { rows } = await this.#scope.source.query<{ lsn: Lsn; restart: Lsn | null }>(
      `select pg_current_wal_flush_lsn()::text as lsn,
         (select restart_lsn::text from pg_replication_slots where slot_name = $1) as restart`,
      [copy.name],
    );
    const source = lsnToBigint(rows[0]?.lsn ?? this.#receivedLsn);
    const from = lsnToBigint(this.#receivedLsn);
    const lag = Number(source - from);
    if (lag < this.#sizes.toBytes || this.#unfitUntil !== null) return null;
    if (this.#queue.failure !== null) return null; // nobody would answer the call
    const again = Number(from - lsnToBigint(rows[0]?.restart ?? this.#receivedLsn));
    const hasSecond = mayAdvance(this.#options.sourceVersion);
    const bytes = nextCallBytes(this.#last, { lag, again, hasSecond }, this.#sizes);
    // A busy source writes on while a call runs: what the last one left is the walsender's, however much it is.
    const call = callOf(copy, from, bytes, source);
    const isFollowed = this.#last === null && this.#besideBytes(call) > 0;
    copy.begin(bigintToLsn(call.upto), !call.isLast && !isFollowed);
    return call;
  }

  /** WAL of the call that may begin beside the first one; 0: none. */
  #besideBytes({ from, upto, source }: Call): number {
    if (!mayAdvance(this.#options.sourceVersion)) return 0;
    return secondCallBytes(Number(upto - from), Number(source - upto), this.#sizes);
  }

  /** The second call, while the server still decodes the first; null: there is none. Never rejects. */
  async #beginBeside(first: Call): Promise<Call | null> {
    const bytes = this.#besideBytes(first);
    if (bytes === 0) return null;
    let copy: SlotCopy | null = null;
    try {
      const { rows } = await this.#scope.source.query<{ free: number }>(
        `select current_setting('max_replication_slots')::int - count(*)::int as free from pg_replication_slots`,
      );
      if ((rows[0]?.free ?? 0) < FREE_SLOTS) return null;
      copy = await SlotCopy.open(this.#scope, this.#options, this.#signal);
      this.#copies.add(copy);
      await copy.skipTo(bigintToLsn(first.upto));
      const call = callOf(copy, first.upto, bytes, first.source);
      copy.begin(bigintToLsn(call.upto), !call.isLast);
      this.#scope.log.info(
        { from: bigintToLsn(call.from), upto: bigintToLsn(call.upto) },
        'the second call begins beside the first',
      );
      return call;
    } catch (error) {
      this.#scope.log.debug({ err: error }, 'the second call waits for the first');
      if (copy !== null) await this.#drop(copy);
      return null;
    }
  }

  async #read({ copy, from, upto, source }: Call): Promise<CallResult> {
    this.#reading = copy;
    this.#resultBytes = 0;
    await copy.read({ queue: this.#queue, gulp: (gulp) => this.#push(gulp) });
    const result = { walBytes: Number(upto - from), resultBytes: this.#resultBytes };
    if (isForWalsender(this.#last, result)) this.#unfitUntil = bigintToLsn(source);
    this.#last = result;
    const reachedLsn = bigintToLsn(upto);
    if (compareLsn(reachedLsn, this.#receivedLsn) > 0) this.#receivedLsn = reachedLsn;
    this.#push(reached(reachedLsn));
    return result;
  }

  #push(gulp: Gulp): void {
    this.#resultBytes += gulp.buffer.length;
    this.#queue.push(gulp);
  }

  async #drop(copy: SlotCopy): Promise<void> {
    this.#copies.delete(copy);
    await copy.close();
  }

  #fail(error: unknown): void {
    this.#queue.fail(fromPostgres(error, { role: 'source' }));
  }
}

/** In the shape of the walsender's keepalive: everything up to `lsn` has been given. */
function reached(lsn: Lsn): Gulp {
  const buffer = Buffer.alloc(18);
  buffer[0] = KEEPALIVE;
  buffer.writeBigUInt64BE(lsnToBigint(lsn), 1);
  return { buffer, bounds: Int32Array.of(0, 18) };
}
