// Schema planning and creation against real servers: a hard schema is moved whole, renamed, in parts, and in pieces.
import { readFile } from 'node:fs/promises';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { EmbeddedMajor } from '../../src/cli/embedded-postgres.ts';
import { MigrationError } from '../../src/model/errors.ts';
import { suffixedName } from '../../src/model/relation.ts';
import type { SchemaPlan } from '../../src/model/schema-plan.ts';
import { removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { runStatement, statementsDone } from '../../src/postgres/statement-journal.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { createTables, planFindings } from '../../src/schema/create-tables.ts';
import { dumpSchema } from '../../src/schema/dump.ts';
import { planSchema } from '../../src/schema/plan.ts';
import { makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const shop = await readFile(new URL('../cases/schema/shop.sql', import.meta.url), 'utf8');

async function shopPair(source: EmbeddedMajor, target: EmbeddedMajor = 18): Promise<DatabasePair> {
  const pair = await makePair({ source, target });
  await pair.source.query(shop);
  return pair;
}

/** Runs what createTables leaves to later steps, in the plan's order. */
async function runLaterPhases(scope: TestScope): Promise<void> {
  const done = await statementsDone(scope);
  const session = await scope.target.session({ purpose: 'test', signal: scope.signal });
  for (const statement of schemaPlanOf(scope).statements)
    if (!done.has(statement.n)) await runStatement(scope, session, statement);
  await session.close();
}

/** Removes what the end of a task would remove. */
function cleanUpAfter(scope: TestScope): void {
  onTestFinished(async () => {
    const after = makeScope(
      { source: databaseOf(scope, 'source'), target: databaseOf(scope, 'target') },
      {},
      scope,
    );
    await removeBookkeeping(after);
    await after.connections.closeAll();
  });
}

const databases = new WeakMap<TestScope, DatabasePair>();
function databaseOf(scope: TestScope, role: 'source' | 'target'): TestDatabase {
  const pair = databases.get(scope);
  if (!pair) throw new Error('unknown scope');
  return pair[role];
}

function scopeOf(
  pair: DatabasePair,
  over: Parameters<typeof makeScope>[1] = {},
  previous?: TestScope,
): TestScope {
  const scope = makeScope(pair, over, previous);
  databases.set(scope, pair);
  return scope;
}

/** Every statement of a database's dump, order-free, in one spelling for all majors. `renames`: new name → old name. */
async function schemaOf(
  database: TestDatabase,
  renames: ReadonlyMap<string, string> = new Map(),
): Promise<string[]> {
  const scope = makeScope({ source: database, target: database });
  const entries = await dumpSchema(scope, 'bundled', {
    role: 'source',
    schemas: null,
    extensions: [],
  });
  await scope.connections.closeAll();
  return entries
    .filter((entry) => entry.schema !== 'dts' && entry.tag !== 'dts')
    .flatMap((entry) => entry.statements.map(({ text }) => normalised(text, renames)))
    .sort();
}

function normalised(text: string, renames: ReadonlyMap<string, string>): string {
  // 18 names NOT NULL constraints, and prints the name where it is not the default; multiranges exist from 14 on
  let result = text
    .replaceAll(/CONSTRAINT \S+ NOT NULL/g, 'NOT NULL')
    .replaceAll(/\n\s*multirange_type_name = [^\n]*/g, '')
    .replaceAll('"', '');
  for (const [renamed, original] of renames) result = result.replaceAll(renamed, original);
  result = result.replaceAll(/\bshop\.(\w+) \1\b/g, 'shop.$1'); // an alias that is the table's own name
  // up to 15, the only table of a query stands in front of its columns
  if (/^CREATE (MATERIALIZED )?VIEW/.test(result)) result = result.replaceAll(/\b(customers|orders)\./g, '');
  if (!result.startsWith('CREATE TABLE')) return result;
  const lines = result.split('\n').map((line) => line.replace(/,$/, ''));
  const isCheck = (line: string): boolean => line.startsWith('    CONSTRAINT');
  return [...lines.filter((line) => !isCheck(line)), ...lines.filter(isCheck).sort()].join('\n'); // by name
}

async function renamesOf(database: TestDatabase, suffix: string): Promise<Map<string, string>> {
  const { rows } = await database.query<{ name: string }>(
    `select relname::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where nspname in ('shop', 'Sch ema.x', 'unused') and relkind in ('r', 'p', 'i', 'I', 'S')
     union select conname::text from pg_constraint where conrelid <> 0
     union select stxname::text from pg_statistic_ext`,
  );
  const bare = (name: string): string => name.replaceAll('"', '');
  return new Map(
    rows
      .map(({ name }): [string, string] => [
        bare(suffixedName(name, suffix).replaceAll('"', '""')),
        bare(name.replaceAll('"', '""')),
      ])
      .sort(([a], [b]) => b.length - a.length),
  );
}

describe('the whole plan, executed in order', () => {
  test.each([13, 16, 18] as const)('makes the same schema, %i to 18', async (major) => {
    const pair = await shopPair(major);
    const scope = scopeOf(pair);
    cleanUpAfter(scope);
    await createTables(scope);
    await runLaterPhases(scope);
    const expected = await schemaOf(pair.source);
    expect(expected.length).toBeGreaterThan(100);
    expect(await schemaOf(pair.target)).toEqual(expected);
  });

  test.each([13, 16, 18] as const)('with a suffix differs in names only, %i to 18', async (major) => {
    const pair = await shopPair(major);
    const scope = scopeOf(pair, { tableSuffix: '_Neu.1' });
    cleanUpAfter(scope);
    await createTables(scope);
    await runLaterPhases(scope);
    const expected = await schemaOf(pair.source);
    const renames = await renamesOf(pair.source, '_Neu.1');
    expect(await schemaOf(pair.target, renames)).toEqual(expected);
    const { rows } = await pair.target.query<{ name: string }>(
      `select relname::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where nspname in ('shop', 'Sch ema.x') and relkind in ('r', 'p', 'i', 'I', 'S') order by 1`,
    );
    expect(rows.map(({ name }) => name).filter((name) => !name.endsWith('_Neu.1'))).toEqual([]);
    const invalid = await pair.target.query('select 1 from pg_index where not indisvalid');
    expect(invalid.rowCount).toBe(0);
  });
});

test('source and target may be one database with a suffix, which leaves the originals alone', async () => {
  const pair = await shopPair(16);
  const same: DatabasePair = { source: pair.source, target: pair.source };
  const before = await schemaOf(pair.source);
  const scope = scopeOf(same, { tableSuffix: '_b' });
  cleanUpAfter(scope);
  await createTables(scope);
  await runLaterPhases(scope);
  const after = await schemaOf(pair.source);
  expect(after).toEqual(expect.arrayContaining(before));
  const made = await pair.source.query(
    `select to_regclass('shop.orders_b') as "table", to_regclass('shop.orders_id_seq_b') as seq`,
  );
  expect(made.rows).toEqual([{ table: 'shop.orders_b', seq: 'shop.orders_id_seq_b' }]);
  const { rows } = await pair.source.query<{ d: string }>(
    `select pg_get_expr(adbin, adrelid) as d from pg_attrdef where adrelid = 'shop.orders_b'::regclass order by adnum`,
  );
  expect(rows.map(({ d }) => d)).toContain(`nextval('shop.orders_id_seq_b'::regclass)`);
});

test('of many statements in one transaction the one that fails is named, and those before it are done', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  await pair.source.query(
    `do $$ begin for i in 10..59 loop execute format('create table t%s (id int primary key)', i); end loop; end $$`,
  );
  const scope = scopeOf(pair, { tableSuffix: '_new' });
  cleanUpAfter(scope);
  // taken by somebody else after the conflicts were looked for
  await pair.target.query(
    `create function take() returns event_trigger language plpgsql as $$ begin
       if exists (select from pg_event_trigger_ddl_commands() where object_identity = 'public.t39_new') then
         create table public.t40_new ();
       end if; end $$;
     create event trigger take on ddl_command_end when tag in ('CREATE TABLE') execute function take()`,
  );
  const failing = createTables(scope);
  await expect(failing).rejects.toMatchObject({
    code: 'target_conflict',
    details: { relations: ['public.t40_new'] },
  });
  const made = `select count(*)::int as n from pg_class where relname ~ '^t\\d+_new$' and relname < 't40'`;
  expect((await pair.target.query(made)).rows).toEqual([{ n: 30 }]);
  await pair.target.query('drop event trigger take; drop table t40_new');
  await createTables(scope);
  expect(
    (await pair.target.query(`select count(*)::int as n from pg_class where relname ~ '^t\\d+_new$'`)).rows,
  ).toEqual([{ n: 50 }]);
});

test('a task killed after any transaction of statements goes on behind it', async () => {
  const pair = await shopPair(16);
  let scope = scopeOf(pair, { tableSuffix: '_zz9' });
  cleanUpAfter(scope);
  let kills = 0;
  for (;;) {
    let statements = 0;
    const dying: TestScope = {
      ...scope,
      failpoint: () => {
        if (++statements === 4) throw new Error('killed');
      },
    };
    const finished = await createTables(dying).then(
      () => true,
      (error: Error) => {
        expect(error.message).toBe('killed');
        return false;
      },
    );
    if (finished) break;
    kills++;
    await scope.connections.closeAll();
    scope = scopeOf(pair, { tableSuffix: '_zz9' }, scope);
  }
  expect(kills).toBeGreaterThan(4); // transactions grow, so that there are few
  await runLaterPhases(scope);
  const expected = await schemaOf(pair.source);
  expect(await schemaOf(pair.target, await renamesOf(pair.source, '_zz9'))).toEqual(expected);
});

test('a subset brings what it needs and nothing else', async () => {
  const pair = await shopPair(13);
  const scope = scopeOf(pair, { tables: ['shop.customers', 'shop.ranges'] });
  cleanUpAfter(scope);
  const { findings } = await createTables(scope);
  await runLaterPhases(scope);
  const { rows } = await pair.target.query<{ object: string }>(
    `select n.nspname || '.' || relname || ' ' || relkind::text as object from pg_class c join pg_namespace n on n.oid = relnamespace
       where nspname not like 'pg\\_%' and nspname not in ('information_schema', 'dts')
     union all select 'function ' || oid::regprocedure::text from pg_proc where oid >= 16384 and proname not like 'span%'
     union all select 'domain ' || oid::regtype::text from pg_type where typtype in ('d', 'e') and oid >= 16384
     union all select 'schema ' || nspname from pg_namespace where oid >= 16384 and nspname <> 'dts' and nspname not like 'pg\\_%'
     order by 1`,
  );
  expect(rows.map(({ object }) => object)).toEqual(
    [
      'domain shop.email',
      'domain shop.mood',
      'function tools.new_code()',
      'function tools.touch()',
      'schema shop',
      'schema tools',
      'shop.address c',
      'shop.customers r',
      'shop.customers_email_lower i',
      'shop.customers_id_seq S',
      'shop.customers_incl i',
      'shop.customers_pkey i',
      'shop.customers_row i',
      'shop.customers_tags i',
      'shop.ranges p',
      'shop.ranges_high r',
      'shop.ranges_high_pkey i',
      'shop.ranges_low r',
      'shop.ranges_low_pkey i',
      'shop.ranges_pkey I',
    ].sort(),
  );
  expect(findings.map(({ code, severity, object }) => ({ code, severity, object }))).toEqual([
    { code: 'foreign_key_left_out', severity: 'warning', object: 'shop.customers' },
    { code: 'policy_left_out', severity: 'warning', object: 'shop.customers' },
  ]);
});

test('the plan names leaves, roots and sequences, and misses nothing', async () => {
  const pair = await shopPair(16);
  const scope = scopeOf(pair, { tableSuffix: '_x' });
  const plan = await planSchema(scope);
  expect(plan.roots.map(({ source }) => source.name).sort()).toEqual([
    'buckets',
    'events',
    'events_eu',
    'ranges',
  ]);
  expect(plan.tables.map(({ target }) => target.name)).toContain('events_eu_2024_x');
  expect(plan.tables.map(({ source }) => source.name)).not.toContain('events_eu');
  expect(plan.sequences).toContainEqual({
    source: { schema: 'shop', name: 'invoice_numbers' },
    target: { schema: 'shop', name: 'invoice_numbers_x' },
  });
  expect(plan.sequences.map(({ source }) => source.name)).toEqual(
    expect.arrayContaining(['customers_id_seq', 'orders_id_seq', 'events_id_seq', 'Täble "q".ü_Id_seq']),
  );
  expect(plan.sequences.map(({ source }) => source.name)).toContain('lonely');
  expect(plan.findings.map(({ code, object }) => `${code} ${object}`)).toEqual([
    'function_mentions_renamed_table FUNCTION tools.touch()',
  ]);
  expect(phasesOf(plan, 'shop.by_index')).toEqual({ 'pre-data': 1, key: 3 });
  expect(phasesOf(plan, 'shop.by_unique')).toEqual({ 'pre-data': 1, key: 2 });
  expect(plan.statements.map(({ n }) => n)).toEqual(plan.statements.map((_, n) => n));
  await scope.connections.closeAll();
});

function phasesOf(plan: SchemaPlan, table: string): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const statement of plan.statements)
    if (statement.table === table) counts[statement.phase] = (counts[statement.phase] ?? 0) + 1;
  return counts;
}

