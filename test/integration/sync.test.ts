// The stream against real servers: what the source commits arrives on the target once and in order, whatever the copies
// had seen, whatever dies when; and what it cannot apply stops it with a reason instead of being guessed.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { describe, expect, inject, it, onTestFinished } from 'vitest';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { isCopyComplete, markCopyComplete, saveLiveCopy } from '../../src/postgres/copy-state.ts';
import { holdTables } from '../../src/postgres/held-tables.ts';
import { findSlot, slotOf } from '../../src/postgres/slot-record.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { listening } from '../support/backlog.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import { randomTables, startWriters, type Writers } from '../support/random-writers.ts';
import {
  contents,
  copyAll,
  copyTable,
  drainStream,
  prepare,
  startStream,
  untilEvent,
  type RunningStream,
} from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

// of its own: the lag of a stream grows with the WAL that is written, other tests' too
startServers(16);

/** Slot, copy, stream: what most tests start from. */
async function streaming(
  pair: DatabasePair,
  ddl: string,
  rows = '',
  over: Parameters<typeof prepare>[2] = {},
): Promise<{ scope: TestScope; stream: RunningStream }> {
  const scope = await prepare(pair, ddl, over);
  if (rows !== '') await pair.source.query(rows);
  const stream = startStream(scope);
  await untilEvent(stream, 'SLOT_READY');
  await copyAll(scope, pair);
  return { scope, stream };
}

async function expectEqual(scope: TestScope, pair: DatabasePair): Promise<Record<string, string[]>> {
  const source = await contents(scope, pair.source, 'source');
  expect(await contents(scope, pair.target, 'target')).toEqual(source);
  return source;
}

async function appliedLsn(scope: TestScope, pair: DatabasePair): Promise<string | null> {
  const { rows } = await pair.target.query<{ lsn: string }>(
    'select applied_lsn::text as lsn from dts.progress where task_id = $1',
    [scope.taskId],
  );
  return rows[0]?.lsn ?? null;
}

/** Waits until the writers have ended `count` more transactions. */
async function more(writers: Writers, count: number): Promise<void> {
  const goal = writers.done() + count;
  await waitFor(() => writers.done() >= goal, 60_000, `${count} more transactions`);
}

describe('the filtered replay', () => {
  it.each([
    [16, 1],
    [16, 2],
    [13, 3],
    [18, 4],
  ] as const)('meets a source %i under random writers exactly (seed %i)', async (source, seed) => {
    const pair = await makePair({ source });
    const { scope, said } = listening(await prepare(pair, randomTables));
    const writers = startWriters(pair.source, seed);
    try {
      await more(writers, 50);
      const stream = startStream(scope);
      await untilEvent(stream, 'SLOT_READY');
      // Every table under a snapshot of its own, read while the writers go on.
      for (const table of schemaPlanOf(scope).tables) {
        await more(writers, 15);
        await copyTable(scope, pair, table, () => more(writers, 15));
      }
      markCopyComplete(scope);
      await more(writers, 200);
      await writers.stop();
      await drainStream(scope, pair, stream);
      const rows = await expectEqual(scope, pair);
      expect(Object.values(rows).flat().length).toBeGreaterThan(20);
      expect(said.binary).toBe(source >= 14);
      expect(writers.prepared.commit).toBeGreaterThan(0);
      expect(await stream.stop()).toBeLessThan(2_000);
      expect(stream.failure()).toBeNull();
    } finally {
      await writers.stop();
    }
  });

  it('applies each transaction once when it is killed around its commits', async () => {
    const pair = await makePair();
    let scope = await prepare(pair, randomTables);
    const writers = startWriters(pair.source, 7);
    try {
      const deaths: readonly Failpoint[] = [
        'sync.before-target-commit',
        'sync.committed-not-acknowledged',
        'sync.batch-applied',
      ];
      let stream = startStream(scope);
      await untilEvent(stream, 'SLOT_READY');
      await more(writers, 20);
      await copyAll(scope, pair);
      for (const death of [...deaths, ...deaths]) {
        await stream.stop();
        expect(stream.failure()).toBeNull();
        let left = 3;
        scope = Object.assign(makeScope(pair, {}, scope), {
          failpoint: (name: Failpoint) => {
            if (name === death && --left === 0) throw new Error(`dies at ${death}`);
          },
        });
        const dying = startStream(scope);
        expect((await dying.failed).message).toContain(death);
        await scope.connections.closeAll();
        scope = makeScope(pair, {}, scope);
        stream = startStream(scope);
        await untilEvent(stream, 'STREAM_PROGRESS');
      }
      await writers.stop();
      await drainStream(scope, pair, stream);
      await expectEqual(scope, pair);
      await stream.stop();
    } finally {
      await writers.stop();
    }
  });
});

