// The messages of PostgreSQL's `pgoutput` plugin, protocols 1 to 4, decoded from Buffers. Pure; src/sync calls it for what
// its short ways do not take. What is malformed becomes a typed error with its offset.
// Format: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
//
// Between Stream Start and Stream Stop (option `streaming`, from protocol 2 on) a relation, type, change or message begins
// with the id of its (sub)transaction: whoever decodes a stream calls `decodeStreamed`.
import { isUtf8 } from 'node:buffer';
import { MigrationError } from '../model/errors.ts';
import { bigintToLsn, type Lsn } from '../model/lsn.ts';

/** An out-of-line (TOAST) value that the update did not touch and that the message therefore lacks. */
export const UNCHANGED = Symbol('unchanged toast value');

/** Text as the type's output function prints it, bytes as its send function writes them, NULL, or not sent. */
export type ColumnValue = string | Buffer | null | typeof UNCHANGED;
/** One value per published column, in the order of the Relation message. */
export type Tuple = readonly ColumnValue[];

export interface RelationColumn {
  /** Part of the replica identity. */
  readonly key: boolean;
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
}

export interface BeginMessage {
  readonly tag: 'begin';
  /** Start of the commit record: what the copy filter compares. */
  readonly commitLsn: Lsn;
  /** Microseconds since 2000-01-01 UTC. */
  readonly commitTime: bigint;
  /** Low 32 bits of the top-level transaction id. */
  readonly xid: number;
}

export interface CommitMessage {
  readonly tag: 'commit';
  readonly commitLsn: Lsn;
  /** End of the commit record: the position to acknowledge and to start again from. */
  readonly endLsn: Lsn;
  readonly commitTime: bigint;
}

export interface RelationMessage {
  readonly tag: 'relation';
  readonly relationId: number;
  readonly schema: string;
  readonly name: string;
  /** pg_class.relreplident. */
  readonly replicaIdentity: 'default' | 'nothing' | 'full' | 'index';
  readonly columns: readonly RelationColumn[];
}

export interface InsertMessage {
  readonly tag: 'insert';
  readonly relationId: number;
  readonly new: Tuple;
}

export interface UpdateMessage {
  readonly tag: 'update';
  readonly relationId: number;
  /**
   * `key`: only the identity's columns are meaningful, the others are NULL for "not sent"; sent when the key changed or
   * has out-of-line values. `full`: the whole old row. `none`: the new tuple holds the key.
   */
  readonly oldKind: 'key' | 'full' | 'none';
  readonly old: Tuple | null;
  readonly new: Tuple;
}

export interface DeleteMessage {
  readonly tag: 'delete';
  readonly relationId: number;
  readonly oldKind: 'key' | 'full';
  readonly old: Tuple;
}

export interface TruncateMessage {
  readonly tag: 'truncate';
  readonly relationIds: readonly number[];
  readonly cascade: boolean;
  readonly restartIdentity: boolean;
}

export interface LogicalMessage {
  readonly tag: 'message';
  readonly transactional: boolean;
  readonly lsn: Lsn;
  readonly prefix: string;
  readonly content: Buffer;
}

/** A part of a transaction that is still running begins; `first`: its first part. */
export interface StreamStartMessage {
  readonly tag: 'stream-start';
  readonly xid: number;
  readonly first: boolean;
}

export interface StreamCommitMessage {
  readonly tag: 'stream-commit';
  readonly xid: number;
  readonly commitLsn: Lsn;
  readonly endLsn: Lsn;
  readonly commitTime: bigint;
}

/** The (sub)transaction `subXid` was rolled back; the whole one when both are the same. */
export interface StreamAbortMessage {
  readonly tag: 'stream-abort';
  readonly xid: number;
  readonly subXid: number;
  /** Protocol 4 with `streaming 'parallel'`, else null. */
  readonly abortLsn: Lsn | null;
  readonly abortTime: bigint | null;
}

/** Option `two_phase`, from protocol 3 on; `stream-prepare` ends a streamed transaction. */
export interface PrepareMessage {
  readonly tag: 'begin-prepare' | 'prepare' | 'commit-prepared' | 'stream-prepare';
  /** Of PREPARE; of COMMIT PREPARED for `commit-prepared`. */
  readonly lsn: Lsn;
  readonly endLsn: Lsn;
  readonly time: bigint;
  readonly xid: number;
  readonly gid: string;
}

export interface RollbackPreparedMessage {
  readonly tag: 'rollback-prepared';
  readonly prepareEndLsn: Lsn;
  readonly endLsn: Lsn;
  readonly prepareTime: bigint;
  readonly time: bigint;
  readonly xid: number;
  readonly gid: string;
}

export type ChangeMessage = InsertMessage | UpdateMessage | DeleteMessage | TruncateMessage;
export type PgoutputMessage =
  | BeginMessage
  | CommitMessage
  | { readonly tag: 'origin'; readonly lsn: Lsn; readonly name: string }
  | RelationMessage
  | { readonly tag: 'type'; readonly typeOid: number; readonly schema: string; readonly name: string }
  | ChangeMessage
  | LogicalMessage
  | StreamStartMessage
  | { readonly tag: 'stream-stop' }
  | StreamCommitMessage
  | StreamAbortMessage
  | PrepareMessage
  | RollbackPreparedMessage;

