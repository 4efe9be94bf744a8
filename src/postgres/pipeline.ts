// Statements written to a server without waiting for the answers of earlier ones, and COPY among them: the replay's way
// to the target. `pg` connects and authenticates; then the socket's bytes are ours (its own pipeline mode has no COPY and
// costs an object or three for every message). Protocol: https://www.postgresql.org/docs/current/protocol-flow.html
//
// Answers come in the order of the statements. After an error the server skips what follows up to the next Sync, so of
// several errors only the first one means anything: it is kept until `reset`.
import type { Socket } from 'node:net';
import { MigrationError } from '../model/errors.ts';
import { BufferPool } from './buffer-pool.ts';
import type { Session } from './connections.ts';
import { fromPostgres } from './errors.ts';
import { MessageWriter } from './message-writer.ts';
import { readServerError } from './server-error.ts';

/** A parameter: text, the type's binary form, or NULL. */
export type Parameter = string | Buffer | null;

/** How a caller reads answers: `C` is whatever it wants to remember of a statement. */
export interface AnswerReader<C> {
  /** The server refused it. */
  readonly onError: (error: unknown, context: C) => MigrationError;
  /** It succeeded with another number of rows than expected. */
  readonly onRows: (found: number, expected: number, context: C) => MigrationError;
  /** A row of its result: the first column as text. */
  readonly onData: (value: string, context: C) => void;
}

/** What the body of a COPY may call. */
export interface Copying {
  readonly frame: () => void;
  /** Rows that lie in memory: it must stay as it is, and goes to the pool when the socket has it. */
  readonly lend: (rows: LentRows) => void;
}

/** Bytes `from` … `to` of memory of the pool. */
export interface LentRows {
  readonly memory: Buffer;
  readonly from: number;
  readonly to: number;
}

interface Entry<C> {
  /** Rows that it must have touched, or the tag it must end with; null: any. */
  readonly rows: number | 'COMMIT' | null;
  /** Null: a Sync. */
  readonly context: C | null;
}

const COPY_FRAME_BYTES = 256 * 1024;
/** Statements kept prepared; beyond it they are parsed each time. */
const MAX_PREPARED = 500;

const PARSE = 0x50;
const BIND = 0x42;
const EXECUTE = 0x45;
const SYNC = 0x53;
const QUERY = 0x51;
const COPY_DATA = 0x64;
const COPY_DONE = 0x63;

export class Pipeline<C> {
  readonly #session: Session;
  readonly #socket: Socket;
  readonly #reader: AnswerReader<C>;
  /** Memory of what is written; who lends some takes it from here. */
  readonly pool = new BufferPool();
  readonly #out = new MessageWriter(this.pool);
  #in: Buffer = Buffer.alloc(0);
  readonly #entries: Entry<C>[] = [];
  #head = 0;
  #unsynced = 0;
  readonly #prepared = new Map<string, string>();
  #preparedGeneration = 0;
  #failure: MigrationError | null = null;
  #closed: MigrationError | null = null;
  #wake: (() => void) | null = null;
  #waitingSince: number | null = null;

