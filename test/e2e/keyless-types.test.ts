// Tables without a key, and values that `=`, IS NULL or a cast to text take for one another: one of many similar rows is
// changed or deleted on the source, and exactly that one on the target.
import { expect, test } from 'vitest';
import { expectEqualTables, rowsOf } from '../support/compare.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';

/** Type, and values of it that are easily taken for one another. */
const cases: readonly (readonly [type: string, values: readonly string[]])[] = [
  ['numeric', ['1.0', '1.00', '1', 'NaN', '-0.0', '0']],
  ['numeric(10,3)', ['1.0', '2']],
  ['float4', ['1.1', 'NaN', '-0', '0', 'Infinity', '1.17549435e-38']],
  ['float8', ['1.1', 'NaN', '-0', '0', '-Infinity', '2.2250738585072014e-308']],
  ['interval', ['1 mon', '30 days', '720:00', '-1 day 24:00']],
  ['jsonb', ['{"a": 1.0}', '{"a": 1.00}', 'null']],
  ['json', ['{"a":1}', '{"a": 1}', '{"a":1,"a":2}']],
  ['xml', ['<a/>', '<a></a>', 'x']],
  ['money', ['1.5', '-3']],
  ['bit(5)', ['10101', '00000']],
  ['varbit', ['1', '', '0101']],
  ['timetz', ['10:00+02', '08:00+00', '24:00-03']],
  ['timestamptz', ['2024-01-01 00:00+00', 'infinity', '4713-01-01 00:00:00 BC']],
  ['date', ['2024-01-01', '-infinity', '0044-03-15 BC']],
  ['bpchar', ['a', 'a ', '']],
  ['char(4)', ['a', 'ab  ', '']],
  ['"char"', ['a', '\\200', '\\001', '']],
  ['name', ['n', 'M']],
  ['text', ['', ' ', 'ä', 'a\\nb\tc', 'NULL', '\\N']],
  ['varchar(5) collate "C"', ['x', 'X']],
  ['text collate ci', ['x', 'X']],
  ['inet', ['10.0.0.1', '10.0.0.1/24', '::1']],
  ['cidr', ['10.0.0.0/8']],
  ['float8[]', ['{NaN,-0,1}', '{NaN,0,1}', '{{1,2},{3,4}}', '[0:1]={1,2}', '{NULL}']],
  ['text[]', ['{}', '{""}', '{NULL}', '{"NULL"}', '{"a,b","c\\\\d"}']],
  ['numrange', ['[1.0,2)', '[1.00,2)', 'empty', '(,)']],
  ['int4range', ['[1,5]', 'empty']],
  ['point', ['(1,2)', '(-0,NaN)']],
  ['box', ['((0,0),(1,4))', '((0,0),(2,2))']],
  ['circle', ['<(0,0),1>', '<(5,5),1>']],
  ['path', ['[(0,0),(1,1)]', '((0,0),(1,1))']],
  ['polygon', ['((0,0),(1,1),(1,0))']],
  ['lseg', ['[(0,0),(1,1)]']],
  ['line', ['{1,2,3}']],
  ['tsvector', ["'b':1A 'a':2", 'x']],
  ['tsquery', ["'a' & 'b'"]],
  ['bytea', ['', '\\x00ff', 'abc\\\\000']],
  ['uuid', ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11']],
  ['bool', ['t', 'f']],
  ['oid', ['4294967295']],
  ['regclass', ['pg_class', '999999']],
  ['pg_lsn', ['0/1', 'FF/FF']],
  ['macaddr8', ['08:00:2b:01:02:03:04:05']],
  ['dnum', ['1.0', '1.00']],
  ['comp', ['(1,"a b")', '(,)', '(NaN,"")']],
  ['comp[]', ['{"(1,a)","(1.0,\\"b,c\\")"}']],
  ['mood', ['b', 'a']],
  ['mood[]', ['{a,b}', '{}']],
  ['jsonpath', ['$.a', '$."b" ? (@ > 1)']],
  ['txid_snapshot', ['10:20:10,14']],
  ['time(2)', ['10:00:00.12', '24:00']],
  ['int2vector', ['1 2 3']],
];

const quoted = (value: string): string => `'${value.replaceAll("'", "''")}'`;
const pick = <T>(values: readonly T[], n: number): T | undefined => values[n % values.length];

test.each([
  [13, 18],
  [16, 18],
] as const)('rows of any type are told apart from %i to %i', async (from, to) => {
  const pair = await makePair({ source: from, target: to });
  const wide = cases.map(([type], n) => `c${n} ${type}`).join(', ');
  await pair.source.query(`
    create type mood as enum ('b', 'a'); create domain dnum as numeric; create type comp as (n numeric, t text);
    create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    ${cases.map(([type], n) => `create table k${n} (a ${type}, b int);`).join('')}
    create table wide (${wide});
    create table padded (id int primary key, v bpchar); insert into padded values (1, 'a  '), (2, 'a')`);
  const fill = async (): Promise<void> => {
    const narrow = cases.map(([, values], n) => {
      const rows = [...values, ...values].map(
        (value, at) => `(${quoted(value)}, ${at % 2 === 0 ? 'null' : at})`,
      );
      return `insert into k${n} values ${rows.join(', ')}, (null, 1), (null, null);`;
    });
    const rows = Array.from({ length: 8 }, (_, at) =>
      cases.map(([, values], n) => ((at + n) % 7 === 6 ? 'null' : quoted(pick(values, at * (n + 1)) ?? ''))),
    );
    await pair.source.query(
      `${narrow.join('')} insert into wide values ${rows.map((row) => `(${row.join(', ')})`).join(', ')}`,
    );
  };
  await fill();
  const service = startLibrary();
  await service.createTask({
    id: 'types',
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    options: { replicaIdentity: 'full' },
  });
  await service.startTask('types');
  await reaches(service, 'types', 'syncingWal');
  await fill();
  for (let round = 0; round < 6; round++) {
    const one = (table: string, n: number): string =>
      `where ctid = (select ctid from ${table} order by ctid offset ${(round * 5 + n) % 6} limit 1);`;
    const changes = cases.map(
      ([, values], n) => `delete from k${n} ${one(`k${n}`, n)}
        update k${n} set a = ${quoted(pick(values, round) ?? '')}, b = ${round} ${one(`k${n}`, n)}`,
    );
    await pair.source.query(
      `${changes.join('')} delete from wide ${one('wide', 1)} update wide set c${round} = null ${one('wide', 2)}`,
    );
  }
  // what is repaired is read and written by its text, too
  await pair.target.query(`delete from padded where id = 1`);
  await service.repairTask('types', { table: 'public.padded', keys: [['1']] });
  await waitFor(async () => (await rowsOf(pair.target, 'public.padded')).length === 2);
  await service.cutover('types');
  const ended = await waitFor(async () => {
    const task = await service.getTask('types');
    return task.state === 'completed' || task.error !== null ? task : null;
  }, 60_000);
  expect(ended.error).toBeNull();
  const names = [...cases.map((_, n) => `public.k${n}`), 'public.wide', 'public.padded'];
  await expectEqualTables(
    pair.source,
    pair.target,
    names.map((name) => [name, name] as const),
  );
  await service.unfenceTask('types');
});
