// Whole databases through the running service: what comes along besides plain tables, and how much memory many tables
// take.
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { makePair, waitFor } from '../support/databases.ts';
import { cutOver, makeDataDir, migrationBody, startService } from '../support/service-process.ts';
import { verifyCertificateOf } from '../support/verify.ts';

test('views, filled materialized views and unlogged tables arrive with the rows of the write stop', async () => {
  const pair = await makePair();
  await pair.source.query(`
    create table users (id int primary key, name text);
    create unlogged table sessions (token text, user_id int, at timestamptz default now());
    create unlogged table caches (k int primary key, v text generated always as (upper(k::text)) stored);
    create view names as select name from users;
    create materialized view counts as select count(*)::int as n from names;
    create sequence tickets;
    create function whole(users) returns text language sql return ($1).name;
    insert into users select n, 'u' || n from generate_series(1, 100) n;
    insert into sessions select 't' || n, n from generate_series(1, 50) n;
    refresh materialized view counts;
    select nextval('tickets') from generate_series(1, 7)`);
  const service = await startService({ dataDir: makeDataDir() });
  const id = 'whole';
  const body = migrationBody(pair, { id, tables: ['*'], options: { keep_fence: false } });
  expect((await service.call('POST', '/migrations', body)).status).toBe(201);
  await service.call('POST', `/migrations/${id}/start`);
  await service.reaches(id, 'syncingWal');
  await pair.source.query(`insert into users values (101, 'late'); delete from sessions where user_id > 30;
    insert into sessions values ('late', 101); insert into caches values (1), (2)`);
  await cutOver(service, id);
  await service.reaches(id, 'completed');
  const { body: task } = await service.call('GET', `/migrations/${id}`);
  expect(task).toMatchObject({
    certificate: { equal: true, schema: { equal: true, error: null } },
    findings: expect.arrayContaining([
      expect.objectContaining({ code: 'table_unlogged', severity: 'warning', object: 'public.sessions' }),
    ]) as unknown,
  });
  // what the service still did to either side after it had made the certificate is no change
  const { body: certificate } = await service.call('GET', `/migrations/${id}/certificate`);
  expect(await verifyCertificateOf(pair, certificate)).toEqual({
    code: 0,
    lines: [
      'ok      public.users: 101 rows',
      'ok      public.caches: 2 rows',
      'ok      public.sessions: 31 rows',
      'ok      large objects: 0',
      'the certificate holds',
    ],
  });
  const { rows } = await pair.target.query(`
    select (select n from counts) as counted, (select count(*)::int from names) as names,
      (select count(*)::int from sessions) as sessions, (select max(token) from sessions where user_id > 30) as late,
      (select string_agg(v, ',' order by k) from caches) as cached, nextval('tickets')::int as ticket,
      (select string_agg(relpersistence::text, '' order by relname) from pg_class
        where relname in ('users', 'sessions', 'caches')) as persistence`);
  expect(rows).toEqual([
    { counted: 101, names: 101, sessions: 31, late: 'late', cached: '1,2', ticket: 8, persistence: 'uup' },
  ]);
  expect((await service.call('DELETE', `/migrations/${id}`)).status).toBe(204);
});

test('2,000 tables are created within 300 MB', async () => {
  const pair = await makePair({ source: 18 });
  const table = `create table t%s (id int primary key, a text not null default '''', b numeric(10,2) check (b > 0)); create index on t%s (a)`;
  for (let from = 0; from < 2_000; from += 250)
    await pair.source.query(
      `do $$ begin for n in ${from}..${from + 249} loop execute format('${table}', n, n); end loop; end $$`,
    );
  const service = await startService({ dataDir: makeDataDir() });
  const id = 'many';
  await service.call('POST', '/migrations', migrationBody(pair, { id, tables: ['*'] }));
  await service.call('POST', `/migrations/${id}/start`);
  await waitFor(async () => (await service.status(id)).state === 'migratingData', 110_000, 'creatingTables');
  const made = await pair.target.query(
    `select 1 from pg_class where relkind = 'r' and relname ~ '^t[0-9]+$'`,
  );
  expect(made.rowCount).toBe(2_000);
  // the highest resident size since the start, the worker that ran pg_dump included (proc(5))
  const status = await readFile(`/proc/${service.pid}/status`, 'utf8').catch(() => null);
  if (status !== null) expect(Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) / 1024).toBeLessThan(300);
  await service.call('POST', `/migrations/${id}/cancel`);
  await waitFor(async () => (await service.status(id)).state === 'cancelled', 60_000, 'cancelling');
});
