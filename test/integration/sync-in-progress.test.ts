// Transactions that the source sends before they have committed: nothing of them is on the target before, all of them
// afterwards, whatever of them was rolled back, and whatever became of the stream meanwhile.
import { readdirSync, writeFileSync } from 'node:fs';
import type pg from 'pg';
import { describe, expect, it, test } from 'vitest';
import type { EmbeddedMajor } from '../../src/cli/embedded-postgres.ts';
import type { Finding } from '../../src/model/finding.ts';
import { slotOf } from '../../src/postgres/slot-record.ts';
import { expectEqual } from '../support/backlog.ts';
import { makePair, makeRole, waitFor, type DatabasePair } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import { seeded, type Random } from '../support/random-writers.ts';
import {
  copyAll,
  drainStream,
  prepare,
  startStream,
  untilEvent,
  type RunningStream,
} from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

startServers(15);
const MAJORS = [15, 16, 18] as const;
const MEGABYTE = 1024 * 1024;
const ddl = 'create table public.t (id int primary key, v text)';

/** A caught-up stream whose source sends every transaction of more than 64 kB as it is written. */
async function streaming(
  source: EmbeddedMajor,
  tables = ddl,
  over: Parameters<typeof prepare>[2] = {},
  connected: (pair: DatabasePair) => DatabasePair = (pair) => pair,
): Promise<{ pair: DatabasePair; scope: TestScope; stream: RunningStream }> {
  const pair = connected(await makePair({ source }));
  await pair.source.query(`alter database ${pair.source.dbname} set logical_decoding_work_mem = '64kB'`);
  const scope = await prepare(pair, tables, over);
  const stream = startStream(scope);
  await untilEvent(stream, 'SLOT_READY');
  await copyAll(scope, pair);
  await untilEvent(stream, 'CAUGHT_UP');
  return { pair, scope, stream };
}

const rows = (from: number, to: number, bytes = 400): string =>
  `insert into public.t select g, repeat(chr(97 + g % 26), ${bytes}) from generate_series(${from}, ${to}) g`;

async function begin({ source }: DatabasePair, ...statements: readonly string[]): Promise<pg.Client> {
  const client = await source.connect();
  await client.query('begin');
  for (const statement of statements) await client.query(statement);
  return client;
}

const inProgress = ({ sync }: TestScope): NonNullable<TestScope['sync'][number]['inProgress']> =>
  sync.at(-1)?.inProgress ?? { transactions: 0, bytes: 0, spilledBytes: 0 };
const none = { transactions: 0, bytes: 0, spilledBytes: 0 };

async function untilGathered(scope: TestScope, bytes: number): Promise<void> {
  await waitFor(() => inProgress(scope).bytes >= bytes, 30_000, `${bytes} bytes of transactions in progress`);
}

/** How often the source has sent a part of a transaction, and has written one to its disk. */
async function decodingOf(
  { source }: DatabasePair,
  scope: TestScope,
): Promise<{ streamed: number; spilled: number }> {
  const { rows: found } = await source.query<{ streamed: number; spilled: number }>(
    `select stream_count::int as streamed, spill_count::int as spilled from pg_stat_replication_slots where slot_name = $1`,
    [slotOf(scope).name],
  );
  return found[0] ?? { streamed: 0, spilled: 0 };
}

const asCommitted = 'transactions are not read in parts any more, but when they have committed';

function warningsOf(scope: TestScope): string[] {
  const warnings: string[] = [];
  const warn = (_fields: object, message: string): void => void warnings.push(message);
  Object.assign(scope, { log: { ...scope.log, warn } });
  return warnings;
}

async function idsOf({ target }: DatabasePair): Promise<number[]> {
  const found = await target.query<{ id: number }>('select id from public.t order by id');
  return found.rows.map(({ id }) => id);
}

