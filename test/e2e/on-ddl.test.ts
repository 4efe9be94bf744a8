// `options.on_ddl` through the running service: what is provably additive is carried out on the target in order with the
// stream, what is ignored is said, and everything else pauses. Never a silent divergence.
import { expect, test } from 'vitest';
import type { Finding } from '../../src/model/finding.ts';
import { expectEqualTables, rowsOf } from '../support/compare.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import {
  cutOver,
  makeDataDir,
  migrationBody,
  startMigration,
  startService,
  streamForms,
  type ServiceProcess,
} from '../support/service-process.ts';

startServers(15);

const schema = `
  create type public.mood as enum ('b', 'd');
  create table public.t (id int primary key, v text, m public.mood, c varchar(7) default 'c');
  create table public.keyless (v text); alter table public.keyless replica identity full;
  create table public.parts (id int, at int, primary key (id, at)) partition by range (at);
  create table public.parts_1 partition of public.parts for values from (0) to (100);
  create table public.parts_2 partition of public.parts for values from (100) to (200);
  insert into public.t select i, 'v' || i, 'b' from generate_series(1, 500) i;
  insert into public.keyless select 'k' || i % 7 from generate_series(1, 50) i;
  insert into public.parts select i, i % 200 from generate_series(1, 300) i`;

const tables = ['t', 'keyless', 'parts'];
const pairs = tables.map((name) => [`public.${name}`, `public.${name}`] as const);

async function begin(
  pair: DatabasePair,
  service: ServiceProcess,
  options: Record<string, unknown>,
): Promise<string> {
  await pair.source.query(schema);
  return startMigration(service, migrationBody(pair, { tables, options }));
}

/** Rows from before, changed under the old columns and under the new ones. */
async function write(pair: DatabasePair, from: number): Promise<void> {
  for (let n = from; n < from + 30; n++) {
    await pair.source.query(`insert into t (id, v) values (${1000 + n}, 'new ${n}')`);
    await pair.source.query(`update t set v = 'changed ${n}' where id = ${1 + n}`);
    await pair.source.query(`delete from t where id = ${200 + n}`);
    await pair.source.query(`insert into keyless (v) values ('k1')`);
    await pair.source.query(
      `delete from keyless where ctid = (select min(ctid) from keyless where v = 'k${n % 7}')`,
    );
    await pair.source.query(`update parts set at = (at + 90) % 200 where id = ${1 + n}`);
  }
}

const findingsOf = async (service: ServiceProcess, id: string): Promise<string[]> => {
  const { body } = await service.call<{ findings: Finding[] }>('GET', `/migrations/${id}`);
  return body.findings.map(({ code }) => code);
};

async function reachesPaused(
  service: ServiceProcess,
  id: string,
): Promise<{ message: string; hint: string }> {
  const { body } = await waitFor(async () => {
    const answer = await service.call<{
      state: string;
      error: { code: string; message: string; hint: string };
    }>('GET', `/migrations/${id}`);
    return answer.body.state === 'paused' ? answer : null;
  }, 60_000);
  expect(body.error.code).toBe('source_ddl');
  return body.error;
}

