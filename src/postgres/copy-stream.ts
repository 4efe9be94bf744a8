// COPY from one server into another at the level of bytes, called by src/copy for every part. `pg` connects and
// authenticates; during the COPY the source's socket is ours, but every message that is not a row still goes to `pg`'s
// own parser, so its client never notices and both clients run further queries afterwards.
import type { Client } from 'pg';
import type { Socket } from 'node:net';
import { MigrationError } from '../model/errors.ts';
import type { Session, Side } from './connections.ts';
import { CopySocket } from './copy-socket.ts';
import { CopyInFramer, CopyOutWalker } from './copy-messages.ts';
import { fromPostgres, type ErrorContext } from './errors.ts';
import { FRAME_BYTES, type Frame, frames, HEADER_BYTES } from './frames.ts';

/** Bytes written to the target's socket and not yet taken by the kernel at which the source is paused, and resumed. */
const PAUSE_AT_BYTES = 512 * 1024;
const RESUME_AT_BYTES = 256 * 1024;
/** Rows of one read leave in its own memory from here on; fewer are gathered, for each message costs the target a wake-up. */
const LEND_FROM_BYTES = 64 * 1024;
/**
 * A peer that neither sends nor takes a byte for so long is dead: TCP keepalive does not see unacknowledged writes. But a
 * source whose filter keeps few rows has nothing to send for as long as it looks for the next one.
 */
const STALL_LIMIT_MS = 15 * 60_000;

/** Asked for every message; shared by streams. */
export interface StreamPace {
  /** So many bytes have been sent. */
  take(bytes: number): void;
  /** 0: go on; else wait so long and ask again. */
  waitMs(): number;
}

export interface CopyStreamOptions {
  readonly source: Session;
  readonly target: Session;
  /** Asked what the source's backend does when it has been silent for long. */
  readonly sourceSide: Pick<Side, 'query'>;
  /** `copy … to stdout` and `copy … from stdin`, of one format. */
  readonly copyOut: string;
  readonly copyIn: string;
  readonly signal: AbortSignal;
  /** Goes into every error: relation and part; of the source's also how many rows it had sent, of the target's its line. */
  readonly context: ErrorContext & { readonly relation: string };
  readonly pace?: StreamPace;
  /** After each message sent to the target, with the counts so far. A throw ends the copy. */
  readonly onChunk?: (rows: number, bytes: number) => void;
  /**
   * Once a second while no byte moves, with the milliseconds since the last one and who is waited for; `isAtWork`: the
   * source, which was asked after `stallLimitMs`, has not come to the next row yet.
   */
  readonly onStall?: (ms: number, role: 'source' | 'target', isAtWork: boolean) => void;
  readonly stallLimitMs?: number;
}

export interface CopyCounts {
  readonly rows: number;
  /** Payload bytes, as COPY sent them. */
  readonly bytes: number;
}

/**
 * Runs both statements inside the transactions that are open on the two sessions. Afterwards both sessions can go on;
 * after an error the caller closes both (where only the source answered with an error, both are still usable).
 * Errors: `copy_failed`, `source_ddl`, `disk_full`, `connection_failed` …, `aborted`, `deadline_exceeded`.
 */
