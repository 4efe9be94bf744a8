// What readSelection promises to preflight and schema planning, against real catalogs of the oldest and newest source.
import { describe, expect, test } from 'vitest';
import { relationKey } from '../../src/model/relation.ts';
import type { CatalogTable } from '../../src/postgres/catalog.ts';
import { readSelection } from '../../src/postgres/catalog.ts';
import { ensureBookkeeping, removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { makePair } from '../support/databases.ts';
import { makeScope } from '../support/scope.ts';

const names = (tables: readonly CatalogTable[]): string[] =>
  tables.map((table) => relationKey(table.relation));

describe.each([13, 16, 18] as const)('source %i', (major) => {
  test('a star selects every user table with its partitions and nothing else', async () => {
    const pair = await makePair({ source: major });
    await pair.source.query(`
      create schema "Sp ace"; create schema dts;
      create table dts.fence (x int);
      create table users (id int primary key);
      create table "Sp ace"."T""q.t" (id int primary key);
      create view seen as select * from users;
      create materialized view kept as select * from users;
      create sequence counter;
      create table log (id int, day date not null) partition by range (day);
      create table log_2 partition of log for values from ('2002-01-01') to ('2003-01-01') partition by list (id);
      create table a_log_2_1 partition of log_2 for values in (1);
      create table log_1 partition of log for values from ('2001-01-01') to ('2002-01-01');
      create unlogged table scratch (id int primary key);
      create table parent (id int); create table child (extra int) inherits (parent);`);
    const holder = await pair.source.connect();
    await holder.query('create temp table gone (id int)');
    const scope = makeScope(pair);
    const { tables, unusable } = await readSelection(scope.source, ['*']);
    expect(names(tables)).toEqual([
      'Sp ace."T""q.t"',
      'public.child',
      'public.log',
      'public.parent',
      'public.scratch',
      'public.users',
      'public.log_1',
      'public.log_2',
      'public.a_log_2_1',
    ]);
    expect(unusable).toEqual([]);
    const by = new Map(tables.map((table) => [table.relation.name, table]));
    expect(by.get('log')).toMatchObject({ kind: 'partitioned', parent: null });
    expect(by.get('log_2')).toMatchObject({ kind: 'partitioned', parent: { schema: 'public', name: 'log' } });
    expect(by.get('a_log_2_1')).toMatchObject({ kind: 'leaf', parent: { schema: 'public', name: 'log_2' } });
    expect(by.get('scratch')?.persistence).toBe('unlogged');
    expect(by.get('child')).toMatchObject({ kind: 'table', parent: null });
    expect(by.get('users')?.owner).toBe('postgres');
    await holder.end();
    await pair.source.query('drop schema dts cascade');
  });

  test('columns and replica identity are those of the catalog, in order', async () => {
    const pair = await makePair({ source: major });
    await pair.source.query(`
      create schema app; create type app.mood as enum ('sad');
      create table t (
        gone int, id bigint generated always as identity, amount numeric(12,2) not null,
        mood app.mood, double_id bigint generated always as (amount * 2) stored,
        primary key (amount, id));
      alter table t drop column gone;
      create table by_index (a int not null, b int not null, c int);
      create unique index by_index_key on by_index (b, a) include (c);
      alter table by_index replica identity using index by_index_key;
      create table whole (a int primary key); alter table whole replica identity full;
      create table none (a int primary key); alter table none replica identity nothing;
      create table keyless (a int);
      create table deferred (a int primary key deferrable);`);
    const scope = makeScope(pair);
    const { tables } = await readSelection(scope.source, ['*']);
    const by = new Map(tables.map((table) => [table.relation.name, table]));
    expect(by.get('t')?.columns).toEqual([
      { name: 'id', type: 'bigint', generated: false, identityAlways: true, notNull: true },
      { name: 'amount', type: 'numeric(12,2)', generated: false, identityAlways: false, notNull: true },
      { name: 'mood', type: 'app.mood', generated: false, identityAlways: false, notNull: false },
      { name: 'double_id', type: 'bigint', generated: true, identityAlways: false, notNull: false },
    ]);
    const identities = ['t', 'by_index', 'whole', 'none', 'keyless', 'deferred'].map((name) => {
      const table = by.get(name);
      return [name, table?.replicaIdentity, table?.keyColumns, table?.hasPrimaryKey];
    });
    expect(identities).toEqual([
      ['t', 'default', ['amount', 'id'], true],
      ['by_index', 'index', ['b', 'a'], false],
      ['whole', 'full', [], true],
      ['none', 'nothing', [], true],
      ['keyless', 'default', [], false],
      ['deferred', 'default', [], true],
    ]);
  });

  test('sizes are near the truth, analyzed or not', async () => {
    const pair = await makePair({ source: major });
    await pair.source.query(`
      create table fresh (id int primary key, n int) with (autovacuum_enabled = false);
      create table analyzed (id int primary key, n int) with (autovacuum_enabled = false);
      create table empty (id int primary key);
      create table toasted (id int primary key, t text) with (autovacuum_enabled = false);
      alter table toasted alter t set storage external;
      insert into fresh select g, g from generate_series(1, 10000) g;
      insert into analyzed select g, g from generate_series(1, 10000) g;
      insert into toasted select g, repeat('x', 100000) from generate_series(1, 20) g;`);
    await pair.source.query('analyze analyzed');
    const scope = makeScope(pair);
    const { tables } = await readSelection(scope.source, ['*']);
    const by = new Map(tables.map((table) => [table.relation.name, table]));
    expect(by.get('analyzed')?.rowsEstimated).toBe(10000);
    expect(by.get('fresh')?.rowsEstimated).toBeGreaterThan(5000);
    expect(by.get('fresh')?.rowsEstimated).toBeLessThan(20000);
    expect(by.get('empty')).toMatchObject({ rowsEstimated: 0 });
    expect(by.get('toasted')?.bytesEstimated).toBeGreaterThan(2_000_000);
  });
});

test('names that are no user table are reported with their reason, others are resolved', async () => {
  const pair = await makePair();
  await pair.source.query(`
    create schema dts; create table dts.own (a int);
    create table users (id int primary key); create table "Orders" (id int primary key);
    create view v as select 1 as a; create materialized view m as select 1 as a; create sequence s;
    create foreign data wrapper w; create server remote foreign data wrapper w;
    create foreign table f (a int) server remote;
    create table part (id int) partition by range (id);
    create table part_1 partition of part for values from (1) to (2);
    create foreign table part_2 partition of part for values from (2) to (3) server remote;`);
  await pair.source.query(`create extension if not exists plpgsql; alter extension plpgsql add table users`);
  const scope = makeScope(pair);
  const read = await readSelection(scope.source, [
    'orders',
    'Orders',
    'public."Orders"',
    'nowhere.t',
    'missing',
    'v',
    'm',
    's',
    'f',
    'users_pkey',
    'part_1',
    'pg_catalog.pg_class',
    'information_schema.sql_features',
    'dts.own',
    'users',
  ]);
  expect(names(read.tables)).toEqual(['public.Orders', 'public.part_1']);
  expect(read.tables[1]?.kind).toBe('leaf');
  expect(read.unusable).toEqual([
    { requested: 'orders', reason: 'does not exist; names are taken literally, and public.Orders does' },
    { requested: 'nowhere.t', reason: 'does not exist: there is no schema nowhere' },
    { requested: 'missing', reason: 'does not exist' },
    { requested: 'v', reason: 'is a view' },
    { requested: 'm', reason: 'is a materialized view' },
    { requested: 's', reason: 'is a sequence' },
    { requested: 'f', reason: 'is a foreign table' },
    { requested: 'users_pkey', reason: 'is an index' },
    { requested: 'pg_catalog.pg_class', reason: 'is a system table' },
    { requested: 'information_schema.sql_features', reason: 'is a system table' },
    { requested: 'dts.own', reason: 'belongs to DTS itself' },
    { requested: 'users', reason: 'belongs to the extension plpgsql' },
    { requested: 'public.part_1', reason: 'is a partition without its parent: select public.part' },
  ]);
  const whole = await readSelection(scope.source, ['part', 'part_1']);
  expect(names(whole.tables)).toEqual(['public.part', 'public.part_1']);
  expect(whole.unusable).toEqual([
    { requested: 'public.part_2', reason: 'is a foreign table, a partition of public.part' },
  ]);
  await pair.source.query('alter extension plpgsql drop table users; drop schema dts cascade');
});

test('a star in one shared database leaves out the tables that a running migration is making', async () => {
  const pair = await makePair();
  const shared = { source: pair.source, target: pair.source };
  await pair.source.query(
    'create table users (id int primary key); create table users_new (id int primary key)',
  );
  const scope = makeScope(shared, { tableSuffix: '_new' });
  await ensureBookkeeping(scope);
  await pair.source.query(
    `insert into dts.statement (task_id, n, object, creates_schema, creates_name)
     values ($1, 0, 'TABLE', 'public', 'users_new')`,
    [scope.taskId],
  );
  const { tables } = await readSelection(scope.source, ['*']);
  expect(names(tables)).toEqual(['public.users']);
  await removeBookkeeping(scope);
});

test('a table under an exclusive lock does not hang the catalog', async () => {
  const pair = await makePair();
  await pair.source.query('create table busy (id int primary key)');
  await pair.source.query('insert into busy select generate_series(1, 1000)');
  await pair.source.query('analyze busy');
  const locker = await pair.source.connect();
  await locker.query('begin; lock table busy in access exclusive mode');
  const scope = makeScope(pair);
  const { tables } = await readSelection(scope.source, ['busy']);
  expect(tables[0]).toMatchObject({ rowsEstimated: 1000 });
  expect(tables[0]?.bytesEstimated).toBeGreaterThan(0);
  await locker.query('rollback');
});

test('two thousand tables are read in seconds', async () => {
  const pair = await makePair();
  for (let block = 0; block < 4; block++) {
    await pair.source.query(`do $$ begin for i in 1..500 loop
      execute format('create table t_${block}_%s (id bigint primary key, a text, b int, c timestamptz)', i);
    end loop; end $$`);
  }
  const scope = makeScope(pair);
  const started = performance.now();
  const { tables } = await readSelection(scope.source, ['*']);
  expect(tables).toHaveLength(2000);
  expect(performance.now() - started).toBeLessThan(5_000);
});