test.each([
  [13, 15],
  [16, 18],
] as const)(
  'apply-additive carries columns and enum values from %i to %i, and is killed in between',
  async (from, to) => {
    const pair = await makePair({ source: from, target: to });
    const dataDir = makeDataDir();
    let service = await startService({ dataDir, failpoint: 'ddl.column-added' });
    const id = await begin(pair, service, { on_ddl: 'apply-additive' });
    await service.reaches(id, 'syncingWal');
    await write(pair, 0);
    await pair.source.query(`
    alter table t add column note text;
    alter table t add column at timestamptz not null default now(), add column price numeric(6, 2) default 1.50;
    alter table keyless add column tags text[] default '{a,"b c"}';
    alter table parts add column kind varchar(9) collate "C" not null default 'it''s'`);
    await write(pair, 30);
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await write(pair, 60);
    service = await startService({ dataDir });
    await pair.source.query(`
    alter type mood add value 'a' before 'b'; alter type mood add value 'c' after 'b'; alter type mood add value 'e'`);
    await pair.source.query(`
    update t set m = 'c', note = 'told', price = 2 where id % 2 = 0; update t set m = 'a' where id % 5 = 0;
    alter table t alter column price set default 9; insert into t (id, m) values (5000, 'e')`);
    await write(pair, 90);
    await service.reaches(id, 'syncingWal');
    await waitFor(async () =>
      (await rowsOf(pair.target, 'public.t')).some((row) => row.startsWith('(5000,')),
    );
    const codes = await findingsOf(service, id);
    expect(codes).toContain('column_added');
    expect(codes).toContain('enum_value_added');
    // behind the columns that were carried; the last one is a column of before
    await pair.source.query(`
    alter table t alter column price set default 11, alter column note set default 'later'; alter table keyless alter column tags drop default;
    alter table parts alter column kind set default 'new'; alter table only parts_2 alter column kind set default 'own';
    alter table t alter column c set default 'z'`);
    await cutOver(service, id);
    const defaults = `select attrelid::regclass::text || '.' || attname as column, pg_get_expr(adbin, adrelid) as default
      from pg_attrdef join pg_attribute on attrelid = adrelid and attnum = adnum where attrelid::regclass::text not like 'dts%' order by 1`;
    const source = (await pair.source.query<{ column: string; default: string }>(defaults)).rows;
    const own: Record<string, string> = {
      't.c': `'c'::character varying`,
      'parts_2.kind': `'new'::character varying`,
    };
    expect((await pair.target.query(defaults)).rows).toEqual(
      source.map((row) => ({ ...row, default: own[row.column] ?? row.default })),
    );
    const { body: certificate } = await service.call<{ schema: { differences: string[] } }>(
      'GET',
      `/migrations/${id}/certificate`,
    );
    expect(certificate.schema.differences.toSorted()).toEqual(['TABLE public.parts_2', 'TABLE public.t']);
    await expectEqualTables(pair.source, pair.target, pairs);
    // the defaults are the real ones now, no longer what the rows from before got
    await pair.target.query(`insert into t (id) values (9000)`);
    const { rows } = await pair.target.query<{ fresh: boolean }>(
      `select at > (select max(at) from t where id = 1) as fresh from t where id = 9000`,
    );
    expect(rows).toEqual([{ fresh: true }]);
    await service.call('POST', `/migrations/${id}/unfence`);
  },
);

test('apply-additive takes partitions in, empty or full, while they are written, and is killed on the way', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  const dataDir = makeDataDir();
  let service = await startService({ dataDir, failpoint: 'add.planned' });
  await pair.source.query(schema);
  await pair.source.query('create table public.parts_rest partition of public.parts default');
  const limits = { 'public.parts': { where: 'id % 10 <> 3' } };
  const id = await startMigration(
    service,
    migrationBody(pair, {
      tables: ['parts'],
      table_suffix: '_m',
      options: { on_ddl: 'apply-additive', table: limits, keep_fence: false },
    }),
  );
  await service.reaches(id, 'syncingWal');
  await pair.source.query('insert into parts select i, 250 from generate_series(1, 50) i');
  await pair.source.query(`
    begin; create table parts_full (at int not null, id int not null);
    with moved as (delete from parts_rest where at = 250 returning at, id) insert into parts_full select * from moved;
    alter table parts attach partition parts_full for values from (200) to (300); commit;
    create table parts_new partition of parts for values from (300) to (400)`);
  let writing = true;
  const writer = (async () => {
    for (let n = 0; writing; n++)
      await pair.source.query(
        `insert into parts values (${1000 + n}, ${200 + (n % 250)}); update parts set at = (at + 70) % 450 where id = ${1 + (n % 300)};
         delete from parts where id = ${1000 + n - 7}`,
      );
  })();
  expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
  service = await startService({ dataDir });
  await waitFor(async () => (await findingsOf(service, id)).includes('partition_added'), 60_000);
  await service.reaches(id, 'syncingWal');
  writing = false;
  await writer;
  await cutOver(service, id);
  await expectEqualTables(pair.source, pair.target, [
    ['(select * from parts where id % 10 <> 3)', 'parts_m'],
    ['(select * from parts_full where id % 10 <> 3)', 'parts_full_m'],
    ['(select * from parts_new where id % 10 <> 3)', 'parts_new_m'],
  ]);
});

