// The demo judges DTS by its own comparison; here the comparison itself is judged.
import { expect, test } from 'vitest';
import { compareDatabases, type Comparison } from '../../src/cli/demo/compare.ts';
import { makePair, type DatabasePair, type TestDatabase } from '../support/databases.ts';

const tables = (suffix: string): string => `
  create table public."Odd Name%${suffix}" (id int, part text, v double precision, w jsonb, primary key (part, id));
  create sequence public.numbers${suffix};
  create table public.items${suffix} (id bigint generated always as identity primary key,
    n int default nextval('public.numbers${suffix}'), doubled int generated always as (n * 2) stored, t text unique);
  create table public.log${suffix} (at date, id int, primary key (at, id)) partition by range (at);
  create table public.log_1${suffix} partition of public.log${suffix} for values from ('2026-01-01') to ('2026-02-01');
  insert into public."Odd Name%${suffix}" select n, 'p' || n % 3, 'NaN', '{"a": 1.50}' from generate_series(1, 5000) n;
  insert into public.items${suffix} (t) select nullif('t' || n, 't1') from generate_series(1, 4000) n;
  insert into public.log${suffix} select '2026-01-05', n from generate_series(1, 100) n;`;

async function makeEqualPair(): Promise<DatabasePair> {
  const pair = await makePair();
  await pair.source.query(tables(''));
  await pair.target.query(tables('_new'));
  return pair;
}

function compare(source: TestDatabase, target: TestDatabase): Promise<Comparison> {
  return compareDatabases(source.url, target.url, '_new', () => undefined, new AbortController().signal);
}

test('equal databases of different majors are found equal, and every row was read', async () => {
  const { source, target } = await makeEqualPair();
  expect(await compare(source, target)).toEqual({
    tables: 3,
    equalRows: 9_100,
    sequences: 2,
    indexes: 5,
    constraints: 5,
    differences: [],
  });
});

test.for([
  ['a changed value', `update public.items_new set t = 'x' where id = 3999`, 'public.items (3999): differs'],
  [
    'an empty text instead of NULL',
    `update public.items_new set t = '' where id = 1`,
    'public.items (1): differs',
  ],
  [
    'a number of another scale',
    `update public."Odd Name%_new" set w = '{"a": 1.5}' where id = 7`,
    '(p1,7): differs',
  ],
  [
    'a missing row',
    'delete from public.log_new where id = 100',
    'public.log_1 (2026-01-05,100): only on the source',
  ],
  ['a row too many', `insert into public."Odd Name%_new" values (1, 'q')`, '(q,1): only on the target'],
  ['an emptied table', 'truncate public.log_new', 'public.log_1: 100 rows differ; the target has 0'],
  ['a missing table', 'drop table public.log_1_new', 'public.log_1: not on the target'],
  [
    'a sequence of an identity',
    `select setval('public.items_new_id_seq', 7)`,
    'public.items.id: sequence 4000 true | 7 true',
  ],
  [
    'a sequence of a default',
    `select setval('public.numbers_new', 4000, false)`,
    'items.n: sequence 4000 true | 4000 false',
  ],
  [
    'a missing index',
    'alter table public.items_new drop constraint items_new_t_key',
    'public.items indexes: has 2 | 1',
  ],
] as const)('%s is named', async ([, change, expected]) => {
  const { source, target } = await makeEqualPair();
  await target.query(change);
  const { differences } = await compare(source, target);
  expect(differences.join('\n')).toContain(expected);
});
