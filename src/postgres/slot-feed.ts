// The catch-up feed: changes by the SQL slot functions instead of the walsender, for a stream that is far behind. A
// walsender sends every change as a message of its own and both sides wake up for it; a COPY of a function's result comes
// in large pieces. It reads from a temporary copy of the task's slot, so that the slot itself moves only to what the
// target has committed. Opened by sync, which goes on with wal-stream.ts when this one has ended.
//
//   copy (select data from pg_logical_slot_get_binary_changes(copy, upto_lsn …)) to stdout (format binary)
//
// Every call decodes again from the slot's restart_lsn and holds what it returns on the source, in a temporary file:
// call-size.ts says how much a call may cover. The server stops a call behind the first record that ends
// at or past upto_lsn: everything committed up to there has been returned.
//
// restart_lsn: of all running-transactions records that a call reads, it moves the slot to the first one, for only one
// candidate waits until its position is confirmed. pg_replication_slot_advance to where the slot is already reads the same
// WAL without decoding its changes, and every such record counts, because all of it is confirmed: the slot then restarts at
// the last one. So each call but the last is followed by that.
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { MigrationError } from '../model/errors.ts';
import { bigintToLsn, compareLsn, lsnToBigint, type Lsn } from '../model/lsn.ts';
import { isForWalsender, nextCallBytes, type CallResult, type CatchUpSizes } from './call-size.ts';
import type { Session } from './connections.ts';
import { endSessions } from './end-sessions.ts';
import { fromPostgres } from './errors.ts';
import { GulpQueue } from './gulp-queue.ts';
import { hasLogicalMessages } from './marker.ts';
import { readPaced, type ReadPace } from './read-pace.ts';
import { readServerError } from './server-error.ts';
import { decodingMemory } from './session-settings.ts';
import { mayAdvance } from './slot-advance.ts';
import { ident, literal } from './sql.ts';
import type { TaskScope } from './task-scope.ts';
import { KEEPALIVE, WalWalker, type Gulp } from './wal-walker.ts';
import type { WalStreamOptions } from './wal-stream.ts';

/** Received and not taken: about what the target takes while the source decodes the next call. */
const QUEUE_BYTES = 32 * 1024 * 1024;
const PURPOSE = 'catch-up';
const PACE_MS = 2;
/** What a call returns goes through a temporary file: memory that is taken anew for every call costs the source more. */
const RESULT_MEMORY = '4MB';
const ADVANCE_INTERVAL_MS = 10_000;
/** A call says nothing while it decodes. */
const SILENCE_TIMEOUT_MS = 600_000;

/**
 * Of the temporary copy; no task's slot can have it, for those begin with `dts_`. Another one every time: a copy lives
 * until the server has noticed that its session is cut off.
 */
function newCopyName(slot: string): string {
  return `${slot.replace(/^dts_/, 'dtsc_')}_${randomBytes(4).toString('hex')}`;
}

export class SlotFeed {
  readonly #scope: TaskScope;
  readonly #session: Session;
  readonly #options: WalStreamOptions;
  readonly #sizes: CatchUpSizes;
  readonly #copy: string;
  readonly #queue = new GulpQueue(
    { pause: () => void this.#socket().pause(), resume: () => this.#pace?.resume() },
    QUEUE_BYTES,
  );
  #pace: ReadPace | null = null;
  #unfitUntil: Lsn | null = null;
  #receivedLsn: Lsn;
  #acknowledged: Lsn | null = null;
  #advancedAt = Date.now();
  #callEnd: (() => void) | null = null;
  #resultBytes = 0;

  private constructor(scope: TaskScope, session: Session, options: WalStreamOptions, sizes: CatchUpSizes) {
    this.#sizes = sizes;
    this.#scope = scope;
    this.#session = session;
    this.#options = options;
    this.#copy = newCopyName(options.slot.name);
    this.#receivedLsn = options.startLsn;
  }

  /** Errors: as fromPostgres says; `sql_failed` 53400 (no free slot) or `insufficient_privilege` where it is not to be had. */
  static async open(
    scope: TaskScope,
    options: WalStreamOptions,
    sizes: CatchUpSizes,
    signal: AbortSignal,
  ): Promise<SlotFeed> {
    await endSessions(scope, scope.source, [PURPOSE]); // of a killed process: it may decode for minutes, and holds a slot
    const session = await scope.source.session({ purpose: PURPOSE, signal });
    const feed = new SlotFeed(scope, session, options, sizes);
    try {
      await session.client.query(`select set_config('work_mem', '${RESULT_MEMORY}', false)`);
      await session.client.query(decodingMemory);
      await session.client.query('select pg_copy_logical_replication_slot($1, $2, true)', [
        options.slot.name,
        feed.#copy,
      ]);
    } catch (error) {
      await session.close();
      throw fromPostgres(error, { role: 'source', slot: options.slot.name });
    }
    feed.#start();
    return feed;
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
    void this.advance().catch((error: unknown) => this.#fail(fromPostgres(error, { role: 'source' })));
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
      { timeoutMs: SILENCE_TIMEOUT_MS },
    );
  }

