// Writes messages of pgoutput as a server does: for tests of the decoder and of what reads from it.
import type { Lsn } from '../../src/model/lsn.ts';
import { UNCHANGED, type PgoutputMessage, type Tuple } from '../../src/postgres/pgoutput-messages.ts';
import type { Gulp } from '../../src/postgres/wal-walker.ts';

export const u8 = (value: number): Buffer => Buffer.from([value]);
const u16 = (value: number): Buffer => {
  const buffer = Buffer.alloc(2);
  buffer.writeUInt16BE(value);
  return buffer;
};
const u32 = (value: number): Buffer => {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value >>> 0);
  return buffer;
};
const i64 = (value: bigint): Buffer => {
  const buffer = Buffer.alloc(8);
  buffer.writeBigInt64BE(BigInt.asIntN(64, value));
  return buffer;
};
const lsn = (text: string): Buffer => {
  const [high = '0', low = '0'] = text.split('/');
  return Buffer.concat([u32(Number.parseInt(high, 16)), u32(Number.parseInt(low, 16))]);
};
const cstring = (text: string): Buffer => Buffer.concat([Buffer.from(text), u8(0)]);
const char = (letter: string): Buffer => Buffer.from(letter, 'latin1');

export function tuple(values: Tuple): Buffer {
  return Buffer.concat([
    u16(values.length),
    ...values.flatMap((value) => {
      if (value === null) return [char('n')];
      if (value === UNCHANGED) return [char('u')];
      const bytes = Buffer.from(value);
      return [char(typeof value === 'string' ? 't' : 'b'), u32(bytes.length), bytes];
    }),
  ]);
}

const identities = { default: 'd', nothing: 'n', full: 'f', index: 'i' } as const;

export function encode(message: PgoutputMessage): Buffer {
  switch (message.tag) {
    case 'begin':
      return Buffer.concat([char('B'), lsn(message.commitLsn), i64(message.commitTime), u32(message.xid)]);
    case 'commit':
      return Buffer.concat([
        char('C'),
        u8(0),
        lsn(message.commitLsn),
        lsn(message.endLsn),
        i64(message.commitTime),
      ]);
    case 'origin':
      return Buffer.concat([char('O'), lsn(message.lsn), cstring(message.name)]);
    case 'relation':
      return Buffer.concat([
        char('R'),
        u32(message.relationId),
        cstring(message.schema),
        cstring(message.name),
        char(identities[message.replicaIdentity]),
        u16(message.columns.length),
        ...message.columns.flatMap((column) => [
          u8(column.key ? 1 : 0),
          cstring(column.name),
          u32(column.typeOid),
          u32(column.typmod),
        ]),
      ]);
    case 'type':
      return Buffer.concat([char('Y'), u32(message.typeOid), cstring(message.schema), cstring(message.name)]);
    case 'insert':
      return Buffer.concat([char('I'), u32(message.relationId), char('N'), tuple(message.new)]);
    case 'update': {
      const old = message.old ? [char(message.oldKind === 'key' ? 'K' : 'O'), tuple(message.old)] : [];
      return Buffer.concat([char('U'), u32(message.relationId), ...old, char('N'), tuple(message.new)]);
    }
    case 'delete':
      return Buffer.concat([
        char('D'),
        u32(message.relationId),
        char(message.oldKind === 'key' ? 'K' : 'O'),
        tuple(message.old),
      ]);
    case 'truncate':
      return Buffer.concat([
        char('T'),
        u32(message.relationIds.length),
        u8((message.cascade ? 1 : 0) | (message.restartIdentity ? 2 : 0)),
        ...message.relationIds.map(u32),
      ]);
    case 'message':
      return Buffer.concat([
        char('M'),
        u8(message.transactional ? 1 : 0),
        lsn(message.lsn),
        cstring(message.prefix),
        u32(message.content.length),
        message.content,
      ]);
    case 'stream-start':
      return Buffer.concat([char('S'), u32(message.xid), u8(message.first ? 1 : 0)]);
    case 'stream-stop':
      return char('E');
    case 'stream-commit':
      return Buffer.concat([
        char('c'),
        u32(message.xid),
        u8(0),
        lsn(message.commitLsn),
        lsn(message.endLsn),
        i64(message.commitTime),
      ]);
    case 'stream-abort':
      return Buffer.concat([
        char('A'),
        u32(message.xid),
        u32(message.subXid),
        ...(message.abortLsn === null ? [] : [lsn(message.abortLsn)]),
        ...(message.abortTime === null ? [] : [i64(message.abortTime)]),
      ]);
    case 'begin-prepare':
    case 'prepare':
    case 'commit-prepared':
    case 'stream-prepare':
      return Buffer.concat([
        char(
          { 'begin-prepare': 'b', prepare: 'P', 'commit-prepared': 'K', 'stream-prepare': 'p' }[message.tag],
        ),
        ...(message.tag === 'begin-prepare' ? [] : [u8(0)]),
        lsn(message.lsn),
        lsn(message.endLsn),
        i64(message.time),
        u32(message.xid),
        cstring(message.gid),
      ]);
    case 'rollback-prepared':
      return Buffer.concat([
        char('r'),
        u8(0),
        lsn(message.prepareEndLsn),
        lsn(message.endLsn),
        i64(message.prepareTime),
        i64(message.time),
        u32(message.xid),
        cstring(message.gid),
      ]);
  }
}

/** As it comes between Stream Start and Stop, with the id of its (sub)transaction behind its tag. */
export function encodeStreamed(message: PgoutputMessage, xid: number): Buffer {
  const plain = encode(message);
  return Buffer.concat([plain.subarray(0, 1), u32(xid), plain.subarray(1)]);
}

/** Messages as a feed gives them, in one buffer. */
export function gulpOf(messages: readonly Buffer[]): Gulp {
  const bounds: number[] = [];
  let at = 0;
  for (const message of messages) {
    bounds.push(at, at + message.length);
    at += message.length;
  }
  return { buffer: Buffer.concat(messages), bounds: Int32Array.from(bounds) };
}

export function keepaliveMessage(walEnd: Lsn, replyRequested: boolean): Buffer {
  return Buffer.concat([char('k'), lsn(walEnd), i64(0n), u8(replyRequested ? 1 : 0)]);
}
