import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { withNumbers } from '../../src/model/number-ranges.ts';
import type { MigrationError } from '../../src/model/errors.ts';
import { bigintToLsn, compareLsn, lagBytes, lsnToBigint } from '../../src/model/lsn.ts';
import { isVisible, parsePgSnapshot, widenXid } from '../../src/model/pg-snapshot.ts';
import {
  MAX_IDENTIFIER_BYTES,
  isGlob,
  matcherOf,
  parseRelationName,
  relationKey,
  suffixedName,
} from '../../src/model/relation.ts';
import { firstIdOf, nextLegId, reverseSpec } from '../../src/model/reverse.ts';
import { parseRequest, type TaskRequest } from '../../src/model/request.ts';
import { retryDelayMs } from '../../src/model/retry.ts';

describe('LSN', () => {
  test('text and position are two spellings of the same', () => {
    fc.assert(
      fc.property(
        fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        (position) => lsnToBigint(bigintToLsn(position)) === position,
      ),
    );
  });

  test('is compared as a number, not as text', () => {
    expect(compareLsn('9/0', '10/0')).toBeLessThan(0);
    expect(compareLsn('0/FFFFFFFF', '1/0')).toBeLessThan(0);
    expect(compareLsn('a/0', 'A/0')).toBe(0);
  });

  test('lag is never negative', () => {
    expect(lagBytes('0/10', '0/20')).toBe(0);
    expect(lagBytes('1/0', '0/FFFFFFFF')).toBe(1);
  });

  test.each(['', '1', '1/', '/1', 'x/1', '1/1/1', '123456789/0'])('%j is not one', (text) => {
    expect(() => lsnToBigint(text)).toThrow(RangeError);
  });
});

describe('pg_snapshot', () => {
  test('knows what was committed when it was taken', () => {
    const snapshot = parsePgSnapshot('10:20:12,15');
    expect([9n, 10n, 11n, 12n, 15n, 19n, 20n, 21n].map((xid) => isVisible(snapshot, xid))).toEqual([
      true,
      true,
      true,
      false,
      false,
      true,
      false,
      false,
    ]);
  });

  test('an empty list of running transactions is none', () => {
    expect(parsePgSnapshot('10:10:').xip.size).toBe(0);
    expect(() => parsePgSnapshot('10:10')).toThrow(RangeError);
  });

  test('32-bit ids widen to the nearest 64-bit id, also across an epoch', () => {
    const epoch = 1n << 32n;
    expect(widenXid(5, epoch + 3n)).toBe(epoch + 5n);
    expect(widenXid(0xffffffff, epoch + 3n)).toBe(epoch - 1n);
    expect(widenXid(2, 2n * epoch - 3n)).toBe(2n * epoch + 2n);
    expect(widenXid(7, 9n)).toBe(7n);
    fc.assert(
      fc.property(
        fc.bigInt({ min: 1n << 33n, max: 1n << 50n }),
        fc.integer({ min: -(2 ** 31) + 1, max: 2 ** 31 - 1 }),
        (near, offset) => {
          const xid = near + BigInt(offset);
          return widenXid(Number(xid & 0xffffffffn), near) === xid;
        },
      ),
    );
  });
});