test('foreign keys of partitioned tables are plain where the target cannot add them NOT VALID', async () => {
  const pair = await makePair({ source: 13, target: 16 });
  await pair.source.query(shop);
  const scope = scopeOf(pair);
  cleanUpAfter(scope);
  await createTables(scope);
  await runLaterPhases(scope);
  const { rows } = await pair.target.query<{ name: string; valid: boolean }>(
    `select conname::text as name, convalidated as valid from pg_constraint c join pg_class t on t.oid = c.conrelid
       join pg_namespace n on n.oid = t.relnamespace
     where contype = 'f' and conparentid = 0 and nspname <> 'dts' order by 1`,
  );
  expect(rows.filter(({ valid }) => !valid)).toEqual([{ name: 'favourite_order', valid: false }]);
  expect(rows.map(({ name }) => name)).toContain('events_customer_fkey');
});

test('a function whose body names a renamed table is reported', async () => {
  const pair = await makePair({ source: 16 });
  await pair.source.query(`create table users (id int primary key);
    create function users_count() returns bigint language plpgsql as 'begin return (select count(*) from users); end';
    alter table users add n bigint default users_count();`);
  const scope = scopeOf(pair, { tableSuffix: '_migrated' });
  const { findings } = await planSchema(scope);
  expect(findings.map(({ code, object }) => ({ code, object }))).toEqual([
    { code: 'function_mentions_renamed_table', object: 'FUNCTION public.users_count()' },
  ]);
  await scope.connections.closeAll();
});

