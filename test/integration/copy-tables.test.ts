// The whole copy against real servers: every type, every way to stop it, and what a rerun keeps.
import pg from 'pg';
import { describe, expect, it, onTestFinished } from 'vitest';
import { copyTables } from '../../src/copy/copy-tables.ts';
import type { MigrationError } from '../../src/model/errors.ts';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { lsnToBigint } from '../../src/model/lsn.ts';
import { isVisible, parsePgSnapshot } from '../../src/model/pg-snapshot.ts';
import { waitForFlush } from '../../src/postgres/copy-flush.ts';
import { isCopyComplete } from '../../src/postgres/copy-state.ts';
import { contentOf, makePlan, onBoth, prepareCopy } from '../support/copy-plan.ts';
import { makePair, waitFor, type TestDatabase } from '../support/databases.ts';
import { startForgetfulServer } from '../support/extra-servers.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

async function failureOf(work: Promise<unknown>): Promise<MigrationError> {
  return work.then(
    () => Promise.reject(new Error('it did not fail')),
    (error: unknown) => error as MigrationError,
  );
}

/** Only sessions of the copy: the pool of a scope lives as long as its task. */
async function openSessions(database: TestDatabase): Promise<string[]> {
  const { rows } = await database.query<{ name: string }>(
    `select application_name as name from pg_stat_activity
      where datname = current_database() and application_name ~ '^dts/.*/(holder|copy|index)$'`,
  );
  return rows.map(({ name }) => name);
}

async function expectNothingOpen(...databases: readonly TestDatabase[]): Promise<void> {
  for (const database of databases)
    await waitFor(async () => (await openSessions(database)).length === 0, 5_000, 'sessions closed');
}

function failAt(scope: TestScope, name: Failpoint, times = 1): void {
  let left = times;
  Object.assign(scope, {
    failpoint: (reached: Failpoint) => {
      if (reached === name && --left === 0) throw new Error(`failpoint ${name}`);
    },
  });
}

const stableColumns = `
  b bool, by bytea, n numeric, nn numeric(12,3), r real, d double precision, tz timestamptz, ts timestamp, da date,
  ti time, tiz timetz, iv interval, j json, jb jsonb, ia int[], ta text[], na numeric[], m public.mood, dom public.positive,
  bi bit(5), bv bit varying, ip inet, ci cidr, mac macaddr, u uuid, mo money, ch char(5), vc varchar(10), t text,
  c1 "char", pt point, bx box, pa path, nm name, lsn pg_lsn`;
const unstableColumns = `
  ir int4range, dr daterange, tsr tstzrange, tsv tsvector, tsq tsquery, pair public.pair, pairs public.pair[],
  moods public.mood[], doms public.positive[], x xml, rc regclass, jp jsonpath`;
const types = `
  create type mood as enum ('sad', 'so so', 'it''s "fine"');
  create domain positive as int check (value > 0);
  create type pair as (a int, b text);`;

/** Rows with the extremes of every type; the second half of the list is for the text format only. */
function oddRows(withUnstable: boolean): string {
  const unstable = withUnstable
    ? `, case n % 3 when 0 then 'empty'::int4range when 1 then int4range(n, null) else '[1,5)' end,
        daterange('2020-01-01', 'infinity'), tstzrange(null, now()), to_tsvector('simple', 'the b''ird a:3B ' || n),
        to_tsquery('simple', 'a & !(b | c)'), row(n, e'q"\\\\ \\t,')::public.pair,
        array[row(1, null)::public.pair, null, row(2, '')::public.pair], array['sad', null]::public.mood[],
        array[1, null, 3]::public.positive[], '<a b="1">é&amp;</a>'::xml, 'pg_catalog.pg_class'::regclass, '$.a[*] ? (@ > 1)'::jsonpath`
    : '';
  return `
    insert into odd select n, n % 2 = 0, decode(md5(n::text) || '00ff5c0a', 'hex'),
      (array['NaN', '-0.000', '1e-400', '12345678901234567890.123456789', '0'])[1 + n % 5]::numeric, n / 7.0,
      (array['NaN', 'Infinity', '-Infinity', '3.4028235e38', '1e-45', '-0', '0.1'])[1 + n % 7]::real,
      (array['NaN', 'Infinity', '-Infinity', '1.7976931348623157e308', '5e-324', '-0', '0.1'])[1 + n % 7]::float8,
      (array['infinity', '-infinity', '4713-01-01 00:00 BC', '294276-12-31 23:59:59.999999', '2024-02-29 12:00+05:30'])[1 + n % 5]::timestamptz,
      (array['infinity', '-infinity', '2024-02-29 12:00:00.000001'])[1 + n % 3]::timestamp,
      (array['infinity', '-infinity', '4713-01-01 BC', '5874897-12-31'])[1 + n % 4]::date, '24:00:00', '23:59:59.999999-15:59',
      (array['-1 mons +2 days -03:04:05.678', '178000000 years', '0'])[1 + n % 3]::interval, '{"a" : 1, "a": "\\u00e9\\\\"}',
      ('{"n": 12345678901234567890.10, "k": [null, {"ü": "\\""}], "i": ' || n || '}')::jsonb,
      case n % 4 when 0 then null when 1 then '{}' when 2 then '[0:1][2:3]={{1,NULL},{3,4}}' else array[n] end::int[],
      array['', null, 'NULL', 'a"b', e'\\\\', '{,}', e'\\n'], array['NaN', null, 1.50]::numeric[],
      (array['sad', 'so so', 'it''s "fine"'])[1 + n % 3]::public.mood, n, b'10101', b'1', '::ffff:1.2.3.4/128', '10.0.0.0/8',
      '08:00:2b:01:02:03', md5(n::text)::uuid, '-92233720368547758.08', 'ab', 'xyz',
      case n % 6 when 0 then '' when 1 then null when 2 then e'\\\\N' when 3 then e'tab\\t nl\\n cr\\r bs\\b \\\\. \\x01\\x1f\\x7f'
        when 4 then e'\\\\.' else repeat('é🐘', n) end,
      'c', '(1e-300,-0)', '((1,2),(3,4))', '[(0,0),(1,NaN)]', 'näme', '16/B374D848'${unstable}
    from generate_series(1, 300) n`;
}

