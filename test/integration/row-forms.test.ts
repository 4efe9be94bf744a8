// The comparison of ranges finds every planted difference by its key, and nothing else, in every family of types: those
// that have a hash function of their own, those that are hashed as their send functions give them, and as texts.
import { describe, expect, test } from 'vitest';
import type { PlannedTable } from '../../src/model/schema-plan.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { rowHash } from '../../src/validate/row-hash.ts';
import { RangeReader, tablePair } from '../../src/validate/ranges.ts';
import { BY_KEY, closePair, openPair, rowFormOf } from '../../src/validate/sessions.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makePair } from '../support/databases.ts';
import { makeScope } from '../support/scope.ts';

/** Two values that differ in as little as the type allows, as SQL expressions. */
const families: readonly (readonly [type: string, one: string, other: string])[] = [
  ['smallint', '1', '0'],
  ['integer', '-1', '2147483647'],
  ['bigint', '-1', '4294967295'], // equal in hashint8extended
  ['bigint', '1', '4294967296'],
  ['boolean', 'true', 'false'],
  ['numeric', '1.0', '1.00'],
  ['numeric(20,5)', '1.00001', '1.00002'],
  ['numeric', `'NaN'`, '0'],
  ['numeric(20,5)', `'NaN'`, '0'],
  ['numeric(20,5)', '-1', '1'],
  ['numeric(20,5)', '1', '10000'],
  ['real', `'-0'`, '0'],
  ['double precision', `'-0'`, '0'],
  ['double precision', '0.3', '0.1::float8 + 0.2::float8'],
  ['money', `'1.00'`, `'1.01'`],
  ['text', `'a'`, `'a '`],
  ['text', `''`, 'null'],
  ['integer', '0', 'null'],
  ['boolean', 'false', 'null'],
  ['text', `U&'\\00e9'`, `U&'e\\0301'`],
  ['varchar(20)', `'a'`, `'A'`],
  ['char(8)', `'a'`, `'b'`],
  ['name', `'a'`, `'a '`],
  ['"char"', `'a'`, `'b'`],
  ['bytea', `'\\x00'`, `''`],
  ['bytea', `'\\x00'`, `'\\x01'`],
  ['date', `'2020-01-01'`, `'2020-01-02'`],
  ['date', `'infinity'`, `'-infinity'`],
  ['date', `'-infinity'`, 'null'],
  ['date', `'infinity'`, `'5874897-12-31'`],
  ['date', `'-infinity'`, `'4713-01-01 BC'`],
  ['time', `'00:00'`, `'24:00'`],
  ['timetz', `'12:00+00'`, `'13:00+01'`],
  ['timestamp', `'2020-01-01 00:00:00.000001'`, `'2020-01-01'`],
  ['timestamptz', `'2020-01-01 00:00+00'`, `'2020-01-01 01:11:34.967296+00'`],
  ['timestamptz(3)', `'2020-01-01 00:00+00'`, `'2020-01-01 00:00:00.001+00'`],
  ['interval', `'1 day'`, `'24 hours'`],
  ['interval day to second(3)', `'1 day'`, `'1 day 0.001 s'`],
  ['uuid', `'6f6a3bb5-60b5-4b0e-8a8b-0b0f3a3e9d11'`, `'6f6a3bb5-60b5-4b0e-8a8b-0b0f3a3e9d10'`],
  ['json', `'{"a":1}'`, `'{"a": 1}'`],
  ['jsonb', `'[1.0]'`, `'[1.00]'`],
  ['xml', `'<a/>'`, `'<b/>'`],
  ['integer[]', `'{}'`, 'null'],
  ['integer[]', `'{1}'`, `'[0:0]={1}'`],
  ['text[]', `'{"NULL"}'`, `'{NULL}'`],
  ['int4range', `'[1,5)'`, `'[1,5]'`],
  ['bit(5)', `'10101'`, `'10100'`],
  ['bit varying', `'1'`, `'10'`],
  ['inet', `'10.0.0.1/8'`, `'10.0.0.1/9'`],
  ['cidr', `'10.0.0.0/8'`, `'10.0.0.0/9'`],
  ['macaddr', `'08:00:2b:01:02:03'`, `'08:00:2b:01:02:02'`],
  ['macaddr8', `'08:00:2b:01:02:03:04:05'`, `'08:00:2b:01:02:03:04:04'`],
  ['point', `'(0,-0)'`, `'(0,0)'`],
  ['box', `'(1,1),(0,0)'`, `'(1,1),(0,0.5)'`],
  ['tsvector', `'a:1A'`, `'a:1B'`],
  ['tsquery', `'a & b'`, `'a | b'`],
  ['pg_lsn', `'16/B374D848'`, `'16/B374D849'`],
  ['oid', '4294967295', '0'],
  ['app.mood', `'sad'`, `'ok'`],
  ['app.pair', `'(1,x)'`, `'(1,"x ")'`],
  ['app.positive', '1.0', '1.00'],
];