test('a table that somebody else made is a conflict, found before anything is written', async () => {
  const pair = await makePair();
  await pair.source.query('create table a (id int primary key); create table b (id int primary key)');
  await pair.target.query(
    `create table a_pkey (x int); create table b (id int, mine text); create type a as enum ('a type of the name')`,
  );
  const scope = scopeOf(pair);
  cleanUpAfter(scope);
  const found = await planFindings(scope);
  expect(
    found
      .filter(({ code }) => code === 'target_conflict')
      .map(({ object }) => object)
      .sort(),
  ).toEqual(['public.a', 'public.a_pkey', 'public.b']);
  await expect(createTables(scope)).rejects.toMatchObject({ code: 'target_conflict' });
  const { rows } = await pair.target.query(`select to_regclass('public.a') as a`);
  expect(rows).toEqual([{ a: null }]);
});

test('an inheritance parent outside of the selection blocks, with the name to add', async () => {
  const pair = await makePair();
  await pair.source.query('create table up (id int primary key); create table down (n int) inherits (up)');
  const scope = scopeOf(pair, { tables: ['down', 'nowhere'] });
  const error = await createTables(scope).catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(MigrationError);
  expect(error).toMatchObject({ code: 'preflight_blocked' });
  const { findings } = (error as MigrationError).details as { findings: { code: string; object: string }[] };
  expect(findings.map(({ code, object }) => `${code} ${object}`).sort()).toEqual([
    'table_needed public.up',
    'table_unusable nowhere',
  ]);
  await scope.connections.closeAll();
});