  /** Takes the socket of a session that is idle; from now on its client must not be used but for closing it. */
  constructor(session: Session, reader: AnswerReader<C>) {
    this.#session = session;
    this.#reader = reader;
    this.#socket = (session.client as unknown as { connection: { stream: Socket } }).connection.stream;
    this.#socket.removeAllListeners('data');
    this.#socket.on('data', (chunk: Buffer) => this.#onBytes(chunk));
    this.#socket.on('error', (error) => this.#onClosed(error));
    const onClose = (): void => this.#onClosed(new Error('Connection terminated unexpectedly'));
    this.#socket.on('close', onClose);
    if (this.#socket.destroyed) onClose(); // it said so before
  }

  get pid(): number {
    return this.#session.pid;
  }

  /** How long somebody has been waiting in `idle`; 0 when nobody is. */
  get waitingMs(): number {
    return this.#waitingSince === null ? 0 : Date.now() - this.#waitingSince;
  }

  /** Bytes written and not taken by the kernel yet, plus what `flush` has still to write. */
  get bufferedBytes(): number {
    return this.#out.used + this.#socket.writableLength;
  }

  get unanswered(): number {
    return this.#entries.length - this.#head;
  }

  get failure(): MigrationError | null {
    return this.#closed ?? this.#failure;
  }

  /** One prepared statement; parameters take their types from casts in the text. */
  execute(sql: string, parameters: readonly Parameter[], rows: number | 'COMMIT' | null, context: C): void {
    const name = this.#prepare(sql);
    const bind = this.#out.begin(BIND);
    this.#out.cstring('');
    this.#out.cstring(name);
    this.#out.int16(parameters.length);
    for (const parameter of parameters) this.#out.int16(Buffer.isBuffer(parameter) ? 1 : 0);
    this.#out.int16(parameters.length);
    for (const parameter of parameters) {
      if (parameter === null) this.#out.int32(-1);
      else if (typeof parameter === 'string') this.#out.sizedText(parameter);
      else {
        this.#out.int32(parameter.length);
        this.#out.bytes(parameter, 0, parameter.length);
      }
    }
    this.#out.int16(0);
    this.#out.end(bind);
    const execute = this.#out.begin(EXECUTE);
    this.#out.cstring('');
    this.#out.int32(0);
    this.#out.end(execute);
    this.#entries.push({ rows, context });
    this.#unsynced++;
  }

  /**
   * COPY … FROM STDIN: `body` writes the rows by `bytes`, `int16` …, calling `frame` between rows, or lends whole memory of
   * the pool. What it has written leaves at each frame: the server works while we go on.
   */
  copy(sql: string, rows: number, context: C, body: (copying: Copying) => void): void {
    this.sync();
    const query = this.#out.begin(QUERY);
    this.#out.cstring(sql);
    this.#out.end(query);
    let data = this.#out.begin(COPY_DATA);
    // A boundary of messages means nothing to COPY, but a message is held in memory by the server as a whole.
    body({
      frame: () => {
        if (this.#out.used - data < COPY_FRAME_BYTES) return;
        this.#out.end(data);
        this.flush();
        data = this.#out.begin(COPY_DATA);
      },
      lend: (lent) => {
        this.#out.end(data);
        this.#lend(lent);
        data = this.#out.begin(COPY_DATA);
      },
    });
    this.#out.end(data);
    this.#out.end(this.#out.begin(COPY_DONE));
    this.#entries.push({ rows, context });
    this.#entries.push({ rows: null, context: null }); // a simple query brings its own ReadyForQuery
    this.flush();
  }

  #lend({ memory, from, to: end }: LentRows): void {
    this.#socket.cork();
    for (let at = from; at < end; at += COPY_FRAME_BYTES) {
      const to = Math.min(end, at + COPY_FRAME_BYTES);
      this.#out.byte(COPY_DATA);
      this.#out.int32(4 + to - at);
      this.flush();
      if (this.#closed) continue;
      this.#socket.write(memory.subarray(at, to), to < end ? undefined : () => this.pool.give(memory));
    }
    this.#socket.uncork();
  }

  /** Ends a group of statements: what follows runs (and fails) by itself. */
  sync(): void {
    if (this.#unsynced === 0) return;
    this.#out.end(this.#out.begin(SYNC));
    this.#entries.push({ rows: null, context: null });
    this.#unsynced = 0;
  }

  bytes(from: Buffer, start: number, end: number): void {
    this.#out.bytes(from, start, end);
  }

  int16(value: number): void {
    this.#out.int16(value);
  }

  int32(value: number): void {
    this.#out.int32(value);
  }

  byte(value: number): void {
    this.#out.byte(value);
  }

  /** Writes what has been gathered. */
  flush(): void {
    if (this.#out.used === 0) return;
    if (this.#closed) {
      this.#out.clear();
      return;
    }
    const { bytes, written } = this.#out.take();
    this.#socket.write(bytes, written); // it keeps the memory until the kernel has it
  }

  /** Sync, flush, and every answer. Throws the first failure, after the server has answered everything. */
  async idle(): Promise<void> {
    this.sync();
    this.flush();
    await this.#until(() => this.unanswered === 0);
    if (this.failure) throw this.failure;
  }

  /** Waits until at most so much is under way; throws the first failure at once. */
  async throttle(unanswered: number, bytes: number): Promise<void> {
    this.flush();
    await this.#until(
      () => this.#failure !== null || (this.unanswered <= unanswered && this.#socket.writableLength <= bytes),
    );
    if (this.failure) throw this.failure;
  }

  /** Forgets a failure, once everything is answered; the caller then rolls back. */
  reset(): void {
    this.#failure = null;
    // Statements of the failed group may or may not have been prepared.
    this.#prepared.clear();
    this.#preparedGeneration++;
  }

  async #until(holds: () => boolean): Promise<void> {
    if (this.#closed || holds()) return;
    this.#waitingSince = Date.now();
    const onDrain = (): void => this.#wake?.();
    this.#socket.on('drain', onDrain);
    try {
      while (!this.#closed && !holds()) await new Promise<void>((resolve) => (this.#wake = resolve));
    } finally {
      this.#wake = null;
      this.#waitingSince = null;
      this.#socket.removeListener('drain', onDrain);
    }
  }

  #prepare(sql: string): string {
    const known = this.#prepared.get(sql);
    if (known !== undefined) return known;
    const name =
      this.#prepared.size < MAX_PREPARED ? `dts_${this.#preparedGeneration}_${this.#prepared.size}` : '';
    if (name !== '') this.#prepared.set(sql, name);
    const parse = this.#out.begin(PARSE);
    this.#out.cstring(name);
    this.#out.cstring(sql);
    this.#out.int16(0);
    this.#out.end(parse);
    return name;
  }

  #onBytes(chunk: Buffer): void {
    const bytes = this.#in.length === 0 ? chunk : Buffer.concat([this.#in, chunk]);
    let at = 0;
    while (at + 5 <= bytes.length) {
      const end = at + 1 + bytes.readInt32BE(at + 1);
      if (end > bytes.length) break;
      this.#onMessage(bytes[at] ?? 0, bytes, at + 5, end);
      at = end;
    }
    this.#in = at === bytes.length ? Buffer.alloc(0) : bytes.subarray(at);
    this.#wake?.();
  }

  #onMessage(type: number, bytes: Buffer, start: number, end: number): void {
    switch (type) {
      case 0x43: {
        // CommandComplete: `INSERT 0 5`, `UPDATE 5`, `COPY 5`, `BEGIN`
        const entry = this.#entries[this.#head++];
        if (!entry || entry.context === null || entry.rows === null) return;
        const tag = bytes.toString('latin1', start, end - 1);
        if (entry.rows === 'COMMIT') {
          // COMMIT of a failed transaction succeeds as ROLLBACK
          if (tag !== 'COMMIT')
            this.#failure ??= new MigrationError('internal', `target: COMMIT ended as ${tag}`);
          return;
        }
        const found = Number(tag.slice(tag.lastIndexOf(' ') + 1));
        if (found !== entry.rows) this.#failure ??= this.#reader.onRows(found, entry.rows, entry.context);
        return;
      }
      case 0x5a: {
        // ReadyForQuery: what the server skipped after an error has no answer of its own.
        let entry = this.#entries[this.#head++];
        while (entry && entry.context !== null) entry = this.#entries[this.#head++];
        if (this.#head === this.#entries.length) {
          this.#entries.length = 0;
          this.#head = 0;
        } else if (this.#head > 4_096) {
          this.#entries.splice(0, this.#head);
          this.#head = 0;
        }
        return;
      }
      case 0x45: {
        const entry = this.#entries[this.#head];
        const error = readServerError(bytes, start, end);
        if (entry && entry.context !== null) this.#failure ??= this.#reader.onError(error, entry.context);
        else this.#failure ??= fromPostgres(error, { role: 'target' });
        return;
      }
      case 0x44: {
        if (bytes.readInt16BE(start) === 0) return; // `select from`: rows without columns
        const entry = this.#entries[this.#head];
        const length = bytes.readInt32BE(start + 2);
        if (entry && entry.context !== null)
          this.#reader.onData(
            bytes.toString('utf8', start + 6, start + 6 + Math.max(0, length)),
            entry.context,
          );
        return;
      }
      default: // ParseComplete, BindComplete, RowDescription, NoticeResponse …: nothing to learn
    }
  }

  #onClosed(error: Error): void {
    this.#closed ??=
      this.#failure?.code === 'connection_failed' ? this.#failure : fromPostgres(error, { role: 'target' });
    this.#wake?.();
  }
}
