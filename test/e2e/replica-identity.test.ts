// `options.replica_identity: full`: tables without a key are migrated while duplicates of their rows come and go one by
// one, and have the replica identity that they had before when the task has ended, whatever ended it.
import { expect, test } from 'vitest';
import type { Finding } from '../../src/model/finding.ts';
import { expectEqualTables } from '../support/compare.ts';
import { startServers } from '../support/extra-servers.ts';
import { makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import {
  makeDataDir,
  migrationBody,
  startMigration,
  startService,
  type ServiceProcess,
} from '../support/service-process.ts';

startServers(15, 17);

const tables = `
  create table public.bag (a int, b text, c double precision, d json, big text);
  create table public.silent (a int); alter table public.silent replica identity nothing;
  create table public.keyed (id int primary key, v int);
  create table public.parts (at int, what text) partition by range (at);
  create table public.parts_1 partition of public.parts for values from (0) to (100);
  create table public.parts_2 partition of public.parts for values from (100) to (200);
  insert into public.bag select i % 5, nullif('v' || i % 3, 'v0'), case i % 4 when 0 then 'NaN' when 1 then -0.0 else i % 2 end,
    '{"a":  1}', case when i % 10 = 0 then repeat('x', 9000) end from generate_series(1, 400) i;
  insert into public.silent select i % 3 from generate_series(1, 50) i;
  insert into public.keyed select i, i from generate_series(1, 50) i;
  insert into public.parts select i % 200, 'p' || i % 2 from generate_series(1, 400) i`;

const names = ['bag', 'silent', 'keyed', 'parts'];
const pairs = names.map((name) => [`public.${name}`, `public.${name}`] as const);

const identities = async (database: TestDatabase): Promise<string> =>
  (
    await database.query<{ all: string }>(
      `select string_agg(relname || ' ' || relreplident::text, ', ' order by relname) as all from pg_class
       where relnamespace = 'public'::regnamespace and relkind = 'r'`,
    )
  ).rows[0]?.all ?? '';

const before = 'bag d, keyed d, parts_1 d, parts_2 d, silent n';
const during = 'bag f, keyed d, parts_1 f, parts_2 f, silent f';

/** Single rows among equal ones, rows that move between partitions, values that are not sent again. */
async function churn(source: TestDatabase, seed: number): Promise<void> {
  const one = (table: string, n: number): string =>
    `ctid = (select ctid from ${table} order by a, ctid offset ${n} limit 1)`;
  for (let n = seed; n < seed + 60; n++) {
    await source.query(`update bag set a = a + 1 where ${one('bag', n % 97)}`);
    await source.query(`update bag set b = null, c = 'NaN' where ${one('bag', n % 89)}`);
    await source.query(`delete from bag where ${one('bag', n % 83)}`);
    await source.query(`insert into bag (a, b) select 1, 'v1' from generate_series(1, 2)`);
    await source.query(`delete from silent where ${one('silent', n % 20)}`);
    await source.query(`insert into silent values (2), (2), (null)`);
    await source.query(
      `update parts set at = (at + 50) % 200 where (tableoid, ctid) = (select tableoid, ctid from parts order by at offset ${n % 150} limit 1)`,
    );
    await source.query(`update keyed set v = v + 1 where id = ${1 + (n % 50)}`);
  }
}

async function begin(pair: DatabasePair, service: ServiceProcess): Promise<string> {
  const body = migrationBody(pair, { tables: names, options: { replica_identity: 'full' } });
  return startMigration(service, body);
}

test.each([
  [13, 15],
  [16, 18],
] as const)(
  'keyless tables of %i arrive on %i row by row, and get their replica identity back; killed twice',
  async (from, to) => {
    const pair = await makePair({ source: from, target: to });
    await pair.source.query(tables);
    const dataDir = makeDataDir();
    let service = await startService({ dataDir, failpoint: 'identity.full' });
    const body = migrationBody(pair, { tables: names });
    const blocked = await service.call<{ findings: Finding[] }>('POST', '/preflight', body);
    const found = blocked.body.findings.filter(({ severity }) => severity === 'blocking');
    expect(found.map(({ object }) => object).sort()).toEqual([
      'public.bag',
      'public.parts_1',
      'public.parts_2',
      'public.silent',
    ]);
    for (const { remedy } of found) expect(remedy).toContain('options.replica_identity: full');

    const id = await begin(pair, service);
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
    expect(await identities(pair.source)).toBe(during);
    service = await startService({ dataDir, failpoint: 'finalize.before-source-cleanup' });
    await churn(pair.source, 0);
    await service.reaches(id, 'syncingWal');
    expect(await identities(pair.source)).toBe(during);
    await churn(pair.source, 60);
    await service.call('POST', `/migrations/${id}/cutover`).catch(() => null); // it may die
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
    service = await startService({ dataDir });
    await service.reaches(id, 'completed');
    await expectEqualTables(pair.source, pair.target, pairs);
    expect(await identities(pair.source)).toBe(before);
    const { body: schema } = await service.call<{ comparison: { equal: boolean; differences: unknown[] } }>(
      'GET',
      `/migrations/${id}/schema`,
    );
    expect(schema.comparison.differences).toEqual([]);
    await service.call('POST', `/migrations/${id}/unfence`);
  },
);

test.each([
  ['cancel', 'cancelled'],
  ['abandon', 'failed'],
] as const)('%s gives the replica identities back', async (command, state) => {
  const pair = await makePair({ source: 15, target: 17 });
  await pair.source.query(tables);
  const service = await startService({ dataDir: makeDataDir() });
  const id = await begin(pair, service);
  await service.reaches(id, 'syncingWal');
  expect(await identities(pair.source)).toBe(during);
  await service.call('POST', `/migrations/${id}/${command}`);
  await waitFor(async () => (await service.status(id)).state === state);
  expect(await identities(pair.source)).toBe(before);
});

test('a table that another publication needs keeps replica identity full until that is gone', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  await pair.source.query(tables);
  const service = await startService({ dataDir: makeDataDir(), env: { DTS_CLEANUP_INTERVAL: '500ms' } });
  const id = await begin(pair, service);
  await service.reaches(id, 'syncingWal');
  await pair.source.query(
    'create publication theirs for table bag; alter table silent replica identity default',
  );
  await service.call('POST', `/migrations/${id}/cancel`);
  await waitFor(async () => (await service.status(id)).state === 'cancelled');
  const { body } = await service.call<{ cleanup_pending: boolean; error: { code: string; message: string } }>(
    'GET',
    `/migrations/${id}`,
  );
  expect(body).toMatchObject({ cleanup_pending: true, error: { code: 'replica_identity_in_use' } });
  expect(body.error.message).toContain('public.bag');
  expect(await identities(pair.source)).toBe('bag f, keyed d, parts_1 d, parts_2 d, silent d');
  await pair.source.query('update bag set a = 1 where a = 2; drop publication theirs');
  await waitFor(async () => (await identities(pair.source)).startsWith('bag d'));
});
