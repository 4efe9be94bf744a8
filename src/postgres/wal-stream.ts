// The live feed: the walsender connection, pg-logical-replication with everything automatic turned off, behind a bounded
// queue of messages. Sync opens one per (re)connection. A status never carries more than acknowledge() was given; it is
// sent while the target is busy and while the socket is paused, so that a slow target does not look like a dead one.
//
// The library connects and acknowledges. The bytes of the stream are read here: it would make an object, two strings and
// an event of every message. Its other weaknesses that are worked around: its timer acknowledges what was received, not
// what was committed (off); acknowledge() adds one byte to the position; its flow control holds the socket for every
// message (off); after stop() late socket errors have no listener; a paused stream answers no keepalive.
import { Socket } from 'node:net';
import type { Client } from 'pg';
import { LogicalReplicationService } from 'pg-logical-replication';
import { MigrationError } from '../model/errors.ts';
import { bigintToLsn, compareLsn, lsnToBigint, ZERO_LSN, type Lsn } from '../model/lsn.ts';
import type { InProgress } from '../model/progress.ts';
import { BufferPool } from './buffer-pool.ts';
import { fromPostgres } from './errors.ts';
import { GulpQueue } from './gulp-queue.ts';
import { GulpSocket } from './gulp-socket.ts';
import { hasLogicalMessages } from './marker.ts';
import { readPaced, type ReadPace } from './read-pace.ts';
import { mayReadInto } from './read-socket.ts';
import { decodingMemory, sessionSettings } from './session-settings.ts';
import { verifySystem } from './source-system.ts';
import type { SlotRecord } from './slot-record.ts';
import { wasRolledBack } from './sent-rolled-back.ts';
import { ident, literal } from './sql.ts';
import type { TaskScope } from './task-scope.ts';
import { TransactionsInProgress } from './transactions-in-progress.ts';
import { KEEPALIVE, WalWalker, type Gulp } from './wal-walker.ts';

/** What comes alone is read at once; a steady load is read so often, and leaves for the target less often still (replay.ts, GATHER_MS). */
const PACE_MS = 20;
const STATUS_INTERVAL_MS = 5_000;
/** Ours, whatever the source has configured: with 0 the walsender of a dead client would hold the slot for ever. */
const WAL_SENDER_TIMEOUT_MS = 60_000;
/** Given at once of a transaction that was gathered. */
const TAKE_BYTES = 4 * 1024 * 1024;
/** A walsender that decodes a large transaction without sending any of it may not answer for long. */
const SILENCE_TIMEOUT_MS = 300_000;
const PING_AFTER_MS = 15_000;
const CLOSE_TIMEOUT_MS = 1_500;

export interface WalStreamOptions {
  readonly slot: SlotRecord;
  readonly publication: string;
  /** Where to begin: the end LSN of the last transaction applied. */
  readonly startLsn: Lsn;
  /** Stored on the target as acked_lsn; the only position that may be told before the first acknowledge(). */
  readonly ackedLsn: Lsn;
  /** `server_version_num` of the source. */
  readonly sourceVersion: number;
  /** Values in binary form; from 14 on. */
  readonly binary: boolean;
  /** Large transactions as they are written, not when they have committed; from 14 on, and only by the walsender. */
  readonly streaming: boolean;
}

interface Pausable {
  pause(): unknown;
  resume(): unknown;
}