test('tasks that need the same types at the same moment all succeed', async () => {
  const pair = await shopPair(16);
  const scopes = ['_1', '_2', '_3', '_4', '_5', '_6'].map((tableSuffix) =>
    scopeOf(pair, { tableSuffix, tables: ['shop.customers', 'shop.orders'] }),
  );
  for (const scope of scopes) cleanUpAfter(scope);
  await Promise.all(scopes.map((scope) => createTables(scope)));
  const { rows } = await pair.target.query<{ n: number }>(
    `select count(*)::int as n from pg_class where relname like 'customers\\__' and relkind = 'r'`,
  );
  expect(rows).toEqual([{ n: 6 }]);
});

test('aborting while pg_dump waits for a lock ends it and leaves no connection', async () => {
  const pair = await makePair();
  await pair.source.query('create table held (id int primary key)');
  const holder = await pair.source.connect();
  await holder.query('begin; lock table held in access exclusive mode');
  const scope = scopeOf(pair);
  const planning = planSchema(scope).catch((error: unknown) => error);
  await waitFor(
    async () =>
      (
        await pair.source.query(`select 1 from pg_locks where not granted and locktype = 'relation'
        and relation = 'held'::regclass and pid in (select pid from pg_stat_activity where application_name like '%/dump')`)
      ).rowCount,
  );
  expect(scope.waits.at(-1)).toBe('pg_dump reads the schema of the source');
  scope.controller.abort();
  expect(await planning).toMatchObject({ code: 'aborted' });
  await holder.query('rollback');
  await scope.connections.closeAll();
  expect(scope.connections.connectionCount).toBe(0);
});