describe('a change', () => {
  it('keeps out-of-line values that were not sent, also when the key moves', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(
      pair,
      `create table public.t (id int primary key, v text, big text);
       alter table public.t alter big set storage external`,
      `insert into public.t select g, 'v', repeat(md5(g::text), 400) from generate_series(1, 3) g`,
    );
    await pair.source.query(`update public.t set v = 'changed' where id = 1`);
    await pair.source.query(`update public.t set id = 20 where id = 2`);
    await pair.source.query(`update public.t set id = 30, big = 'short' where id = 3`);
    await drainStream(scope, pair, stream);
    await expectEqual(scope, pair);
    await stream.stop();
  });

  it('finds its row in a keyless table by all columns, NULLs, duplicates and types without equality included', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(
      pair,
      `create table public.t (a int, b text, j json, p point, x xml, n numeric, f float8, bx box);
       alter table public.t replica identity full`,
      `insert into public.t select 1, null, '{"k":  1}', '(1,2)', '<a/>', 1.10, '-0', '(1,1),(0,0)' from generate_series(1, 3);
       insert into public.t values (1, null, '{"k":1}', '(1,2)', '<a/>', 1.1, 0, '(2,0.5),(0,0)'), (null, '', null, null, null, 'NaN', 'Infinity', null)`,
    );
    await pair.source.query(
      `update public.t set b = 'one of three' where ctid = (select min(ctid) from public.t)`,
    );
    await pair.source.query(
      `delete from public.t where ctid = (select min(ctid) from public.t where n::text = '1.1')`,
    );
    await pair.source.query(`update public.t set j = '[]' where n = 'NaN'`);
    await pair.source.query(
      `delete from public.t where b is null and f::text = '-0' and ctid in (select max(ctid) from public.t where b is null)`,
    );
    await drainStream(scope, pair, stream);
    await expectEqual(scope, pair);
    await stream.stop();
  });

  it('moves keys of ALWAYS identity columns and leaves generated columns to the target', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(
      pair,
      `create table public.t (id bigint generated always as identity primary key, v text, big text,
         size int generated always as (length(v)) stored);
       alter table public.t alter big set storage external;
       create table public.u (id int primary key, n int generated always as identity, v text);
       create table public.w (n int generated always as identity, v text);
       alter table public.w replica identity full`,
      `insert into public.t (v, big) select 'v' || g, repeat(md5(g::text), 300) from generate_series(1, 5) g;
       insert into public.u (id, v) select g, 'u' from generate_series(1, 3) g;
       insert into public.w (v) select 'w' from generate_series(1, 3) g`,
    );
    await pair.source.query(`update public.t set id = default where id = 2`);
    await pair.source.query(`update public.t set v = 'longer' where id = 3`);
    await pair.source.query(`insert into public.t (v) values ('new')`);
    await pair.source.query(`update public.u set n = default where id = 1`);
    await pair.source.query(`update public.u set v = 'x' where id = 2`);
    await pair.source.query(`update public.w set v = 'x' where n = 1`);
    await pair.source.query(`update public.w set n = default where n = 2`);
    await drainStream(scope, pair, stream);
    await expectEqual(scope, pair);
    await stream.stop();
  });

  it('keeps values of every kind exactly, under settings of the source that print them otherwise', async () => {
    const pair = await makePair();
    await pair.source.query(`do $$ begin
      execute format('alter database %I set datestyle = ''German''', current_database());
      execute format('alter database %I set intervalstyle = ''sql_standard''', current_database());
      execute format('alter database %I set timezone = ''Asia/Kathmandu''', current_database());
      execute format('alter database %I set extra_float_digits = -10', current_database());
      execute format('alter database %I set bytea_output = ''escape''', current_database());
    end $$`);
    const { scope, stream } = await streaming(
      pair,
      `create type public.mood as enum ('sad', 'it''s ok');
       create domain public.small as int check (value < 100);
       create type public.duo as (a int, b text);
       create table public."We ird" (id int primary key, "a""b" public.mood, d public.small, c public.duo, m public.mood[],
         f float8, r real, n numeric, ts timestamp, tz timestamptz, dt date, iv interval(3), by bytea, ar text[], jb jsonb,
         rg int4range, bt bit(5), vb varbit, ch char(6), vc varchar(4), q "char", mo money, net inet, tt timetz, u uuid,
         rc regclass, ts2 tsvector)`,
    );
    await pair.source.query(
      `insert into public."We ird" values
        (1, 'it''s ok', 99, row(1, 'x,"y'), '{sad,NULL}', 'NaN', 'Infinity', 'NaN', 'infinity', '-infinity', 'infinity',
         '1 year -2 days 03:00:00.1234', '\\x00ff', '{"a,b",NULL,"\\\\"}', '{"a": 1.0}', '[1,5)', '10101', '1', 'ab', 'äöü', 'x',
         -1234.5, '10.0.0.1/24', '12:00+05:45', md5('a')::uuid, 'pg_catalog.pg_class', 'a:1 b:2'),
        (2, null, null, null, '{}', 0.1, 1e-30, 1.000, '0044-03-15 BC', '2024-02-29 12:00+05:45', '0044-03-15 BC', '-00:00:01',
         '', '{}', 'null', 'empty', '00000', '', '', '', null, 0, '::1', null, null, null, '')`,
    );
    await pair.source.query(`update public."We ird" set f = 1.1234567890123457, mo = 0.01 where id = 2`);
    await drainStream(scope, pair, stream);
    await expectEqual(scope, pair);
    await stream.stop();
  });

  it('of a database in SQL_ASCII keeps its bytes where they are UTF-8; others stop the stream', async () => {
    const pair = await makePair({ encodings: { source: 'SQL_ASCII', target: 'SQL_ASCII' } });
    const { scope, stream } = await streaming(
      pair,
      'create table public.t (v text primary key, w text)',
      `insert into public.t values ('é', 'ü'), ('è', 'ö')`,
    );
    await pair.source.query(`insert into public.t values ('à', 'ß');
      update public.t set w = 'ñ' where v = 'é'; delete from public.t where v = 'è'`);
    await drainStream(scope, pair, stream);
    expect(await expectEqual(scope, pair)).toEqual({ 'public.t': ['(à,ß)', '(é,ñ)'] });
    await pair.source.query(`insert into public.t values (chr(200))`);
    expect(await stream.failed).toMatchObject({
      code: 'sql_failed',
      kind: 'operator',
      details: {
        role: 'source',
        sqlstate: '22021',
        where: expect.stringContaining('associated LSN') as string,
      },
    });
  });

  /** Columns of types that a binary stream carries, with values as text; null is one of each. */
  const binaryKinds: readonly (readonly [type: string, ...values: string[]])[] = [
    ['public.mood', 'sad', `it's ok`],
    ['public.small', '99', '-1'],
    ['bytea', '', '\\x00', '\\x5c0a09ff'],
    ['timetz', '12:00+05:45', '24:00:00-15:59', '00:00:00.000001+00'],
    ['time', '24:00', '00:00:00.1'],
    ['interval', '1 year -2 days 03:00:00.1234', '-00:00:01', '24:00', '1 day', '-178000000 years'],
    ['numeric', 'NaN', '1.10', '1.1000', '-0.00', '1e60', '-1e-60'],
    ['numeric(12,4)', 'NaN', '12345678.9', '-0.0001'],
    ['float8', 'NaN', 'Infinity', '-Infinity', '-0', '0', '5e-324', '1.1234567890123457'],
    ['real', 'NaN', '-Infinity', '-0', '1e-45', '0.1'],
    ['date', 'infinity', '-infinity', '4713-01-01 BC', '5874897-12-31'],
    ['timestamp', 'infinity', '-infinity', '0044-03-15 12:00 BC', '294276-12-31 23:59:59.999999'],
    ['timestamptz', 'infinity', '-infinity', '2024-02-29 12:00+05:45', '0001-01-01 00:00:00.1+00'],
    ['int[]', '{}', '{1,NULL,3}', '[0:1]={7,8}', '{{1,2},{3,4}}'],
    ['text[]', '{"a,b",NULL,"NULL","\\\\"}', '{""}'],
    ['numeric[]', '{NaN,1.10,NULL}', '{}'],
    ['jsonb', 'null', '{"a": 1.0, "b": ["é", null]}', '"\\u0001"'],
    ['json', 'null', '{"a":  1.0, "a": 2}'],
    ['inet', '10.0.0.1/24', '::1', '0.0.0.0/0'],
    ['cidr', '10.0.0.0/24', 'fe80::/10'],
    ['macaddr', '08:00:2b:01:02:03', 'ff:ff:ff:ff:ff:ff'],
    ['bit(5)', '10101', '00000'],
    ['varbit', '', '1', '0110010101'],
    ['money', '-1234.50', '0'],
    ['"char"', '', 'x'],
    ['char(6)', '', 'ab', 'äöü'],
    ['varchar(4)', '', 'a b ', 'tab\t'],
    ['uuid', '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'],
    ['pg_lsn', '0/0', 'FFFFFFFF/FFFFFFFF'],
    ['point', '(1,-0)', '(NaN,Infinity)'],
  ];
  /** Those that it does not. */
  const textKinds: typeof binaryKinds = [
    ['public.duo', '(1,"x,""y")', '(,)', '(,"")'],
    ['public.mood[]', '{sad,NULL}', `{"it's ok"}`],
    ['int4range', 'empty', '[1,5)', '(,5)', '(,)'],
    ['tstzrange', '["2024-01-01 00:00:00+00",infinity]', '[-infinity,"2024-01-01 00:00:00.5+00")'],
    ['int4multirange', '{}', '{[1,3),[5,)}'],
    ['datemultirange', '{(,2024-01-01),[2025-01-01,infinity)}'],
    ['tsvector', '', `'a':1A 'b c':2`],
    ['xml', '<a>é</a>'],
  ];

  it.each([
    ['binary', binaryKinds],
    ['text', [...binaryKinds, ...textKinds]],
  ] as const)('keeps values of every kind exactly where they go in sets, as %s', async (form, kinds) => {
    const pair = await makePair();
    const columns = kinds.map(([type], n) => `c${n} ${type}`).join(', ');
    const first = await prepare(
      pair,
      `create type public.mood as enum ('sad', 'it''s ok'); create domain public.small as int check (value < 100);
       create type public.duo as (a int, b text); create table public.t (id int primary key, ${columns})`,
    );
    const { scope, said } = listening(first);
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, pair);
    /** Of row `g`: the next value of each column than with a `shift` that is one less. */
    const rowOf = (shift: number): string[] =>
      kinds.map(([type, ...values]) => {
        const list = values.map((value) => `'${value.replaceAll("'", "''")}'`).join(', ');
        return `((array[null, ${list}]::text[])[1 + (g + ${shift}) % ${values.length + 1}])::${type}`;
      });
    await pair.source.query(
      `insert into public.t select g, ${rowOf(0).join(', ')} from generate_series(1, 40) g`,
    );
    await drainStream(scope, pair, stream);
    expect((await expectEqual(scope, pair))['public.t']).toHaveLength(40);
    await pair.source.query(
      `update public.t set (${kinds.map((_, n) => `c${n}`).join(', ')}) = row(${rowOf(1).join(', ')}) from generate_series(1, 40) g where id = g`,
    );
    await drainStream(scope, pair, stream);
    await expectEqual(scope, pair);
    await pair.source.query('delete from public.t where id % 2 = 0');
    await drainStream(scope, pair, stream);
    expect((await expectEqual(scope, pair))['public.t']).toHaveLength(20);
    expect(said).toMatchObject({ binary: form === 'binary', again: 0 });
    await stream.stop();
  });

  it('finds its row by the identity’s index where that is not the primary key, whatever moves', async () => {
    const pair = await makePair();
    const first = await prepare(
      pair,
      `create table public.t (id int primary key, region int not null, at timestamptz not null, v text, big text);
       create unique index t_identity on public.t (at, region);
       alter table public.t replica identity using index t_identity;
       alter table public.t alter big set storage external`,
    );
    const { scope, said } = listening(first);
    await pair.source.query(
      `insert into public.t select g, g % 3, timestamptz 'epoch' + g * interval '1 h', 'first', repeat(md5(g::text), 90)
       from generate_series(1, 100) g`,
    );
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, pair);
    const changes = [
      `insert into public.t select g, g % 3, timestamptz 'epoch' + g * interval '1 h', 'new', repeat(md5(g::text), 90)
       from generate_series(101, 140) g`,
      `update public.t set v = 'updated' where id between 20 and 60`,
      `update public.t set id = id + 1000 where id % 2 = 0`,
      `update public.t set at = at + interval '1 year', v = 'moved' where id between 1 and 50`,
      `update public.t set region = 9, id = -id where id % 5 = 0`,
      `update public.t set big = 'short' where id % 7 = 0`,
      `delete from public.t where id % 3 = 0`,
      // one key goes, and another row takes it
      `begin; delete from public.t where id = 1; update public.t set id = 1 where id = 11; commit`,
    ];
    for (const change of changes) {
      await pair.source.query(change);
      await drainStream(scope, pair, stream);
      await expectEqual(scope, pair);
    }
    // and all of it in one batch: what is coalesced by the identity
    await pair.source.query(
      `begin; update public.t set v = v || '!'; update public.t set at = at - interval '1 year' where v like 'moved%';
       insert into public.t select g, g % 3, timestamptz 'epoch' + g * interval '1 h', 'last', null from generate_series(201, 240) g;
       update public.t set id = id + 10000, v = 'all'; delete from public.t where id % 4 = 0; commit`,
    );
    await drainStream(scope, pair, stream);
    expect((await expectEqual(scope, pair))['public.t']?.length).toBeGreaterThan(40);
    expect(said).toMatchObject({ binary: true, again: 0 });
    await stream.stop();
  });

  it('empties what a TRUNCATE cascades to, and restarts the identities', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(
      pair,
      `create table public.parent (id int generated by default as identity primary key, v text);
       create table public.child (id serial primary key, parent_id int not null references public.parent);
       create table public.grandchild (child_id int primary key references public.child);
       create table public.other (id int primary key)`,
    );
    await pair.source.query(
      `insert into public.parent (v) select 'v' from generate_series(1, 30);
       insert into public.child (parent_id) select id from public.parent;
       insert into public.grandchild select id from public.child; insert into public.other values (1)`,
    );
    await drainStream(scope, pair, stream);
    await pair.target.query(
      `select setval(pg_get_serial_sequence('public.' || t, 'id'), 77) from unnest('{parent,child}'::text[]) t`,
    );
    // rows before and behind it, in one transaction: its place among them counts
    await pair.source.query(
      `begin; insert into public.grandchild select id from public.child where id < 0; update public.parent set v = 'w';
       truncate public.child restart identity cascade;
       insert into public.child (parent_id) select id from public.parent order by id limit 20;
       insert into public.grandchild select id from public.child; commit`,
    );
    await drainStream(scope, pair, stream);
    const rows = await expectEqual(scope, pair);
    expect(rows['public.child']?.[0]).toBe('(1,1)');
    const last = async (): Promise<unknown> =>
      (
        await pair.target.query(
          'select p.last_value::int as parent, c.last_value::int as child from public.parent_id_seq p, public.child_id_seq c',
        )
      ).rows[0];
    expect(await last()).toEqual({ parent: 77, child: 1 });
    await pair.source.query('truncate public.parent restart identity cascade');
    await pair.source.query(`insert into public.parent (v) values ('again')`);
    await drainStream(scope, pair, stream);
    expect(await expectEqual(scope, pair)).toEqual({
      'public.parent': ['(1,again)'],
      'public.child': [],
      'public.grandchild': [],
      'public.other': ['(1)'],
    });
    expect(await last()).toEqual({ parent: 1, child: 1 });
    await stream.stop();
  });

  it('swaps values under a deferred unique constraint, also where the role may not switch triggers off', async () => {
    const role = `plain_${randomBytes(4).toString('hex')}`;
    const { port, password } = inject('servers')[18];
    const admin = new pg.Client({
      host: '127.0.0.1',
      port,
      user: 'postgres',
      password,
      database: 'postgres',
    });
    await admin.connect();
    await admin.query(`create role ${role} login password 'secret'`);
    onTestFinished(async () => {
      await admin.query(`drop role ${role}`);
      await admin.end();
    });
    const pair = await makePair();
    await pair.target.query(
      `do $$ begin execute format('grant create on database %I to ${role}', current_database()); end $$`,
    );
    await pair.target.query(`grant all on schema public to ${role}`);
    const limited: DatabasePair = {
      source: pair.source,
      target: { ...pair.target, connection: { ...pair.target.connection, user: role, password: 'secret' } },
    };
    const scope = await prepare(
      limited,
      `create table public.t (id int primary key, pos int, unique (pos) deferrable initially immediate)`,
    );
    await pair.target.query(`alter table public.t owner to ${role}; alter schema dts owner to ${role};
      alter table dts.part owner to ${role}`);
    await pair.source.query('insert into public.t select g, g from generate_series(1, 20) g');
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, pair);
    await pair.source.query(`update public.t set pos = 21 - pos`);
    await drainStream(scope, pair, stream);
    await expectEqual(scope, pair);
    await stream.stop();
  });

  it('travels from a table that only takes inserts for want of a key', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(
      pair,
      `create table public.t (v text)`,
      `insert into public.t values ('a')`,
    );
    await pair.source.query(`insert into public.t values ('b'), (null)`);
    await pair.source.query(`truncate public.t; insert into public.t values ('c')`);
    await drainStream(scope, pair, stream);
    expect(await expectEqual(scope, pair)).toEqual({ 'public.t': ['(c)'] });
    await stream.stop();
  });
});

