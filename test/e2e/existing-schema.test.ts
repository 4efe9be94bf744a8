// `options.schema: existing` through the running service: rows arrive in tables that the application has made already,
// with foreign keys, triggers and a column of its own, and nothing on them fires, is changed or is dropped. What would
// refuse or alter rows is a finding before anything is written.
import { expect, test } from 'vitest';
import type { Finding } from '../../src/model/finding.ts';
import { expectEqualTables } from '../support/compare.ts';
import { makePair, makeRole, waitFor } from '../support/databases.ts';
import {
  cutOver,
  makeDataDir,
  migrationBody,
  startMigration,
  startService,
} from '../support/service-process.ts';
import { loadShop, startWriters } from '../support/shop.ts';

const ring = `create table public.parent (id int primary key, child int);
  create table public.child (id int primary key, parent int not null references public.parent);
  alter table public.parent add foreign key (child) references public.child;
  create unlogged table public.cached (id int primary key, next int references public.cached)`;

/** A trigger that would change rows, one that writes elsewhere, and a column that the source lacks. */
const application = `
  create table public.log (what text);
  create function public.spoil() returns trigger language plpgsql as
    $$ begin insert into public.log values (tg_table_name); if tg_op <> 'DELETE' then new.total := -1; end if; return coalesce(new, old); end $$;
  create function public.note() returns trigger language plpgsql as
    $$ begin insert into public.log values (tg_table_name); return null; end $$;
  create trigger spoil before insert or update or delete on public.orders for each row execute function public.spoil();
  create trigger note after insert or update or delete on public.audit for each row execute function public.note();
  alter table public.users add tenant int not null default 7;
  create unique index users_lower on public.users (lower(email))`;

test('rows arrive in existing tables under writers; their triggers and foreign keys stay and do not fire', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  await loadShop(pair.source, 3_000);
  await loadShop(pair.target, 0);
  await pair.source.query(ring);
  await pair.target.query(`${ring}; ${application}`);
  await pair.source.query(`insert into parent select n from generate_series(1, 50) n;
    insert into child select n, n from generate_series(1, 50) n; update parent set child = id;
    insert into cached values (1, 2), (2, 1)`);
  const described = `select c.relname, c.oid::text, c.relfilenode::text, (select array_agg(tgname::text || tgenabled::text order by 1)
      from pg_trigger where tgrelid = c.oid and not tgisinternal) as triggers
    from pg_class c where relnamespace in ('public'::regnamespace, 'sales'::regnamespace) and relkind in ('r', 'i') order by 1`;
  const before = (await pair.target.query(described)).rows;
  const service = await startService({ dataDir: makeDataDir() });
  const body = migrationBody(pair, {
    id: 'standing',
    tables: ['users', 'orders', 'sales."Order Lines"', 'audit', 'parent', 'child', 'cached'],
    options: { schema: 'existing', part_bytes: 65_536 },
  });
  const { body: preflight } = await service.call<{ blocked: boolean; findings: Finding[] }>(
    'POST',
    '/preflight',
    body,
  );
  expect(preflight.findings.filter(({ severity }) => severity === 'blocking')).toEqual([]);
  expect(preflight.findings).toEqual(
    expect.arrayContaining([
      expect.objectContaining({ code: 'target_column_extra', object: 'public.users.tenant' }),
      expect.objectContaining({ code: 'target_unique_extra', object: 'public.users.users_lower' }),
      expect.objectContaining({ code: 'schema_existing', severity: 'info' }),
    ]),
  );
  expect(preflight.findings.map(({ code }) => code)).not.toContain('target_foreign_key_unchecked');

  const id = await startMigration(service, body);
  const writers = await startWriters(pair.source, 3);
  await service.reaches(id, 'syncingWal');
  // users has a unique index that the source lacks: parts of one snapshot, which ranges of the key need not be
  const cuts =
    await pair.target.query(`select relation, array_agg(distinct range::json ->> 'kind') as kinds from dts.part
    where relation in ('public.users', 'public.orders') and part >= 0 group by relation order by relation`);
  expect(cuts.rows).toEqual([
    { relation: 'public.orders', kinds: ['key'] },
    { relation: 'public.users', kinds: ['ctid'] },
  ]);
  const written = writers.writes();
  await pair.source.query(`truncate parent, child; insert into parent values (1);
    insert into child values (1, 1); update parent set child = 1`);
  await waitFor(() => writers.writes() > written + 200);
  // other tables name its rows while they are replaced
  const recopied = await service.call('POST', `/migrations/${id}/tables/public.orders/recopy`);
  expect(recopied).toMatchObject({ status: 200, body: { state: 'syncingWal' } });
  await service.copied(id);
  await cutOver(service, id);
  await writers.stop();

  const columns = 'id, email, mood, bio, tags, born, balance, shout';
  await expectEqualTables(pair.source, pair.target, [
    [`(select ${columns} from public.users)`, `(select ${columns} from public.users)`],
    ...[
      'public.orders',
      'sales."Order Lines"',
      'public.audit',
      'public.parent',
      'public.child',
      'public.cached',
    ].map((name) => [name, name] as const),
  ]);
  const { rows } = await pair.target.query(`select (select count(*)::int from log) as fired,
    (select array_agg(distinct tenant) from users) as tenants`);
  expect(rows).toEqual([{ fired: 0, tenants: [7] }]);
  expect((await pair.target.query(described)).rows).toEqual(before);
  const { body: task } = await service.call('GET', `/migrations/${id}`);
  expect((await service.call('POST', `/migrations/${id}/unfence`)).status).toBe(200);
  expect(task).toMatchObject({ certificate: { equal: true, schema: { equal: false, error: null } } });
  // the application writes on: its triggers fire, its keys are checked, its sequences go on behind the source's
  await pair.target.query(`insert into users (email) values ('new@example.org');
    insert into orders (user_id, total) select max(id), 1 from users`);
  expect((await pair.target.query('select what from log')).rows).toEqual([{ what: 'orders' }]);
  await expect(pair.target.query('insert into child values (99, 99)')).rejects.toMatchObject({
    code: '23503',
  });
});