test('the fence that an earlier migration keeps on the source is neither migrated nor reported', async () => {
  const pair = await makePair({ checkLeaks: false });
  await pair.source.query(`create table fenced (id int primary key); create schema dts;
    create function dts.fence_old() returns trigger language plpgsql as 'begin raise exception ''no''; end';
    create trigger dts_fence_old before insert on fenced for each statement execute function dts.fence_old()`);
  const scope = scopeOf(pair);
  const { findings } = await createTables(scope);
  expect(findings).toEqual([]);
  await runLaterPhases(scope);
  const { rows } = await pair.target.query<{ n: number }>(
    `select (select count(*) from pg_trigger where not tgisinternal)::int + (select count(*) from pg_proc
       where pronamespace = 'dts'::regnamespace)::int as n`,
  );
  expect(rows).toEqual([{ n: 0 }]);
});

test('what tables share is left alone where the target has it, its comment included', async () => {
  const pair = await makePair({ source: 16 });
  await pair.source.query(`create schema app; create type app.mood as enum ('a', 'b');
    comment on type app.mood is 'of the source'; comment on schema app is 'of the source';
    create table app.t (id int primary key, m app.mood)`);
  await pair.target.query(`create schema app; comment on schema app is 'of the target';
    create type app.mood as enum ('a', 'b', 'c'); comment on type app.mood is 'of the target'`);
  const scope = scopeOf(pair);
  cleanUpAfter(scope);
  await createTables(scope);
  const { rows } = await pair.target.query(
    `select obj_description('app.mood'::regtype, 'pg_type') as type, obj_description('app'::regnamespace, 'pg_namespace') as schema,
       enum_range(null::app.mood)::text as labels`,
  );
  expect(rows).toEqual([{ type: 'of the target', schema: 'of the target', labels: '{a,b,c}' }]);
});