describe('a difference', () => {
  it('stops the stream with table, key and position when a row is missing or surplus', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(
      pair,
      `create table public.t (id int primary key, v text)`,
      `insert into public.t select g, 'v' from generate_series(1, 3) g`,
    );
    await untilEvent(stream, 'CAUGHT_UP');
    await pair.target.query('delete from public.t where id = 2');
    await pair.source.query(`update public.t set v = 'w' where id = 2`);
    const missing = await stream.failed;
    expect(missing).toMatchObject({
      code: 'unexpected_row',
      kind: 'divergence',
      details: { table: 'public.t', key: { id: '2' }, operation: 'update' },
    });
    expect(missing.details?.['lsn']).toMatch(/^[0-9A-F]+\/[0-9A-F]+$/);
    // Repaired, it goes on from where it stood.
    await pair.target.query(`insert into public.t values (2, 'v')`);
    const again = makeScope(pair, {}, scope);
    const second = startStream(again);
    await drainStream(again, pair, second);
    await pair.target.query(`insert into public.t values (9, 'surplus')`);
    await pair.source.query(`insert into public.t values (9, 'mine')`);
    const surplus = await second.failed;
    expect(surplus).toMatchObject({
      code: 'unexpected_row',
      details: { operation: 'insert', table: 'public.t' },
    });
    await pair.target.query('delete from public.t where id = 9');
    const third = makeScope(pair, {}, again);
    const last = startStream(third);
    await drainStream(third, pair, last);
    await expectEqual(third, pair);
    await last.stop();
  });

  it.each([
    ['add column extra int', /extra was added/],
    ['drop column v', /v was dropped/],
    ['rename column v to w', /renamed to w/],
    ['alter column v type varchar(10)', /changed its type from text to character varying\(10\)/],
    ['rename to t_renamed', /renamed/],
    ['replica identity full', /replica identity/],
  ])('of structure (%s) stops the stream before it is guessed', async (ddl, expected) => {
    const pair = await makePair();
    const { stream } = await streaming(
      pair,
      `create table public.t (id int primary key, v text)`,
      `insert into public.t values (1, 'v')`,
    );
    await untilEvent(stream, 'CAUGHT_UP');
    await pair.source.query(`alter table public.t ${ddl}`);
    await pair.source.query(
      ddl.startsWith('rename to') ? 'delete from public.t_renamed' : 'delete from public.t',
    );
    const error = await stream.failed;
    expect(error.code).toBe('source_ddl');
    expect(error.message).toMatch(expected);
    expect(error.hint).toContain('resume');
    expect((await pair.target.query('select 1 from public.t')).rowCount).toBe(1);
  });

  it('that renames a table nobody writes to is told as such when the stream connects again', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key)');
    await untilEvent(stream, 'CAUGHT_UP');
    await pair.source.query('alter table public.t rename to t_renamed');
    await pair.source.query(
      `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1`,
      [slotOf(scope).name],
    );
    const error = await stream.failed;
    expect(error).toMatchObject({ code: 'source_ddl', details: { object: 'public.t' } });
    expect(error.message).toContain('public.t_renamed');
  });
});