describe.each([13, 16] as const)('from %i to 18', (major) => {
  it.each([
    ['binary', stableColumns, false],
    ['text', `${stableColumns}, ${unstableColumns}`, true],
  ] as const)('every value arrives as it was: %s', async (format, columns, withUnstable) => {
    const pair = await makePair({ source: major });
    const { rows: xml } = await pair.source.query<{ ok: boolean }>(
      `select exists (select from pg_config() where name = 'CONFIGURE' and setting like '%libxml%') as ok`,
    );
    await onBoth(pair, types);
    await onBoth(pair, `create table odd (id int, ${columns})`);
    const insert = oddRows(withUnstable);
    await pair.source.query(xml[0]?.ok ? insert : insert.replace(/'[^']*'::xml/, 'null'));
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['odd']));
    await copyTables(scope);
    expect(await contentOf(pair.target, 'odd')).toEqual(await contentOf(pair.source, 'odd'));
    const shown = scope.tables.get('public.odd');
    expect(shown).toMatchObject({ format, state: 'ready', rowsCopied: 300, partsDone: 1, partsTotal: 1 });
    expect(shown?.formatReason).toBeTruthy();
    expect(isCopyComplete(scope)).toBe(true);
  });

  it('tables without rows, without columns, with odd names, identity and generated columns', async () => {
    const pair = await makePair({ source: major });
    await onBoth(
      pair,
      `create schema "Sp ace";
       create table empty (id int primary key); create table bare ();
       create table "Sp ace"."T""q.t" ("a b" int, "É""\\" text, "select" int);
       create table ident (id int generated always as identity, d int generated by default as identity, v int,
                           g int generated always as (v * 2) stored);
       create table gone (a int, b int, c int); alter table gone drop column b;`,
    );
    await pair.source.query(`
      insert into bare select from generate_series(1, 7);
      insert into "Sp ace"."T""q.t" select n, n::text, null from generate_series(1, 9) n;
      insert into ident (id, d, v) overriding system value select n * 10, n, n from generate_series(1, 5) n;
      insert into gone select n, n from generate_series(1, 3) n`);
    const scope = makeScope(pair);
    const names = ['empty', 'bare', { schema: 'Sp ace', name: 'T"q.t' }, 'ident', 'gone'];
    await prepareCopy(scope, await makePlan(pair.source, names));
    await copyTables(scope);
    for (const table of ['empty', 'bare', '"Sp ace"."T""q.t"', 'ident', 'gone'])
      expect(await contentOf(pair.target, table), table).toEqual(await contentOf(pair.source, table));
    expect([...scope.tables.values()].every(({ state }) => state === 'ready')).toBe(true);
  });

  it('200,000 rows under writers: the target has exactly what the snapshot saw', async () => {
    const pair = await makePair({ source: major });
    await onBoth(pair, 'create table t (id bigserial, x bigint, body text)');
    await pair.source.query(
      `insert into t (x, body) select 0, md5(n::text) from generate_series(1, 200000) n`,
    );
    await pair.source.query(
      'alter table t add column xid text; update t set xid = pg_current_xact_id()::text where false',
    );
    await pair.target.query('alter table t add column xid text');
    const writer = await pair.source.connect();
    let stop = false;
    const writing = (async () => {
      while (!stop)
        await writer.query(
          `insert into t (x, body, xid) select 1, 'w', pg_current_xact_id()::text from generate_series(1, 10)`,
        );
    })();
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    await copyTables(scope);
    stop = true;
    await writing;
    const { rows: markers } = await pair.target.query<{ seen: string; horizon: string; rows: string }>(
      'select pg_snapshot as seen, horizon_lsn::text as horizon, rows::text from dts.part',
    );
    expect(markers).toHaveLength(1);
    const seen = parsePgSnapshot(markers[0]?.seen ?? '');
    const { rows } = await pair.source.query<{ xid: string | null; n: string }>(
      'select xid, count(*)::text as n from t group by xid',
    );
    const expected = rows
      .filter(({ xid }) => xid === null || isVisible(seen, BigInt(xid)))
      .reduce((sum, { n }) => sum + Number(n), 0);
    expect((await contentOf(pair.target, 't')).count).toBe(String(expected));
    expect(markers[0]?.rows).toBe(String(expected));
    expect(scope.tables.get('public.t')?.rowsCopied).toBe(expected);
  });
});