test('cancelled with drop_target, tables that the task did not make stay', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  for (const side of [pair.source, pair.target]) await side.query('create table t (id int primary key)');
  await pair.source.query('insert into t values (1)');
  const service = await startService({ dataDir: makeDataDir() });
  const id = await startMigration(
    service,
    migrationBody(pair, { id: 'kept', tables: ['t'], options: { schema: 'existing' } }),
  );
  await service.reaches(id, 'syncingWal');
  expect((await service.call('POST', `/migrations/${id}/cancel`, { drop_target: true })).status).toBe(200);
  await service.reaches(id, 'cancelled');
  expect((await pair.target.query('select id from t')).rows).toEqual([{ id: 1 }]);
});

test('what refuses or alters rows blocks, and the remedies as they stand remove it', async () => {
  const role = await makeRole(18);
  const pair = await makePair({ source: 16, target: 18 });
  await pair.source.query(`create table a (id int primary key, big bigint, word text, at timestamptz, amount numeric(12,2), k int);
    create table b (id int primary key, a int references a);
    create table gone (id int primary key);
    create table span (id int primary key) partition by range (id);
    create table span_1 partition of span for values from (1) to (100);`);
  await pair.target.query(`
    create table a (id int, big int, word varchar(10), at timestamp, amount numeric(10,1), k int not null,
      needed int not null, spare int);
    create table b (id int primary key, a int, noted int default 1);
    alter table b enable row level security;
    create function f() returns trigger language plpgsql as $$ begin return new; end $$;
    create trigger fires before insert on b for each row execute function f();
    create trigger always before insert on b for each row execute function f();
    alter table b enable always trigger always;
    alter table b add foreign key (a) references b;
    insert into b values (1);
    create table span (id int primary key) partition by range (id);
    create table span_1 partition of span for values from (1) to (50);
    grant create on database ${pair.target.dbname} to ${role}`);
  const service = await startService({ dataDir: makeDataDir() });
  const target = { ...pair.target.connection, user: role, password: 'secret' };
  const body = migrationBody(pair, { target_db: target, options: { schema: 'existing' } });
  const blockers = async (): Promise<Finding[]> => {
    const answer = await service.call<{ findings: Finding[] }>('POST', '/preflight', body);
    expect(answer.status, JSON.stringify(answer.body)).toBe(200);
    return answer.body.findings.filter(({ severity }) => severity === 'blocking');
  };
  const found = await blockers();
  const ofCode = (list: readonly Finding[]): string[] =>
    list.map(({ code, object }) => `${code} ${object}`).toSorted();
  expect(ofCode(found)).toEqual([
    'target_column_not_null public.a.k',
    'target_column_required public.a.needed',
    'target_foreign_keys_fire public.b',
    'target_key_missing public.a',
    'target_partitioning_differs public.span_1',
    'target_row_security public.b',
    'target_table_denied public.a',
    'target_table_denied public.b',
    'target_table_denied public.span_1',
    'target_table_missing public.gone',
    'target_trigger_fires public.b.always',
    'target_trigger_fires public.b.fires',
    'target_type_differs public.a.amount',
    'target_type_differs public.a.at',
    'target_type_differs public.a.big',
    'target_type_differs public.a.word',
  ]);
  // a blocked task writes nothing
  const created = await service.call<{ id: string }>('POST', '/migrations', { ...body, id: 'blocked' });
  expect(created.status).toBe(201);
  await service.call('POST', '/migrations/blocked/start');
  await service.reaches('blocked', 'paused');
  expect((await pair.target.query(`select 1 from pg_namespace where nspname = 'dts'`)).rowCount).toBe(0);

  // each remedy is one or more statements, in some with an alternative behind '; or: '
  await pair.target.query('create table gone (id int primary key)');
  for (const { code, remedy } of found)
    if (code !== 'target_table_missing') await pair.target.query((remedy ?? '').split('; or: ')[0] ?? '');
  await pair.target.query(`grant all on gone to ${role}`);
  expect(ofCode(await blockers())).toEqual(['target_not_empty public.b']);
  await pair.target.query('truncate b');
  expect(await blockers()).toEqual([]);
  await pair.target.query(
    `revoke all on parameter session_replication_role from ${role}; drop owned by ${role}; alter role ${role} nobypassrls`,
  );
});