describe('the stream', () => {
  it('applies nothing before the copy is complete, and shows lag and slot meanwhile', async () => {
    const pair = await makePair();
    const scope = await prepare(pair, 'create table public.t (id int primary key)');
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await pair.source.query('insert into public.t select generate_series(1, 5000)');
    await waitFor(() => (scope.sync.at(-1)?.lagBytes ?? 0) > 10_000, 10_000, 'lag');
    expect(scope.sync.at(-1)?.slot?.walStatus).toBe('reserved');
    expect(isCopyComplete(scope)).toBe(false);
    expect((await pair.target.query('select 1 from public.t')).rowCount).toBe(0);
    await copyAll(scope, pair);
    await untilEvent(stream, 'CAUGHT_UP');
    await drainStream(scope, pair, stream);
    await expectEqual(scope, pair);
    await stream.stop();
  });

  it('follows WAL of others on an idle source, so that lag and slot move on', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key)');
    await untilEvent(stream, 'CAUGHT_UP');
    await pair.source.query(
      'create table public.unrelated as select g, md5(g::text) from generate_series(1, 20000) g',
    );
    const { rows } = await pair.source.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
    const there = rows[0]?.lsn;
    await waitFor(
      async () => {
        const found = await pair.source.query(
          'select 1 from pg_replication_slots where slot_name = $1 and confirmed_flush_lsn >= $2::pg_lsn',
          [slotOf(scope).name, there],
        );
        return found.rowCount === 1;
      },
      20_000,
      'the slot to move',
    );
    // others write to the server, too, and a sample may be a second old
    await waitFor(() => (scope.sync.at(-1)?.lagBytes ?? Infinity) < 1_000_000, 20_000, 'the lag to be small');
    // What the slot was told is on the target, and was there first.
    const acked = await pair.target.query(
      'select 1 from dts.progress where task_id = $1 and acked_lsn >= $2::pg_lsn',
      [scope.taskId, there],
    );
    expect(acked.rowCount).toBe(1);
    await stream.stop();
  });

  it('survives a killed walsender and a killed apply session', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key)');
    await drainStream(scope, pair, stream);
    for (const [side, purpose] of [
      ['source', 'walsender'],
      ['target', 'apply'],
      ['source', 'walsender'],
    ] as const) {
      // it may be connecting: once past the copies it reads in another format
      await waitFor(async () => {
        const { rowCount } = await pair[side].query(
          'select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1',
          [`dts/${scope.taskId}/${side}/${purpose}`],
        );
        return rowCount === 1;
      });
      await pair.source.query('insert into public.t select coalesce(max(id), 0) + 1 from public.t');
      await drainStream(scope, pair, stream);
    }
    const connections = stream.events.filter((event) => event.type === 'STREAM_PROGRESS').length;
    expect(connections).toBeGreaterThanOrEqual(4);
    await expectEqual(scope, pair);
    await stream.stop();
  });

  it('begins with markers and held tables of one moment, when a table is held while it connects', async () => {
    const pair = await makePair();
    const scope = await prepare(
      pair,
      'create table t (id int primary key); create table u (id int primary key)',
    );
    const first = startStream(scope);
    await waitFor(() => first.events.some((event) => event.type === 'SLOT_READY'));
    await copyAll(scope, pair);
    await drainStream(scope, pair, first);
    await first.stop();
    // so that the next changes are compared with the copy
    await pair.target.query(`update dts.part set horizon_lsn = 'FFFF/0' where relation = 'public.u'`);
    const second = makeScope(pair, {}, scope);
    const query = second.target.query.bind(second.target);
    let held = false;
    second.target.query = async (sql, ...rest) => {
      if (sql.startsWith('select relation, part, range') && !held) {
        held = true;
        saveLiveCopy(scope, { pass: 1, relations: ['public.t'], state: 'copying' });
        await holdTables(scope, ['public.t'], true);
      }
      return query(sql, ...rest);
    };
    const stream = startStream(second);
    await pair.source.query('insert into t values (1); insert into u values (1)');
    await waitFor(async () => stream.failure() ?? (await pair.target.query('select from u')).rowCount === 1);
    expect(stream.failure()).toBeNull();
    expect(held).toBe(true);
    expect((await pair.target.query('select from t')).rowCount).toBe(0);
    expect((await pair.target.query('select from dts.held_change')).rowCount).toBe(1);
    await stream.stop();
  });

  it('says that it fell behind and caught up again', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(
      pair,
      'create table public.t (id int primary key, v text)',
      '',
      {
        options: { cutoverMaxLagBytes: 100_000 },
      },
    );
    await untilEvent(stream, 'CAUGHT_UP');
    const locker = await pair.target.connect();
    await locker.query('begin; lock table public.t in access exclusive mode');
    await pair.source.query(`insert into public.t select g, md5(g::text) from generate_series(1, 5000) g`);
    await untilEvent(stream, 'FELL_BEHIND');
    await waitFor(() => scope.waits.some((wait) => wait?.includes('holds a lock')), 10_000, 'a named lock');
    // it will never catch up like this, and the status says because of whom: also between the ends of our waits
    await waitFor(() => scope.sync.at(-1)?.limitedBy === 'target', 10_000, 'the side that limits');
    const from = scope.sync.length;
    await waitFor(() => scope.sync.length >= from + 6, 10_000, 'further samples');
    expect(new Set(scope.sync.slice(from).map((status) => status.limitedBy))).toEqual(new Set(['target']));
    expect(scope.sync.at(-1)?.appliedBytesPerSecond).toBe(0);
    await locker.query('commit');
    await drainStream(scope, pair, stream);
    await waitFor(() => stream.events.filter((event) => event.type === 'CAUGHT_UP').length === 2);
    expect(stream.events.map((event) => event.type).filter((type) => /CAUGHT|FELL/.test(type))).toEqual([
      'CAUGHT_UP',
      'FELL_BEHIND',
      'CAUGHT_UP',
    ]);
    await stream.stop();
  });

  it('stops within two seconds in the middle of a blocked batch, keeping nothing of it', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key)');
    await untilEvent(stream, 'CAUGHT_UP');
    const locker = await pair.target.connect();
    await locker.query('begin; lock table public.t in access exclusive mode');
    await pair.source.query('insert into public.t values (1)');
    await waitFor(async () => {
      const { rowCount } = await pair.target.query(
        `select 1 from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock'`,
        [`dts/${scope.taskId}/target/apply`],
      );
      return rowCount === 1;
    });
    expect(await stream.stop()).toBeLessThan(2_000);
    await locker.query('commit');
    expect(scope.connections.connectionCount).toBeLessThanOrEqual(8);
    await waitFor(async () => {
      const { rowCount } = await pair.source.query(
        'select 1 from pg_replication_slots where slot_name = $1 and active',
        [slotOf(scope).name],
      );
      return rowCount === 0;
    });
    expect((await pair.target.query('select 1 from public.t')).rowCount).toBe(0);
  });

  it('reports the slot as lost when it is dropped under it', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key)');
    await untilEvent(stream, 'CAUGHT_UP');
    const { name } = slotOf(scope);
    await pair.source.query(
      `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1`,
      [name],
    );
    await waitFor(async () => {
      try {
        await pair.source.query('select pg_drop_replication_slot($1)', [name]);
        return true;
      } catch {
        return false;
      }
    });
    expect((await stream.failed).code).toBe('slot_lost');
    expect(findSlot(scope)?.name).toBe(name);
  });

  it.each(['source', 'target'] as const)('no setting of the %s alters a value', async (side) => {
    const pair = await makePair();
    const hostile = {
      array_nulls: 'off',
      quote_all_identifiers: 'on',
      standard_conforming_strings: 'off',
      transform_null_equals: 'on',
      xmloption: 'document',
      bytea_output: 'escape',
      datestyle: 'SQL, DMY',
      intervalstyle: 'sql_standard',
      timezone: 'Asia/Kathmandu',
      extra_float_digits: '-15',
    };
    for (const [name, value] of Object.entries(hostile))
      await pair[side].query(`alter database "${pair[side].dbname}" set ${name} = '${value}'`);
    const { scope, stream } = await streaming(
      pair,
      `create table public.t (id int primary key, a text[], f float8, d date, at timestamptz, i interval, b bytea, s text,
         c regclass, p regtype)`,
    );
    await pair.source.query(String.raw`set standard_conforming_strings = on; set datestyle = 'ISO, YMD';
      insert into public.t values (1, array['x', null, 'NULL'], 1.0 / 3, '2020-03-04', '2020-03-04 05:06:07+00', '1 mon -2 days 03:04',
        '\x00ff5c27', 'back\slash ''quote''', 'pg_class', 'text')`);
    await drainStream(scope, pair, stream);
    await stream.stop();
    await pair[side].query(`alter database "${pair[side].dbname}" reset all`); // for the comparison
    const [row] = (await expectEqual(scope, pair))['public.t'] ?? [];
    expect(row).toContain('{x,NULL,""NULL""}');
  });

  it('refuses a target whose progress belongs to another slot, and one that another session moves on', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key)');
    await untilEvent(stream, 'CAUGHT_UP');
    await drainStream(scope, pair, stream);
    const before = await appliedLsn(scope, pair);
    await stream.stop();
    await pair.target.query(`update dts.progress set slot_incarnation = 'other' where task_id = $1`, [
      scope.taskId,
    ]);
    const again = makeScope(pair, {}, scope);
    expect((await startStream(again).failed).code).toBe('slot_stranger');
    expect(await appliedLsn(scope, pair)).toBe(before);
  });
});