  async close(): Promise<void> {
    this.#pace?.stop();
    this.#fail(new MigrationError('aborted', 'source: the feed was closed'));
    this.#socket().destroy(); // a call that decodes would not hear a goodbye
    await this.#session.close();
  }

  #socket(): Socket {
    return (this.#session.client as unknown as { connection: { stream: Socket } }).connection.stream;
  }

  #start(): void {
    const socket = this.#socket();
    const walker = new WalWalker('rows', {
      gulp: (gulp) => this.#push(gulp),
      keepalive: () => undefined,
      control: (message) => {
        if (message[0] === 0x45)
          this.#fail(fromPostgres(readServerError(message, 5, message.length), { role: 'source' }));
        if (message[0] === 0x5a) this.#callEnd?.();
      },
    });
    this.#pace = readPaced(socket, {
      paceMs: PACE_MS,
      queue: this.#queue,
      walker,
      fail: (failure) => this.#fail(failure),
    });
    socket.on('error', (error) => this.#fail(fromPostgres(error, { role: 'source' })));
    socket.on('close', () =>
      this.#fail(fromPostgres(new Error('Connection terminated unexpectedly'), { role: 'source' })),
    );
    void this.#run(walker).catch((error: unknown) => this.#fail(fromPostgres(error, { role: 'source' })));
  }

  /** One call after the other; the server decodes the next while the target takes the last. */
  async #run(walker: WalWalker): Promise<void> {
    let reachedSource = false;
    let last: CallResult | null = null;
    while (this.#queue.failure === null) {
      const { rows } = await this.#scope.source.query<{ lsn: Lsn; restart: Lsn | null }>(
        `select pg_current_wal_flush_lsn()::text as lsn,
           (select restart_lsn::text from pg_replication_slots where slot_name = $1) as restart`,
        [this.#copy],
      );
      if (this.#queue.failure !== null) return; // closed meanwhile: nobody would answer the call
      const source = lsnToBigint(rows[0]?.lsn ?? this.#receivedLsn);
      const received = lsnToBigint(this.#receivedLsn);
      // A busy source writes on while a call runs: what the last one left is the walsender's, however much it is.
      if (source - received < BigInt(this.#sizes.toBytes) || reachedSource || this.#unfitUntil !== null)
        break;
      const backlog = {
        lag: Number(source - received),
        again: Number(received - lsnToBigint(rows[0]?.restart ?? this.#receivedLsn)),
      };
      const most = received + BigInt(nextCallBytes(last, backlog, this.#sizes));
      reachedSource = most >= source;
      const upto = bigintToLsn(reachedSource ? source : most);
      walker.restart();
      this.#resultBytes = 0;
      await this.#call(upto, reachedSource);
      if (this.#queue.failure !== null) return;
      const result = { walBytes: Number(lsnToBigint(upto) - received), resultBytes: this.#resultBytes };
      if (isForWalsender(last, result)) this.#unfitUntil = bigintToLsn(source);
      last = result;
      if (compareLsn(upto, this.#receivedLsn) > 0) this.#receivedLsn = upto;
      this.#push(reached(upto));
    }
    this.#queue.end();
  }

  async #call(upto: Lsn, isLast: boolean): Promise<void> {
    const { sourceVersion, binary, publication } = this.#options;
    const parameters = [
      'proto_version',
      '1',
      'publication_names',
      ident(publication),
      ...(hasLogicalMessages(sourceVersion) ? ['messages', 'true'] : []),
      ...(binary ? ['binary', 'true'] : []),
    ].map(literal);
    const slot = literal(this.#copy);
    const advance = `select pg_replication_slot_advance(slot_name, confirmed_flush_lsn)
      from pg_replication_slots where slot_name = ${slot}`;
    const sql = `copy (select data from pg_logical_slot_get_binary_changes(${slot}, ${literal(upto)}, null,
      ${parameters.join(', ')})) to stdout (format binary); ${isLast || !mayAdvance(sourceVersion) ? '' : advance}`;
    const length = Buffer.byteLength(sql);
    const message = Buffer.alloc(length + 6);
    message[0] = 0x51;
    message.writeInt32BE(length + 5, 1);
    message.write(sql, 5);
    this.#queue.heard();
    await new Promise<void>((resolve) => {
      const watchdog = setInterval(() => {
        if (this.silentMs > SILENCE_TIMEOUT_MS)
          this.#fail(
            new MigrationError(
              'connection_failed',
              `source: the slot functions gave nothing for ${this.silentMs} ms`,
            ),
          );
      }, 5_000);
      this.#callEnd = () => {
        clearInterval(watchdog);
        this.#callEnd = null;
        resolve();
      };
      this.#socket().write(message);
    });
  }

  #push(gulp: Gulp): void {
    this.#resultBytes += gulp.buffer.length;
    this.#queue.push(gulp);
  }

  #fail(failure: MigrationError): void {
    this.#queue.fail(failure);
    this.#callEnd?.();
  }
}

/** In the shape of the walsender's keepalive: everything up to `lsn` has been given. */
function reached(lsn: Lsn): Gulp {
  const buffer = Buffer.alloc(18);
  buffer[0] = KEEPALIVE;
  buffer.writeBigUInt64BE(lsnToBigint(lsn), 1);
  return { buffer, bounds: Int32Array.of(0, 18) };
}