it('rows of a table that is copied whole are written once: frozen, and known as visible to all', async () => {
  const pair = await makePair();
  const tables = ['whole', 'cut', 'small', 'existing'];
  for (const name of tables) {
    await onBoth(pair, `create table "${name}" (id bigint primary key, body text)`);
    // or the target would mark them by itself
    await pair.target.query(`alter table "${name}" set (autovacuum_enabled = false)`);
  }
  const fill = async (name: string, rows: number): Promise<void> => {
    await pair.source.query(
      `insert into "${name}" select n, md5(n::text) from generate_series(1, ${rows}) n`,
    );
    await pair.source.query(`analyze "${name}"`);
  };
  await fill('whole', 30_000);
  await fill('cut', 60_000);
  await fill('small', 3_000);
  await fill('existing', 30_000);
  const copy = async (names: readonly string[], options: Parameters<typeof makeScope>[1]): Promise<void> => {
    const scope = makeScope(pair, options);
    await prepareCopy(scope, await makePlan(pair.source, names));
    await copyTables(scope);
  };
  await copy(['whole', 'cut', 'small'], { options: { partBytes: 3 * 1024 ** 2 } });
  await copy(['existing'], { options: { schema: 'existing' } });
  const { rows } = await pair.target.query<{ name: string; frozen: boolean }>(
    `select relname::text as name, pg_relation_size(oid, 'vm') > 0 as frozen from pg_class
      where relname = any($1) order by array_position($1, relname::text)`,
    [tables],
  );
  expect(rows.map(({ name, frozen }) => [name, frozen])).toEqual([
    ['whole', true],
    ['cut', false],
    ['small', false],
    ['existing', false],
  ]);
  for (const name of tables)
    expect(await contentOf(pair.target, name), name).toEqual(await contentOf(pair.source, name));
});

it('keys and indexes run once, keys first, roots and ATTACH after every leaf, and all end valid', async () => {
  const pair = await makePair();
  await onBoth(
    pair,
    `create table p (id int not null, v int) partition by range (id);
     create table p1 partition of p for values from (0) to (1000); create table p2 partition of p for values from (1000) to (2000);
     create table t (id int not null, a int, b int);`,
  );
  await pair.source.query(
    'insert into p select n, n from generate_series(0, 1999) n; insert into t select n, n, n from generate_series(1, 500) n',
  );
  const leafIndexes = (leaf: string) => [
    {
      phase: 'key' as const,
      sql: `alter table only public.${leaf} add constraint ${leaf}_pkey primary key (id)`,
      table: `public.${leaf}`,
    },
    { phase: 'index' as const, sql: `create index ${leaf}_v on public.${leaf} (v)`, table: `public.${leaf}` },
    {
      phase: 'index' as const,
      sql: `alter index public.p_pkey attach partition public.${leaf}_pkey`,
      table: `public.${leaf}`,
    },
    {
      phase: 'index' as const,
      sql: `alter index public.p_v attach partition public.${leaf}_v`,
      table: `public.${leaf}`,
    },
  ];
  const plan = await makePlan(
    pair.source,
    ['p1', 'p2', 't'],
    [
      {
        phase: 'key',
        sql: 'alter table only public.p add constraint p_pkey primary key (id)',
        table: 'public.p',
      },
      { phase: 'index', sql: 'create index p_v on only public.p (v)', table: 'public.p' },
      { phase: 'index', sql: 'create index t_a on public.t (a)', table: 'public.t' },
      { phase: 'index', sql: 'create unique index t_b on public.t (b)', table: 'public.t' },
      { phase: 'index', sql: 'alter table public.t cluster on t_a', table: 'public.t' },
      {
        phase: 'key',
        sql: 'alter table only public.t add constraint t_pkey primary key (id)',
        table: 'public.t',
      },
      ...leafIndexes('p1'),
      ...leafIndexes('p2'),
      { phase: 'final', sql: 'select 1 / 0', table: 'public.t' },
    ],
  );
  const scope = makeScope(pair, { options: { indexJobs: 2 } });
  await prepareCopy(scope, plan);
  await copyTables(scope);
  const { rows } = await pair.target.query<{ name: string; valid: boolean }>(
    `select indexrelid::regclass::text as name, indisvalid as valid from pg_index
      where indrelid::regclass::text in ('p', 'p1', 'p2', 't') order by 1`,
  );
  expect(rows.map(({ name }) => name)).toEqual([
    'p1_pkey',
    'p1_v',
    'p2_pkey',
    'p2_v',
    'p_pkey',
    'p_v',
    't_a',
    't_b',
    't_pkey',
  ]);
  expect(rows.every(({ valid }) => valid)).toBe(true);
  expect([...scope.tables.values()].map(({ state }) => state)).toEqual(['ready', 'ready', 'ready']);
  await copyTables(scope); // nothing runs twice
  await expectNothingOpen(pair.source, pair.target);
});

it.each([
  ['SQL_ASCII', 'SQL_ASCII', `chr(200) || 'x'`, 'c878'], // no UTF-8, and nothing that it could be converted from
  ['LATIN1', 'UTF8', `'Gr' || chr(252) || chr(223) || 'e'`, '4772c3bcc39f65'],
])('values of a database in %s arrive in one in %s', async (source, target, value, bytes) => {
  const pair = await makePair({ encodings: { source, target } });
  await onBoth(
    pair,
    'create table as_binary (id int, v text); create table as_text (id int, v text, r int4range)',
  );
  for (const table of ['as_binary', 'as_text'])
    await pair.source.query(`insert into ${table} (v) values (${value})`);
  const scope = makeScope(pair);
  await prepareCopy(scope, await makePlan(pair.source, ['as_binary', 'as_text']));
  await copyTables(scope);
  for (const format of ['binary', 'text']) {
    expect(scope.tables.get(`public.as_${format}`)?.format).toBe(format);
    const { rows } = await pair.target.query(
      `select encode(convert_to(v, getdatabaseencoding()), 'hex') as v from as_${format}`,
    );
    expect(rows).toEqual([{ v: bytes }]);
  }
});

