// `options.table` through the running service: some rows and some columns of a table are copied, streamed, validated,
// repaired and certified, while writers move rows in and out of the filter.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { verify } from '../../src/cli/verify.ts';
import type { Finding } from '../../src/model/finding.ts';
import { rowsOf } from '../support/compare.ts';
import { makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import {
  cutOver,
  makeDataDir,
  migrationBody,
  startMigration,
  startService,
  type ServiceProcess,
} from '../support/service-process.ts';

startServers(15, 17);

const schema = `
  create table public.orders (tenant int, id int, secret text default 'x' check (secret <> ''), big text, note text unique,
    serial serial, loud text generated always as (upper(note)) stored, primary key (tenant, id), check (note <> secret));
  alter table public.orders alter column big set storage external;
  create index orders_secret on public.orders (secret);
  create index orders_big on public.orders (id) where big is not null;
  comment on column public.orders.secret is 'not for everybody';
  create table public.lines (order_tenant int, order_id int, line int primary key, what text,
    foreign key (order_tenant, order_id) references public.orders on update cascade);
  create table public.events (at int, kind text, id int, what text, primary key (at, kind, id)) partition by range (at);
  create table public.events_1 partition of public.events for values from (0) to (100);
  create table public.events_2 partition of public.events for values from (100) to (200);
  create table public.logs (level int, what text);
  create unlogged table public.cache (k int primary key, v text, w text)`;

const columns = ['tenant', 'id', 'big', 'note', 'loud'];
const options = {
  replica_identity: 'full',
  part_bytes: 65_536,
  table: {
    'public.orders': { where: 'tenant in (1, 2) and id > 0', columns },
    events: { where: "kind <> 'noise'" },
    'public.logs': { where: "level > 2 or what like 'keep%'" },
    'public.cache': { where: 'k % 2 = 0', columns: ['k', 'v'] },
  },
};

async function load(database: TestDatabase): Promise<void> {
  await database.query(schema);
  await database.query(`
    insert into orders (tenant, id, secret, big, note) select i % 4, i, 's' || i, case when i % 3 = 0 then
      (select string_agg(md5(i || '/' || n), '') from generate_series(1, 150) n) end, 'n' || i from generate_series(1, 1500) i;
    insert into lines select i % 4, i, i, 'l' || i from generate_series(1, 500) i;
    insert into events select i % 200, case when i % 3 = 0 then 'noise' else 'k' || i % 2 end, i, 'e' || i from generate_series(1, 900) i;
    insert into logs select i % 5, case when i % 7 = 0 then 'keep' else 'drop' end from generate_series(1, 300) i;
    insert into cache select i, 'v' || i, 'w' from generate_series(1, 40) i;
    analyze`);
}

/** Rows go out of the filter and come back, without their large values being touched. */
async function churn(source: TestDatabase, from: number): Promise<void> {
  const client = await source.connect();
  for (let n = from; n < from + 120; n++) {
    const id = 1 + ((n * 7) % 1500);
    await client.query(`update orders set tenant = (tenant + 1) % 4 where id = ${id}`);
    await client.query('begin');
    // in and changed, in one transaction; then changed again by the next
    await client.query(`update orders set tenant = 1 where id = ${id + 1}`);
    await client.query(`update orders set note = 'in ${n}' where id = ${id + 1}`);
    await client.query('commit');
    await client.query(`update orders set secret = 'hidden ${n}' where id = ${id + 1}`);
    await client.query(`delete from orders where id = ${900 + n} and tenant = 3 and id > 500`);
    await client.query(`insert into orders (tenant, id, note) values (${n % 4}, ${5000 + n}, 'new ${n}')`);
    await client.query(
      `update events set kind = case kind when 'noise' then 'heard' else 'noise' end, at = (at + 60) % 200 where id = ${1 + (n % 900)}`,
    );
    await client.query(
      `update logs set level = (level + 2) % 5 where ctid = (select ctid from logs order by ctid offset ${n % 200} limit 1)`,
    );
  }
  await client.end();
}

const expected: readonly (readonly [string, string, string])[] = [
  [
    'orders',
    `(select ${columns.join(', ')} from public.orders where tenant in (1, 2) and id > 0)`,
    `(select ${columns.join(', ')} from public.orders)`,
  ],
  ['lines', 'public.lines', '(select order_tenant, order_id, line, what from public.lines)'],
  ['events', `(select * from public.events where kind <> 'noise')`, 'public.events'],
  [
    'logs',
    `(select * from public.logs where level > 2 or what like 'keep%')`,
    '(select level, what from public.logs)',
  ],
  ['cache', '(select k, v from public.cache where k % 2 = 0)', '(select k, v from public.cache)'],
];

async function expectFiltered(pair: DatabasePair): Promise<void> {
  for (const [name, source, target] of expected) {
    const [wanted, found] = [await rowsOf(pair.source, source), await rowsOf(pair.target, target)];
    const [inSource, inTarget] = [new Set(wanted), new Set(found)];
    const missing = wanted.filter((row) => !inTarget.has(row)).slice(0, 5);
    const extra = found.filter((row) => !inSource.has(row)).slice(0, 5);
    expect({ name, rows: found.length, missing, extra }).toEqual({
      name,
      rows: wanted.length,
      missing: [],
      extra: [],
    });
  }
}

interface Validation {
  readonly tables: readonly {
    readonly table: string;
    readonly state: string;
    readonly differences: {
      readonly samples: readonly { readonly key: Readonly<Record<string, string>>; readonly kind: string }[];
    };
  }[];
}

const differencesOf = async (service: ServiceProcess, id: string): Promise<string[]> => {
  const { body } = await service.call<Validation>('GET', `/migrations/${id}/validation`);
  return body.tables.flatMap(({ differences }) =>
    differences.samples.map(({ key, kind }) => `${kind} ${Object.values(key).join('/')}`),
  );
};

test.each([
  [15, 17, 'create'],
  [16, 18, 'create'],
  [16, 18, 'existing'],
] as const)(
  'some rows and columns go from %i to %i, schema %s, in copy and stream alike',
  async (from, to, how) => {
    const pair = await makePair({ source: from, target: to });
    await load(pair.source);
    if (how === 'existing')
      await pair.target.query(`
      create table public.orders (tenant int, id int, big text, note text, loud text generated always as (upper(note)) stored,
        extra int not null default 7, primary key (tenant, id));
      create table public.lines (order_tenant int, order_id int, line int primary key, what text, added text);
      create table public.events (at int, kind text, id int, what text, primary key (at, kind, id)) partition by range (at);
      create table public.events_1 partition of public.events for values from (0) to (100);
      create table public.events_2 partition of public.events for values from (100) to (200);
      create table public.logs (level int, what text, at timestamptz default now());
      create unlogged table public.cache (k int primary key, v text, w text)`);
    const dataDir = makeDataDir();
    let service = await startService({ dataDir });
    const body = migrationBody(pair, {
      tables: ['orders', 'lines', 'events', 'logs', 'cache'],
      options: { ...options, schema: how },
    });
    const preflight = await service.call<{ findings: Finding[] }>('POST', '/preflight', body);
    expect(preflight.body.findings.filter(({ severity }) => severity === 'blocking')).toEqual([]);
    if (how === 'create') {
      const codes = preflight.body.findings.map(({ code }) => code);
      expect(codes).toContain('foreign_key_left_out');
      expect(codes).toContain('column_left_out');
    }
    const id = await startMigration(service, body);
    await churn(pair.source, 0);
    await service.reaches(id, 'syncingWal');
    const churning = churn(pair.source, 120);
    await new Promise((resolve) => setTimeout(resolve, 300)); // rows that were read again have markers by now, or not
    await service.kill();
    service = await startService({ dataDir });
    await churning;
    await service.reaches(id, 'syncingWal');
    if (how === 'create') {
      // what the filter leaves out on the source is surplus on the target
      await pair.target.query(`insert into public.orders (tenant, id, note) values (3, 99999, 'surplus')`);
      await pair.target.query(
        `update public.orders set note = 'damaged' where (tenant, id) = (select tenant, id from public.orders order by id limit 1)`,
      );
      await service.call('POST', `/migrations/${id}/validate`);
      await waitFor(async () => {
        const found = await differencesOf(service, id);
        return found.includes('extra 3/99999') && found.some((each) => each.startsWith('changed'));
      });
      await service.call('POST', `/migrations/${id}/repair`, { table: 'public.orders' });
      await waitFor(async () => (await differencesOf(service, id)).length === 0);
      const recopied = await service.call('POST', `/migrations/${id}/tables/public.orders/recopy`);
      expect(recopied.status).toBe(200);
      await churn(pair.source, 240);
      await service.reaches(id, 'syncingWal');
    }
    await cutOver(service, id);
    const { rows } = await pair.target.query<{ name: string }>(
      `select attname as name from pg_attribute where attrelid = 'public.orders'::regclass and attnum > 0 and not attisdropped order by attnum`,
    );
    const names = how === 'create' ? columns : [...columns, 'extra'];
    expect(rows.map(({ name }) => name)).toEqual(names);
    await expectFiltered(pair);

    const { body: certificate } = await service.call<{
      tables: { table: string; where?: string; columns?: string[] }[];
    }>('GET', `/migrations/${id}/certificate`);
    expect(certificate.tables.find(({ table }) => table === 'public.orders')).toMatchObject({
      where: 'tenant in (1, 2) and id > 0',
      columns,
    });
    const file = join(dataDir, 'certificate.json');
    writeFileSync(file, JSON.stringify(certificate));
    const lines: string[] = [];
    const env = { DTS_SOURCE_URL: pair.source.url, DTS_TARGET_URL: pair.target.url };
    expect(await verify(file, {}, env, (line) => lines.push(line)), lines.join('\n')).toBe(0);
    await pair.target.query(`insert into public.orders (tenant, id) values (3, 77777)`);
    expect(await verify(file, {}, env, () => undefined)).toBe(1);
    await service.call('POST', `/migrations/${id}/unfence`);
  },
);