/** Values of two spellings that are one: nothing is to be found. */
const same: readonly (readonly [type: string, one: string, other: string])[] = [
  ['jsonb', `'{"b": 1, "a": 2}'`, `'{"a":2,"b":1}'`],
  ['double precision', `'NaN'`, `'infinity'::float8 - 'infinity'::float8`], // another bit pattern
  ['integer[]', `'{1,2}'`, `array_replace('{1,NULL}'::int[], null, 2)`], // with room for a NULL
  ['numeric', '10::numeric / 4', '2.5000000000000000'],
  ['char(8)', `'a'`, `'a '`],
  ['timestamptz', `'2020-01-01 00:00+00'`, `'2020-01-01 02:00+02'`],
];

const schema = `
  create schema app;
  create type app.mood as enum ('sad', 'ok');
  create type app.pair as (a int, b text);
  create domain app.positive as numeric check (value > 0);`;

describe.each([
  [13, 18],
  [16, 18],
  [18, 18],
] as const)('source %i, target %i', (source, target) => {
  test('every planted difference is found by its key, in ranges and in parts of them, and nothing else', async () => {
    const pair = await makePair({ source, target });
    for (const side of [pair.source, pair.target]) {
      await side.query(schema);
      const isTarget = side === pair.target;
      for (const [n, [type, one, other]] of families.entries())
        await side.query(
          `create table t${n} (id int primary key, v ${type}, w text);
           insert into t${n} select i, ${one}, 'w' from generate_series(1, 50) i;
           ${
             isTarget
               ? `update t${n} set v = ${other} where id = 7; update t${n} set v = null where id = 8;
                  delete from t${n} where id = 9; insert into t${n} values (51, ${one}, 'w')`
               : ''
           }`,
        );
      for (const [n, [type, one, other]] of same.entries())
        await side.query(
          `create table same${n} (id int primary key, v ${type}); insert into same${n} values (1, ${isTarget ? other : one})`,
        );
      // all that hashes of single columns, added up, would not see
      await side.query(
        `create table between_columns (id int primary key, a numeric(9,2), b numeric(9,2), c text, d text, e bigint, f bigint);
         insert into between_columns select i, 1, 2, 'c', 'd', i, -i from generate_series(1, 51) i;
         update between_columns set ${isTarget ? `b = 'NaN', a` : `a = 'NaN', b`} = 0 where id = 7;
         update between_columns set ${isTarget ? `d = null, c` : `c = null, d`} = '' where id = 8;
         update between_columns set e = f, f = e where id = 9 and ${isTarget};
         update between_columns set c = d, d = c where id = 51 and ${isTarget};
         create table many_columns (id int primary key, ${Array.from({ length: 70 }, (_, n) => `c${n} int`).join(', ')});
         insert into many_columns (id) select generate_series(1, 51);
         update many_columns set ${isTarget ? 'c0' : 'c1'} = 0 where id = 7;
         update many_columns set ${isTarget ? 'c0' : 'c31'} = 0 where id = 8;
         update many_columns set ${isTarget ? 'c68' : 'c69'} = 0 where id = 9;
         update many_columns set ${isTarget ? 'c30' : 'c61'} = 0 where id = 51;
         create table loosened (id int primary key, v int not null, w int);
         insert into loosened select i, i, i from generate_series(1, 51) i;
         create table swapped (id int primary key, a bigint, b text);
         insert into swapped select i, i, 'b' || i from generate_series(1, 5000) i;
         ${isTarget ? `update swapped set a = 43 - a where a in (21, 22); update swapped set b = case b when 'b31' then 'b32' else 'b31' end where b in ('b31', 'b32')` : ''}`,
      );
    }
    const scope = makeScope(pair);
    await planFromCatalog(scope);
    // what was NOT NULL when it was planned
    for (const side of [pair.source, pair.target])
      await side.query(`alter table loosened alter v drop not null;
        update loosened set v = null, w = ${side === pair.target ? 1 : 2} where id in (7, 8, 9, 51)`);
    const form = await rowFormOf(scope);
    expect(form).toBe('values');
    const sessions = await openPair(scope, scope.signal, BY_KEY, true);
    const keysOf = async (plan: PlannedTable): Promise<string[]> => {
      const reader = new RangeReader(sessions);
      // of `swapped` a range has many strips, of the others one
      const table = {
        ...tablePair(plan, form),
        ...(plan.source.name === 'swapped' ? {} : { rangeRows: 20 }),
      };
      const found: string[] = [];
      for (let after: readonly string[] | null = null; ; ) {
        const { upTo, keys } = await reader.read(table, after, true);
        found.push(...keys.map(([key = '']) => key));
        if (upTo === null) break;
        after = upTo;
      }
      return found.toSorted((a, b) => Number(a) - Number(b));
    };
    const wrong: unknown[] = [];
    for (const plan of schemaPlanOf(scope).tables) {
      const { name } = plan.source;
      const n = Number(/\d+$/.exec(name)?.[0]);
      const expected = name.startsWith('same')
        ? []
        : name === 'swapped'
          ? ['21', '22', '31', '32']
          : ['7', '8', '9', '51'];
      // a null is no difference where the planted value was null already
      if (name.startsWith('t') && families[n]?.[1] === 'null') expect.unreachable();
      const found = await keysOf(plan);
      if (found.join() !== expected.join()) wrong.push({ name, type: plan.columns[1]?.type, found });
    }
    expect(wrong).toEqual([]);
    await closePair(sessions);
  });
});

