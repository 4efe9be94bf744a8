// A temporary copy of the task's slot, and the session that decodes from it by the SQL slot functions. slot-feed.ts opens
// one or two, says what a call covers and takes what it returns, when its turn has come.
//
//   copy (select data from pg_logical_slot_get_binary_changes(copy, upto_lsn …)) to stdout (format binary)
//
// The server decodes all that a call covers before it sends the first row, and holds it in a temporary file. It stops
// behind the first record that ends at or past upto_lsn: every commit whose record begins before is returned. A copy that
// was moved to upto_lsn goes on exactly there, for what has a commit record that begins before is skipped. Between a
// record that ends with a page of WAL and the next one lies the header of a page: upto_lsn must not, or the record behind
// it would be on both sides (call-size.ts).
//
// restart_lsn: of all running-transactions records that a call or an advance reads, it moves the slot to the first one,
// for only one candidate waits until its position is confirmed. pg_replication_slot_advance to where the slot is already
// reads the same WAL without decoding its changes, and every such record counts, because all of it is confirmed: the slot
// then restarts at the last one.
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { MigrationError } from '../model/errors.ts';
import { compareLsn, ZERO_LSN, type Lsn } from '../model/lsn.ts';
import type { BufferPool } from './buffer-pool.ts';
import type { Session } from './connections.ts';
import { fromPostgres } from './errors.ts';
import { GulpSocket } from './gulp-socket.ts';
import type { GulpQueue } from './gulp-queue.ts';
import { hasLogicalMessages } from './marker.ts';
import { readPaced, type ReadPace } from './read-pace.ts';
import { readServerError } from './server-error.ts';
import { decodingMemory } from './session-settings.ts';
import { ident, literal } from './sql.ts';
import type { TaskScope } from './task-scope.ts';
import { WalWalker, type Gulp } from './wal-walker.ts';
import type { WalStreamOptions } from './wal-stream.ts';

export const CATCH_UP_PURPOSE = 'catch-up';
const PACE_MS = 2;
/** What a call returns goes through a temporary file: memory that is taken anew for every call costs the source more. */
const RESULT_MEMORY = '4MB';
/** A call says nothing while it decodes. */
export const DECODING_TIMEOUT_MS = 600_000;
const WATCH_INTERVAL_MS = 5_000;

const QUERY = 0x51;
const DATA_ROW = 0x44;
const ERROR = 0x45;
const READY_FOR_QUERY = 0x5a;

/**
 * Of a temporary copy; no task's slot can have it, for those begin with `dts_`. Another one every time: a copy lives
 * until the server has noticed that its session is cut off.
 */
function newCopyName(slot: string): string {
  return `${slot.replace(/^dts_/, 'dtsc_')}_${randomBytes(4).toString('hex')}`;
}

export class SlotCopy {
  readonly name: string;
  readonly #session: Session;
  readonly #options: WalStreamOptions;
  readonly #queue: GulpQueue;
  /** Ends the backend, too: one that decodes would notice only when it sends. */
  readonly #abort: AbortController;
  readonly #walker: WalWalker;
  readonly #pace: ReadPace;
  /** Takes what the call returns; null: it is not its turn, and the socket is left alone. */
  #take: ((gulp: Gulp) => void) | null = null;
  #restartLsn: Lsn;
  /** The first column of the last row that was not of a COPY. */
  #answer = '';
  #isDecoding = false;
  #failure: MigrationError | null = null;
  /** The server is ready for the next statement, or nothing will come any more. */
  #onReady: (() => void) | null = null;