test.each([
  [13, 15],
  [16, 18],
] as const)(
  'apply-additive widens types from %i to %i, under changes of both, and is killed in between',
  async (from, to) => {
    const pair = await makePair({ source: from, target: to });
    const dataDir = makeDataDir();
    let service = await startService({ dataDir, failpoint: 'ddl.column-widened' });
    await pair.source.query(`
      create table public.w (id int primary key, small smallint, price numeric(6, 2), code varchar(5) collate "C", note varchar(9), n int);
      create table public.wparts (id int, at int, primary key (id, at)) partition by range (at);
      create table public.wparts_1 partition of public.wparts for values from (0) to (100);
      create table public.wparts_2 partition of public.wparts for values from (100) to (200);
      insert into public.w select i, i, i + 0.25, 'c' || i % 99, 'n' || i, i from generate_series(1, 500) i;
      insert into public.wparts select i, i % 200 from generate_series(1, 300) i`);
    const id = await startMigration(
      service,
      migrationBody(pair, { tables: ['w', 'wparts'], options: { on_ddl: 'apply-additive' } }),
    );
    await service.reaches(id, 'syncingWal');
    const writeBoth = async (first: number): Promise<void> => {
      for (let n = first; n < first + 30; n++)
        await pair.source.query(
          `insert into w values (1000 + ${n}, ${n}, ${n}.5, 'x${n}', 'new', ${n}); delete from w where id = 200 + ${n};
           update w set n = n + 1, small = small + 1 where id = 1 + ${n}; update wparts set at = (at + 90) % 200 where id = 1 + ${n}`,
        );
    };
    await writeBoth(0);
    await pair.source.query(`
      alter table w alter column small type int, alter column n type bigint, alter column id type bigint;
      alter table w alter column price type numeric(12, 2), alter column code type varchar(30) collate "C", alter column note type text;
      alter table wparts alter column id type bigint`);
    await writeBoth(30);
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await pair.source.query(`insert into w values
      (5000000000, 70000, 123456789.25, 'longer than before', 'and this one as well', 9000000000)`);
    await pair.source.query('insert into wparts values (5000000000, 7)');
    service = await startService({ dataDir });
    await writeBoth(60);
    await pair.source.query(`alter table w alter column small type bigint, alter column price type numeric`);
    await pair.source.query(`update w set small = 8000000000, price = 1.125 where id = 5000000000`);
    await writeBoth(90);
    await service.reaches(id, 'syncingWal');
    await waitFor(async () =>
      (await rowsOf(pair.target, 'public.w')).some((row) => row.startsWith('(5000000000,8000000000,1.125,')),
    );
    expect(await findingsOf(service, id)).toContain('column_widened');
    const forms = (): boolean[] => streamForms(service);
    // text while an int4 may come for an int8, binary from then on
    if (from >= 14) await waitFor(() => forms().includes(false) && forms().at(-1) === true);
    await writeBoth(120);
    await cutOver(service, id);
    await expectEqualTables(pair.source, pair.target, [
      ['public.w', 'public.w'],
      ['public.wparts', 'public.wparts'],
    ]);
    const { body } = await service.call<{ schema: { equal: boolean; differences: string[] } }>(
      'GET',
      `/migrations/${id}/certificate`,
    );
    expect(body.schema).toMatchObject({ equal: true, differences: [] });
    await service.call('POST', `/migrations/${id}/unfence`);
  },
);

