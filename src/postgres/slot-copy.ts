// A temporary copy of the task's slot, and the session that decodes from it by the SQL slot functions. slot-feed.ts opens
// one or two, says what a call covers and takes what it returns.
//
//   copy (select data from pg_logical_slot_get_binary_changes(copy, upto_lsn …)) to stdout (format binary)
//
// The server decodes all that a call covers before it sends the first row, and holds it in a temporary file. It stops
// behind the first record that ends at or past upto_lsn: everything committed up to there is returned. A copy that was
// moved to upto_lsn goes on behind it, for what has a commit record that begins before is skipped.
//
// restart_lsn: of all running-transactions records that a call reads, it moves the slot to the first one, for only one
// candidate waits until its position is confirmed. pg_replication_slot_advance to where the slot is already reads the same
// WAL without decoding its changes, and every such record counts, because all of it is confirmed: the slot then restarts at
// the last one.
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { Session } from './connections.ts';
import { fromPostgres } from './errors.ts';
import type { GulpQueue } from './gulp-queue.ts';
import { hasLogicalMessages } from './marker.ts';
import { readPaced, type ReadPace } from './read-pace.ts';
import { readServerError } from './server-error.ts';
import { decodingMemory } from './session-settings.ts';
import { mayAdvance } from './slot-advance.ts';
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
const ERROR = 0x45;
const READY_FOR_QUERY = 0x5a;

/**
 * Of a temporary copy; no task's slot can have it, for those begin with `dts_`. Another one every time: a copy lives
 * until the server has noticed that its session is cut off.
 */
function newCopyName(slot: string): string {
  return `${slot.replace(/^dts_/, 'dtsc_')}_${randomBytes(4).toString('hex')}`;
}

/** Takes what a call returns. */
export interface CallReader {
  /** Full, it holds the socket; it is told of everything that is heard. */
  readonly queue: GulpQueue;
  readonly gulp: (gulp: Gulp) => void;
}

export class SlotCopy {
  readonly name: string;
  readonly #session: Session;
  readonly #options: WalStreamOptions;
  #reader: CallReader | null = null;
  #walker: WalWalker | null = null;
  #pace: ReadPace | null = null;
  #failure: MigrationError | null = null;
  #callEnd: (() => void) | null = null;

  private constructor(session: Session, options: WalStreamOptions) {
    this.name = newCopyName(options.slot.name);
    this.#session = session;
    this.#options = options;
  }

  /** Errors: as fromPostgres says; `sql_failed` 53400 (no free slot) or `insufficient_privilege` where it is not to be had. */
  static async open(scope: TaskScope, options: WalStreamOptions, signal: AbortSignal): Promise<SlotCopy> {
    const session = await scope.source.session({ purpose: CATCH_UP_PURPOSE, signal });
    const copy = new SlotCopy(session, options);
    try {
      await session.client.query(`select set_config('work_mem', '${RESULT_MEMORY}', false)`);
      await session.client.query(decodingMemory);
      await session.client.query('select pg_copy_logical_replication_slot($1, $2, true)', [
        options.slot.name,
        copy.name,
      ]);
    } catch (error) {
      await session.close();
      throw fromPostgres(error, { role: 'source', slot: options.slot.name });
    }
    copy.#watchSocket();
    return copy;
  }

  /** Before the first call: it will return what is committed behind `lsn`. Only where `mayAdvance` says so. */
  async skipTo(lsn: Lsn): Promise<void> {
    await this.#session.client.query(
      `select pg_replication_slot_advance(slot_name, $2::pg_lsn) from pg_replication_slots
       where slot_name = $1 and confirmed_flush_lsn < $2::pg_lsn`,
      [this.name, lsn],
    );
  }

  /** Has the server decode up to `upto`; `read` takes the result. `goesOn`: there will be another call. */
  begin(upto: Lsn, goesOn: boolean): void {
    const { sourceVersion, binary, publication } = this.#options;
    const parameters = [
      'proto_version',
      '1',
      'publication_names',
      ident(publication),
      ...(hasLogicalMessages(sourceVersion) ? ['messages', 'true'] : []),
      ...(binary ? ['binary', 'true'] : []),
    ].map(literal);
    const slot = literal(this.name);
    const advance = `select pg_replication_slot_advance(slot_name, confirmed_flush_lsn)
      from pg_replication_slots where slot_name = ${slot}`;
    const sql = `copy (select data from pg_logical_slot_get_binary_changes(${slot}, ${literal(upto)}, null,
      ${parameters.join(', ')})) to stdout (format binary); ${goesOn && mayAdvance(sourceVersion) ? advance : ''}`;
    const length = Buffer.byteLength(sql);
    const message = Buffer.alloc(length + 6);
    message[0] = QUERY;
    message.writeInt32BE(length + 5, 1);
    message.write(sql, 5);
    this.#socket().pause(); // nothing is taken before its turn
    this.#socket().write(message);
  }

  /** Resolves when all of the call's result is in the queue. Errors: as fromPostgres says, `connection_failed`. */
  async read(reader: CallReader): Promise<void> {
    const { queue } = reader;
    this.#walker?.restart();
    this.#reader = reader;
    queue.heard();
    await new Promise<void>((resolve) => {
      const watchdog = setInterval(() => {
        if (queue.silentMs > DECODING_TIMEOUT_MS)
          this.#fail(
            new MigrationError(
              'connection_failed',
              `source: the slot functions gave nothing for ${queue.silentMs} ms`,
            ),
          );
      }, WATCH_INTERVAL_MS);
      this.#callEnd = () => {
        clearInterval(watchdog);
        this.#callEnd = null;
        resolve();
      };
      if (this.#failure !== null) this.#callEnd();
      else this.#listen(queue);
    });
    if (this.#failure !== null) throw this.#failure;
  }

  pause(): void {
    this.#socket().pause();
  }

  resume(): void {
    this.#pace?.resume();
  }

  /** Whatever it is doing: a call that decodes would not hear a goodbye. */
  async close(): Promise<void> {
    this.#pace?.stop();
    this.#fail(new MigrationError('aborted', 'source: the feed was closed'));
    this.#socket().destroy();
    await this.#session.close();
  }

  #socket(): Socket {
    return (this.#session.client as unknown as { connection: { stream: Socket } }).connection.stream;
  }

  #watchSocket(): void {
    const socket = this.#socket();
    socket.on('error', (error) => this.#fail(fromPostgres(error, { role: 'source' })));
    socket.on('close', () =>
      this.#fail(fromPostgres(new Error('Connection terminated unexpectedly'), { role: 'source' })),
    );
  }

  /** From the first result on, the socket's bytes are ours. */
  #listen(queue: GulpQueue): void {
    if (this.#walker === null) {
      this.#walker = new WalWalker('rows', {
        gulp: (gulp) => this.#reader?.gulp(gulp),
        keepalive: () => undefined,
        control: (message) => {
          if (message[0] === ERROR)
            this.#fail(fromPostgres(readServerError(message, 5, message.length), { role: 'source' }));
          if (message[0] === READY_FOR_QUERY) this.#callEnd?.();
        },
      });
      this.#pace = readPaced(this.#socket(), {
        paceMs: PACE_MS,
        queue,
        walker: this.#walker,
        fail: (failure) => this.#fail(failure),
      });
    }
    if (!queue.paused) this.resume();
  }

  #fail(failure: MigrationError): void {
    this.#failure ??= failure;
    this.#callEnd?.();
  }
}
