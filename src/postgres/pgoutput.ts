// The messages of PostgreSQL's `pgoutput` plugin, protocols 1 to 4, decoded from Buffers. Pure; src/sync calls it for what
// its short ways do not take. What is malformed becomes a typed error with its offset.
// Format: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
//
// Between Stream Start and Stream Stop (option `streaming`, from protocol 2 on) a relation, type, change or message begins
// with the id of its (sub)transaction, which spilled-messages.ts takes out.
import { MessageReader } from './message-reader.ts';
import {
  UNCHANGED,
  type ColumnValue,
  type DeleteMessage,
  type PgoutputMessage,
  type PrepareMessage,
  type RelationColumn,
  type RelationMessage,
  type StreamAbortMessage,
  type TruncateMessage,
  type Tuple,
  type UpdateMessage,
} from './pgoutput-messages.ts';

const identities = { d: 'default', n: 'nothing', f: 'full', i: 'index' } as const;

function readTuple(reader: MessageReader): Tuple {
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

function expectNewTuple(reader: MessageReader, kind: string): Tuple {
  if (kind !== 'N') throw reader.malformed(`tuple kind ${JSON.stringify(kind)}`);
  return readTuple(reader);
}

function readRelation(reader: MessageReader): RelationMessage {
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

function readUpdate(reader: MessageReader): UpdateMessage {
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

function readDelete(reader: MessageReader): DeleteMessage {
  const relationId = reader.oid();
  const kind = reader.char();
  if (kind !== 'K' && kind !== 'O') throw reader.malformed(`tuple kind ${JSON.stringify(kind)}`);
  return { tag: 'delete', relationId, oldKind: kind === 'K' ? 'key' : 'full', old: readTuple(reader) };
}

function readTruncate(reader: MessageReader): TruncateMessage {
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

function readPrepare(tag: PrepareMessage['tag'], reader: MessageReader): PrepareMessage {
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

function readStreamAbort(reader: MessageReader): StreamAbortMessage {
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

function readBody(tag: string, reader: MessageReader): PgoutputMessage {
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
  const reader = new MessageReader(buffer);
  const message = readBody(reader.char(), reader);
  reader.end();
  return message;
}