test('what is hashed by its own function, what as bytes, and what as text', () => {
  const column = (name: string, type: string) => ({ name, type });
  const hash = rowHash(
    [
      column('a', 'integer'),
      column('b', 'double precision'),
      column('c', 'timestamp(3) without time zone'),
      column('d', 'integer[]'),
      column('e', 'public."text"'),
      column('f', 'interval day to second(3)'),
      column('g', 'numeric'),
      column('h', 'text'),
    ],
    'values',
  );
  expect(hash).toBe(
    `hash_array_extended(array[record_send(row(t."c", t."f", t."g", row(t."b", t."d", t."e")::text collate "C"))], ` +
      `hashtextextended(coalesce(t."h" collate "C", ''), hashint4extended(coalesce(t."a", 0), ` +
      `hashint4extended(case when t."a" is null then 1 else 0 end + case when t."h" is null then 2 else 0 end, 1))))`,
  );
  expect(rowHash([column('a', 'bigint')], 'text')).toContain('::text collate "C"');
});

test('databases of SQL_ASCII are compared as texts, whose bytes need not be UTF-8', async () => {
  const pair = await makePair();
  const name = `${pair.source.dbname}_ascii`;
  const scopes = [];
  for (const side of [pair.source, pair.target])
    await side.query(`create database ${name} encoding 'SQL_ASCII' template template0 locale 'C'`);
  const scope = makeScope(pair, {
    sourceDb: { ...pair.source.connection, dbname: name },
    targetDb: { ...pair.target.connection, dbname: name },
  });
  scopes.push(scope);
  for (const side of [scope.source, scope.target]) {
    await side.query('create table public.t (id int primary key, v text)');
    await side.query(`insert into public.t select i, chr(200) from generate_series(1, 3) i`);
  }
  await scope.target.query(`update public.t set v = chr(201) where id = 2`);
  await planFromCatalog(scope);
  const form = await rowFormOf(scope);
  expect(form).toBe('text');
  const sessions = await openPair(scope, scope.signal, BY_KEY, true);
  const [plan] = schemaPlanOf(scope).tables;
  if (!plan) expect.unreachable();
  expect((await new RangeReader(sessions).read(tablePair(plan, form), null, false)).keys).toEqual([['2']]);
  await closePair(sessions);
  await scope.connections.closeAll();
  for (const side of [pair.source, pair.target]) await side.query(`drop database ${name} with (force)`);
});