describe.each(MAJORS)('a large transaction of %i', (major) => {
  it('is sent while it is written, waits for its commit on our disk, and lets others pass', async () => {
    const { pair, scope, stream } = await streaming(major);
    const writer = await begin(pair, rows(1, 40_000));
    await untilGathered(scope, 15 * MEGABYTE);
    expect(inProgress(scope)).toMatchObject({ transactions: 1 });
    expect(inProgress(scope).spilledBytes).toBeGreaterThan(7 * MEGABYTE);
    expect(readdirSync(scope.spillFolder)).toEqual([]); // it has no name
    await pair.source.query(`insert into public.t values (0, 'another')`);
    await drainStream(scope, pair, stream);
    expect(await idsOf(pair)).toEqual([0]);
    // to half a second: its position is not held back, either
    await waitFor(() => (scope.sync.at(-1)?.lagBytes ?? 1) === 0, 30_000, 'no lag');
    expect(inProgress(scope)).toMatchObject({ transactions: 1 });
    await writer.query(`update public.t set v = 'changed' where id % 2 = 1`);
    await writer.query('delete from public.t where id % 5 = 0');
    await writer.query('commit');
    await drainStream(scope, pair, stream);
    expect(await expectEqual(scope, pair)).toBe(32_000);
    await waitFor(() => inProgress(scope).transactions === 0);
    expect(inProgress(scope)).toEqual(none);
    const { streamed, spilled } = await decodingOf(pair, scope);
    expect(streamed).toBeGreaterThan(10);
    expect(spilled).toBeLessThan(streamed / 10);
    expect(scope.sync.every(({ feed }) => feed !== 'catch-up')).toBe(true);
    await stream.stop();
  });

  it('is forgotten when it is rolled back', async () => {
    const { pair, scope, stream } = await streaming(major);
    const warnings = warningsOf(scope);
    const writer = await begin(pair, rows(1, 10), 'savepoint a', rows(11, 30_000), 'release a');
    await untilGathered(scope, 9 * MEGABYTE);
    await writer.query('rollback');
    await waitFor(() => inProgress(scope).transactions === 0, 30_000, 'it to be forgotten');
    expect(inProgress(scope)).toEqual(none);
    await drainStream(scope, pair, stream);
    expect(await idsOf(pair)).toEqual([]);
    expect(warnings).toEqual([]); // the next one is sent while it is written, too
    await stream.stop();
  });

  it('comes without what its sub-transactions wrote that were rolled back, DDL included', async () => {
    const { pair, scope, stream } = await streaming(major);
    const writer = await begin(
      pair,
      rows(1, 2_000),
      'savepoint a',
      'alter table public.t add column more text',
      `insert into public.t select g, 'v', repeat('m', 400) from generate_series(2001, 4000) g`,
      'savepoint b',
      `update public.t set more = 'b', v = repeat('u', 300)`,
      'release b',
      `insert into public.t values (5000, 'a', 'a')`,
    );
    await untilGathered(scope, MEGABYTE);
    await writer.query('rollback to a');
    await writer.query(rows(2_001, 6_000));
    await writer.query(`update public.t set v = v || '.' where id < 3000`);
    await writer.query('savepoint c');
    await writer.query('delete from public.t where id > 100');
    await writer.query('rollback to c; savepoint d');
    await writer.query(
      `insert into public.t values (9000, 'the end'); update public.t set id = 9001 where id = 1`,
    );
    await writer.query('release d');
    await writer.query('commit');
    await drainStream(scope, pair, stream);
    expect(await expectEqual(scope, pair)).toBe(6_001);
    expect(stream.failure()).toBeNull();
    await stream.stop();
  });

  it('changes a table again that it first changed within what was rolled back: that is described again', async () => {
    const { pair, scope, stream } = await streaming(
      major,
      `${ddl}; create table public.u (id int primary key, v text)`,
    );
    const others = (from: number, to: number): string => rows(from, to).replace('public.t', 'public.u');
    const writer = await begin(pair, rows(1, 10), 'savepoint a', others(1, 3_000));
    await untilGathered(scope, MEGABYTE);
    await writer.query('rollback to a; release a');
    await writer.query(others(2_001, 6_000));
    await writer.query('commit');
    await drainStream(scope, pair, stream);
    expect(await expectEqual(scope, pair)).toBe(4_010);
    expect(stream.failure()).toBeNull();
    await stream.stop();
  });

  it.each([
    [
      'its own',
      `delete from public.t where id <= 50; insert into public.t values (1000, repeat('x', 9000000))`,
    ],
    [
      'what was released into it',
      `savepoint c; insert into public.t values (1000, repeat('x', 9000000)); release c; delete from public.t where id <= 50`,
    ],
  ])(
    'comes without what a sub-transaction wrote whose rollback the source does not tell (%s)',
    async (_, statements) => {
      // read back from the source's disk in the middle of a value, and sent: see sent-rolled-back.ts
      const { pair, scope, stream } = await streaming(
        major,
        `${ddl}; alter table public.t alter v set storage external`,
      );
      const warnings = warningsOf(scope);
      await pair.source.query(rows(1, 100));
      const writer = await begin(pair, `insert into public.t values (0, 'top')`, 'savepoint s', statements);
      await pair.source.query(`select pg_logical_emit_message(true, 'other', 'what is written is flushed')`);
      await untilGathered(scope, 9_000_000);
      await writer.query(`rollback to s; update public.t set v = 'end' where id = 99`);
      await writer.query('commit');
      await drainStream(scope, pair, stream);
      expect(await expectEqual(scope, pair)).toBe(101);
      expect(warnings).toEqual([asCommitted]);
      expect(scope.sync.at(-1)?.inProgress).toBeNull();
      await stream.stop();
    },
  );

  it.each([
    ['added a column', 'alter table public.r add column c int', ', 42', 42],
    ['rewrote the table', 'vacuum full public.r', '', undefined],
  ])(
    'is decoded with the catalog of its time behind a sub-transaction that was rolled back while another %s',
    async (_, change, value, expected) => {
      // the server finds it rolled back while it decodes it, and forgets the other's change: see sent-rolled-back.ts
      const options = { options: { onDdl: 'apply-additive' } } as const;
      const { pair, scope, stream } = await streaming(
        major,
        `${ddl}; create table public.r (a int primary key, b text); create table public.y (a int primary key, b text)`,
        options,
      );
      await drainStream(scope, pair, stream);
      await stream.stop();
      const writer = await begin(
        pair,
        `insert into public.t values (0, 'top')`,
        'savepoint s',
        `insert into public.y select g, repeat('x', 500) from generate_series(1, 10) g`,
      );
      await pair.source.query(change);
      await writer.query(
        `insert into public.y select g, repeat('x', 500) from generate_series(1001, 2000) g`,
      );
      await writer.query('rollback to s');
      await writer.query(`insert into public.r values (1, 'after'${value})`);
      await writer.query('commit');
      const again = makeScope(pair, options, scope);
      const next = startStream(again);
      await drainStream(again, pair, next);
      const { rows: found } = await pair.target.query('select * from public.r order by 1');
      expect(found).toEqual([{ a: 1, b: 'after', ...(expected === undefined ? {} : { c: expected }) }]);
      expect(next.failure()).toBeNull();
      await next.stop();
    },
  );

  it('is sent again to a stream that begins while it runs, or after it', async () => {
    const { pair, scope, stream } = await streaming(major);
    const first = await begin(pair, rows(1, 3_000));
    const second = await begin(pair, rows(10_001, 13_000));
    await untilGathered(scope, 2 * MEGABYTE);
    await pair.source.query(`insert into public.t values (0, 'another')`);
    await drainStream(scope, pair, stream); // the slot has moved past their beginning
    await stream.stop();
    await first.query(rows(3_001, 4_000));
    await first.query('commit');
    const again = makeScope(pair, {}, scope);
    const next = startStream(again);
    await drainStream(again, pair, next);
    expect(await idsOf(pair)).toHaveLength(4_001);
    // what was written before the position of the new stream is sent once more of it is decoded
    await second.query(rows(13_001, 14_000));
    await untilGathered(again, MEGABYTE);
    await second.query('commit');
    await drainStream(again, pair, next);
    expect(await expectEqual(again, pair)).toBe(8_001);
    await next.stop();
  });
});