export class WalStream {
  readonly #service: LogicalReplicationService;
  readonly #socket: Socket;
  readonly #uncount: () => void;
  #stream: Pausable | null = null;
  #client: Client | null = null;
  readonly #queue = new GulpQueue({
    pause: () => this.#stream?.pause(),
    resume: () => this.#pace?.resume(),
  });
  /** Null: every transaction comes when it has committed. */
  readonly #inProgress: TransactionsInProgress | null;
  /** What was taken from the queue, as whole transactions; null: all of it has been given. */
  #whole: AsyncGenerator<Gulp> | null = null;
  #pace: ReadPace | null = null;
  #onFailure: (() => void) | null = null;
  #brokenBy: unknown = null;
  #ackedLsn: Lsn;
  #receivedLsn: Lsn = ZERO_LSN;
  #statusTimer: NodeJS.Timeout | null = null;
  #closed: Promise<void> | null = null;

  private constructor(
    service: LogicalReplicationService,
    socket: Socket,
    inProgress: TransactionsInProgress | null,
    ackedLsn: Lsn,
    uncount: () => void,
  ) {
    this.#service = service;
    this.#inProgress = inProgress;
    this.#socket = socket;
    this.#ackedLsn = ackedLsn;
    this.#uncount = uncount;
  }

  /**
   * Connects and starts streaming. Errors: `source_replaced`, and as fromPostgres says, e.g. `sql_failed` 55006 while the
   * slot is in use.
   */
  static async open(
    scope: TaskScope,
    options: WalStreamOptions,
    signal: AbortSignal,
    senderTimeoutMs = WAL_SENDER_TIMEOUT_MS,
  ): Promise<WalStream> {
    const config = await scope.source.clientConfig('walsender');
    signal.throwIfAborted();
    // Unlike one of Node's own it stops reading when it is paused.
    const socket = mayReadInto(config) ? new GulpSocket(new BufferPool()) : new Socket();
    const service = new LogicalReplicationService(
      { ...config, stream: () => socket },
      { acknowledge: { auto: false, timeoutSeconds: 0 }, flowControl: { enabled: false } },
    );
    const inProgress = options.streaming
      ? new TransactionsInProgress({
          folder: scope.spillFolder,
          wasRolledBack: (xids) => wasRolledBack(scope.source, xids),
          onSpilled: () => scope.failpoint('sync.spilled'),
        })
      : null;
    const uncount = scope.source.registerExternal();
    const stream = new WalStream(service, socket, inProgress, options.ackedLsn, uncount);
    try {
      await stream.#start(scope, options, signal, senderTimeoutMs);
      return stream;
    } catch (error) {
      await stream.close();
      signal.throwIfAborted();
      throw fromPostgres(error, { role: 'source', slot: options.slot.name });
    }
  }

  /** Furthest position that the walsender has told us. */
  get receivedLsn(): Lsn {
    return this.#receivedLsn;
  }

  /** How long the walsender has said nothing although we were listening. */
  get silentMs(): number {
    return this.#queue.silentMs;
  }

  /** Whether nothing waits to be taken. */
  get drained(): boolean {
    return this.#whole === null && this.#queue.drained;
  }

  /** What has been sent of transactions that have not ended, and is not given yet; null: they come when they have committed. */
  get inProgress(): InProgress | null {
    return this.#inProgress?.figures ?? null;
  }

  /**
   * What has arrived, in order; waits for something up to `waitMs` and then returns an empty list.
   * Throws what broke the connection, `aborted` after close(); SpillFailed, SentRolledBack.
   */
  async take(waitMs: number): Promise<readonly Gulp[]> {
    try {
      return await this.#take(waitMs);
    } catch (error) {
      this.#brokenBy = error;
      throw error;
    }
  }

  /** What `take` has thrown; null: nothing. */
  get brokenBy(): unknown {
    return this.#brokenBy;
  }

  /** A walsender never ends by itself. */
  readonly ended = false;

  /** Ends a `take` that waits. */
  poke(): void {
    this.#queue.poke();
  }

  /** Tells the source that everything up to `lsn` is durable on the target, and stored there as acked_lsn. */
  acknowledge(lsn: Lsn): void {
    if (compareLsn(lsn, this.#ackedLsn) > 0) this.#ackedLsn = lsn;
    this.#sendStatus(false);
  }

  /** Ends the connection, within two seconds even when the peer is gone. Idempotent. */
  close(): Promise<void> {
    this.#closed ??= (async () => {
      this.#fail(new MigrationError('aborted', 'source: the stream was closed'));
      if (this.#statusTimer) clearInterval(this.#statusTimer);
      this.#pace?.stop();
      // A paused socket would never see its end; a status that was just written is flushed by destroySoon.
      this.#stream?.resume();
      this.#socket.destroySoon();
      let giveUp: (() => void) | undefined;
      const deadline = new Promise<void>((resolve) => (giveUp = resolve));
      const timers = [
        setTimeout(() => this.#socket.destroy(), CLOSE_TIMEOUT_MS / 2),
        setTimeout(() => giveUp?.(), CLOSE_TIMEOUT_MS),
      ];
      await Promise.race([this.#service.destroy().catch(() => undefined), deadline]);
      for (const timer of timers) clearTimeout(timer);
      this.#socket.destroy();
      this.#client?.on('error', () => undefined);
      (this.#client as unknown as { connection?: Client } | null)?.connection?.on('error', () => undefined);
      this.#service.on('error', () => undefined);
      await this.#inProgress?.close();
      this.#uncount();
    })();
    return this.#closed;
  }

  async #take(waitMs: number): Promise<readonly Gulp[]> {
    const { failure } = this.#queue;
    if (failure) throw failure;
    if (this.#inProgress === null) return this.#queue.take(waitMs);
    this.#whole ??= this.#inProgress.whole(await this.#queue.take(waitMs));
    const gulps: Gulp[] = [];
    for (let bytes = 0; bytes < TAKE_BYTES; ) {
      const next = await this.#whole.next();
      if (next.done === true) {
        this.#whole = null;
        break;
      }
      gulps.push(next.value);
      bytes += next.value.buffer.length;
    }
    return gulps;
  }

  async #start(
    scope: TaskScope,
    options: WalStreamOptions,
    signal: AbortSignal,
    senderTimeoutMs: number,
  ): Promise<void> {
    const onAbort = (): void => void this.close();
    signal.addEventListener('abort', onAbort, { once: true });
    this.#service.on('error', (error) => this.#fail(fromPostgres(error, { role: 'source' })));
    const started = new Promise<void>((resolve) => void this.#service.on('start', resolve));
    const plugin = {
      name: 'pgoutput',
      options: null,
      parse: (): null => null, // never asked: see #readFrom
      start: async (client: Client, slotName: string, startLsn: Lsn): Promise<void> => {
        this.#client = client;
        this.#stream = (client as unknown as { connection: { stream: Pausable } }).connection.stream;
        await client.query(sessionSettings);
        if (!options.streaming) await client.query(decodingMemory);
        await client.query(`select set_config('wal_sender_timeout', '${senderTimeoutMs}', false)`);
        // On this very connection: behind one address there may be more than one server.
        await verifySystem(client, options.slot, scope);
        const parameters = [
          ...(options.streaming ? [`proto_version '2'`, `streaming 'on'`] : [`proto_version '1'`]),
          `publication_names ${literal(ident(options.publication))}`,
          ...(hasLogicalMessages(options.sourceVersion) ? [`messages 'true'`] : []),
          ...(options.binary ? [`binary 'true'`] : []),
        ];
        this.#readFrom((client as unknown as { connection: { stream: Socket } }).connection.stream);
        // Ends only with the connection: the server closes the stream when it shuts down.
        await client.query(
          `START_REPLICATION SLOT ${ident(slotName)} LOGICAL ${startLsn} (${parameters.join(', ')})`,
        );
      },
    };
    const ended = this.#service.subscribe(plugin, options.slot.name, options.startLsn).then(
      () => this.#fail(new MigrationError('connection_failed', 'source: the server ended the stream')),
      (error: unknown) => this.#fail(fromPostgres(error, { role: 'source' })),
    );
    // A connection that is closed in the middle of its start may settle neither.
    await Promise.race([started, ended, new Promise<void>((resolve) => (this.#onFailure = resolve))]);
    const { failure } = this.#queue;
    if (failure) {
      signal.removeEventListener('abort', onAbort);
      throw failure;
    }
    this.#statusTimer = setInterval(() => this.#onStatusTimer(), STATUS_INTERVAL_MS);
    this.#statusTimer.unref();
    void this.#closedOrEnded(ended).then(() => signal.removeEventListener('abort', onAbort));
  }

  async #closedOrEnded(ended: Promise<void>): Promise<void> {
    await ended;
    if (this.#statusTimer) clearInterval(this.#statusTimer);
  }

  /** The stream's bytes come here; what is not CopyData still goes to `pg`'s parser, whose client notices nothing. */
  #readFrom(socket: Socket): void {
    const listeners = socket.listeners('data') as ((chunk: Buffer) => void)[];
    const walker = new WalWalker('walsender', {
      gulp: (gulp) => this.#push(gulp),
      // At once, however long the target takes for what has been received.
      keepalive: (replyRequested) => {
        if (replyRequested) this.#sendStatus(false);
      },
      control: (message) => {
        for (const listener of listeners) listener.call(socket, message);
      },
    });
    this.#pace = readPaced(socket, {
      paceMs: PACE_MS,
      queue: this.#queue,
      walker,
      fail: (failure) => this.#fail(failure),
    });
  }

  #push(gulp: Gulp): void {
    const last = gulp.bounds.at(-2) ?? 0;
    // A keepalive's end of WAL, or the start of WAL of the message, 24 bytes before it.
    const at = gulp.buffer[last] === KEEPALIVE ? last + 1 : last - 24;
    const lsn = bigintToLsn(gulp.buffer.readBigUInt64BE(at));
    if (compareLsn(lsn, this.#receivedLsn) > 0) this.#receivedLsn = lsn;
    this.#queue.push(gulp);
  }

  #fail(failure: MigrationError): void {
    this.#queue.fail(failure);
    this.#onFailure?.();
  }

  #onStatusTimer(): void {
    if (this.silentMs > SILENCE_TIMEOUT_MS)
      this.#fail(
        new MigrationError(
          'connection_failed',
          `source: the walsender has been silent for ${this.silentMs} ms`,
        ),
      );
    else this.#sendStatus(this.silentMs > PING_AFTER_MS);
  }

  #sendStatus(requestReply: boolean): void {
    // The library adds 1 to what it is given. One byte too many is not harmless: the next commit record may begin
    // exactly at the acknowledged end, and after a restart the server would leave that transaction out.
    const position = lsnToBigint(this.#ackedLsn);
    if (position === 0n || this.#queue.failure) return;
    this.#service
      .acknowledge(bigintToLsn(position - 1n), requestReply)
      .catch((error: unknown) => this.#fail(fromPostgres(error, { role: 'source' })));
  }
}