export async function copyStream(options: CopyStreamOptions): Promise<CopyCounts> {
  const { source, target, signal, context, stallLimitMs = STALL_LIMIT_MS } = options;
  const from = connectionOf(source.client);
  const to = connectionOf(target.client);
  let failure: MigrationError | null = null;
  let bytes = 0;
  let inFlight = 0;
  let movedAt = Date.now();
  let seenAtWorkAt = 0;
  let sourceIsAsked = false;

  /** The first failure is the one that is told; the closed sockets then settle both statements. */
  const fail = (error: MigrationError, ...sockets: Socket[]): void => {
    failure ??= error;
    for (const socket of sockets) socket.destroy();
  };
  const failHere = (error: unknown): void =>
    fail(
      error instanceof MigrationError ? error : fromPostgres(error, { ...context }),
      from.stream,
      to.stream,
    );
  const onAbort = (): void => failHere(new MigrationError('aborted', 'stopped on request'));

  let paced: NodeJS.Timeout | null = null;
  const { pace } = options;
  const keepPace = (): void => {
    paced = null;
    const ms = failure === null ? (pace?.waitMs() ?? 0) : 0;
    movedAt = Date.now(); // that nothing moves is our doing
    if (ms > 0) {
      from.stream.pause();
      paced = setTimeout(keepPace, ms);
    } else if (inFlight <= RESUME_AT_BYTES && failure === null) from.stream.resume();
  };

  const framer = new CopyInFramer((message, frame) => {
    inFlight += message.length;
    bytes += message.length - 5;
    to.stream.write(message, () => {
      inFlight -= message.length;
      movedAt = Date.now();
      frames.give(frame);
      if (paced === null && inFlight <= RESUME_AT_BYTES && failure === null) from.stream.resume();
    });
    if (inFlight >= PAUSE_AT_BYTES) from.stream.pause();
    pace?.take(message.length);
    if (paced === null && pace !== undefined && pace.waitMs() > 0) keepPace();
    options.onChunk?.(walker.messages, bytes);
  });
  let giveBack: (rest: Buffer) => void = () => undefined;
  let pgReads: (chunk: Buffer) => void = () => undefined;
  const gather = (rows: Buffer): void => {
    if (failure === null && rows.length > 0) framer.append(rows);
  };
  const walker = new CopyOutWalker({
    payload: gather,
    control: (message) => pgReads(message),
    ready: (rest) => giveBack(rest),
  });
  const takeOver = (): void => {
    const { stream } = from;
    const listeners = stream.listeners('data') as ((chunk: Buffer) => void)[];
    const ownsReads = stream instanceof CopySocket;
    const onGulp = (frame: Frame, length: number): boolean => {
      movedAt = Date.now();
      let isLent = false;
      try {
        const kept = walker.push(frame, length);
        isLent = kept >= LEND_FROM_BYTES && failure === null;
        if (isLent) framer.lend(frame, kept);
        else gather(frame.bytes.subarray(HEADER_BYTES, HEADER_BYTES + kept));
      } catch (error) {
        failHere(error);
      }
      return isLent;
    };
    // TLS reads by itself
    const onData = (chunk: Buffer): void => {
      for (let at = 0; at < chunk.length && failure === null; at += FRAME_BYTES) {
        const piece = chunk.subarray(at, at + FRAME_BYTES);
        const frame = frames.take();
        frame.bytes.set(piece, HEADER_BYTES);
        if (!onGulp(frame, piece.length)) frames.give(frame);
      }
    };
    pgReads = (chunk) => {
      for (const listener of listeners) listener.call(stream, chunk);
    };
    giveBack = (rest) => {
      if (ownsReads) stream.onRead = null;
      else {
        stream.removeListener('data', onData);
        for (const listener of listeners) stream.on('data', listener);
      }
      if (rest.length > 0) pgReads(Buffer.from(rest));
      stream.resume();
    };
    if (ownsReads) stream.onRead = onGulp;
    else {
      for (const listener of listeners) stream.removeListener('data', listener);
      stream.on('data', onData);
    }
  };

  if (signal.aborted) throw new MigrationError('aborted', 'stopped on request');
  signal.addEventListener('abort', onAbort, { once: true });
  let isJudging = false;
  let ended = false;
  const judge = async (role: 'source' | 'target'): Promise<void> => {
    const silentSince = movedAt;
    isJudging = true;
    const atWork = role === 'source' && (await isAtWork(options));
    isJudging = false;
    if (ended || movedAt !== silentSince) return;
    if (atWork) seenAtWorkAt = Date.now();
    else
      failHere(
        new MigrationError(
          'deadline_exceeded',
          `${context.relation}: ${role} moved no byte for ${Math.round((Date.now() - silentSince) / 1_000)} s`,
          { details: { ...context, role } },
        ),
      );
  };
  const watchdog = setInterval(() => {
    const now = Date.now();
    const role = sourceIsAsked && inFlight === 0 ? 'source' : 'target';
    if (now - movedAt >= 1_000) options.onStall?.(now - movedAt, role, seenAtWorkAt > movedAt);
    if (now - Math.max(movedAt, seenAtWorkAt) > stallLimitMs && !isJudging) void judge(role);
  }, 1_000);
  try {
    const copyIn = new CopyCommand(options.copyIn);
    target.client.query(copyIn);
    // A source whose target has refused is of no use: its backend notices the closed socket at its next write.
    copyIn.finished.catch((error: unknown) => {
      if (failure === null) fail(copyError(error, 'target', context), from.stream);
    });
    await copyIn.accepted;
    const copyOut = new CopyCommand(options.copyOut, takeOver);
    source.client.query(copyOut);
    sourceIsAsked = true;
    try {
      await copyOut.finished;
      sourceIsAsked = false;
    } catch (error) {
      failure ??= copyError(error, 'source', { ...context, rowsRead: walker.messages });
      if (to.stream.writable) to.sendCopyFail('the source failed');
      await copyIn.finished.catch(() => undefined);
      throw failure;
    }
    try {
      framer.flush();
    } catch (error) {
      failHere(error);
    }
    to.endCopyFrom();
    await copyIn.finished;
    if (copyIn.count !== copyOut.count)
      throw new MigrationError(
        'copy_failed',
        `${context.relation}: the source sent ${copyOut.count} rows, the target counted ${copyIn.count}`,
        { kind: 'bug', details: { ...context } },
      );
    return { rows: copyIn.count, bytes };
  } catch (error) {
    throw failure ?? copyError(error, 'target', context);
  } finally {
    ended = true;
    clearInterval(watchdog);
    if (paced !== null) clearTimeout(paced);
    from.stream.resume(); // the last message may have paused it for the pace's sake, and what comes next on it is an answer
    signal.removeEventListener('abort', onAbort);
  }
}