describe('a rerun', () => {
  it.each([
    ['copy.mid-table', 2],
    ['copy.before-marker-commit', 2],
    ['copy.marker-committed', 2],
    ['copy.before-index', 2],
  ] as const)('after a stop at %s keeps finished tables and completes', async (name, times) => {
    const pair = await makePair();
    const tables = ['a', 'b', 'c'];
    for (const table of tables) await onBoth(pair, `create table ${table} (id int not null, body text)`);
    for (const [i, table] of tables.entries())
      await pair.source.query(
        `insert into ${table} select n, repeat('x', 300) from generate_series(1, ${(i + 1) * 2000}) n`,
      );
    const plan = await makePlan(
      pair.source,
      tables,
      tables.map((table) => ({
        phase: 'key',
        sql: `alter table only public.${table} add primary key (id)`,
        table: `public.${table}`,
      })),
    );
    const scope = makeScope(pair, { options: { copyJobs: 1, indexJobs: 1 } });
    await prepareCopy(scope, plan);
    failAt(scope, name, times);
    expect(await failureOf(copyTables(scope))).toMatchObject({
      code: 'internal',
      message: expect.stringContaining(name) as string,
    });
    await expectNothingOpen(pair.source, pair.target);
    expect(isCopyComplete(scope)).toBe(false);
    const markersOf = async (): Promise<Map<string, string>> =>
      new Map(
        (
          await pair.target.query<{ relation: string; xmin: string }>(
            'select relation, xmin::text from dts.part order by relation',
          )
        ).rows.map(({ relation, xmin }) => [relation, xmin]),
      );
    const before = await markersOf();
    expect(before.size).toBeGreaterThan(0);
    for (const table of tables)
      if (!before.has(`public.${table}`)) expect((await contentOf(pair.target, table)).count).toBe('0');

    const again = makeScope(pair, { options: { copyJobs: 1, indexJobs: 1 } }, scope);
    await copyTables(again);
    const after = await markersOf();
    expect(after.size).toBe(3);
    for (const [relation, xmin] of before) expect(after.get(relation), relation).toBe(xmin);
    for (const table of tables) {
      expect(await contentOf(pair.target, table)).toEqual(await contentOf(pair.source, table));
      expect(again.tables.get(`public.${table}`)).toMatchObject({ state: 'ready', partsDone: 1 });
    }
    expect(again.tables.get('public.b')?.rowsCopied).toBe(4000);
    expect(isCopyComplete(again)).toBe(true);
  });

  it('refuses rows on the target that no marker explains, also those of another slot', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int)');
    await pair.source.query('insert into t values (1)');
    const scope = makeScope(pair);
    const plan = await makePlan(pair.source, ['t']);
    await prepareCopy(scope, plan);
    await pair.target.query('insert into t values (9)');
    expect(await failureOf(copyTables(scope))).toMatchObject({ code: 'target_conflict', kind: 'operator' });
    await pair.target.query('truncate t');
    await copyTables(scope);
    scope.checkpoints.set('slot', { name: 'x', incarnation: 'slot 2', consistentLsn: '0/0' });
    expect(await failureOf(copyTables(scope))).toMatchObject({ code: 'target_conflict' });
  });

  it('waits for the backend of a killed predecessor and takes its marker', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int)');
    await pair.source.query('insert into t values (1)');
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    const predecessor = await pair.target.connect();
    await predecessor.query('begin; insert into t values (1)');
    await predecessor.query(
      `insert into dts.part values ($1, 'slot 1', 'public.t', 0, null, '1:1:', '0/1', 1, 8, 1)`,
      [scope.taskId],
    );
    const copying = copyTables(scope);
    await waitFor(
      async () => (await pair.target.query('select from pg_locks where not granted')).rowCount === 1,
    );
    await predecessor.query('commit');
    await copying;
    expect((await contentOf(pair.target, 't')).count).toBe('1');
    expect(scope.tables.get('public.t')).toMatchObject({ state: 'ready', rowsCopied: 1, bytesCopied: 8 });
  });
});