/** Statements of one transaction with sub-transactions in each other, on ids from `from` on. */
function nested(random: Random, from: number): string[] {
  const statements = ['begin'];
  const open: string[] = [];
  const id = (): number => from + random(40);
  for (let n = 10 + random(40); n > 0; n--) {
    const name = open.at(-1);
    const turn = random(10);
    if (turn < 3 && open.length < 6) {
      open.push(`s${statements.length}`);
      statements.push(`savepoint ${open.at(-1) ?? ''}`);
    } else if (turn === 3 && name !== undefined) {
      open.pop();
      statements.push(`release ${name}`);
    } else if (turn === 4 && name !== undefined) statements.push(`rollback to ${name}`);
    else if (turn === 5) statements.push(`delete from public.t where id = ${id()}`);
    else if (turn === 6) statements.push(`update public.t set v = v || '${random(99)}' where id = ${id()}`);
    else
      statements.push(
        `insert into public.t values (${id()}, repeat('${random(99)}', ${random(6) === 0 ? 30_000 : 500}))
         on conflict (id) do update set v = excluded.v`,
      );
  }
  return [...statements, random(5) === 0 ? 'rollback' : 'commit'];
}

test.each([
  [15, '64kB', 'buffered'],
  [18, '64kB', 'buffered'],
  [18, '64MB', 'immediate'],
] as const)(
  'no change of transactions of %i with nested sub-transactions is lost or doubled (%s, %s), however often the stream dies',
  async (major, memory, mode) => {
    // values that lie beside the row come in pieces, between which nothing can be sent
    const begun = await streaming(major, `${ddl}; alter table public.t alter v set storage external`);
    const { pair } = begun;
    let { scope, stream } = begun;
    await pair.source.query(
      `alter database ${pair.source.dbname} set logical_decoding_work_mem = '${memory}'`,
    );
    if (mode === 'immediate')
      await pair.source.query(
        `alter database ${pair.source.dbname} set debug_logical_replication_streaming = '${mode}'`,
      );
    let isWriting = true;
    const write = async (seed: number): Promise<void> => {
      const random = seeded(seed * 977 + major);
      const client = await pair.source.connect();
      while (isWriting) for (const statement of nested(random, seed * 100)) await client.query(statement);
    };
    const writers = [1, 2, 3].map(write);
    const random = seeded(major);
    for (let deaths = 0; deaths < 12; deaths++) {
      await new Promise((resolve) => setTimeout(resolve, 100 + random(500)));
      await stream.stop();
      expect(stream.failure()).toBeNull();
      scope = makeScope(pair, {}, scope);
      stream = startStream(scope);
    }
    isWriting = false;
    await Promise.all(writers);
    await drainStream(scope, pair, stream);
    expect(await expectEqual(scope, pair)).toBeGreaterThan(30);
    const { streamed } = await decodingOf(pair, scope);
    expect(streamed).toBeGreaterThan(10);
    await stream.stop();
  },
);