test('what USING made of the rows is found before the target opens, and mended by copying them again', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  const service = await startService({ dataDir: makeDataDir() });
  await pair.source.query(
    'create table t (id int primary key, n int); insert into t select i, i from generate_series(1, 300) i',
  );
  const id = await startMigration(
    service,
    migrationBody(pair, { tables: ['t'], options: { on_ddl: 'apply-additive' } }),
  );
  await service.reaches(id, 'syncingWal');
  await pair.source.query('alter table t alter column n type bigint using n + 1000');
  await pair.source.query('insert into t values (7000, 5000000000)');
  await waitFor(async () => (await rowsOf(pair.target, 'public.t')).includes('(7000,5000000000)'));
  const { body } = await service.call<{ findings: Finding[] }>('GET', `/migrations/${id}`);
  expect(body.findings).toContainEqual(
    expect.objectContaining({ code: 'column_widened', severity: 'warning' }),
  );
  await service.call('POST', `/migrations/${id}/cutover`);
  await waitFor(async () => (await service.status(id)).error?.code === 'validation_failed', 60_000);
  await service.reaches(id, 'syncingWal');
  await service.call('POST', `/migrations/${id}/tables/public.t/recopy`);
  await waitFor(async () => (await rowsOf(pair.target, 'public.t')).includes('(1,1001)'), 60_000);
  await cutOver(service, id);
  await expectEqualTables(pair.source, pair.target, [['public.t', 'public.t']]);
  await service.call('POST', `/migrations/${id}/unfence`);
});

async function expectPause(change: string, hint: RegExp, onDdl: string): Promise<void> {
  const pair = await makePair({ source: 16, target: 18 });
  const service = await startService({ dataDir: makeDataDir() });
  const id = await begin(pair, service, { on_ddl: onDdl });
  await service.reaches(id, 'syncingWal');
  await pair.source.query(change);
  await pair.source.query(`insert into t (id) values (7000)`);
  expect((await reachesPaused(service, id)).hint).toMatch(hint);
  await service.call('POST', `/migrations/${id}/cancel`);
  await waitFor(async () => (await service.status(id)).state === 'cancelled');
}

test.each([
  [
    'a volatile default',
    'alter table t add column r double precision default random()',
    /not one value for all rows/,
  ],
  [
    'values that a dropped default left',
    'alter table t add column r text default gen_random_uuid()::text; alter table t alter column r drop default',
    /rewritten or truncated/,
  ],
  [
    'a generated column',
    'alter table t add column g text generated always as (upper(v)) stored',
    /is generated/,
  ],
  ['an identity', 'alter table t add column i int generated always as identity', /is an identity/],
  ['a renamed enum value', `alter type mood rename value 'd' to 'z'`, /may have been renamed/],
  ['a dropped column', 'alter table t drop column v', /has lost the column v/],
  [
    'a column beside a retyped one',
    'alter table t add column n int; alter table t alter column v type varchar(50)',
    /another type, which is not known to have all values of text/,
  ],
  ['a type of another kind', 'alter table t alter column id type numeric', /another type/],
  ['another collation', 'alter table t alter column c type text collate "POSIX"', /another collation/],
])('apply-additive pauses at %s', (_, change, hint) => expectPause(change, hint, 'apply-additive'));

test.each([
  ['a dropped column', 'alter table t drop column v', /has lost the column v/],
  ['a wider type', 'alter table t alter column id type bigint', /another type/],
])('ignore pauses at %s', (_, change, hint) => expectPause(change, hint, 'ignore'));