describe('an error', () => {
  it('of one table stops the others, is told with relation and part, and leaves nothing half', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table good (id int, body text); create table bad (id int, body text)');
    await pair.target.query('alter table bad add check (id <> 4000)');
    for (const table of ['good', 'bad'])
      await pair.source.query(
        `insert into ${table} select n, repeat('x', 2000) from generate_series(1, 5000) n`,
      );
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['good', 'bad']));
    expect(await failureOf(copyTables(scope))).toMatchObject({
      code: 'copy_failed',
      kind: 'operator',
      details: { role: 'target', relation: 'public.bad', part: 0, sqlstate: '23514' },
    });
    await expectNothingOpen(pair.source, pair.target);
    expect((await contentOf(pair.target, 'bad')).count).toBe('0');
    await pair.target.query('alter table bad drop constraint bad_id_check');
    await copyTables(scope);
    for (const table of ['good', 'bad'])
      expect(await contentOf(pair.target, table)).toEqual(await contentOf(pair.source, table));
  });

  it.each(['copy_failed', 'schema_failed'] as const)(
    'is told as it was, %s, and at once, although the other tables would go on for long',
    async (code) => {
      const pair = await makePair();
      await onBoth(pair, 'create table long (id int, body text); create table bad (id int)');
      await pair.source.query(`insert into long select n, repeat('x', 2000) from generate_series(1, 5000) n`);
      await pair.source.query('insert into bad select 7 from generate_series(1, 2)');
      if (code === 'copy_failed') await pair.target.query('alter table bad add unique (id)');
      const scope = makeScope(pair);
      const key = {
        phase: 'key' as const,
        sql: 'alter table public.bad add primary key (id)',
        table: 'public.bad',
      };
      await prepareCopy(scope, await makePlan(pair.source, ['long', 'bad'], [key]));
      const gate = await pair.target.connect();
      await gate.query('begin; lock table long');
      const began = Date.now();
      expect(await failureOf(copyTables(scope))).toMatchObject({ code, details: { sqlstate: '23505' } });
      expect(Date.now() - began).toBeLessThan(10_000);
      await expectNothingOpen(pair.source, pair.target);
      await gate.query('rollback');
    },
  );

  it('of an index is schema_failed with the object, and the rerun goes on behind it', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int, u int)');
    await pair.source.query('insert into t select n, n / 2 from generate_series(1, 10) n');
    const scope = makeScope(pair);
    const plan = await makePlan(
      pair.source,
      ['t'],
      [
        { phase: 'key', sql: 'alter table only public.t add primary key (id)', table: 'public.t' },
        { phase: 'index', sql: 'create unique index t_u on public.t (u)', table: 'public.t' },
      ],
    );
    await prepareCopy(scope, plan);
    expect(await failureOf(copyTables(scope))).toMatchObject({
      code: 'schema_failed',
      details: { sqlstate: '23505', object: 'create unique index t_u on public.t (u)' },
    });
    await expectNothingOpen(pair.source, pair.target);
    await pair.target.query('delete from t where id % 2 = 1');
    await copyTables(scope);
    expect((await contentOf(pair.target, 't')).count).toBe('5'); // the finished part was not read again
  });

  it('of a table that is gone on the source is source_ddl', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int)');
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    await pair.source.query('drop table t');
    expect(await failureOf(copyTables(scope))).toMatchObject({ code: 'source_ddl' });
    await expectNothingOpen(pair.source, pair.target);
  });

  it.each(['source', 'target'] as const)(
    'of the %s connections costs the running part only',
    async (role) => {
      const pair = await makePair();
      await onBoth(pair, 'create table a (id int, body text); create table b (id int, body text)');
      await pair.source.query(`insert into a select n, repeat('x', 2000) from generate_series(1, 5000) n`);
      await pair.source.query(`insert into b select * from a where id < 500`);
      const scope = makeScope(pair, { options: { copyJobs: 1 } });
      await prepareCopy(scope, await makePlan(pair.source, ['a', 'b']));
      let reached = 0;
      Object.assign(scope, {
        failpoint: (name: Failpoint) => {
          // the second table: every connection of the copy dies, the holder's too
          if (name !== 'copy.mid-table' || ++reached !== 2) return;
          void pair[role].query(
            `select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^dts/.*/(holder|copy)$' and datname = current_database()`,
          );
        },
      });
      await copyTables(scope);
      const { rows } = await pair.target.query<{ relation: string; epoch: number }>(
        'select relation, epoch from dts.part order by relation',
      );
      expect(rows[0]).toEqual({ relation: 'public.a', epoch: 1 });
      for (const table of ['a', 'b'])
        expect(await contentOf(pair.target, table)).toEqual(await contentOf(pair.source, table));
    },
  );
});

/**
 * Lets `left` pieces of work go on one after the other, each as soon as `jobs` of them wait; resolves with the most that
 * were ever seen waiting together.
 */
async function mostWaiting(
  jobs: number,
  left: number,
  waiting: () => Promise<readonly string[]>,
  release: (name: string) => Promise<unknown>,
): Promise<number> {
  let most = 0;
  for (; left > 0; left--) {
    const [next = ''] = await waitFor(async () => {
      const names = await waiting();
      most = Math.max(most, names.length);
      return names.length >= Math.min(jobs, left) ? names : null;
    });
    await release(next);
  }
  return most;
}