/** Whether the source's backend still looks for rows. One that waits to send has bytes that do not reach us. */
async function isAtWork({ sourceSide, source, copyOut }: CopyStreamOptions): Promise<boolean> {
  try {
    // `query` is cut at track_activity_query_size
    const { rowCount } = await sourceSide.query(
      `select from pg_stat_activity where pid = $1 and state = 'active' and starts_with($2, query)
         and wait_event_type is distinct from 'Client'`,
      [source.pid, copyOut],
    );
    return rowCount === 1;
  } catch {
    return false; // it does not answer at all
  }
}

// What the source says when a table, column or schema of the plan is gone: undefined_table, undefined_column,
// invalid_schema_name, wrong_object_type.
const ddlStates = new Set(['42P01', '42703', '3F000', '42809']);

/** Classifies an error of a statement of the copy; never `sql_failed`, and always with the relation. */
export function copyError(
  error: unknown,
  role: 'source' | 'target',
  context: ErrorContext & { readonly relation: string },
): MigrationError {
  if (error instanceof MigrationError) return error;
  const known = fromPostgres(error, { ...context, role });
  const gone = role === 'source' && ddlStates.has(String(known.details?.['sqlstate']));
  const code = gone ? 'source_ddl' : known.code === 'sql_failed' ? 'copy_failed' : known.code;
  const hint = gone
    ? 'undo the change on the source and resume, or start over with the new structure'
    : known.hint;
  return new MigrationError(code, `${context.relation}: ${known.message}`, {
    kind: gone ? 'operator' : known.kind,
    ...(hint === undefined ? {} : { hint }),
    ...(known.details === undefined ? {} : { details: known.details }),
    cause: error,
  });
}

interface CopyConnection {
  readonly stream: Socket;
  query(text: string): void;
  sendCopyFail(reason: string): void;
  endCopyFrom(): void;
}

function connectionOf(client: Client): CopyConnection {
  return (client as unknown as { connection: CopyConnection }).connection;
}

/** A COPY statement in `pg`'s queue (its Submittable protocol, pg/lib/client.js). */
class CopyCommand {
  /** CopyInResponse: data may be sent. */
  readonly accepted: Promise<void>;
  /** ReadyForQuery after success; rejects with the server's or the socket's error. */
  readonly finished: Promise<void>;
  /** Rows, from the command tag. */
  count = -1;
  readonly #sql: string;
  readonly #beforeSend: () => void;
  #accept: () => void = () => undefined;
  #finish: () => void = () => undefined;
  #fail: ((error: Error) => void)[] = [];

  constructor(sql: string, beforeSend: () => void = () => undefined) {
    this.#sql = sql;
    this.#beforeSend = beforeSend;
    this.accepted = new Promise((resolve, reject) => {
      this.#accept = resolve;
      this.#fail.push(reject);
    });
    this.finished = new Promise((resolve, reject) => {
      this.#finish = resolve;
      this.#fail.push(reject);
    });
    this.accepted.catch(() => undefined); // told by `finished` too
  }

  submit(connection: unknown): void {
    this.#beforeSend();
    (connection as CopyConnection).query(this.#sql);
  }

  handleCopyInResponse(): void {
    this.#accept();
  }

  handleCommandComplete(message: { readonly text: string }): void {
    this.count = Number(/^COPY (\d+)$/.exec(message.text)?.[1] ?? -1);
  }

  handleReadyForQuery(): void {
    this.#finish();
  }

  handleError(error: Error): void {
    for (const fail of this.#fail) fail(error);
  }

  handleCopyData(): void {
    this.handleError(new Error('rows reached the client of a COPY'));
  }
}