it('is given when it has committed, though others do not see it yet: it waits for a standby', async () => {
  const { pair, scope, stream } = await streaming(15); // this file's own server
  const { source } = pair;
  await source.query(`alter database ${source.dbname} set synchronous_commit = 'local'`);
  const setStandby = async (statement: string): Promise<void> => {
    await source.query(statement);
    await source.query('select pg_reload_conf()');
  };
  await setStandby(`alter system set synchronous_standby_names = 'nobody'`);
  const writer = await begin(pair, rows(1, 2_000), 'savepoint a', rows(2_001, 4_000), 'release a');
  await writer.query('set synchronous_commit = on');
  await untilGathered(scope, MEGABYTE);
  const committed = writer.query('commit');
  try {
    await waitFor(async () => (await idsOf(pair)).length === 4_000, 30_000, 'the rows');
    expect((await source.query('select from public.t')).rows).toHaveLength(0);
  } finally {
    await setStandby('alter system reset synchronous_standby_names');
    await committed;
  }
  expect(stream.failure()).toBeNull();
  expect(scope.sync.at(-1)?.inProgress).not.toBeNull();
  await stream.stop();
});

it('comes when it has committed from a source that does not let us ask what was rolled back', async () => {
  const role = await makeRole(18);
  const { pair, scope, stream } = await streaming(
    18,
    `${ddl}; alter table public.t owner to ${role}; alter role ${role} replication;
     revoke execute on function pg_xact_status(xid8) from public;
     do $$ begin execute format('grant create on database %I to ${role}', current_database()); end $$`,
    {},
    (made) => ({
      ...made,
      source: { ...made.source, connection: { ...made.source.connection, user: role, password: 'secret' } },
    }),
  );
  const warnings = warningsOf(scope);
  const writer = await begin(pair, rows(1, 1_000), 'savepoint a', rows(1_001, 4_000), 'release a');
  await untilGathered(scope, MEGABYTE);
  await writer.query('commit');
  await drainStream(scope, pair, stream);
  expect(await idsOf(pair)).toHaveLength(4_000);
  expect(warnings).toEqual([asCommitted]);
  expect(stream.failure()).toBeNull();
  await stream.stop();
});

