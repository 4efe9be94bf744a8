// What a request selects and leaves out: globs, exclusions, a whole database without some of its tables. Nothing is
// silently skipped: done, left out by an option, or a finding.
import { expect, onTestFinished, test } from 'vitest';
import { removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { readSelection } from '../../src/postgres/catalog.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { runStatement, statementsDone } from '../../src/postgres/statement-journal.ts';
import { createTables } from '../../src/schema/create-tables.ts';
import { planSchema } from '../../src/schema/plan.ts';
import { relationKey } from '../../src/model/relation.ts';
import { makePair, makeRole } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const schema = `
  create schema app; create schema logs;
  create table app.users (id serial primary key, name text);
  create table app.orders (id serial primary key, user_id int references app.users);
  create table app.order_lines (id int primary key, order_id int references app.orders);
  create table app."order*" (id int primary key);
  create table logs.events (id int primary key, at timestamptz) ;
  create table logs.parts (id int primary key) partition by range (id);
  create table logs.parts_1 partition of logs.parts for values from (0) to (9);
  create view app.names as select name from app.users;
  create view app.order_names as select n.name, o.id from app.names n, app.orders o;
  create materialized view app.totals as select count(*) from app.order_names;
  create function app.of_orders(app.orders) returns int language sql as 'select $1.id';
  create rule names_told as on update to app.names do instead update app.orders set id = 1;
  create sequence logs.free;`;

async function finish(scope: TestScope): Promise<void> {
  await createTables(scope);
  onTestFinished(() => removeBookkeeping(scope));
  const done = await statementsDone(scope);
  const session = await scope.target.session({ purpose: 'test', signal: scope.signal });
  for (const statement of schemaPlanOf(scope).statements)
    if (!done.has(statement.n)) await runStatement(scope, session, statement);
  await session.close();
}

test('names, globs and exclusions select tables, and what selects nothing is told', async () => {
  const pair = await makePair();
  await pair.source.query(schema);
  const scope = makeScope(pair);
  const select = async (tables: string[], exclude: string[] = []): Promise<object> => {
    const found = await readSelection(scope.source, tables, { exclude, table: {} });
    return {
      tables: found.tables.map(({ relation }) => relationKey(relation)),
      unusable: found.unusable.map(({ requested }) => requested),
      excludedNothing: found.excludedNothing,
    };
  };
  const nothing = { unusable: [], excludedNothing: [] };
  expect(await select(['app.order*'])).toEqual({
    ...nothing,
    tables: ['app.order*', 'app.order_lines', 'app.orders'],
  });
  expect(await select(['app."order*"'])).toEqual({ ...nothing, tables: ['app.order*'] });
  expect(await select(['*.?????s', 'app.users'], ['app.u*', 'app.orders'])).toEqual({
    ...nothing,
    tables: ['logs.events'],
  });
  expect(await select(['logs.*'], ['logs.parts', 'logs.nobody'])).toEqual({
    ...nothing,
    tables: ['logs.events'],
    excludedNothing: ['logs.nobody'],
  });
  expect(await select(['*'], ['app.*', 'logs.parts_1'])).toEqual({
    ...nothing,
    tables: ['logs.events', 'logs.parts'],
    unusable: ['logs.parts_1'],
  });
  expect(await select(['app.name*', 'nowhere.*'])).toEqual({
    ...nothing,
    tables: [],
    unusable: ['app.name*', 'nowhere.*'],
  });
  expect(
    await select(['app.names', 'logs.free', 'pg_catalog.pg_class', 'app.nobody', 'logs.parts_1']),
  ).toMatchObject({
    unusable: ['app.names', 'logs.free', 'pg_catalog.pg_class', 'app.nobody', 'logs.parts_1'],
  });
});

test('a whole database without a table is without what needs it, and says so', async () => {
  const pair = await makePair();
  await pair.source.query(schema);
  const scope = makeScope(pair, { options: { exclude: ['app.orders', 'logs.free'] } });
  await finish(scope);
  expect(schemaPlanOf(scope).findings.map(({ code, object }) => `${code} ${object}`)).toEqual([
    'foreign_key_left_out app.order_lines',
    'excluded options.exclude',
    'object_left_out FUNCTION app.of_orders(app.orders)',
    'object_left_out VIEW app.order_names',
    'object_left_out MATERIALIZED VIEW app.totals',
    'object_left_out RULE app.names names_told',
  ]);
  const { rows } = await pair.target.query<{ name: string }>(
    `select relname::text as name from pg_class where relnamespace in ('app'::regnamespace, 'logs'::regnamespace)
       and relkind in ('r', 'p', 'v', 'm', 'S') order by relname collate "C"`,
  );
  expect(rows.map(({ name }) => name)).toEqual(
    ['events', 'names', 'order*', 'order_lines', 'parts', 'parts_1', 'users', 'users_id_seq'].sort(),
  );
});

test('subscriptions and publications come only when asked for, and no password with them', async () => {
  const pair = await makePair();
  await pair.source.query(`create table a (id int primary key); create table b (id int primary key);
    create publication pub for table a; create publication dts_other for table a;
    create subscription sub connection 'host=localhost dbname=x password=''hidden word''' publication p
      with (connect = false, slot_name = none)`);
  onTestFinished(async () => {
    for (const database of [pair.source, pair.target])
      await database.query('drop subscription if exists sub');
    await pair.source.query('drop publication dts_other');
  });
  const without = await planSchema(makeScope(pair));
  expect(without.findings.map(({ code, object }) => `${code} ${object}`).sort()).toEqual([
    'needs_option options.publications',
    'needs_option options.subscriptions',
  ]);
  const scope = makeScope(pair, { options: { publications: true, subscriptions: true }, tableSuffix: '_2' });
  await finish(scope);
  expect(JSON.stringify(schemaPlanOf(scope))).not.toContain('hidden');
  const { rows } = await pair.target.query(
    `select (select array_agg(schemaname || '.' || tablename) from pg_publication_tables where pubname = 'pub') as published,
       (select count(*)::int from pg_publication) as publications,
       (select subconninfo || subenabled from pg_subscription where subdbid = (select oid from pg_database
          where datname = current_database())) as subscription`,
  );
  expect(rows).toEqual([{ published: ['public.a_2'], publications: 1, subscription: 'false' }]);
});

test('subscriptions, which pg_dump does not show to a plain owner, are told all the same', async () => {
  const role = await makeRole(16);
  const pair = await makePair();
  await pair.source.query(`alter database ${pair.source.dbname} owner to ${role};
    create subscription hidden_one connection 'host=localhost dbname=x password=''hidden word''' publication p
      with (connect = false, slot_name = none)`);
  onTestFinished(async () => void (await pair.source.query('drop subscription hidden_one')));
  const sourceDb = { ...pair.source.connection, user: role, password: 'secret' };
  for (const subscriptions of [false, true]) {
    const { findings } = await planSchema(makeScope(pair, { sourceDb, options: { subscriptions } }));
    expect(findings).toMatchObject([
      { code: 'subscriptions_hidden', message: expect.stringContaining('hidden_one') as unknown },
    ]);
  }
});

test('names that fall together under the suffix block before anything is written', async () => {
  const pair = await makePair();
  await pair.source.query(`create schema "a.b"; create table "a.b".orders (id int primary key, n serial);
    create table "a.b".free (id int constraint free_key primary key);
    create view "a.b".orders_2 as select 1 as one; create materialized view "a.b".orders_n_seq_2 as select 1 as one;
    create type "a.b".orders_pkey_2 as (x int); create domain "a.b".free_2 as int;
    create domain "a.b".free_key_2 as int`);
  const blockedBy = async (tableSuffix: string): Promise<string[]> => {
    const { findings } = await planSchema(makeScope(pair, { tableSuffix }));
    return findings
      .filter(({ severity }) => severity === 'blocking')
      .map(({ code, object }) => `${code} ${object}`)
      .sort();
  };
  // an index has no type: the domain may have its name
  expect(await blockedBy('_2')).toEqual([
    'suffix_collision "a.b".free_2',
    'suffix_collision "a.b".orders_2',
    'suffix_collision "a.b".orders_n_seq_2',
    'suffix_collision "a.b".orders_pkey_2',
  ]);
  expect(await blockedBy('_3')).toEqual([]);
  expect(await blockedBy('')).toEqual([]);
  const scope = makeScope(pair, { tableSuffix: '_2' });
  await expect(createTables(scope)).rejects.toMatchObject({ code: 'preflight_blocked' });
  const { rows } = await pair.target.query(`select 1 from pg_namespace where nspname in ('a.b', 'dts')`);
  expect(rows).toEqual([]);
});

test('a base type comes with its table, also into a schema that is there, and not without it', async () => {
  const pair = await makePair();
  await pair.source.query(`create schema app; create type app.base; create type app.only_shell;
    create function app.base_in(cstring) returns app.base language internal immutable strict as 'textin';
    create function app.base_out(app.base) returns cstring language internal immutable strict as 'textout';
    create type app.base (input = app.base_in, output = app.base_out);
    create table app.plain (id int primary key); create table app.of_base (id int primary key, v app.base)`);
  await pair.target.query('create schema app');
  const types = async (): Promise<unknown> =>
    (
      await pair.target.query(`select string_agg(typname || ' ' || typisdefined, ', ' order by typname) as types
        from pg_type where typname in ('base', 'only_shell')`)
    ).rows;
  await finish(makeScope(pair, { tables: ['app.plain'] }));
  expect(await types()).toEqual([{ types: null }]);
  await finish(makeScope(pair, { tables: ['app.of_base'] }));
  expect(await types()).toEqual([{ types: 'base true' }]);
  await finish(makeScope(pair, { tableSuffix: '_2' }));
  expect(await types()).toEqual([{ types: 'base true, only_shell false' }]);
  await finish(makeScope(pair, { tableSuffix: '_3' }));
  const { rows } = await pair.target.query(`select to_regclass('app.of_base_3') is not null as made`);
  expect(rows).toEqual([{ made: true }]);
});
