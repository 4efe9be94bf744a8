// `options.table` that cannot be done is a blocking finding that names the field, before anything is written.
import { describe, expect, test } from 'vitest';
import type { TaskRequest } from '../../src/model/request.ts';
import { runPreflight } from '../../src/preflight/run.ts';
import { planFindings } from '../../src/schema/create-tables.ts';
import { makePair } from '../support/databases.ts';
import { makeScope } from '../support/scope.ts';

const schema = `
  create table public.t (id int primary key, kind text, secret text, at timestamptz, twice int generated always as (id * 2) stored);
  create view public.v as select secret from public.t;
  create function public.mine(int) returns boolean language sql immutable as 'select true';
  create table public.wide (a int, b text); alter table public.wide replica identity full;
  create table public.parts (id int, at int, primary key (id, at)) partition by range (at);
  create table public.parts_1 partition of public.parts for values from (0) to (100);
  create unlogged table public.u (k int)`;

type Options = NonNullable<NonNullable<TaskRequest['options']>['table']>;

const where = (expression: string): Options => ({ t: { where: expression } });
const columns = (...names: string[]): Options => ({ 'public.t': { columns: names } });
const atWhere = 'options.table["t"].where';
const atColumns = 'options.table["public.t"].columns';

const faults: readonly (readonly [string, Options, string, RegExp])[] = [
  ['a sub-select', where('id in (select 1)'), atWhere, /has a sub-select/],
  ['two expressions', where('id = 1) or (true'), atWhere, /no SQL expression|not one expression/],
  [
    'a comment that hides a parenthesis',
    where('id = 1 -- )'),
    atWhere,
    /no SQL expression|not one expression/,
  ],
  ['another clause', where('id = 1 order by id'), atWhere, /not one expression/],
  ['another statement', where('true; drop table t'), atWhere, /not one expression/],
  ['a volatile function', where('random() < id'), atWhere, /mutable functions are not allowed/],
  ['the clock', where('at < now()'), atWhere, /replica identity|immutable/i],
  ['the session', where('kind = current_user'), atWhere, /depends on the session/],
  ['a function of a user', where('public.mine(id)'), atWhere, /user-defined|User-defined/],
  ['no boolean', where('id + 1'), atWhere, /boolean/],
  ['a parameter', where('id = $1'), atWhere, /has a parameter/],
  ['an aggregate', where('count(*) > 1'), atWhere, /aggregate/],
  ['a qualified column', where('t.id = 1'), atWhere, /bare name/],
  ['an unknown column', where('nobody = 1'), atWhere, /has no column nobody/],
  [
    'a column that does not identify rows',
    where("kind = 'a'"),
    atWhere,
    /kind does not belong to the replica identity/,
  ],
  ['columns without the key', columns('kind'), atColumns, /identified by \(id\)/],
  ['an unknown column in the list', columns('id', 'nobody'), atColumns, /has no column nobody/],
  [
    'a list for a table without a key',
    { wide: { columns: ['a'] } },
    'options.table["wide"].columns',
    /has no key/,
  ],
  ['no such table', { nothing: { where: 'true' } }, 'options.table["nothing"]', /no table of this migration/],
  ['a partition', { parts_1: { where: 'id > 1' } }, 'options.table["parts_1"]', /is a partition/],
  [
    'a volatile function on an unlogged table',
    { u: { where: 'random() < k' } },
    'options.table["u"].where',
    /immutable/i,
  ],
];

describe('on a source of version 16', () => {
  test.each(faults)('%s blocks', async (_, table, field, message) => {
    const pair = await makePair({ source: 16, target: 18 });
    await pair.source.query(schema);
    const scope = makeScope(pair, { options: { table } });
    const findings = await runPreflight(scope);
    const found = findings.filter(({ severity }) => severity === 'blocking');
    expect(found.map(({ object, code }) => [code, object])).toEqual([['table_option_invalid', field]]);
    expect(found[0]?.message).toMatch(message);
    expect(found[0]?.message).toContain(field);
    expect(found[0]?.remedy).toBeTruthy();
    expect((await pair.source.query('select 1 from pg_publication')).rowCount).toBe(0);
  });

  test('what needs a column that is left out blocks', async () => {
    const pair = await makePair({ source: 16, target: 18 });
    await pair.source.query(schema);
    const view = makeScope(pair, { options: { table: { t: { columns: ['id', 'kind', 'twice'] } } } });
    expect((await runPreflight(view)).filter(({ severity }) => severity === 'blocking')).toEqual([]);
    const blocking = (await planFindings(view)).filter(({ severity }) => severity === 'blocking');
    expect(blocking.map(({ code, object }) => [code, object])).toEqual([
      ['left_out_column_needed', 'public.t'],
    ]);
    expect(blocking[0]?.message).toMatch(/column secret of public.t is left out, but .*view.* needs it/);
    // nobody needs it when its view does not come along
    const alone = makeScope(pair, {
      tables: ['t'],
      options: { table: { t: { columns: ['id', 'kind', 'twice'] } } },
    });
    expect((await planFindings(alone)).filter(({ severity }) => severity === 'blocking')).toEqual([]);
  });
});

test('a source of version 13 cannot publish some of the rows', async () => {
  const pair = await makePair({ source: 13, target: 16 });
  await pair.source.query(schema);
  const scope = makeScope(pair, { options: { table: { t: { where: 'id > 1' } } } });
  const found = (await runPreflight(scope)).filter(({ severity }) => severity === 'blocking');
  expect(found).toMatchObject([{ code: 'table_option_needs_15', object: 'options.table' }]);
});