test('ignore leaves new columns out, in copy, stream and certificate, and says so', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  const service = await startService({ dataDir: makeDataDir() });
  const id = await begin(pair, service, { on_ddl: 'ignore' });
  await service.reaches(id, 'syncingWal');
  await write(pair, 0);
  await pair.source.query(`alter table t add column r double precision default random();
    alter table keyless add column extra text; alter table parts add column x int default 5`);
  await write(pair, 30);
  await pair.source.query(`update t set r = 5 where id = 7; update keyless set extra = 'x'`);
  // more than a dozen of each: they leave as sets
  await pair.source.query(`update t set r = 1, v = 'set' where id between 300 and 349; delete from t where id > 450 and id < 500;
    insert into t select i, 'set', 'd', 'c', 1 from generate_series(3000, 3050) i; update parts set x = 6, id = id where at < 60`);
  await write(pair, 60);
  await waitFor(async () => (await rowsOf(pair.target, 'public.t')).some((row) => row.startsWith('(1089,')));
  expect(await findingsOf(service, id)).toContain('column_ignored');
  await cutOver(service, id);
  await expectEqualTables(pair.source, pair.target, [
    ['(select id, v, m, c from public.t)', 'public.t'],
    ['(select v from public.keyless)', 'public.keyless'],
    ['(select id, at from public.parts)', 'public.parts'],
  ]);
  const { body } = await service.call<{ equal: boolean; tables: { table: string; columns?: string[] }[] }>(
    'GET',
    `/migrations/${id}/certificate`,
  );
  expect(body.equal).toBe(true);
  expect(body.tables.find(({ table }) => table === 'public.t')?.columns).toEqual(['id', 'v', 'm', 'c']);
  await service.call('POST', `/migrations/${id}/unfence`);
});

test('a task that has paused at DDL goes on when on_ddl is changed', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  const service = await startService({ dataDir: makeDataDir() });
  const id = await begin(pair, service, {});
  await service.reaches(id, 'syncingWal');
  await pair.source.query('alter table t add column note text');
  await write(pair, 0);
  await reachesPaused(service, id);
  const refused = await service.call('PATCH', `/migrations/${id}/options`, { on_ddl: 'always' });
  expect(refused.status).toBe(400);
  const changed = await service.call('PATCH', `/migrations/${id}/options`, { on_ddl: 'apply-additive' });
  expect(changed.status).toBe(200);
  await service.call('POST', `/migrations/${id}/resume`);
  await waitFor(async () => (await service.status(id)).state === 'syncingWal');
  await pair.source.query(`update t set note = 'known' where id = 3`);
  await cutOver(service, id);
  await expectEqualTables(pair.source, pair.target, pairs);
  await service.call('POST', `/migrations/${id}/unfence`);
});

test('a column that was carried comes back with a rollback, and its default goes where the source has dropped it', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  const service = await startService({ dataDir: makeDataDir() });
  const id = await begin(pair, service, { on_ddl: 'apply-additive', reverse: true });
  await service.reaches(id, 'syncingWal');
  await pair.source.query(
    `alter table t add column n int not null default 5, add column o int default 6; alter table t alter column n drop default`,
  );
  await pair.source.query(`insert into t (id, n) values (7000, 1)`);
  await waitFor(async () => (await rowsOf(pair.target, 'public.t')).some((row) => row.startsWith('(7000,')));
  await cutOver(service, id);
  await expectEqualTables(pair.source, pair.target, pairs);
  await expect(pair.target.query('insert into t (id) values (9000)')).rejects.toThrow(
    /null value in column "n"/,
  );
  await pair.target.query('insert into t (id, n) values (9001, 2); update t set n = 3, o = 4 where id = 1');
  const back = `${id}_reverse`;
  await cutOver(service, back);
  await expectEqualTables(pair.source, pair.target, pairs);
  expect((await rowsOf(pair.source, '(select n, o from public.t where id in (1, 9001))')).sort()).toEqual([
    '(2,6)',
    '(3,4)',
  ]);
  await service.call('POST', `/migrations/${id}/finish`);
  await service.reaches(`${id}_forward_2`, 'completed');
  await service.call('POST', `/migrations/${back}/unfence`);
});
