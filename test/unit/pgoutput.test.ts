// The decoder of pgoutput: every message that it can be sent comes back as it was written, and nothing that it can be
// sent breaks it otherwise than with a typed error.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MigrationError } from '../../src/model/errors.ts';
import { bigintToLsn } from '../../src/model/lsn.ts';
import { decodePgoutput } from '../../src/postgres/pgoutput.ts';
import { UNCHANGED, type PgoutputMessage } from '../../src/postgres/pgoutput-messages.ts';
import { u8, encode } from '../support/pgoutput-messages.ts';

const oid = fc.nat({ max: 0xffffffff });
const position = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }).map(bigintToLsn);
const time = fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n });
const text = fc.string({ unit: 'grapheme' });
const name = text.filter((value) => !value.includes('\0'));
const bytes = fc.uint8Array().map((array) => Buffer.from(array));
const row = fc.array(fc.oneof(text, bytes, fc.constant(null), fc.constant(UNCHANGED)), { maxLength: 8 });

const message: fc.Arbitrary<PgoutputMessage> = fc.oneof(
  fc.record({ tag: fc.constant('begin' as const), commitLsn: position, commitTime: time, xid: oid }),
  fc.record({
    tag: fc.constant('commit' as const),
    commitLsn: position,
    endLsn: position,
    commitTime: time,
  }),
  fc.record({ tag: fc.constant('origin' as const), lsn: position, name }),
  fc.record({
    tag: fc.constant('relation' as const),
    relationId: oid,
    schema: name.filter((value) => value !== ''),
    name,
    replicaIdentity: fc.constantFrom('default', 'nothing', 'full', 'index'),
    columns: fc.array(fc.record({ key: fc.boolean(), name, typeOid: oid, typmod: fc.integer({ min: -1 }) }), {
      maxLength: 5,
    }),
  }),
  fc.record({ tag: fc.constant('type' as const), typeOid: oid, schema: name, name }),
  fc.record({ tag: fc.constant('insert' as const), relationId: oid, new: row }),
  fc.record({
    tag: fc.constant('update' as const),
    relationId: oid,
    oldKind: fc.constantFrom('key', 'full'),
    old: row,
    new: row,
  }),
  fc.record({
    tag: fc.constant('update' as const),
    relationId: oid,
    oldKind: fc.constant('none' as const),
    old: fc.constant(null),
    new: row,
  }),
  fc.record({
    tag: fc.constant('delete' as const),
    relationId: oid,
    oldKind: fc.constantFrom('key', 'full'),
    old: row,
  }),
  fc.record({
    tag: fc.constant('truncate' as const),
    relationIds: fc.array(oid, { maxLength: 4 }),
    cascade: fc.boolean(),
    restartIdentity: fc.boolean(),
  }),
  fc.record({
    tag: fc.constant('message' as const),
    transactional: fc.boolean(),
    lsn: position,
    prefix: name,
    content: bytes,
  }),
  fc.record({ tag: fc.constant('stream-start' as const), xid: oid, first: fc.boolean() }),
  fc.record({ tag: fc.constant('stream-stop' as const) }),
  fc.record({
    tag: fc.constant('stream-commit' as const),
    xid: oid,
    commitLsn: position,
    endLsn: position,
    commitTime: time,
  }),
  fc.record({
    tag: fc.constant('stream-abort' as const),
    xid: oid,
    subXid: oid,
    abortLsn: fc.constant(null),
    abortTime: fc.constant(null),
  }),
  fc.record({
    tag: fc.constantFrom('begin-prepare', 'prepare', 'commit-prepared', 'stream-prepare'),
    lsn: position,
    endLsn: position,
    time,
    xid: oid,
    gid: name,
  }),
  fc.record({
    tag: fc.constant('rollback-prepared' as const),
    prepareEndLsn: position,
    endLsn: position,
    prepareTime: time,
    time,
    xid: oid,
    gid: name,
  }),
);

/** Decodes, or tells the code of the typed error; anything else escapes and fails the test. */
function outcome(buffer: Buffer): PgoutputMessage | string {
  try {
    return decodePgoutput(buffer);
  } catch (error) {
    if (error instanceof MigrationError) return error.code;
    throw error;
  }
}

describe('decodePgoutput', () => {
  it('gives back every message as it was written', () => {
    fc.assert(
      fc.property(message, (sent) => {
        expect(decodePgoutput(encode(sent))).toEqual(sent);
      }),
    );
  });

  it('answers random bytes with a message or a typed error', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (array) => {
        const result = outcome(Buffer.from(array));
        if (typeof result === 'string') expect(['internal', 'schema_unsupported']).toContain(result);
      }),
      { numRuns: 2_000 },
    );
  });

  it('refuses every message that was cut short or has surplus bytes', () => {
    fc.assert(
      fc.property(message, fc.nat(), (sent, at) => {
        const whole = encode(sent);
        expect(outcome(whole.subarray(0, at % whole.length))).toBe('internal');
        expect(outcome(Buffer.concat([whole, u8(0)]))).toBe('internal');
      }),
    );
  });

  it('names the offset of what is malformed', () => {
    const cut = encode({ tag: 'insert', relationId: 7, new: ['abcdef'] }).subarray(0, 14);
    expect(() => decodePgoutput(cut)).toThrow(/at offset 13/);
  });

  it('reads position and time of an abort that is streamed in parallel', () => {
    const abort = { tag: 'stream-abort', xid: 7, subXid: 8, abortLsn: '1/2', abortTime: 3n } as const;
    expect(decodePgoutput(encode(abort))).toEqual(abort);
    expect(outcome(encode(abort).subarray(0, 20))).toBe('internal');
  });

  it('answers a message with changed bytes with a message or a typed error', () => {
    const change = fc.tuple(fc.nat(), fc.nat({ max: 255 }));
    fc.assert(
      fc.property(message, fc.array(change, { minLength: 1, maxLength: 4 }), (sent, changes) => {
        const whole = encode(sent);
        for (const [at, byte] of changes) whole[at % whole.length] = byte;
        const result = outcome(whole);
        if (typeof result === 'string') expect(['internal', 'schema_unsupported']).toContain(result);
      }),
      { numRuns: 2_000 },
    );
  });

  it('refuses text that is not UTF-8 instead of replacing it', () => {
    const whole = encode({ tag: 'insert', relationId: 7, new: ['ab'] });
    whole[whole.length - 1] = 0xe9;
    expect(outcome(whole)).toBe('schema_unsupported');
    expect(decodePgoutput(encode({ tag: 'insert', relationId: 7, new: ['a\uFFFD'] }))).toMatchObject({
      new: ['a\uFFFD'],
    });
  });

  it('keeps nothing of the buffer, which the connection reuses', () => {
    const whole = encode({ tag: 'insert', relationId: 7, new: ['text', Buffer.from('bytes')] });
    const decoded = decodePgoutput(whole);
    whole.fill(0);
    expect(decoded).toEqual({ tag: 'insert', relationId: 7, new: ['text', Buffer.from('bytes')] });
  });
});