describe('relation names', () => {
  test.each([
    ['a*', 'public.ab', true],
    ['a*', 'app.ab', false],
    ['app.?', 'app.x', true],
    ['app.?', 'app.xy', false],
    ['*.a', 'any where.a', true],
    ['"*".a', 'any.a', false],
    ['"*".a', '*.a', true],
    ['s."a*"', 's.ab', false],
    ['s.a.b*', 's."a.bc"', true],
    ['s.a+(b)[c]*', 's.a+(b)[c]d', true],
    ['s.A*', 's.ab', false],
  ])('%s and %s', (pattern, name, matches) => {
    expect(matcherOf(pattern)(parseRelationName(name))).toBe(matches);
  });

  test('a wildcard in quotes is none', () => {
    expect(['a*', '"a*"', '"x".b?', '"a""*".b', '"a"*'].map(isGlob)).toEqual([
      true,
      false,
      true,
      false,
      true,
    ]);
  });

  test.each([
    ['users', 'public', 'users'],
    ['Users', 'public', 'Users'],
    ['sales.orders', 'sales', 'orders'],
    ['a.b.c', 'a', 'b.c'],
    ['"Sp ace"."T""q.t"', 'Sp ace', 'T"q.t'],
    ['"a.b"', 'public', 'a.b'],
    ['"a.b".c', 'a.b', 'c'],
    ['s."T.x"', 's', 'T.x'],
  ])('%s is %s . %s', (text, schema, name) => {
    expect(parseRelationName(text)).toEqual({ schema, name });
    expect(parseRelationName(relationKey({ schema, name }))).toEqual({ schema, name });
  });

  test.each(['', '.', 'a.', '.a', '"a', '"a"b', '"a"."b"c', '""."b"'])('%j is refused', (text) => {
    expect(() => parseRelationName(text)).toThrow(
      expect.objectContaining({ code: 'invalid_table_name' }) as MigrationError,
    );
  });

  test('every relation survives its key', () => {
    const part = fc.string({ minLength: 1, unit: 'binary' });
    fc.assert(
      fc.property(part, part, (schema, name) => {
        expect(parseRelationName(relationKey({ schema, name }))).toEqual({ schema, name });
      }),
    );
  });

  test('a suffixed name fits, keeps the suffix and stays apart from its neighbours', () => {
    const name = fc.string({ minLength: 1, maxLength: 80, unit: 'grapheme' });
    fc.assert(
      fc.property(name, name, (a, b) => {
        const [left, right] = [suffixedName(a, '_migrated'), suffixedName(b, '_migrated')];
        expect(Buffer.byteLength(left)).toBeLessThanOrEqual(MAX_IDENTIFIER_BYTES);
        expect(left.endsWith('_migrated')).toBe(true);
        if (a !== b) expect(left).not.toBe(right);
      }),
    );
  });
});

