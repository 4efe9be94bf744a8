// `dts verify`: a certificate holds for as long as nobody changes what it says, and names what has become of the rest.
import { expect, test } from 'vitest';
import { liftFence } from '../../src/cutover/clean-up.ts';
import { armFence, installFence } from '../../src/cutover/fence.ts';
import { prepareTarget } from '../../src/cutover/prepare-target.ts';
import { certificateHash } from '../../src/model/certificate-hash.ts';
import type { Certificate } from '../../src/model/certificate.ts';
import { cutoverNotes, type DrainNote } from '../../src/model/cutover-notes.ts';
import { ensureBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { slotNote, type SlotRecord } from '../../src/postgres/slot-record.ts';
import { sourceSystem } from '../../src/postgres/source-system.ts';
import { saveSchemaPlan, schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { compareTables } from '../../src/validate/compare.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makePair, makeRole, type DatabasePair } from '../support/databases.ts';
import { makeScope } from '../support/scope.ts';
import { settleTask } from '../support/settle.ts';
import { verifyCertificateOf, type Verified } from '../support/verify.ts';

const sourceDdl = `
  create table users (id int primary key, name text not null default 'nobody', secret text, check (id > 0));
  create index users_name on users (name);
  create table orders (id int primary key, tenant int, user_id int references users);
  create table days (day date primary key, n int) partition by range (day);
  create table days_1 partition of days for values from ('2026-01-01') to ('2026-02-01');
  create table notes (day date references days, note text);
  create function stamp() returns trigger language plpgsql as 'begin return new; end';
  create trigger stamp before update on users for each row execute function stamp();
  create sequence s; create sequence down increment -1;
  insert into users select n, 'u' || n, 'x' from generate_series(1, 9) n;
  insert into orders select n, n % 2, n from generate_series(1, 9) n;
  insert into days values ('2026-01-07', 1);
  select setval('s', 5), setval('down', -5)`;
// what `schema: existing` lets differ, and options.table: other indexes, a further column, one left out, some rows
const targetDdl = `
  create schema new;
  create table new.users (id int primary key, name text, further text);
  create table new.orders (id int primary key, tenant int, user_id int);
  create table new.days (day date, n int) partition by range (day);
  create table new.days_1 partition of new.days for values from ('2026-01-01') to ('2026-02-01');
  create table new.notes (day date, note text);
  create sequence s; create sequence down increment -1;
  insert into new.users select n, 'u' || n from generate_series(1, 9) n;
  insert into new.orders select n, 1, n from generate_series(1, 9, 2) n;
  insert into new.days_1 values ('2026-01-07', 1)`;

interface Certified {
  readonly pair: DatabasePair;
  readonly certificate: Certificate;
  /** Verifies the certificate as `change` makes it. */
  check(change?: Partial<Certificate>, env?: NodeJS.ProcessEnv): Promise<Verified>;
}

/** A migration that is over, its fence lifted. */
async function certified(): Promise<Certified> {
  const pair = await makePair({ source: 13 });
  await pair.source.query(sourceDdl);
  await pair.target.query(targetDdl);
  const scope = makeScope(pair);
  await planFromCatalog(scope);
  const plan = schemaPlanOf(scope);
  saveSchemaPlan(scope, {
    ...plan,
    tables: plan.tables.map((table) => ({
      ...table,
      target: { schema: 'new', name: table.source.name },
      ...(table.source.name === 'orders' && { where: 'tenant in (1, 3)' }),
      ...(table.source.name === 'users' && {
        columns: table.columns.filter(({ name }) => name !== 'secret'),
        leftOut: ['secret'],
      }),
    })),
    roots: plan.roots.map(({ source }) => ({ source, target: { schema: 'new', name: source.name } })),
    statements: ['never check (tenant <> 1)', 'positive check (id > 0)'].map((constraint, n) => ({
      n,
      phase: 'foreign-key' as const,
      sql: `alter table new.orders add constraint ${constraint} not valid`,
      object: 'CONSTRAINT',
      table: null,
      creates: null,
    })),
  });
  scope.checkpoints.set(slotNote, {
    name: 'none',
    incarnation: 'none',
    consistentLsn: '0/0',
    system: await sourceSystem(scope),
  } satisfies SlotRecord);
  await ensureBookkeeping(scope);
  await installFence(scope);
  await armFence(scope);
  scope.checkpoints.set(cutoverNotes.drain, { markerId: 'm', markerLsn: 'FF/0' } satisfies DrainNote);
  await compareTables(scope);
  await prepareTarget(scope);
  const { certificate } = await settleTask(scope);
  await liftFence(scope); // takes the triggers of the fence away
  const check: Certified['check'] = (change = {}, env = {}) => {
    const changed = { ...certificate, ...change };
    return verifyCertificateOf(pair, { ...changed, hash: certificateHash(changed) }, env);
  };
  return { pair, certificate, check };
}

const rows = [
  'ok      public.notes → new.notes: 0 rows',
  'ok      public.orders → new.orders: 5 rows',
  'ok      public.users → new.users: 9 rows',
  'ok      public.days_1 → new.days_1: 1 rows',
];

function failed({ code, lines }: Verified): string[] {
  expect(code).toBe(1);
  return lines.filter((line) => line.startsWith('FAILED'));
}

test('a certificate holds while nothing has changed, whatever differed between the sides when it was made', async () => {
  const { pair, certificate, check } = await certified();
  const holds = { code: 0, lines: [...rows, 'the certificate holds'] };
  expect(await check()).toEqual(holds);
  // what a table may see without being changed
  await pair.target.query('alter table new.orders validate constraint positive');
  await expect(
    pair.source.query('create unique index concurrently fails on orders (tenant)'),
  ).rejects.toMatchObject({ code: '23505' });
  await pair.source.query('reindex index users_name');
  await pair.source.query('vacuum full users');
  await pair.source.query(
    `create table days_2 partition of days for values from ('2026-02-01') to ('2026-03-01')`,
  );
  await pair.target.query('create view seen as select * from new.users');
  await pair.target.query('alter table new.users replica identity full');
  expect(await check()).toEqual(holds);

  // one of an earlier version says less, and holds
  const tables = certificate.tables.map(({ structure: _, ...table }) => table);
  const older = { tables, digests: undefined as never, servers: undefined as never };
  expect(await check(older)).toEqual({
    code: 0,
    lines: [
      ...rows,
      'note    whether these are the certified servers is not known: the certificate does not name its servers',
      `note    structure was not looked at: the certificate has no structure of the source's tables`,
      `note    structure was not looked at: the certificate has no structure of the target's tables`,
      'the certificate holds',
    ],
  });
  // another major may print the same in other words: no alarm
  await pair.source.query('alter table users alter name set default 1');
  expect(await check({ sourceVersion: '12.9 (Debian 12.9-1)' })).toEqual({
    code: 0,
    lines: [
      ...rows,
      'note    structure was not looked at: the source was PostgreSQL 12 and is 13',
      'the certificate holds',
    ],
  });
  // what was known from the beginning is told, and is no fault of today
  await pair.source.query(`alter table users alter name set default 'nobody'`);
  const schema = { equal: false, statements: 9, differencesTotal: 1, differences: ['INDEX x'], error: null };
  expect((await check({ schema })).lines.at(-2)).toBe(
    'note    the schemas had 1 differences when it was certified: INDEX x',
  );
});

test('the certificate names its two databases without a secret, and does not hold of others', async () => {
  const role = await makeRole(18);
  const { pair, certificate, check } = await certified();
  const { rows: systems } = await pair.source.query<{ id: string }>(
    'select system_identifier::text as id from pg_control_system()',
  );
  const { source, target } = certificate.servers ?? expect.unreachable();
  expect(source).toEqual({
    host: '127.0.0.1',
    port: pair.source.port,
    dbname: pair.source.dbname,
    systemIdentifier: systems[0]?.id,
  });
  expect(target).toEqual({
    host: '127.0.0.1',
    port: pair.target.port,
    dbname: pair.target.dbname,
    systemIdentifier: expect.stringMatching(/^\d+$/) as unknown,
  });
  expect(target.systemIdentifier).not.toBe(source.systemIdentifier);
  for (const secret of ['postgres', pair.source.password, pair.target.password])
    expect(JSON.stringify(certificate)).not.toContain(secret);

  const other = await makePair({ source: 13 });
  expect(failed(await check({}, { DTS_SOURCE_URL: other.source.url }))).toContain(
    `FAILED  the source is another one: database ${other.source.dbname}, certified ${source.dbname}`,
  );
  // the address may be another
  const elsewhere = { ...source, host: '10.0.0.1', port: 1 };
  expect((await check({ servers: { source: elsewhere, target } })).code).toBe(0);
  const clone = { ...target, systemIdentifier: '1', dbname: 'shop' };
  expect(failed(await check({ servers: { source, target: clone } }))).toEqual([
    `FAILED  the target is another one: system identifier ${target.systemIdentifier}, certified 1; database ${target.dbname}, certified shop`,
  ]);
  const untold = { source: { ...source, systemIdentifier: null }, target };
  expect(await check({ servers: untold })).toEqual({
    code: 0,
    lines: [
      ...rows,
      'note    whether these are the certified servers is not known: the certificate has no system identifier of the source',
      'the certificate holds',
    ],
  });
  // as managed servers refuse it
  await pair.target.query(`revoke execute on function pg_control_system() from public; grant usage on schema new to ${role};
    grant select on all tables in schema new to ${role}; grant select on all sequences in schema public to ${role}`);
  const url = `postgresql://${role}:secret@127.0.0.1:${pair.target.port}/${pair.target.dbname}?sslmode=disable`;
  expect(await check({}, { DTS_TARGET_URL: url })).toEqual({
    code: 0,
    lines: [
      ...rows,
      'note    whether these are the certified servers is not known: the target does not tell its system identifier',
      'the certificate holds',
    ],
  });
});

test('one database for both sides is an error, but for a migration within one database', async () => {
  const { pair, certificate, check } = await certified();
  const { source } = certificate.servers ?? expect.unreachable();
  const twice = { DTS_TARGET_URL: pair.source.url };
  expect(await check({}, twice)).toEqual({
    code: 2,
    lines: [
      expect.stringContaining(
        `source and target are one database, which would be compared with itself: ${source.dbname} of system identifier ${source.systemIdentifier}`,
      ) as unknown,
    ],
  });
  await pair.source.query(targetDdl.replace(/create sequence.*/, ''));
  expect(await check({ servers: { source, target: source } }, twice)).toEqual({
    code: 0,
    lines: [
      ...rows,
      'note    structure was not looked at: the target was PostgreSQL 18 and is 13',
      'the certificate holds',
    ],
  });
});

test('a table whose columns, constraints, indexes or triggers have changed since does not hold, on either side', async () => {
  const { pair, check } = await certified();
  const changes: readonly (readonly [
    'source' | 'target',
    there: string,
    back: string,
    ...parts: string[],
  ])[] = [
    ['source', 'drop index users_name', 'create index users_name on users (name)', 'indexes'],
    ['target', 'create index more on new.users (name)', 'drop index new.more', 'indexes'],
    [
      'source',
      'alter table users alter name drop not null',
      'alter table users alter name set not null',
      'columns',
    ],
    [
      'source',
      'alter table users disable trigger stamp',
      'alter table users enable trigger stamp',
      'triggers',
    ],
    [
      'target',
      `alter table new.users alter further set default 'f'`,
      'alter table new.users alter further drop default',
      'columns',
    ],
    [
      'source',
      'alter table users drop constraint users_id_check',
      'alter table users add constraint users_id_check check (id > 0)',
      'constraints',
    ],
    [
      'target',
      'alter table new.users alter id type bigint',
      'alter table new.users alter id type int',
      'columns',
    ],
    [
      'target',
      'alter table new.users drop constraint users_pkey',
      'alter table new.users add primary key (id)',
      'constraints',
    ],
  ];
  for (const [role, there, back, ...parts] of changes) {
    await pair[role].query(there);
    const table = role === 'source' ? 'public.users' : 'new.users';
    expect(failed(await check()), there).toEqual([
      `FAILED  structure of ${table} on the ${role}: its ${parts.join(' and ')} have changed since`,
    ]);
    await pair[role].query(back);
    expect((await check()).code, back).toBe(0);
  }
});

test('tables, columns and sequences that are gone are checks that fail, and the others are checked all the same', async () => {
  const { pair, check } = await certified();
  await pair.target.query(`drop table new.notes; alter table new.users rename name to title; drop sequence s;
    drop sequence down; create table down (last_value int)`);
  await pair.source.query(`alter table orders alter tenant type text; drop table notes`);
  const { code, lines } = await check();
  expect(code).toBe(1);
  expect(lines).toEqual([
    `FAILED  public.notes → new.notes: source: relation "public.notes" does not exist; target: relation "new.notes" does not exist`,
    'FAILED  public.orders → new.orders: source: operator does not exist: text = integer',
    'FAILED  public.users → new.users: target: column t.name does not exist',
    rows[3],
    'FAILED  structure of public.orders on the source: its columns have changed since',
    'FAILED  structure of new.users on the target: its columns have changed since',
    'FAILED  sequence public.down: it is gone on the target',
    'FAILED  sequence public.s: it is gone on the target',
    'the certificate does not hold',
  ]);
  await pair.target.query('drop schema new cascade');
  expect(failed(await check()).filter((line) => line.includes('relation "new.'))).toHaveLength(4);
});

test('a server that is away, and a table that may not be read, could not be checked', async () => {
  const role = await makeRole(18);
  const { pair, check } = await certified();
  await pair.target.query(`grant usage on schema new to ${role}`);
  const at = (user: string, port: number): NodeJS.ProcessEnv => ({
    DTS_TARGET_URL: `postgresql://${user}:secret@127.0.0.1:${port}/${pair.target.dbname}?sslmode=disable`,
  });
  expect(await check({}, at(role, pair.target.port))).toEqual({
    code: 2,
    lines: [expect.stringContaining('insufficient_privilege') as string],
  });
  expect(await check({}, at('postgres', 1))).toEqual({
    code: 2,
    lines: [expect.stringContaining('connection_failed') as string],
  });
});

test('a sequence that would hand out a value once more does not hold; one that is ahead does', async () => {
  const { pair, check } = await certified();
  for (const [position, fault] of [
    [`'s', 5, false`, 'public.s: it would hand out 5 once more'],
    [`'s', 4`, 'public.s: 4 is behind 5'],
    [`'s', 6, false`, null],
    [`'s', 5`, null],
    [`'down', -5, false`, 'public.down: it would hand out -5 once more'],
    [`'down', -4`, 'public.down: -4 is behind -5'],
    [`'down', -6`, null],
  ] as const) {
    await pair.target.query(`select setval(${position})`);
    const checked = await check();
    if (fault === null) expect(checked.code, position).toBe(0);
    else expect(failed(checked), position).toEqual([`FAILED  sequence ${fault}`]);
  }
});