  private constructor(
    { name, restartLsn }: { readonly name: string; readonly restartLsn: Lsn },
    session: Session,
    options: WalStreamOptions,
    queue: GulpQueue,
    abort: AbortController,
  ) {
    this.name = name;
    this.#restartLsn = restartLsn;
    this.#session = session;
    this.#options = options;
    this.#queue = queue;
    this.#abort = abort;
    this.#walker = new WalWalker('rows', {
      gulp: (gulp) => {
        if (this.#take === null) throw new RangeError('rows of a call before its turn');
        this.#take(gulp);
      },
      keepalive: () => undefined,
      control: (message) => {
        if (message[0] === ERROR)
          this.#fail(fromPostgres(readServerError(message, 5, message.length), { role: 'source' }));
        if (message[0] === DATA_ROW)
          this.#answer = message.toString('latin1', 11, 11 + Math.max(0, message.readInt32BE(7)));
        if (message[0] === READY_FOR_QUERY) this.#onReady?.();
      },
    });
    const socket = this.#socket();
    socket.on('error', (error) => this.#fail(fromPostgres(error, { role: 'source' })));
    socket.on('close', () =>
      this.#fail(fromPostgres(new Error('Connection terminated unexpectedly'), { role: 'source' })),
    );
    // from now on the socket's bytes are ours
    this.#pace = readPaced(socket, {
      paceMs: PACE_MS,
      queue,
      isHeld: () => this.#take === null || queue.paused,
      walker: this.#walker,
      fail: (failure) => this.#fail(failure),
    });
  }

  /** Errors: as fromPostgres says; `sql_failed` 53400 (no free slot) or `insufficient_privilege` where it is not to be had. */
  static async open(
    scope: TaskScope,
    options: WalStreamOptions,
    queue: GulpQueue,
    pool: BufferPool,
    signal: AbortSignal,
  ): Promise<SlotCopy> {
    const abort = new AbortController();
    const session = await scope.source.session({
      purpose: CATCH_UP_PURPOSE,
      socket: () => new GulpSocket(pool),
      signal: AbortSignal.any([signal, abort.signal]),
    });
    const name = newCopyName(options.slot.name);
    try {
      await session.client.query(`select set_config('work_mem', '${RESULT_MEMORY}', false)`);
      await session.client.query(decodingMemory);
      await session.client.query('select pg_copy_logical_replication_slot($1, $2, true)', [
        options.slot.name,
        name,
      ]);
      const { rows } = await session.client.query<{ restart: Lsn }>(
        'select restart_lsn::text as restart from pg_replication_slots where slot_name = $1',
        [name],
      );
      const restartLsn = rows[0]?.restart ?? ZERO_LSN;
      return new SlotCopy({ name, restartLsn }, session, options, queue, abort);
    } catch (error) {
      await session.close();
      throw fromPostgres(error, { role: 'source', slot: options.slot.name });
    }
  }

  /** From here on the next call decodes. */
  get restartLsn(): Lsn {
    return this.#restartLsn;
  }

  /**
   * Between two calls: the next one will return what is committed behind `lsn`, and restart at the last
   * running-transactions record before. Only where `mayAdvance` says so. Errors: as fromPostgres says, `connection_failed`.
   */
  async moveTo(lsn: Lsn): Promise<void> {
    const deadline = setTimeout(() => this.#fail(silent(DECODING_TIMEOUT_MS)), DECODING_TIMEOUT_MS);
    try {
      // where the first one finds no record, there is none
      if (await this.#advance(`greatest(confirmed_flush_lsn, ${literal(lsn)})`))
        await this.#advance('confirmed_flush_lsn');
    } finally {
      clearTimeout(deadline);
    }
  }

  /** Whether its restart_lsn has moved. */
  async #advance(to: string): Promise<boolean> {
    const before = this.#restartLsn;
    const name = literal(this.name);
    await this.#untilReady(() => {
      this.#send(`
        select pg_replication_slot_advance(slot_name, ${to}) from pg_replication_slots where slot_name = ${name};
        select restart_lsn from pg_replication_slots where slot_name = ${name}`);
      this.#socket().resume();
    });
    this.#restartLsn = this.#answer;
    return compareLsn(this.#restartLsn, before) > 0;
  }

  /** Has the server decode up to `upto`; `read` takes the result. */
  begin(upto: Lsn): void {
    const { sourceVersion, binary, publication } = this.#options;
    const parameters = [
      'proto_version',
      '1',
      'publication_names',
      ident(publication),
      ...(hasLogicalMessages(sourceVersion) ? ['messages', 'true'] : []),
      ...(binary ? ['binary', 'true'] : []),
    ].map(literal);
    this.#socket().pause(); // nothing is taken before its turn
    this.#walker.restart();
    this.#isDecoding = true;
    this.#send(`copy (select data from pg_logical_slot_get_binary_changes(${literal(this.name)}, ${literal(upto)}, null,
      ${parameters.join(', ')})) to stdout (format binary)`);
  }

  /** Resolves when `take` has been given all of the call's result. Errors: as fromPostgres says, `connection_failed`. */
  async read(take: (gulp: Gulp) => void): Promise<void> {
    this.#queue.heard();
    const watchdog = setInterval(() => {
      const ms = this.#queue.silentMs;
      if (ms > DECODING_TIMEOUT_MS) this.#fail(silent(ms));
    }, WATCH_INTERVAL_MS);
    try {
      await this.#untilReady(() => {
        this.#take = take;
        if (!this.#queue.paused) this.resume();
      });
      this.#isDecoding = false;
    } finally {
      this.#take = null;
      clearInterval(watchdog);
    }
  }

  pause(): void {
    this.#socket().pause();
  }

  resume(): void {
    if (this.#take !== null) this.#pace.resume();
  }

  /** Whatever it is doing. */
  async close(): Promise<void> {
    this.#pace.stop();
    this.#fail(new MigrationError('aborted', 'source: the feed was closed'));
    if (this.#isDecoding) this.#abort.abort();
    this.#socket().destroy();
    await this.#session.close();
  }

  #socket(): Socket {
    return (this.#session.client as unknown as { connection: { stream: Socket } }).connection.stream;
  }

  #send(sql: string): void {
    const length = Buffer.byteLength(sql);
    const message = Buffer.alloc(length + 6);
    message[0] = QUERY;
    message.writeInt32BE(length + 5, 1);
    message.write(sql, 5);
    this.#socket().write(message);
  }

  async #untilReady(listen: () => void): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#onReady = resolve;
      if (this.#failure === null) listen();
      else resolve();
    });
    this.#onReady = null;
    if (this.#failure !== null) throw this.#failure;
  }

  #fail(failure: MigrationError): void {
    this.#failure ??= failure;
    this.#onReady?.();
  }
}

function silent(ms: number): MigrationError {
  return new MigrationError('connection_failed', `source: the slot functions gave nothing for ${ms} ms`);
}