it('changes a table that gets a column within it under on_ddl apply-additive', async () => {
  const { pair, scope, stream } = await streaming(18, ddl, { options: { onDdl: 'apply-additive' } });
  const writer = await begin(
    pair,
    rows(1, 1_000),
    'alter table public.t add column more int',
    `insert into public.t select g, repeat('x', 400), g from generate_series(1001, 3000) g`,
  );
  await untilGathered(scope, MEGABYTE);
  await writer.query('commit');
  await drainStream(scope, pair, stream);
  const { rows: found } = await pair.target.query(
    'select count(*)::int as n, sum(more)::int as sum from public.t',
  );
  expect(found).toEqual([{ n: 3_000, sum: 4_001_000 }]);
  await stream.stop();
});

it('brings truncates, keys that move, large values and other tables of one transaction in their order', async () => {
  const { pair, scope, stream } = await streaming(
    16,
    `${ddl}; alter table public.t alter v set storage external;
     create table public.log (a int, b text); alter table public.log replica identity full`,
  );
  await pair.source.query(`${rows(1, 500, 3_000)}; insert into public.log values (1, 'kept'), (2, 'gone')`);
  const writer = await begin(
    pair,
    'update public.t set id = id + 10000 where id % 2 = 0', // without their large values
    'delete from public.log where a = 2',
    'truncate public.log',
    `insert into public.log select g, repeat('l', 300) from generate_series(1, 1000) g`,
    `update public.log set b = b || a where a % 3 = 0`,
    `insert into public.t values (2, 'again')`,
    `select pg_logical_emit_message(true, 'other', repeat('m', 100000))`,
  );
  await untilGathered(scope, MEGABYTE / 4);
  await writer.query('commit');
  await drainStream(scope, pair, stream);
  expect(await expectEqual(scope, pair)).toBe(1_501);
  await stream.stop();
});

it('are sent when they have committed where our disk refuses them, and the task says so until it may again', async () => {
  const { pair, scope, stream } = await streaming(18);
  await stream.stop();
  const again = makeScope(pair, {}, scope);
  writeFileSync(again.spillFolder, 'not a folder');
  const next = startStream(again);
  await untilEvent(next, 'CAUGHT_UP');
  const writer = await begin(pair, rows(1, 30_000));
  const said = (of: RunningStream): (Finding | null)[] =>
    of.events.flatMap((event) =>
      event.type === 'FINDING' && event.code === 'spill_refused' ? [event.finding] : [],
    );
  await waitFor(() => said(next).some((finding) => finding !== null), 30_000, 'the finding');
  expect(said(next)).toEqual([
    null,
    expect.objectContaining({
      severity: 'warning',
      message: expect.stringContaining(again.spillFolder) as string,
      remedy: expect.stringContaining('make room') as string,
    }),
  ]);
  await writer.query('commit');
  await drainStream(again, pair, next);
  expect(await expectEqual(again, pair)).toBe(30_000);
  expect(again.sync.at(-1)?.inProgress).toBeNull();
  await next.stop();
  const last = makeScope(pair, {}, scope);
  const third = startStream(last);
  await untilEvent(third, 'CAUGHT_UP');
  expect(said(third)).toEqual([null]);
  await third.stop();
});
