// What the comparison finds, between an old source and a new target: every planted difference, and nothing else.
import { describe, expect, test } from 'vitest';
import { cutoverNotes, type VerdictsNote } from '../../src/model/cutover-notes.ts';
import { MigrationError } from '../../src/model/errors.ts';
import { compareTables } from '../../src/validate/compare.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const oddTypes = `
  create schema app;
  create type app.mood as enum ('sad', 'ok');
  create type app.pair as (a int, b text);
  create domain app.positive as numeric check (value > 0);
  create table odd (
    id int primary key, b bool, i2 int2, i8 int8, n numeric, n2 numeric(20, 5), f4 float4, f8 float8, m money,
    t text, v varchar(20), c char(8), nm name, c1 "char", by bytea, d date, tm time, tz timetz, ts timestamp,
    tstz timestamptz, iv interval, u uuid, j json, jb jsonb, x xml, a int[], aa text[][], r int4range, tr tstzrange,
    mood app.mood, pair app.pair, pairs app.pair[], pos app.positive, bt bit(5), vb varbit, inet inet, cidr cidr,
    mac macaddr, pt point, bx box, pg polygon, ci circle, tv tsvector, tq tsquery, lsn pg_lsn, o oid,
    g int generated always as (id * 2) stored);
  insert into odd (id) values (0);
  insert into odd values (1, true, -5, 9223372036854775807, 'NaN', 1.5, 'Infinity', 'NaN', '12345.67',
    e'a"b\\\\c,(d)\\n\\t\\x01''', '', 'pad', 'name', 'x', '\\x00ff5c22', 'infinity', '24:00', '12:00+05:30',
    '-infinity', '2020-01-01 00:00:00.123456+03', '1 year -2 mons +3 days -04:05:06.789', gen_random_uuid(),
    '{"b": 1,  "a":2}', '{"b": 1.00, "a": "\\u00e9 \\\\ \\""}', '<a>1</a>', '{1,NULL,3}', '{{"a,b","NULL"},{"",null}}',
    '[1,5)', '[2020-01-01,)', 'sad', '(1,"x,y")', '{"(1,a)","(,)"}', 0.1, '10101', '101', '10.0.0.1/8', '10.0.0.0/8',
    '08:00:2b:01:02:03', '(1.1,-0)', '(1,1),(0,0)', '((0,0),(1,1),(2,0))', '<(0,0),1e-7>', 'a:1A b:2', 'a & !b',
    '16/B374D848', 4294967295);
  insert into odd (id, n, f4, f8, t, iv) values (2, 1e-20, 1.17549435e-38, 5e-324, 'Grüße, 世界 🐘', '-1 days +1 second'),
    (3, 123456789012345678901234567890.000, 3.4028235e38, 1.7976931348623157e308, repeat('long ', 20000), 'P0D'),
    (4, 0.1, 0.1, 0.30000000000000004, ' ', '1000 years');`;

interface Planted {
  readonly what: string;
  readonly columns: string;
  readonly rows: string;
  readonly difference: string;
}

/** `difference` is done to the target's table `t`. */
const planted: readonly Planted[] = [
  {
    what: 'a value',
    columns: 'id int, v int',
    rows: '(1, 1), (2, 2)',
    difference: 'update t set v = 3 where id = 2',
  },
  { what: 'a missing row', columns: 'id int', rows: '(1), (2)', difference: 'delete from t where id = 2' },
  { what: 'an extra row', columns: 'id int', rows: '(1)', difference: 'insert into t values (2)' },
  {
    what: 'a duplicate for another row',
    columns: 'id int',
    rows: '(1), (2)',
    difference: 'update t set id = 1',
  },
  {
    what: 'two equal extra rows',
    columns: 'id int',
    rows: '(1)',
    difference: 'insert into t values (2), (2)',
  },
  { what: 'NULL for the empty string', columns: 'v text', rows: `('')`, difference: 'update t set v = null' },
  { what: 'the word NULL', columns: 'v text', rows: '(null)', difference: `update t set v = 'NULL'` },
  {
    what: 'values swapped in a row',
    columns: 'a int, b int',
    rows: '(1, 2)',
    difference: 'update t set a = b, b = a',
  },
  {
    what: 'values swapped between rows',
    columns: 'id int, v int',
    rows: '(1, 1), (2, 2)',
    difference: 'update t set v = 3 - v',
  },
  {
    what: 'a moved border',
    columns: 'a text, b text',
    rows: `('ab', 'c')`,
    difference: `update t set a = 'a', b = 'bc'`,
  },
  {
    what: 'a comma in a value',
    columns: 'a text, b text',
    rows: `('a', 'b,')`,
    difference: `update t set a = 'a,b', b = ''`,
  },
  { what: 'minus zero', columns: 'v float8', rows: `('-0')`, difference: 'update t set v = 0' },
  { what: 'minus zero, float4', columns: 'v float4', rows: '(0)', difference: `update t set v = '-0'` },
  {
    what: 'the last bit of a float',
    columns: 'v float8',
    rows: '(0.3)',
    difference: 'update t set v = 0.1::float8 + 0.2::float8',
  },
  { what: 'a trailing space', columns: 'v text', rows: `('a')`, difference: `update t set v = 'a '` },
  {
    what: 'the scale of a numeric',
    columns: 'v numeric',
    rows: '(1.0)',
    difference: 'update t set v = 1.00',
  },
  {
    what: 'the scale inside jsonb',
    columns: 'v jsonb',
    rows: `('[1.0]')`,
    difference: `update t set v = '[1.00]'`,
  },
  {
    what: 'the spelling of json',
    columns: 'v json',
    rows: `('[1, 2]')`,
    difference: `update t set v = '[1,2]'`,
  },
  {
    what: 'an equal interval',
    columns: 'v interval',
    rows: `('1 day')`,
    difference: `update t set v = '24 hours'`,
  },
  { what: 'money', columns: 'v money', rows: `('1.00')`, difference: `update t set v = '1.01'` },
  { what: 'one byte', columns: 'v bytea', rows: `('\\x00')`, difference: `update t set v = '\\x01'` },
  { what: 'empty bytes for NULL', columns: 'v bytea', rows: `('')`, difference: 'update t set v = null' },
  {
    what: 'an empty array for NULL',
    columns: 'v int[]',
    rows: `('{}')`,
    difference: 'update t set v = null',
  },
  {
    what: 'the bounds of an array',
    columns: 'v int[]',
    rows: `('{1}')`,
    difference: `update t set v = '[0:0]={1}'`,
  },
  {
    what: 'a composed letter',
    columns: 'v text',
    rows: `(U&'\\00e9')`,
    difference: `update t set v = U&'e\\0301'`,
  },
  { what: 'a case', columns: 'v text', rows: `('a')`, difference: `update t set v = 'A'` },
];

async function both(pair: DatabasePair, sql: string): Promise<void> {
  await pair.source.query(sql);
  await pair.target.query(sql);
}

async function errorOf(work: Promise<unknown>): Promise<MigrationError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof MigrationError) return error;
    throw error;
  }
  throw new Error('it did not fail');
}

async function planned(pair: DatabasePair, options: Record<string, number> = {}): Promise<TestScope> {
  const scope = makeScope(pair, { options });
  await planFromCatalog(scope);
  return scope;
}

describe.each([
  [13, 18],
  [16, 18],
  [18, 18],
] as const)('source %i, target %i', (source, target) => {
  test('equal rows are equal, whatever their type and order', async () => {
    const pair = await makePair({ source, target });
    await pair.source.query(`alter database ${pair.source.dbname} set extra_float_digits = -5`);
    await pair.source.query(`alter database ${pair.source.dbname} set datestyle = 'German'`);
    await both(pair, oddTypes.replace('gen_random_uuid()', `'6f6a3bb5-60b5-4b0e-8a8b-0b0f3a3e9d11'`));
    await both(
      pair,
      `create table empty (id int); create table bare (); create table "Sp ""ace" ("a b" int, "C""d" text);
       insert into "Sp ""ace" values (1, 'x'); insert into bare default values; insert into bare default values;
       create table dropped (a int, b int, c int); alter table dropped drop column b; insert into dropped values (1, 2);
       create table parent (id int); create table child (more int) inherits (parent); insert into child values (1, 2);
       create table log (id int, day int) partition by list (day); create table log_1 partition of log for values in (1);
       insert into log values (1, 1);`,
    );
    await pair.source.query('create table many as select i, i % 7 as n from generate_series(1, 5000) i');
    await pair.target.query('create table many as select i, i % 7 as n from generate_series(5000, 1, -1) i');
    const scope = await planned(pair);
    const { tables } = await compareTables(scope);
    expect(tables.filter((verdict) => !verdict.equal)).toEqual([]);
    const by = new Map(tables.map((verdict) => [verdict.table, verdict]));
    expect(by.get('public.odd')).toMatchObject({ sourceRows: 5, targetRows: 5 });
    expect(by.get('public.many')).toMatchObject({ sourceRows: 5000, targetRows: 5000 });
    expect(by.get('public.empty')).toMatchObject({ sourceRows: 0, sourceDigest: '0', targetDigest: '0' });
    expect(by.get('public.bare')).toMatchObject({ sourceRows: 2 });
    expect(by.get('public.parent')).toMatchObject({ sourceRows: 0 }); // its child's row is the child's
    expect(by.has('public.log')).toBe(false);
    expect(scope.checkpoints.get<VerdictsNote>(cutoverNotes.verdicts)?.tables).toEqual(tables);
    expect(scope.waits.at(-1)).toBeNull();
  });

  test('every planted difference is found, in its table and in no other', async () => {
    const pair = await makePair({ source, target });
    for (const [n, { columns, rows }] of planted.entries())
      await both(
        pair,
        `create table t${n} (${columns}); insert into t${n} values ${rows};
         create table same${n} (${columns}); insert into same${n} values ${rows}`,
      );
    for (const [n, { difference }] of planted.entries())
      await pair.target.query(difference.replace(/\bt\b/, `t${n}`));
    const { tables } = await compareTables(await planned(pair));
    const equal = new Map(tables.map((verdict) => [verdict.table, verdict.equal]));
    const missed = planted.filter((_, n) => equal.get(`public.t${n}`) !== false).map(({ what }) => what);
    const wronged = planted.filter((_, n) => equal.get(`public.same${n}`) !== true).map(({ what }) => what);
    expect({ missed, wronged }).toEqual({ missed: [], wronged: [] });
  });
});

test('a nondeterministic collation does not hide a difference', async () => {
  const pair = await makePair();
  const { rows } = await pair.source.query<{ icu: boolean }>(
    `select exists (select from pg_collation where collprovider = 'i') as icu`,
  );
  const collation = rows[0]?.icu
    ? `create collation loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)`
    : null;
  if (collation !== null) await both(pair, collation);
  await both(
    pair,
    `create table t (v text${collation === null ? '' : ' collate loose'}); insert into t values ('a')`,
  );
  await pair.target.query(`update t set v = 'A'`);
  const { tables } = await compareTables(await planned(pair));
  expect(tables.map((verdict) => verdict.equal)).toEqual([false]);
});

test('databases of different encodings are compared by their characters', async () => {
  const pair = await makePair();
  const name = `${pair.source.dbname}_latin`;
  await pair.source.query(`create database ${name} encoding 'LATIN1' template template0 locale 'C'`);
  const latin = { ...pair.source.connection, dbname: name };
  const scope = makeScope(pair, { sourceDb: latin });
  await scope.source.query(`create table public.t (v text)`);
  await scope.source.query(`insert into public.t values ('Grüße'), ('a\\b')`);
  await pair.target.query(`create table t (v text); insert into t values ('a\\b'), ('Grüße')`);
  await planFromCatalog(scope);
  expect((await compareTables(scope)).tables).toMatchObject([{ sourceRows: 2, equal: true }]);
  await pair.target.query(`update t set v = 'Grüsse' where v = 'Grüße'`);
  expect((await compareTables(scope)).tables).toMatchObject([{ sourceRows: 2, equal: false }]);
  await scope.connections.closeAll();
  await pair.source.query(`drop database ${name} with (force)`);
});

test('a column added, dropped or retyped on the source is found although no row says so', async () => {
  const pair = await makePair();
  await both(pair, 'create table t (id int, v int); insert into t values (1, 1)');
  const scope = await planned(pair);
  await pair.source.query('alter table t add column w int default 5');
  const error = await errorOf(compareTables(scope));
  expect(error.code).toBe('source_ddl');
  expect(error.message).toContain('public.t');
  await pair.source.query('alter table t drop column w');
  expect((await compareTables(scope)).tables).toMatchObject([{ equal: true }]);
  await pair.source.query('alter table t alter column v type bigint');
  expect((await errorOf(compareTables(scope))).code).toBe('source_ddl');
});

test('an abort ends a running comparison within a second, on the servers too', async () => {
  const pair = await makePair();
  await both(
    pair,
    'create table t as select i, repeat(md5(i::text), 20) as v from generate_series(1, 400000) i',
  );
  const scope = await planned(pair);
  const comparing = errorOf(compareTables(scope));
  const running = async (): Promise<number> =>
    (
      await pair.source.query(
        `select 1 from pg_stat_activity where application_name like 'dts/%/validate' and state = 'active'`,
      )
    ).rowCount ?? 0;
  await waitFor(async () => (await running()) > 0);
  const aborted = Date.now();
  scope.controller.abort();
  expect((await comparing).code).toBe('aborted');
  expect(Date.now() - aborted).toBeLessThan(1_000);
  await waitFor(async () => (await running()) === 0, 1_000);
  expect(scope.checkpoints.get(cutoverNotes.verdicts)).toBeUndefined();
});

test('a table that is locked ends the comparison at its deadline, and every connection is closed', async () => {
  const pair = await makePair();
  await both(pair, 'create table t (id int); create table u (id int)');
  const scope = await planned(pair, { validationTimeoutMs: 1_000 });
  const holder = await pair.target.connect();
  await holder.query('begin; lock table u');
  const error = await errorOf(compareTables(scope));
  expect(error.code).toBe('deadline_exceeded');
  expect(error.details).toMatchObject({ tables: 2 });
  await waitFor(
    async () =>
      (await pair.target.query(`select 1 from pg_stat_activity where application_name like 'dts/%/validate'`))
        .rowCount === 0,
  );
  await holder.query('rollback');
});

test('a table that is gone on the target is an error that names it', async () => {
  const pair = await makePair();
  await both(pair, 'create table t (id int); create table u (id int)');
  const scope = await planned(pair);
  await pair.target.query('drop table u');
  const error = await errorOf(compareTables(scope));
  expect(error.code).toBe('sql_failed');
  expect(error.details).toMatchObject({ role: 'target', relation: 'public.u' });
});

test('a kill in the middle leaves no verdicts, and the next run compares everything again', async () => {
  const pair = await makePair();
  await both(pair, 'create table t (id int); create table u (id int); insert into t values (1)');
  const scope = await planned(pair, { copyJobs: 1 });
  const killed = makeScope(pair, { options: { copyJobs: 1 } }, scope);
  killed.failpoint = (name) => {
    if (name === 'validate.mid-tables') throw new Error('killed');
  };
  await errorOf(compareTables(killed));
  expect(scope.checkpoints.get(cutoverNotes.verdicts)).toBeUndefined();
  await pair.target.query('delete from t');
  const { tables } = await compareTables(scope);
  expect(tables.map(({ table, equal }) => [table, equal])).toEqual([
    ['public.t', false],
    ['public.u', true],
  ]);
});