describe('create request', () => {
  const db = { host: 'h', user: 'u', dbname: 'd', password: 'p' };
  const fieldsOf = (request: unknown): string[] => {
    try {
      parseRequest(request);
    } catch (error) {
      const { details } = error as { details: { fields: { field: string }[] } };
      return details.fields.map(({ field }) => field);
    }
    return [];
  };

  test('fills in defaults and keeps secrets out of the spec', () => {
    const { spec, secrets } = parseRequest({
      sourceDb: db,
      targetDb: { ...db, password: 'q', sslkey: '-----BEGIN PRIVATE KEY-----' },
    });
    expect(spec).toMatchObject({
      tables: ['*'],
      tableSuffix: '',
      options: { cutover: 'manual', keepFence: true, cutoverTimeoutMs: 30_000 },
    });
    expect(JSON.stringify(spec)).not.toMatch(/"p"|"q"|PRIVATE/);
    expect(secrets).toEqual({
      source: { password: 'p' },
      target: { password: 'q', sslkey: '-----BEGIN PRIVATE KEY-----' },
    });
  });

  test('reads libpq URLs, percent-encoded parts and TLS parameters included', () => {
    const url = 'postgresql://us%40er:p%2Fw@db.example:5433/na%20me?sslmode=verify-full&sslrootcert=/ca.pem';
    const { spec, secrets } = parseRequest({ sourceDb: url, targetDb: db });
    expect(spec.sourceDb).toEqual({
      host: 'db.example',
      port: 5433,
      user: 'us@er',
      dbname: 'na me',
      sslmode: 'verify-full',
      sslrootcert: '/ca.pem',
      password: { from: 'stored' },
    });
    expect(secrets.source).toEqual({ password: 'p/w' });
  });

  test('references to passwords are kept, not their values', () => {
    const { spec } = parseRequest({
      sourceDb: { host: 'h', user: 'u', dbname: 'd', passwordEnv: 'PW' },
      targetDb: { host: 'h', user: 'u', dbname: 'd', passwordFile: '/run/pw' },
    });
    expect([spec.sourceDb.password, spec.targetDb.password]).toEqual([
      { from: 'env', name: 'PW' },
      { from: 'file', path: '/run/pw' },
    ]);
  });

  test('a missing field is said to be required, a mistyped one what it must be', () => {
    expect(() => parseRequest({ sourceDb: { ...db, port: '5432' } })).toThrow(
      'sourceDb.port: must be a number; targetDb: is required: an object',
    );
  });

  test.each<[string, unknown, string[]]>([
    ['nothing', {}, ['sourceDb', 'targetDb']],
    ['no object', 7, ['']],
    ['an unknown field', { sourceDb: db, targetDb: db, foo: 1 }, ['foo']],
    ['an unknown nested field', { sourceDb: { ...db, passwrd: 'x' }, targetDb: db }, ['sourceDb.passwrd']],
    ['a port as text', { sourceDb: { ...db, port: '5432' }, targetDb: db }, ['sourceDb.port']],
    ['two passwords', { sourceDb: { ...db, passwordEnv: 'X' }, targetDb: db }, ['sourceDb.password']],
    ['a bad URL', { sourceDb: 'mysql://x', targetDb: db }, ['sourceDb']],
    [
      'an unknown URL parameter',
      { sourceDb: 'postgresql://u@h/d?sslmod=require', targetDb: db },
      ['sourceDb'],
    ],
    ['a bad id', { id: 'No-Good', sourceDb: db, targetDb: db }, ['id']],
    ['no tables', { sourceDb: db, targetDb: db, tables: [] }, ['tables']],
    ['a bad table name', { sourceDb: db, targetDb: db, tables: ['ok', '"x'] }, ['tables.1']],
    ['a star among names', { sourceDb: db, targetDb: db, tables: ['*', 'x'] }, ['tables']],
    ['a bad suffix', { sourceDb: db, targetDb: db, tableSuffix: 'a"b' }, ['tableSuffix']],
    [
      'a bad option',
      { sourceDb: db, targetDb: db, options: { copyJobs: 0, cutover: 'later', what: 1 } },
      ['options.cutover', 'options.copyJobs', 'options.what'],
    ],
    [
      'a way back without a fence to stay, of a part of a table, under an id that is too long for its legs',
      {
        id: 'a'.repeat(29),
        sourceDb: db,
        targetDb: db,
        options: { reverse: true, keepFence: false, table: { t: { where: 'id > 1' } } },
      },
      ['id', 'options.reverse', 'options.reverse'],
    ],
  ])('%s is refused with its field named', (_, request, fields) => {
    expect(fieldsOf(request)).toEqual(fields);
  });

  test('a refusal never repeats a password', () => {
    const request = {
      sourceDb: { ...db, password: 'hunter2', port: -1 },
      targetDb: 'postgresql://u:hunter2@h/d?bad=1',
    };
    expect(() => parseRequest(request as TaskRequest)).toThrow(
      expect.objectContaining({ message: expect.not.stringContaining('hunter2') as string }) as Error,
    );
  });
});

test('retry delays grow to a minute and no further', () => {
  expect([1, 2, 3, 20].map((attempt) => retryDelayMs(attempt, 0.5))).toEqual([500, 1_000, 2_000, 60_000]);
});

test('ranges hold exactly the numbers given, in whatever order', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(40)), fc.array(fc.nat(40)), (first, second) => {
      const ranges = withNumbers(withNumbers([], first), second);
      const held = ranges.flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, n) => from + n));
      expect(held).toEqual([...new Set([...first, ...second])].sort((a, b) => a - b));
    }),
  );
  expect(withNumbers([[0, 3]], [4, 6])).toEqual([
    [0, 4],
    [6, 6],
  ]);
});

test('the legs of a way back and forth have ids that tell the first task', () => {
  const db = { host: 'h', user: 'u', dbname: 'd' };
  const { spec } = parseRequest({ sourceDb: db, targetDb: db, options: { reverse: true } });
  const ids: string[] = [];
  for (let id = 'shop', leg = spec; ids.length < 4; ) {
    const next = nextLegId(id, leg);
    leg = reverseSpec(id, 'incarnation', leg);
    ids.push((id = next));
  }
  expect(ids).toEqual(['shop_reverse', 'shop_forward_2', 'shop_reverse_2', 'shop_forward_3']);
  expect(ids.map(firstIdOf)).toEqual(['shop', 'shop', 'shop', 'shop']);
  expect(['shop', 'shop_reverse_0', 'reverse'].map(firstIdOf)).toEqual([null, null, null]);
});