const identities = { d: 'default', n: 'nothing', f: 'full', i: 'index' } as const;

/** Reads forward through one message; every read past the end is a typed error. */
class Reader {
  readonly buffer: Buffer;
  offset = 0;

  constructor(buffer: Buffer) {
    this.buffer = buffer;
  }

  malformed(reason: string): MigrationError {
    return new MigrationError('internal', `malformed pgoutput message: ${reason} at offset ${this.offset}`, {
      details: { offset: this.offset, length: this.buffer.length, tag: this.buffer[0] ?? null },
    });
  }

  #advance(bytes: number): number {
    const at = this.offset;
    if (at + bytes > this.buffer.length) throw this.malformed(`${bytes} bytes expected`);
    this.offset = at + bytes;
    return at;
  }

  int8(): number {
    return this.buffer.readUInt8(this.#advance(1));
  }
  int16(): number {
    return this.buffer.readUInt16BE(this.#advance(2));
  }
  int32(): number {
    return this.buffer.readInt32BE(this.#advance(4));
  }
  oid(): number {
    return this.buffer.readUInt32BE(this.#advance(4));
  }
  int64(): bigint {
    return this.buffer.readBigInt64BE(this.#advance(8));
  }
  lsn(): Lsn {
    return bigintToLsn(this.buffer.readBigUInt64BE(this.#advance(8)));
  }
  char(): string {
    return String.fromCharCode(this.int8());
  }

  /** Up to the zero byte. */
  cstring(): string {
    const end = this.buffer.indexOf(0, this.offset);
    if (end === -1) throw this.malformed('unterminated string');
    const start = this.#advance(end + 1 - this.offset);
    return this.#utf8(start, end);
  }

  text(bytes: number): string {
    const start = this.#advance(bytes);
    return this.#utf8(start, start + bytes);
  }

  /** A copy: the connection reuses the memory behind the message. */
  bytes(length: number): Buffer {
    const start = this.#advance(length);
    return Buffer.from(this.buffer.subarray(start, start + length));
  }

  length(): number {
    const length = this.int32();
    if (length < 0) throw this.malformed(`negative length ${length}`);
    return length;
  }

  end(): void {
    if (this.offset !== this.buffer.length) throw this.malformed('surplus bytes');
  }

  #utf8(start: number, end: number): string {
    const text = this.buffer.toString('utf8', start, end);
    // Under server_encoding SQL_ASCII nothing is converted or checked: other bytes would silently become U+FFFD.
    if (text.includes('\uFFFD') && !isUtf8(this.buffer.subarray(start, end)))
      throw new MigrationError('schema_unsupported', `source: text is not valid UTF-8 at offset ${start}`, {
        hint: 'the source database has encoding SQL_ASCII; correct the value, or exclude the table',
        details: {
          offset: start,
          bytes: this.buffer.subarray(start, Math.min(end, start + 64)).toString('hex'),
        },
      });
    return text;
  }
}

function readTuple(reader: Reader): Tuple {
  const count = reader.int16();
  const values: ColumnValue[] = [];
  for (let index = 0; index < count; index++) {
    const kind = reader.int8();
    switch (kind) {
      case 0x74: // t
        values.push(reader.text(reader.length()));
        break;
      case 0x6e: // n
        values.push(null);
        break;
      case 0x75: // u
        values.push(UNCHANGED);
        break;
      case 0x62: // b
        values.push(reader.bytes(reader.length()));
        break;
      default:
        throw reader.malformed(`unknown column kind ${kind}`);
    }
  }
  return values;
}

function expectNewTuple(reader: Reader, kind: string): Tuple {
  if (kind !== 'N') throw reader.malformed(`tuple kind ${JSON.stringify(kind)}`);
  return readTuple(reader);
}

function readRelation(reader: Reader): RelationMessage {
  const relationId = reader.oid();
  const schema = reader.cstring();
  const name = reader.cstring();
  const identity = reader.char();
  if (!(identity in identities)) throw reader.malformed(`replica identity ${JSON.stringify(identity)}`);
  const columns: RelationColumn[] = [];
  const count = reader.int16();
  for (let index = 0; index < count; index++)
    columns.push({
      key: (reader.int8() & 1) !== 0,
      name: reader.cstring(),
      typeOid: reader.oid(),
      typmod: reader.int32(),
    });
  return {
    tag: 'relation',
    relationId,
    // pgoutput sends an empty schema for pg_catalog
    schema: schema === '' ? 'pg_catalog' : schema,
    name,
    replicaIdentity: identities[identity as keyof typeof identities],
    columns,
  };
}

function readUpdate(reader: Reader): UpdateMessage {
  const relationId = reader.oid();
  const kind = reader.char();
  if (kind !== 'K' && kind !== 'O')
    return {
      tag: 'update',
      relationId,
      oldKind: 'none',
      old: null,
      new: expectNewTuple(reader, kind),
    };
  const old = readTuple(reader);
  return {
    tag: 'update',
    relationId,
    oldKind: kind === 'K' ? 'key' : 'full',
    old,
    new: expectNewTuple(reader, reader.char()),
  };
}

function readDelete(reader: Reader): DeleteMessage {
  const relationId = reader.oid();
  const kind = reader.char();
  if (kind !== 'K' && kind !== 'O') throw reader.malformed(`tuple kind ${JSON.stringify(kind)}`);
  return { tag: 'delete', relationId, oldKind: kind === 'K' ? 'key' : 'full', old: readTuple(reader) };
}

function readTruncate(reader: Reader): TruncateMessage {
  const count = reader.length();
  const options = reader.int8();
  const relationIds: number[] = [];
  for (let index = 0; index < count; index++) relationIds.push(reader.oid());
  return {
    tag: 'truncate',
    relationIds,
    cascade: (options & 1) !== 0,
    restartIdentity: (options & 2) !== 0,
  };
}

function readPrepare(tag: PrepareMessage['tag'], reader: Reader): PrepareMessage {
  if (tag !== 'begin-prepare') reader.int8(); // flags, unused so far
  return {
    tag,
    lsn: reader.lsn(),
    endLsn: reader.lsn(),
    time: reader.int64(),
    xid: reader.oid(),
    gid: reader.cstring(),
  };
}

function readStreamAbort(reader: Reader): StreamAbortMessage {
  const xid = reader.oid();
  const subXid = reader.oid();
  // The server sends position and time only when it streams in parallel; nothing else tells.
  const more = reader.offset < reader.buffer.length;
  return {
    tag: 'stream-abort',
    xid,
    subXid,
    abortLsn: more ? reader.lsn() : null,
    abortTime: more ? reader.int64() : null,
  };
}

/** These begin with a transaction id inside of a stream. */
const carriesXid = new Set(['R', 'Y', 'I', 'U', 'D', 'T', 'M']);

function readBody(tag: string, reader: Reader): PgoutputMessage {
  switch (tag) {
    case 'B':
      return { tag: 'begin', commitLsn: reader.lsn(), commitTime: reader.int64(), xid: reader.oid() };
    case 'C':
      reader.int8(); // flags, unused so far
      return { tag: 'commit', commitLsn: reader.lsn(), endLsn: reader.lsn(), commitTime: reader.int64() };
    case 'O':
      return { tag: 'origin', lsn: reader.lsn(), name: reader.cstring() };
    case 'R':
      return readRelation(reader);
    case 'Y':
      return { tag: 'type', typeOid: reader.oid(), schema: reader.cstring(), name: reader.cstring() };
    case 'I':
      return { tag: 'insert', relationId: reader.oid(), new: expectNewTuple(reader, reader.char()) };
    case 'U':
      return readUpdate(reader);
    case 'D':
      return readDelete(reader);
    case 'T':
      return readTruncate(reader);
    case 'M': {
      const transactional = (reader.int8() & 1) !== 0;
      const lsn = reader.lsn();
      const prefix = reader.cstring();
      return { tag: 'message', transactional, lsn, prefix, content: reader.bytes(reader.length()) };
    }
    case 'S':
      return { tag: 'stream-start', xid: reader.oid(), first: reader.int8() === 1 };
    case 'E':
      return { tag: 'stream-stop' };
    case 'c': {
      const xid = reader.oid();
      reader.int8(); // flags, unused so far
      return {
        tag: 'stream-commit',
        xid,
        commitLsn: reader.lsn(),
        endLsn: reader.lsn(),
        commitTime: reader.int64(),
      };
    }
    case 'A':
      return readStreamAbort(reader);
    case 'b':
      return readPrepare('begin-prepare', reader);
    case 'P':
      return readPrepare('prepare', reader);
    case 'K':
      return readPrepare('commit-prepared', reader);
    case 'p':
      return readPrepare('stream-prepare', reader);
    case 'r':
      reader.int8(); // flags, unused so far
      return {
        tag: 'rollback-prepared',
        prepareEndLsn: reader.lsn(),
        endLsn: reader.lsn(),
        prepareTime: reader.int64(),
        time: reader.int64(),
        xid: reader.oid(),
        gid: reader.cstring(),
      };
    default:
      throw reader.malformed(`unknown message ${JSON.stringify(tag)}`);
  }
}

/**
 * Decodes one message. Nothing of the result refers to `buffer`, which may be reused at once.
 * Errors: `internal` naming the offset, for anything malformed; `schema_unsupported` for text that is not UTF-8.
 */
export function decodePgoutput(buffer: Buffer): PgoutputMessage {
  const reader = new Reader(buffer);
  const message = readBody(reader.char(), reader);
  reader.end();
  return message;
}

/** The same for a message between Stream Start and Stop: with the (sub)transaction that it belongs to. */
export function decodeStreamed(buffer: Buffer): {
  readonly message: PgoutputMessage;
  readonly xid: number | null;
} {
  const reader = new Reader(buffer);
  const tag = reader.char();
  const xid = carriesXid.has(tag) ? reader.oid() : null;
  const message = readBody(tag, reader);
  reader.end();
  return { message, xid };
}