describe.each([1, 3])('jobs: %i', (jobs) => {
  const names = ['a', 'b', 'c', 'd', 'e'];

  it('so many tables are copied at once, on as many connections of each side', async () => {
    const pair = await makePair();
    for (const name of names) await onBoth(pair, `create table ${name} (id int)`);
    for (const name of names) await pair.source.query(`insert into ${name} values (1)`);
    const scope = makeScope(pair, { options: { copyJobs: jobs } });
    await prepareCopy(scope, await makePlan(pair.source, names));
    const gates = new Map(
      await Promise.all(
        names.map(async (name) => {
          const gate = await pair.target.connect();
          await gate.query(`begin; lock table ${name} in share mode`);
          return [name, gate] as const;
        }),
      ),
    );
    const copying = copyTables(scope);
    let connections = 0;
    const waiting = async (): Promise<string[]> => {
      for (const side of [pair.source, pair.target]) {
        const open = (await openSessions(side)).filter((name) => name.endsWith('/copy'));
        connections = Math.max(connections, open.length);
      }
      const { rows } = await pair.target.query<{ name: string }>(
        `select l.relation::regclass::text as name from pg_locks l join pg_stat_activity using (pid)
          where not l.granted and datname = current_database() and application_name ~ '/copy$'`,
      );
      return rows.map(({ name }) => name);
    };
    const release = (name: string): Promise<unknown> | undefined => gates.get(name)?.query('commit');
    expect(await mostWaiting(jobs, names.length, waiting, async (name) => release(name))).toBe(jobs);
    await copying;
    expect(connections).toBe(jobs);
  });

  it('so many indexes are built at once, with the memory that such a build may have', async () => {
    const pair = await makePair();
    for (const name of names) await onBoth(pair, `create table ${name} (id int)`);
    for (const name of names) await pair.source.query(`insert into ${name} values (1)`);
    // what a build sees is shown by locks that it holds, and it waits for one that the test has
    await pair.target.query(`create function gate(int, int) returns int immutable language plpgsql as $$ begin
      perform pg_advisory_xact_lock_shared(2, (pg_size_bytes(current_setting('maintenance_work_mem')) / 1024)::int);
      perform pg_advisory_xact_lock_shared(3, current_setting('max_parallel_maintenance_workers')::int);
      perform pg_advisory_xact_lock_shared(1, $1);
      return $2; end $$`);
    const index = (name: string, n: number) => ({
      phase: 'index' as const,
      sql: `create index on public.${name} using ${name === 'a' ? 'hash' : 'btree'} (public.gate(${n}, id))`,
      table: `public.${name}`,
    });
    const scope = makeScope(pair, { options: { indexJobs: jobs } });
    await prepareCopy(scope, await makePlan(pair.source, names, names.map(index)));
    const gate = await pair.target.connect();
    for (const n of names.keys()) await gate.query('select pg_advisory_lock(1, $1)', [n]);
    const copying = copyTables(scope);
    await waitFor(() => [...scope.tables.values()].every(({ state }) => state === 'indexing'));
    const seen = new Map<string, { memory: number; workers: number }>();
    const waiting = async (): Promise<string[]> => {
      const { rows } = await pair.target.query<{ n: string; memory: number; workers: number }>(
        `select w.objid::text as n, m.objid::int as memory, p.objid::int as workers
           from pg_locks w join pg_locks m using (pid, database) join pg_locks p using (pid, database)
          where w.locktype = 'advisory' and w.classid = 1 and not w.granted and m.locktype = 'advisory' and m.classid = 2
            and p.locktype = 'advisory' and p.classid = 3
            and w.database = (select oid from pg_database where datname = current_database())`,
      );
      for (const { n, ...settings } of rows) seen.set(n, settings);
      return rows.map(({ n }) => n);
    };
    const release = (n: string): Promise<unknown> => gate.query('select pg_advisory_unlock(1, $1)', [n]);
    expect(await mostWaiting(jobs, names.length, waiting, release)).toBe(jobs);
    await copying;
    const { rows } = await pair.target.query<{ own: number }>(
      `select (pg_size_bytes(current_setting('maintenance_work_mem')) / 1024)::int as own`,
    );
    const [own = 0, most = 0] = [rows[0]?.own, seen.get('0')?.memory]; // a hash index gets all that one build may have
    expect(own).toBe(64 * 1024);
    expect(most).toBeGreaterThanOrEqual(own);
    expect(most).toBeLessThanOrEqual(1024 ** 2);
    for (const { memory, workers } of [...seen.entries()].flatMap(([n, one]) => (n === '0' ? [] : [one])))
      expect(memory).toBe(Math.min(most, 32 * 1024 * (1 + workers)));
    expect(seen.size).toBe(names.length);
  });
});

describe('max_bytes_per_second', () => {
  it('slows the copy of all streams together, and holds at once when it is changed', async () => {
    const pair = await makePair();
    for (const table of ['a', 'b']) {
      await onBoth(pair, `create table ${table} (id int, body text)`);
      await pair.source.query(
        `insert into ${table} select n, repeat('x', 2000) from generate_series(1, 4000) n`,
      );
    }
    const scope = makeScope(pair, { options: { copyJobs: 2, maxBytesPerSecond: 1024 ** 2 } });
    await prepareCopy(scope, await makePlan(pair.source, ['a', 'b']));
    const began = Date.now();
    const copying = copyTables(scope);
    const bytes = (): number =>
      [...scope.tables.values()].reduce((sum, { bytesCopied }) => sum + bytesCopied, 0);
    await waitFor(() => bytes() > 1024 ** 2);
    const seconds = (Date.now() - began) / 1_000;
    expect(bytes()).toBeLessThan((seconds + 1) * 1024 ** 2);
    expect([...scope.tables.values()].every(({ state }) => state === 'copying')).toBe(true); // 16 MB would be there long ago
    Object.assign(scope.spec.options, { maxBytesPerSecond: null });
    const lifted = Date.now();
    await copying;
    expect(Date.now() - lifted).toBeLessThan(10_000);
    for (const table of ['a', 'b'])
      expect(await contentOf(pair.target, table)).toEqual(await contentOf(pair.source, table));
  });
});

interface Standby {
  /** Says that it has replayed everything up to `lsn`. */
  report(lsn: string): void;
  disconnect(): void;
}

/** A walsender under a name, as of a standby that has replayed what the source has written so far, and reports no more. */
async function connectStandby(source: TestDatabase, name: string): Promise<Standby> {
  const { host, port, user, password } = source.connection;
  const settings = { host, port, user, password, application_name: name };
  const client = new pg.Client({ ...settings, replication: 'true' } as pg.ClientConfig);
  client.on('error', () => undefined);
  await client.connect();
  const { connection } = client as unknown as {
    connection: pg.Connection & { sendCopyFromChunk(chunk: Buffer): void };
  };
  const disconnect = (): void => void connection.stream.destroy();
  onTestFinished(disconnect);
  const started = new Promise((resolve) => connection.once('replicationStart', resolve));
  const lsn = await positionOf(source);
  client.query(`START_REPLICATION PHYSICAL ${lsn}`).catch(() => undefined);
  await started;
  const report = (position: string): void => {
    const status = Buffer.alloc(34); // Standby status update: written, flushed, replayed, clock, whether to answer
    status.write('r');
    for (const at of [1, 9, 17]) status.writeBigUInt64BE(lsnToBigint(position), at);
    connection.sendCopyFromChunk(status);
  };
  report(lsn);
  return { report, disconnect };
}

async function positionOf(source: TestDatabase): Promise<string> {
  const { rows } = await source.query<{ lsn: string }>('select pg_current_wal_flush_lsn()::text as lsn');
  return rows[0]?.lsn ?? '';
}

