// Tables added to a running task: what is refused and changes nothing, what comes along, whom it waits for, and that
// nothing is left when the task is given up in the middle.
import { expect, test } from 'vitest';
import type { Service, TaskRequest } from '../../src/index.ts';
import { expectEqualTables } from '../support/compare.ts';
import { leaksOf, makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { copied, reaches, startLibrary } from '../support/library.ts';

async function follow(
  pair: DatabasePair,
  over: Partial<TaskRequest> = {},
): Promise<{ service: Service; id: string }> {
  const service = startLibrary();
  const { task } = await service.createTask({
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tables: ['a'],
    tableSuffix: '_m',
    ...over,
    options: { keepFence: false, ...over.options },
  });
  await service.startTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  return { service, id: task.id };
}

async function complete(service: Service, id: string): Promise<void> {
  await reaches(service, id, 'syncingWal');
  await service.cutover(id);
  await reaches(service, id, 'completed');
}

test('what cannot be added is refused by name, and nothing is changed', async () => {
  const pair = await makePair();
  await pair.source.query(`create table a (id int primary key); create table b (id int primary key);
    create table keyless (id int); create view v as select 1; create table out (id int primary key);
    create table root (id int primary key) partition by range (id);
    create table leaf partition of root for values from (0) to (10)`);
  await pair.target.query('create table b_m (id int)');
  const { service, id } = await follow(pair, { options: { exclude: ['out'] } });
  const planned = async (): Promise<unknown> => {
    const { statements, ...rest } = await service.getSchema(id);
    return { ...rest, statements: statements.map(({ sql }) => sql) };
  };
  const before = await planned();
  const publication = `select count(*)::int as n from pg_publication_tables where pubname = 'dts_${id}'`;
  const add = (...tables: string[]): Promise<unknown> => service.addTables(id, { add: tables });
  const field = (name: string, message: RegExp | string): object => ({
    code: 'invalid_request',
    details: { fields: [{ field: name, message: expect.stringMatching(message) as string }] },
  });
  await expect(add('b', 'nothing')).rejects.toMatchObject(field('add.1', /does not exist/));
  await expect(add('v')).rejects.toMatchObject(field('add.0', /is a view/));
  await expect(add('leaf')).rejects.toMatchObject(
    field('add.0', /partition without its parent: select public.root/),
  );
  await expect(add('out')).rejects.toMatchObject(field('add.0', /left out by options.exclude/));
  await expect(add('nowhere.*')).rejects.toMatchObject(field('add.0', /matches no table/));
  await expect(add('public.a?')).rejects.toMatchObject(field('add.0', /matches no table/));
  await expect(add('*')).rejects.toMatchObject(field('add.0', /name the tables/));
  await expect(add()).rejects.toMatchObject({ code: 'invalid_request' });
  await expect(add('b', 'public.a')).rejects.toMatchObject({
    code: 'table_in_task',
    details: { tables: ['public.a'] },
  });
  await expect(add('keyless', 'b')).rejects.toMatchObject({
    code: 'preflight_blocked',
    details: {
      findings: expect.arrayContaining([
        expect.objectContaining({ code: 'table_without_key', object: 'public.keyless' }),
        expect.objectContaining({ code: 'target_name_taken', object: 'public.b_m' }),
      ]) as object,
    },
  });
  expect((await service.getTask(id)).state).toBe('syncingWal');
  expect(await planned()).toEqual(before);
  expect((await pair.source.query(publication)).rows).toEqual([{ n: 1 }]);
  await service.pauseTask(id);
  await expect(add('root')).rejects.toMatchObject({ code: 'event_not_accepted' });
  await service.cancelTask(id);
  await reaches(service, id, 'cancelled');
});

test('added tables come with their keys, sequences and foreign keys to and from the tables of the task', async () => {
  const pair = await makePair({ source: 13, target: 16 });
  await pair.source.query(`
    create type mood as enum ('ok'); create domain positive as int check (value > 0);
    create table b (id serial primary key, m mood default 'ok', p positive, unique (p));
    create table a (id int primary key, b_id int references b);
    create table c (id bigint generated always as identity primary key, a_id int references a, at date not null);
    create index on c (at);
    create table d (id int, at date, primary key (id, at)) partition by range (at);
    create table d1 partition of d for values from ('2020-01-01') to ('2021-01-01');
    create table d2 partition of d for values from ('2021-01-01') to ('2022-01-01');
    insert into b (p) select generate_series(1, 50); insert into a select n, n from generate_series(1, 50) n;
    insert into c (a_id, at) select n, date '2020-01-01' + n from generate_series(1, 50) n;
    insert into d select n, date '2020-12-01' + n from generate_series(1, 100) n`);
  const { service, id } = await follow(pair, { options: { cutoverMaxValidationAgeMs: 60_000 } });
  expect((await service.getTask(id)).findings.map(({ code }) => code)).toContain('foreign_key_left_out');
  await service.addTables(id, { add: ['b'] });
  await copied(service, id);
  await pair.source.query(`insert into b (p) values (100); insert into a values (100, 51)`);
  await service.addTables(id, { add: ['c', 'd'] });
  await copied(service, id);
  await pair.source.query(`update d set at = at + 200 where id = 1; delete from c where id = 2`);
  const task = await service.getTask(id);
  expect(task.findings.map(({ code }) => code)).not.toContain('foreign_key_left_out');
  expect(task.spec.tables).toEqual(['a', 'public.b', 'public.c', 'public.d']);
  const { statements } = await service.getSchema(id);
  expect(statements.map(({ n }) => n)).toEqual(statements.map((_, n) => n));
  expect(new Set(statements.map(({ object }) => object)).size).toBe(statements.length);
  // well before the target opens, also what came later: the first queries must not meet plans for empty tables
  const analyzed = `select distinct tablename::text as name from pg_stats where schemaname = 'public' order by 1`;
  const withStatistics = ['a_m', 'b_m', 'c_m', 'd1_m', 'd2_m', 'd_m'];
  await waitFor(async () => (await pair.target.query(analyzed)).rowCount === withStatistics.length);
  expect((await pair.target.query(analyzed)).rows).toEqual(withStatistics.map((name) => ({ name })));
  await waitFor(async () => (await service.getTask(id)).cutoverWaitsFor.length === 0);
  const foreignKeys = `select conname from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace`;
  const forecast = await service.forecastCutover(id);
  expect(forecast).toMatchObject({ blockers: [], targetBlockers: [], problems: [] });
  expect(forecast.writeStopMs).toBeGreaterThan(0);
  expect((await pair.target.query(foreignKeys)).rows).toEqual([]); // rehearsed, and taken back
  await complete(service, id);
  const tables = ['a', 'b', 'c', 'd'].map((name) => [name, `${name}_m`] as const);
  await expectEqualTables(pair.source, pair.target, tables);
  const keys = await pair.target.query(
    `select conrelid::regclass::text || ' ' || confrelid::regclass as k from pg_constraint where contype = 'f' and convalidated order by 1`,
  );
  expect(keys.rows.map(({ k }: { k?: string }) => k)).toEqual(['a_m b_m', 'c_m a_m']);
  expect((await pair.target.query(`insert into b_m (p) values (200) returning id`)).rows).toEqual([
    { id: 52 },
  ]);
  const certificate = await service.getCertificate(id);
  expect(certificate).toMatchObject({ equal: true, schema: { differences: [], equal: true } });
  expect(certificate.writeStop?.predictedMs).toBe(forecast.writeStopMs);
  expect(certificate.sequences.map(({ source }) => source).sort()).toEqual([
    'public.b_id_seq',
    'public.c_id_seq',
  ]);
  expect(certificate.tables).toHaveLength(5);
});

test('a transaction with changes before and behind the publication is waited for, and arrives whole; others are not', async () => {
  const pair = await makePair();
  await pair.source.query('create table a (id int primary key); create table b (id int primary key, v text)');
  const { service, id } = await follow(pair);
  const elsewhere = await pair.source.connect();
  await elsewhere.query('begin; insert into a values (1)');
  const writer = await pair.source.connect();
  await writer.query(`begin; insert into b values (1, 'before')`);
  await service.addTables(id, { add: ['b'] });
  await waitFor(async () =>
    /the publication waits for pid \d+ .*public\.b/.test((await service.getTask(id)).detail.waitingFor ?? ''),
  );
  await writer.query(`insert into b values (2, 'still'); commit`);
  await waitFor(
    async () => (await pair.source.query(`select from pg_publication_tables where tablename = 'b'`)).rowCount,
  );
  await writer.query(`begin; insert into b values (3, 'open')`);
  await copied(service, id);
  await writer.query(`update b set v = 'behind'; commit`);
  await elsewhere.query('commit');
  await pair.source.query(`insert into b values (4, 'later')`);
  await complete(service, id);
  await expectEqualTables(pair.source, pair.target, [
    ['a', 'a_m'],
    ['b', 'b_m'],
  ]);
});

test('of two additions at once one is taken; many tables come at once; cancelled in the middle, nothing is left', async () => {
  const pair = await makePair();
  const names = Array.from({ length: 150 }, (_, n) => `many_${n}`);
  await pair.source.query(
    ['a', ...names]
      .map(
        (name) => `create table ${name} as select g as id from generate_series(1, 3) g;
      alter table ${name} add primary key (id);`,
      )
      .join(''),
  );
  const { service, id } = await follow(pair);
  const outcomes = await Promise.allSettled(
    [['many_1?'], ['many_2?'], ['many_1?']].map((add) => service.addTables(id, { add })),
  );
  expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
  await copied(service, id);
  await service.addTables(id, { add: ['public.many_*'] });
  await copied(service, id);
  const tables = await service.getTables(id);
  expect(tables).toHaveLength(151);
  expect(tables.every(({ state, rowsCopied }) => state === 'ready' && rowsCopied === 3)).toBe(true);
  await pair.source.query('create table last (id int primary key); insert into last values (1)');
  const holder = await pair.source.connect();
  await holder.query('begin; insert into last values (2)');
  await service.addTables(id, { add: ['last'] });
  await waitFor(async () => (await service.getTask(id)).detail.waitingFor?.includes('publication'));
  await service.cancelTask(id, { dropTarget: true });
  await reaches(service, id, 'cancelled');
  await holder.query('rollback');
  expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
  const { rows } = await pair.target.query(
    `select relname from pg_class where relname ~ '_m$' and relkind = 'r'`,
  );
  expect(rows).toEqual([]);
});

test('a partition that the source has got since is added by its name, with its rows and indexes', async () => {
  const pair = await makePair({ source: 13, target: 16 });
  await pair.source.query(`
    create table a (id int, at int, v text, primary key (id, at)) partition by range (at);
    create index a_v on a (v); create unique index a_u on a (at, id);
    create table b (id int primary key, a_id int, a_at int, foreign key (a_id, a_at) references a);
    create table a_1 partition of a for values from (0) to (100);
    create table a_rest partition of a default;
    insert into a select n, n % 100, 'v' || n from generate_series(1, 200) n;
    insert into a select n, n, 'default' from generate_series(101, 399) n; insert into b values (1, 1, 1)`);
  const { service, id } = await follow(pair, { tables: ['a', 'b'] });
  // the rows of the new ranges leave the default partition in a transaction that the target gets after it is asked
  const blocker = await pair.target.connect();
  await blocker.query('begin; lock table a_rest_m');
  await pair.source.query(`delete from a_rest`);
  await pair.source.query(`
    create table a_2 partition of a for values from (100) to (200);
    create table a_3 (v text, at int not null, id int not null, gone int);
    alter table a_3 drop column gone; create index odd on a_3 (v);
    insert into a_3 select 'w' || n, 200 + n % 100, 1000 + n from generate_series(1, 300) n;
    alter table a attach partition a_3 for values from (200) to (300);
    create table a_4 partition of a for values from (300) to (400) partition by range (id);
    create table a_41 partition of a_4 for values from (0) to (1000);
    insert into a values (1, 150, 'new'), (2, 250, 'new'), (3, 350, 'new')`);
  await service.addTables(id, { add: ['a_2', 'a_3', 'a_4'] });
  setTimeout(() => void blocker.end(), 1_500);
  await reaches(service, id, 'syncingWal');
  await pair.source.query(`
    update a set at = at + 200 where id = 7; delete from a where id = 1009 and at > 200;
    insert into a values (1000, 150, 'later'), (1, 250, 'later'), (500, 399, 'later')`);
  await complete(service, id);
  await expectEqualTables(pair.source, pair.target, [
    ['a', 'a_m'],
    ['(select id, at, v from a_3)', '(select id, at, v from a_3_m)'],
    ['a_41', 'a_41_m'],
  ]);
  expect(await service.getCertificate(id)).toMatchObject({
    equal: true,
    schema: { differences: [], equal: true },
  });
});

test('an added table without a key identifies its rows before it is published, and as before afterwards', async () => {
  const pair = await makePair({ source: 13, target: 18 });
  await pair.source.query(`create table a (id int primary key); create table bag (n int, v text);
    insert into bag select n % 5, 'v' from generate_series(1, 100) n`);
  const { service, id } = await follow(pair, { options: { replicaIdentity: 'full' } });
  await service.addTables(id, { add: ['bag'] });
  const change = `update bag set v = 'changed' where ctid = (select min(ctid) from bag where v = 'v');
    delete from bag where ctid = (select max(ctid) from bag); insert into bag values (1, 'new'), (1, 'new')`;
  for (let n = 0; n < 10; n++) await pair.source.query(change); // refused without an identity
  await copied(service, id);
  await pair.source.query(change);
  await complete(service, id);
  await expectEqualTables(pair.source, pair.target, [['bag', 'bag_m']]);
  const { rows } = await pair.source.query(`select relreplident as i from pg_class where relname = 'bag'`);
  expect(rows).toEqual([{ i: 'd' }]);
});
