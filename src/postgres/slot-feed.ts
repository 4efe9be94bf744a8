// The catch-up feed: changes by the SQL slot functions instead of the walsender, for a stream that is far behind. A
// walsender sends every change as a message of its own and both sides wake up for it; a COPY of a function's result comes
// in large pieces. It reads from temporary copies of the task's slot (slot-copy.ts), so that the slot itself moves only to
// what the target has committed. Opened by sync, which goes on with wal-stream.ts when this one has ended.
//
// Calls follow each other on two copies in turn: while one call's result is taken, the server decodes the next on the other
// copy, which has been moved to where that result ends. The first one is what the target waits for, so it covers a part
// only, and the second begins at once, beside it.
//
// Every call decodes again from its slot's restart_lsn and holds what it returns on the source: call-size.ts says how much
// a call may cover.
import { MigrationError } from '../model/errors.ts';
import { bigintToLsn, compareLsn, lsnToBigint, type Lsn } from '../model/lsn.ts';
import { BufferPool } from './buffer-pool.ts';
import {
  callEnd,
  firstCallBytes,
  isForWalsender,
  isTooLarge,
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

const ADVANCE_INTERVAL_MS = 10_000;
/** Slots that must be free before the feed takes a second one. */
const FREE_SLOTS = 2;

/** What a copy decodes now. */
interface Call {
  readonly copy: SlotCopy;
  readonly from: bigint;
  readonly upto: bigint;
  /** Where the source was. */
  readonly source: bigint;
  /** It goes up to there. A busy source writes on meanwhile: that is the walsender's, however much it is. */
  readonly isLast: boolean;
}

function callOf(copy: SlotCopy, from: bigint, bytes: number, source: bigint): Call {
  const wanted = callEnd(from + BigInt(bytes));
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
  /** It has nothing to do. */
  #idle: SlotCopy | null = null;
  /** Small: what is received ahead of the target takes CPU from it, and the source holds the rest as well. */
  readonly #queue = new GulpQueue({
    pause: () => this.#reading?.pause(),
    resume: () => this.#reading?.resume(),
  });
  /** What the copies read into. */
  readonly #pool = new BufferPool();
  #unfitUntil: Lsn | null = null;
  #receivedLsn: Lsn;
  #acknowledged: Lsn | null = null;
  #advancedAt = Date.now();
  #resultBytes = 0;
  #last: CallResult | null = null;
  #run: Promise<void> = Promise.resolve();

  private constructor(scope: TaskScope, options: WalStreamOptions, sizes: CatchUpSizes, signal: AbortSignal) {
    this.#scope = scope;
    this.#options = options;
    this.#sizes = sizes;
    this.#signal = signal;
    this.#receivedLsn = options.startLsn;
  }

  /** Errors: those of SlotCopy.open. */
  static async open(
    scope: TaskScope,
    options: WalStreamOptions,
    sizes: CatchUpSizes,
    signal: AbortSignal,
  ): Promise<SlotFeed> {
    await endSessions(scope, scope.source, [CATCH_UP_PURPOSE]); // of a killed process: it may decode for minutes, and holds a slot
    const feed = new SlotFeed(scope, options, sizes, signal);
    const first = await feed.#openCopy();
    feed.#run = feed.#feed(first).catch((error: unknown) => feed.#fail(error));
    return feed;
  }

  /** Whether a copy may be moved to where another one's call ends. */
  get #hasSecond(): boolean {
    return mayAdvance(this.#options.sourceVersion);
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

  /** Every transaction comes when it has committed. */
  readonly inProgress = null;

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
    await this.#dropAll();
    await this.#run;
    await this.#dropAll(); // one that was being opened
  }

  async #feed(first: SlotCopy): Promise<void> {
    let call = await this.#begin(first, lsnToBigint(this.#receivedLsn));
    let ahead = call === null ? null : this.#beginAhead(call); // the second begins beside the first
    try {
      while (call !== null) {
        const current: Call = call;
        const result = await this.#read(current, () => {
          ahead ??= this.#beginAhead(current);
        });
        const next: Call | null = await ahead;
        ahead = null;
        if (next !== null && this.#isWanted(next, result)) {
          this.#idle = current.copy;
          call = next;
          continue;
        }
        if (next !== null) await this.#drop(next.copy);
        call = current.isLast ? null : await this.#begin(current.copy, lsnToBigint(this.#receivedLsn));
      }
    } catch (error) {
      this.#fail(error); // whoever hears of it closes the feed, which ends what is under way
      throw error;
    } finally {
      await ahead;
    }
    await this.#dropAll();
    this.#queue.end();
  }

  /**
   * A call behind `from`; null: nothing more is to be had by calls, or the feed was closed. `beside`: the first call, where
   * it is still decoded.
   */
  async #begin(copy: SlotCopy, from: bigint, beside: Call | null = null): Promise<Call | null> {
    const source = lsnToBigint(await this.#sourceLsn());
    const lag = Number(source - from);
    if (lag < this.#sizes.toBytes || this.#unfitUntil !== null) return null;
    if (this.#queue.failure !== null) return null; // nobody would answer the call
    if (this.#hasSecond && from > lsnToBigint(this.#options.startLsn)) await copy.moveTo(bigintToLsn(from));
    const again = Number(from - lsnToBigint(copy.restartLsn));
    const call = callOf(copy, from, this.#bytesOf(beside, lag, again), source);
    copy.begin(bigintToLsn(call.upto));
    return call;
  }

  #bytesOf(beside: Call | null, lag: number, again: number): number {
    if (beside) return secondCallBytes(Number(beside.upto - beside.from), lag, this.#sizes);
    if (this.#last) return nextCallBytes(this.#last, { lag, again }, this.#sizes);
    return firstCallBytes(lag, this.#hasSecond, this.#sizes);
  }

  /**
   * The call behind `current`, whose result is not taken yet, on the other copy; null: there is none. Never rejects. What
   * it has opened is closed with the feed.
   */
  async #beginAhead(current: Call): Promise<Call | null> {
    const beside = this.#last === null ? current : null;
    const rest = Number(current.source - current.upto);
    // behind a call that returned nothing, one is tried by itself
    if (!this.#hasSecond || rest < this.#sizes.toBytes || this.#last?.resultBytes === 0) return null;
    const copy = this.#idle ?? (await this.#openSecond());
    this.#idle = null;
    if (copy === null) return null;
    try {
      const call = await this.#begin(copy, current.upto, beside);
      if (call === null) return null;
      this.#scope.log.info(
        { from: bigintToLsn(call.from), upto: bigintToLsn(call.upto) },
        'a call begins while another is taken',
      );
      return call;
    } catch (error) {
      this.#scope.log.debug({ err: error }, 'the next call waits for this one');
      await this.#drop(copy);
      return null;
    }
  }

  /** Whether a call that has begun behind one with this result is to be gone on with. */
  #isWanted({ from, upto }: Call, result: CallResult): boolean {
    // nothing: a transaction is larger than that call, and this one has no more of it than its end
    return this.#unfitUntil === null && result.resultBytes > 0 && !isTooLarge(result, Number(upto - from));
  }

  /** Null: there is none to be had; the last free slot is somebody else's to take. Never rejects. */
  async #openSecond(): Promise<SlotCopy | null> {
    try {
      const { rows } = await this.#scope.source.query<{ free: number }>(
        `select current_setting('max_replication_slots')::int - count(*)::int as free from pg_replication_slots`,
      );
      return (rows[0]?.free ?? 0) < FREE_SLOTS ? null : await this.#openCopy();
    } catch (error) {
      this.#scope.log.debug({ err: error }, 'there is no second copy of the slot');
      return null;
    }
  }

  async #openCopy(): Promise<SlotCopy> {
    const copy = await SlotCopy.open(this.#scope, this.#options, this.#queue, this.#pool, this.#signal);
    this.#copies.add(copy);
    return copy;
  }

  async #sourceLsn(): Promise<Lsn> {
    const { rows } = await this.#scope.source.query<{ lsn: Lsn }>(
      'select pg_current_wal_flush_lsn()::text as lsn',
    );
    return rows[0]?.lsn ?? this.#receivedLsn;
  }

  async #read({ copy, from, upto, source }: Call, isDelivered: () => void): Promise<CallResult> {
    this.#reading = copy;
    this.#resultBytes = 0;
    await copy.read((gulp) => {
      isDelivered();
      this.#push(gulp);
    });
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

  async #dropAll(): Promise<void> {
    await Promise.all([...this.#copies].map((copy) => this.#drop(copy)));
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