describe('max_source_lag_bytes', () => {
  it('stops the copy while a standby is too far behind, and not for one that is gone', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int, body text)');
    await pair.source.query(`insert into t select n, repeat('x', 2000) from generate_series(1, 4000) n`);
    const near = await connectStandby(pair.source, 'near');
    const far = await connectStandby(pair.source, 'far');
    const scope = makeScope(pair, { options: { maxBytesPerSecond: 512 * 1024 } });
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    const writeWal = (megabytes: number): Promise<unknown> =>
      pair.source.query(
        `select pg_logical_emit_message(true, 'filler', repeat('x', 1048576)) from generate_series(1, ${megabytes})`,
      );
    const bytes = (): number => scope.tables.get('public.t')?.bytesCopied ?? 0;
    const setOptions = (options: object): unknown => Object.assign(scope.spec.options, options);
    /** Waits until the copy says that it waits for `name`, and looks whether it does. */
    const standsStill = async (name: string): Promise<void> => {
      await waitFor(() => scope.waits.at(-1)?.startsWith(`the copy waits: ${name} lies `));
      const before = bytes();
      await new Promise((resolve) => setTimeout(resolve, 500));
      expect(bytes()).toBe(before);
    };
    /** The WAL is that of the whole server, whose other databases are written to, too. */
    const goesOn = async (): Promise<void> => {
      const before = bytes();
      await waitFor(async () => {
        near.report(await positionOf(pair.source));
        return scope.waits.at(-1) === null && bytes() > before;
      });
    };

    const copying = copyTables(scope);
    await writeWal(3);
    near.report(await positionOf(pair.source));
    await waitFor(() => bytes() > 0);
    await writeWal(3);
    setOptions({ maxSourceLagBytes: 2 * 1024 ** 2 });
    await standsStill('far'); // both lie too far behind
    far.disconnect();
    await standsStill('near');
    await goesOn();
    await writeWal(3);
    await standsStill('near');
    setOptions({ maxSourceLagBytes: null, maxBytesPerSecond: null });
    await copying;
    expect(await contentOf(pair.target, 't')).toEqual(await contentOf(pair.source, 't'));
    expect(scope.waits.at(-1)).toBe(null);
  });
});

describe('an abort', () => {
  it('in mid-copy ends within a second and leaves no connection, lock or half table', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int, body text)');
    await pair.source.query(`insert into t select n, repeat('x', 2000) from generate_series(1, 50000) n`);
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    const copying = failureOf(copyTables(scope));
    await waitFor(() => (scope.tables.get('public.t')?.bytesCopied ?? 0) > 0);
    const began = Date.now();
    scope.controller.abort();
    expect(await copying).toMatchObject({ code: 'aborted', kind: 'aborted' });
    expect(Date.now() - began).toBeLessThan(1_000);
    await expectNothingOpen(pair.source, pair.target);
    expect((await contentOf(pair.target, 't')).count).toBe('0');
    expect((await pair.target.query('select from dts.part')).rowCount).toBe(0);
  });

  it('in an index build ends it on the server, too', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int)');
    await pair.target.query(
      `create function slow(int) returns int immutable language plpgsql as $$ begin perform pg_sleep(60); return 1; end $$`,
    );
    await pair.source.query('insert into t values (1)');
    const scope = makeScope(pair);
    const index = {
      phase: 'index' as const,
      sql: 'create index on public.t (public.slow(id))',
      table: 'public.t',
    };
    await prepareCopy(scope, await makePlan(pair.source, ['t'], [index]));
    const copying = failureOf(copyTables(scope));
    await waitFor(async () => (await openSessions(pair.target)).some((name) => name.endsWith('/index')));
    // it is shown while it runs
    await waitFor(() => scope.tables.get('public.t')?.indexProgress?.phase.startsWith('building index'));
    expect(scope.tables.get('public.t')?.indexProgress?.object).toBe(index.sql);
    scope.controller.abort();
    expect(await copying).toMatchObject({ code: 'aborted' });
    await expectNothingOpen(pair.source, pair.target);
  });
});