test('a role uses a type that the target has in a schema where it may not create', async () => {
  const admin = await makePair({ checkLeaks: false });
  const role = `limited_${admin.target.dbname}`;
  await admin.target.query(`create role ${role} login password 'x'`);
  onTestFinished(async () => void (await admin.target.query(`drop role ${role}`)));
  const pair = await makePair({ source: 16 });
  await pair.source.query(`create schema app; create type app.mood as enum ('a');
    create table t (id int primary key, m app.mood)`);
  await pair.target.query(`create schema app; create type app.mood as enum ('a'); grant usage on schema app to ${role};
    grant create on database ${pair.target.dbname} to ${role}; grant create on schema public to ${role}`);
  const scope = scopeOf(pair, { targetDb: { ...pair.target.connection, user: role, password: 'x' } });
  await createTables(scope);
  expect((await pair.target.query(`select to_regclass('public.t') as t`)).rows).toEqual([{ t: 't' }]);
  await removeBookkeeping(scope);
  await scope.connections.closeAll();
});

test.each([
  ['*', ['citext', 'hstore']],
  ['app.t', ['citext']],
])('extensions come along with their schemas, for %s', async (tables, expected) => {
  const pair = await makePair({ source: 16 });
  await pair.source.query(`create schema app; create schema ext; create extension citext schema ext;
    create extension hstore; create table app.t (id int primary key, name ext.citext check (name <> 'x'))`);
  const scope = scopeOf(pair, { tables: [tables] });
  cleanUpAfter(scope);
  await createTables(scope);
  const { rows } = await pair.target.query<{ name: string; schema: string }>(
    `select extname::text as name, extnamespace::regnamespace::text as schema from pg_extension
     where extname <> 'plpgsql' order by 1`,
  );
  expect(rows.map(({ name }) => name)).toEqual(expected);
  expect(rows[0]?.schema).toBe('ext');
});

test('queries inside functions follow a renamed table', async () => {
  const pair = await makePair({ source: 16 });
  await pair.source.query(`create table rates (id int primary key, rate numeric);
    create function rate(i int) returns numeric language sql stable
      begin atomic select rates.rate from rates where rates.id = i; end;
    create function first_rate() returns rates language sql stable
      begin atomic select r.* from rates r join rates on rates.id = r.id limit 1; end;
    create table prices (id int primary key, price numeric default rate(1), f numeric default (first_rate()).rate)`);
  const scope = scopeOf(pair, { tableSuffix: '_2' });
  cleanUpAfter(scope);
  await createTables(scope);
  await runLaterPhases(scope);
  await pair.target.query('insert into rates_2 values (1, 7.5); insert into prices_2 (id) values (1)');
  expect((await pair.target.query('select * from prices_2')).rows).toEqual([
    { id: 1, price: '7.5', f: '7.5' },
  ]);
});

test('a sequence that a default names only by text is reported', async () => {
  const pair = await makePair({ source: 16 });
  await pair.source.query(`create sequence loose;
    create table t (id int primary key default nextval('public.loose'::text::regclass))`);
  const scope = scopeOf(pair, { tables: ['t'] });
  const { findings } = await planSchema(scope);
  expect(findings.map(({ code, severity }) => ({ code, severity }))).toEqual([
    { code: 'late_bound_reference', severity: 'warning' },
  ]);
  await scope.connections.closeAll();
});

test('a table lock that is not granted becomes a transient error that says so', async () => {
  const pair = await makePair();
  await pair.source.query('create table held (id int primary key)');
  const holder = await pair.source.connect();
  await holder.query('begin; lock table held in access exclusive mode');
  const scope = scopeOf(pair);
  const planning = planSchema(scope).catch((error: unknown) => error);
  const dumper = await waitFor(
    async () =>
      (
        await pair.source.query<{ pid: number }>(`select pid from pg_locks join pg_stat_activity using (pid)
          where not granted and application_name like '%/dump'`)
      ).rows[0]?.pid,
  );
  await pair.source.query('select pg_cancel_backend($1)', [dumper]); // as its own statement_timeout does after 30 s
  expect(await planning).toMatchObject({ code: 'lock_timeout', kind: 'transient' });
  await holder.query('rollback');
  await scope.connections.closeAll();
});