describe('locks on the source', () => {
  it('come before the snapshot: a rewriting ALTER that was under way does not empty the copy', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int)');
    await pair.source.query('insert into t select generate_series(1, 100)');
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    const rewriter = await pair.source.connect();
    await rewriter.query('begin; alter table t alter id type int using id + 0');
    const copying = copyTables(scope);
    await waitFor(
      async () => (await pair.source.query('select from pg_locks where not granted')).rowCount === 1,
    );
    await rewriter.query('commit');
    await copying;
    expect((await contentOf(pair.target, 't')).count).toBe('100');
  });

  it('hold while the columns are compared with the plan: a changed table is source_ddl', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int, v int)');
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    for (const [change, back] of [
      ['alter table t alter v type real', 'alter table t alter v type int'],
      ['alter table t add extra int', 'alter table t drop extra'],
    ] as const) {
      const changer = await pair.source.connect();
      await changer.query(`begin; ${change}`);
      const copying = failureOf(copyTables(scope));
      await waitFor(
        async () => (await pair.source.query('select from pg_locks where not granted')).rowCount === 1,
      );
      await changer.query('commit');
      expect(await copying).toMatchObject({ code: 'source_ddl', details: { relation: 'public.t' } });
      await expectNothingOpen(pair.source, pair.target);
      await pair.source.query(back);
    }
    await copyTables(scope);
  });

  it('are waited for with the blocker named', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int)');
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    const blocker = await pair.source.connect();
    await blocker.query('begin; lock table t in access exclusive mode');
    const { rows } = await blocker.query<{ pid: number }>('select pg_backend_pid() as pid');
    const copying = copyTables(scope);
    await waitFor(() => scope.waits.some((reason) => reason?.includes(`pid ${rows[0]?.pid} (postgres`)));
    await blocker.query('commit');
    await copying;
    expect(scope.waits.at(-1)).toBe(null);
  });

  it('are waited for until a deadline', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table t (id int)');
    const scope = makeScope(pair, { options: { slotTimeoutMs: 1_000 } });
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    const blocker = await pair.source.connect();
    await blocker.query('begin; lock table t in access exclusive mode');
    const failure = await failureOf(copyTables(scope));
    expect(failure).toMatchObject({ code: 'lock_timeout', kind: 'transient' });
    expect(failure.hint).toContain('lock table t in access exclusive mode');
    await blocker.query('rollback');
    await expectNothingOpen(pair.source, pair.target);
  });

  it('give way to DDL that waits for more than 5 s, and the copy completes afterwards', async () => {
    const pair = await makePair();
    await onBoth(pair, 'create table a (id int); create table b (id int)');
    await pair.source.query('insert into a values (1); insert into b values (2)');
    const scope = makeScope(pair);
    await prepareCopy(scope, await makePlan(pair.source, ['a', 'b']));
    // the part cannot finish, so the generation would stay for ever
    const gate = await pair.target.connect();
    await gate.query('begin; lock table b');
    const copying = copyTables(scope);
    await waitFor(async () => (await pair.target.query('select from dts.part')).rowCount === 1);
    const began = Date.now();
    await pair.source.query('alter table a alter id set not null');
    expect(Date.now() - began).toBeGreaterThan(4_000);
    expect(Date.now() - began).toBeLessThan(9_000);
    await gate.query('commit');
    await copying;
    const { rows } = await pair.target.query('select relation, epoch from dts.part order by 1');
    expect(rows).toEqual([
      { relation: 'public.a', epoch: 1 },
      { relation: 'public.b', epoch: 2 },
    ]);
  });
});

describe('rows that a crash of a server takes back', () => {
  it('a marker waits until the WAL behind its snapshot is flushed', async () => {
    const { server, connection } = await startForgetfulServer(16);
    const pair = await makePair();
    await pair.target.query('create table t (id int)');
    const scope = makeScope(pair, { sourceDb: connection });
    await scope.source.query('create table public.t (id int)');
    const plan = await makePlan({ ...pair.source, query: (sql, params) => scope.source.query(sql, params) }, [
      't',
    ]);
    await prepareCopy(scope, plan);
    await scope.source.transaction(async (client) => {
      await client.query('set local synchronous_commit = off'); // our own sessions do without it
      await client.query('insert into public.t select generate_series(1, 1000)');
    });
    // at once: within seconds the WAL writer flushes by itself
    const crashes: Promise<void>[] = [];
    Object.assign(scope, {
      failpoint: (name: Failpoint) => {
        if (name === 'copy.marker-committed') crashes.push(server.crash());
      },
    });
    const stop = new AbortController();
    Object.assign(scope, { signal: stop.signal });
    const copied = copyTables(scope).catch(() => undefined); // it may have lost the source by then
    await waitFor(() => crashes.length > 0);
    stop.abort();
    await Promise.all([...crashes, copied]);
    await server.restart();
    await waitFor(async () => {
      const { rows } = await scope.source
        .query<{ n: string }>('select count(*)::text as n from public.t')
        .catch(() => ({ rows: [] }));
      return rows[0]?.n;
    });
    const { rows } = await scope.source.query<{ n: string }>('select count(*)::text as n from public.t');
    expect(rows[0]?.n).toBe((await contentOf(pair.target, 't')).count);
  });

  it('markers that a killed process has left are durable before the copy counts on them', async () => {
    const { server, connection: targetDb } = await startForgetfulServer(18);
    const pair = await makePair();
    await pair.source.query('create table t (id int); insert into t select generate_series(1, 100)');
    const scope = makeScope(pair, { targetDb });
    await scope.target.query('create table public.t (id int)');
    await prepareCopy(scope, await makePlan(pair.source, ['t']));
    failAt(scope, 'copy.marker-committed');
    await failureOf(copyTables(scope));
    const again = makeScope(pair, { targetDb }, scope);
    const flushed = 'select pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn() as flushed';
    expect((await again.target.query(flushed)).rows).toEqual([{ flushed: false }]);
    await copyTables(again);
    expect(isCopyComplete(again)).toBe(true);
    await server.crash();
    await server.restart();
    const count = await waitFor(async () => {
      const { rows } = await again.target
        .query<{ n: string }>('select count(*)::text as n from public.t')
        .catch(() => ({ rows: [] }));
      return rows[0]?.n;
    });
    expect(count).toBe('100');
  });

  it('says what it waits for and goes on as soon as the source has flushed', async () => {
    const pair = await makePair();
    const scope = makeScope(pair);
    await pair.source.query('create table filler (t text)');
    const { rows } = await pair.source.query<{ lsn: string }>(
      `select (pg_current_wal_insert_lsn() + 3000000)::text as lsn`,
    );
    const waiting = waitForFlush(
      scope,
      rows[0]?.lsn ?? '',
      (reason) => void scope.waits.push(reason),
      scope.signal,
    );
    await waitFor(() => scope.waits.some((reason) => reason?.includes(rows[0]?.lsn ?? '?')));
    await pair.source.query(`insert into filler select repeat('x', 1000) from generate_series(1, 5000)`);
    await waiting;
    expect(scope.waits.at(-1)).toBe(null);
  });
});
