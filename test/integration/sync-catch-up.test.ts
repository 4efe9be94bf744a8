// The slot functions as a feed: they take turns with the walsender without a gap or a repeat, and leave to it what is not
// for them.
import { describe, expect, it } from 'vitest';
import type { Finding } from '../../src/model/finding.ts';
import { compareLsn, lsnToBigint, ZERO_LSN, type Lsn } from '../../src/model/lsn.ts';
import { catchUpSizes, type CatchUpSizes } from '../../src/postgres/call-size.ts';
import { sourceVersion } from '../../src/postgres/marker.ts';
import { GulpQueue } from '../../src/postgres/gulp-queue.ts';
import { BufferPool } from '../../src/postgres/buffer-pool.ts';
import { SlotCopy } from '../../src/postgres/slot-copy.ts';
import { SlotFeed } from '../../src/postgres/slot-feed.ts';
import { slotOf } from '../../src/postgres/slot-record.ts';
import { taskObjectName } from '../../src/postgres/sql.ts';
import type { WalStreamOptions } from '../../src/postgres/wal-stream.ts';
import {
  backlog,
  copied,
  expectEqual,
  listening,
  manyChanges,
  nothingSaid,
  tables,
} from '../support/backlog.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import { randomTables, startWriters } from '../support/random-writers.ts';
import {
  copyAll,
  drainStream,
  prepare,
  startStream,
  untilEvent,
  type RunningStream,
} from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

// of its own: which feed is chosen depends on the WAL that is written, other tests' too
startServers(13, 16, 18);

const small: CatchUpSizes = {
  fromBytes: 200_000,
  toBytes: 50_000,
  firstCallBytes: 40_000,
  mostCallBytes: 150_000,
};

const findingsOf = (stream: RunningStream): (Finding | null)[] =>
  stream.events.flatMap((event) =>
    event.type === 'FINDING' && event.code === 'catch_up_refused' ? [event.finding] : [],
  );

const noSocket = { pause: (): void => undefined, resume: (): void => undefined };

/** From where the task's slot stands: nothing is acknowledged. */
async function feedOptions(scope: TestScope): Promise<WalStreamOptions> {
  const slot = slotOf(scope);
  return {
    slot,
    publication: taskObjectName(scope.taskId),
    startLsn: slot.consistentLsn,
    ackedLsn: slot.consistentLsn,
    sourceVersion: await sourceVersion(scope),
    binary: false,
    streaming: false,
  };
}

async function openFeed(scope: TestScope, sizes: CatchUpSizes): Promise<SlotFeed> {
  return SlotFeed.open(scope, await feedOptions(scope), sizes, scope.signal);
}

async function lsnOf({ source }: DatabasePair): Promise<Lsn> {
  const { rows } = await source.query<{ lsn: Lsn }>('select pg_current_wal_flush_lsn()::text as lsn');
  return rows[0]?.lsn ?? ZERO_LSN;
}

/** Bytes of WAL behind where the task's slot was made. */
async function lagOf(pair: DatabasePair, scope: TestScope): Promise<number> {
  return Number(lsnToBigint(await lsnOf(pair)) - lsnToBigint(slotOf(scope).consistentLsn));
}

/** All that the feed gives of transactions. Every session tells of relations by itself. */
async function messagesOf(feed: SlotFeed): Promise<string[]> {
  const messages: string[] = [];
  for (let ended = false; !ended; ended = feed.ended && feed.drained)
    for (const { buffer, bounds } of await feed.take(20))
      for (let i = 0; i < bounds.length; i += 2) {
        const message = buffer.subarray(bounds[i], bounds[i + 1]);
        if (!'kRY'.includes(String.fromCharCode(message[0] ?? 0))) messages.push(message.toString('hex'));
      }
  return messages;
}

describe('far behind', () => {
  it.each([16, 13, 18] as const)(
    'the slot functions of %i feed the stream, then the walsender',
    async (source) => {
      const pair = await makePair({ source });
      const { scope, said, stream } = await backlog(
        pair,
        tables(''),
        `insert into public.t (id, v) select g, 'first' from generate_series(1, 50) g`,
        () => pair.source.query(manyChanges),
        small,
      );
      expect(await expectEqual(scope, pair)).toBeGreaterThan(1_000);
      await waitFor(() => said.feeds.length === 2, 20_000, 'the walsender');
      expect(said).toMatchObject({ feeds: ['catch-up', 'live'], again: 0 });
      expect(scope.sync[0]?.feed).toBe('catch-up');
      await waitFor(() => scope.sync.at(-1)?.feed === 'live', 10_000, 'a sample of the walsender');
      expect(findingsOf(stream)).toEqual([null]);
      await stream.stop();
    },
  );

  it.each([
    [true, 'catch-up'],
    [false, 'live'],
  ] as const)(
    'the slot functions begin where the slot begins, or not at once (it could be moved there: %s)',
    async (couldBeMoved, feed) => {
      const pair = await makePair();
      const rename = (from: string, to: string) =>
        pair.source.query(`alter function pg_catalog.${from}(name, pg_lsn) rename to ${to}`);
      const { scope, said } = listening(await prepare(pair, tables('')));
      if (!couldBeMoved) await rename('pg_replication_slot_advance', 'not_to_be_had');
      const stream = startStream(scope, small);
      await untilEvent(stream, 'SLOT_READY');
      if (!couldBeMoved) await rename('not_to_be_had', 'pg_replication_slot_advance');
      await pair.source.query(manyChanges);
      await copyAll(scope, pair);
      await drainStream(scope, pair, stream);
      expect(said.feeds[0]).toBe(feed);
      expect(await expectEqual(scope, pair)).toBeGreaterThan(1_000);
      await stream.stop();
    },
  );

  it('both feeds take turns under writers, without a gap or a repeat', async () => {
    const pair = await makePair();
    let scope = await copied(pair, randomTables);
    const writers = startWriters(pair.source, 11);
    const said = nothingSaid();
    for (let turn = 0; turn < 4; turn++) {
      const goal = writers.done() + 150;
      await waitFor(() => writers.done() >= goal, 60_000, '150 transactions');
      ({ scope } = listening(makeScope(pair, {}, scope), said));
      const next = startStream(scope, small);
      await untilEvent(next, 'STREAM_PROGRESS');
      if (turn === 3) {
        await writers.stop();
        await drainStream(scope, pair, next);
        await waitFor(() => said.feeds.includes('live'), 20_000, 'the walsender');
      }
      await next.stop();
      expect(next.failure()).toBeNull();
    }
    expect(await expectEqual(scope, pair)).toBeGreaterThan(20);
    expect(new Set(said.feeds)).toEqual(new Set(['catch-up', 'live']));
    expect(said.binary).toBe(true);
    expect(writers.prepared.commit).toBeGreaterThan(0);
    expect(writers.prepared.rollback).toBeGreaterThan(0);
  });

  it('a batch that is sent again has its messages as they came, though what was read before them is read over', async () => {
    const pair = await makePair();
    const { scope, said, stop } = await backlog(
      pair,
      'create table public.t (id int primary key, u int unique, v text)',
      `insert into public.t select g, g, 'v' from generate_series(1, 20) g`,
      () =>
        // values that pass from row to row: no order of the final states will do
        pair.source.query(`do $$ begin for n in 1..40 loop
          insert into public.t select n * 1000 + g, n * 1000 + g, repeat(md5(n || '.' || g), 20) from generate_series(1, 900) g;
          update public.t set u = -u, v = 'swapped ' || n where id <= 20;
          update public.t set u = 21 + u where id <= 20; commit; end loop; end $$`),
      { ...catchUpSizes, fromBytes: 200_000, toBytes: 50_000 },
    );
    expect(await expectEqual(scope, pair)).toBe(36_020);
    expect(said).toMatchObject({ binary: true, feeds: ['catch-up', 'live'] });
    expect(said.again).toBeGreaterThan(1);
    await stop();
  });

  it.each([
    [13, 'live'],
    [18, 'catch-up'],
  ] as const)(
    'values of 20 MB of a source %i arrive among small ones by the %s feed',
    async (source, feed) => {
      const pair = await makePair({ source });
      let scope = await copied(
        pair,
        `create table public.t (id int primary key, v text, big text, raw bytea);
       alter table public.t alter big set storage external, alter raw set storage external`,
      );
      const large = (word: string): string => `repeat(md5('${word}'), 20 * 32768)`;
      const changes = [
        `begin; insert into public.t values (-1, 'text', ${large('a')}, null), (-2, 'bytea', 'b', ${large('b')}::bytea);
       update public.t set v = 'among them'; commit; update public.t set v = v || '!'`,
        `update public.t set big = ${large('c')} where id = -1; update public.t set raw = ${large('d')}::bytea where id = -2`,
        `update public.t set v = 'beside it'; update public.t set id = id - 9000, v = 'moved' where id < 1000;
       delete from public.t where id = -9002 or id between 1000 and 1500; update public.t set v = 'then' where id < 100`,
      ];
      const sizes: CatchUpSizes = {
        ...catchUpSizes,
        fromBytes: feed === 'live' ? Infinity : 200_000,
        toBytes: 50_000,
      };
      const rows =
        'select id, v, md5(big) as big, length(big) as chars, md5(raw) as raw, length(raw) as bytes from public.t order by id';
      const said = nothingSaid();
      for (const [n, change] of changes.entries()) {
        await pair.source.query(
          `insert into public.t select g, repeat('x', 200) from generate_series(${n} * 1000 + 1, ${n} * 1000 + 1000) g`,
        );
        await pair.source.query(change);
        ({ scope } = listening(makeScope(pair, {}, scope), said));
        const stream = startStream(scope, sizes);
        await drainStream(scope, pair, stream);
        expect((await pair.target.query(rows)).rows).toEqual((await pair.source.query(rows)).rows);
        // the slot is to restart behind it: otherwise the next backlog would not be worth a call
        const { rows: before } = await pair.source.query<{ lsn: Lsn }>(
          'select pg_current_wal_lsn()::text as lsn',
        );
        await pair.source.query('checkpoint');
        await waitFor(async () => {
          await drainStream(scope, pair, stream);
          const { rows: found } = await pair.source.query<{ restart: Lsn }>(
            'select restart_lsn::text as restart from pg_replication_slots where slot_name = $1',
            [slotOf(scope).name],
          );
          return compareLsn(found[0]?.restart ?? ZERO_LSN, before[0]?.lsn ?? ZERO_LSN) >= 0;
        });
        await stream.stop();
      }
      expect(said).toMatchObject({ binary: source >= 14, again: 0 });
      expect(said.feeds.filter((each) => each === feed).length).toBeGreaterThanOrEqual(changes.length);
    },
  );

  it('the walsender feeds alone where there is no slot to spare', async () => {
    const pair = await makePair();
    const first = await copied(pair, 'create table public.t (id int primary key, v text)');
    await pair.source.query(
      `insert into public.t select g, repeat('x', 200) from generate_series(1, 3000) g`,
    );
    await pair.source.query(
      `select pg_create_physical_replication_slot('spare_' || n) from generate_series(1, (
         select current_setting('max_replication_slots')::int - count(*)::int from pg_replication_slots)) n`,
    );
    const { scope, said } = listening(makeScope(pair, {}, first));
    const again = startStream(scope, small);
    await drainStream(scope, pair, again);
    expect(said.feeds).toEqual(['live']);
    expect(new Set(scope.sync.map(({ feed }) => feed))).toEqual(new Set(['live']));
    expect(findingsOf(again)).toEqual([
      expect.objectContaining({
        code: 'catch_up_refused',
        message: expect.stringContaining('all replication slots are in use') as string,
        remedy: expect.stringContaining('max_replication_slots') as string,
      }),
    ]);
    await expectEqual(scope, pair);
    await again.stop();
    await pair.source.query(
      `select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'spare\\_%'`,
    );
  });

  it('a copy of the slot that a cut-off session still holds is in nobody’s way', async () => {
    const pair = await makePair();
    const first = await copied(pair, 'create table public.t (id int primary key, v text)');
    await pair.source.query(
      `insert into public.t select g, repeat('x', 200) from generate_series(1, 3000) g`,
    );
    const cutOff = await pair.source.connect();
    const slot = slotOf(first).name;
    await cutOff.query(
      `select pg_copy_logical_replication_slot('${slot}', '${slot.replace('dts_', 'dtsc_')}', true)`,
    );
    const { scope, said } = listening(makeScope(pair, {}, first));
    const again = startStream(scope, small);
    await drainStream(scope, pair, again);
    expect(said.feeds[0]).toBe('catch-up');
    await expectEqual(scope, pair);
    await again.stop();
    await cutOff.end();
  });

  it('the walsender goes on where the source may not hold what a call returns', async () => {
    const pair = await makePair();
    const { dbname } = pair.source;
    await pair.source.query(`alter role postgres in database ${dbname} set temp_file_limit = '1MB'`);
    const { scope, said, stream } = await backlog(
      pair,
      'create table public.t (id int primary key, v text)',
      '',
      () =>
        pair.source.query(`insert into public.t select g, repeat('x', 200) from generate_series(1, 40000) g`),
      { fromBytes: 200_000, toBytes: 50_000, firstCallBytes: 64_000_000, mostCallBytes: 64_000_000 },
    );
    await pair.source.query(`alter role postgres in database ${dbname} reset temp_file_limit`);
    expect(await expectEqual(scope, pair)).toBe(40_000);
    expect(said).toMatchObject({ feeds: ['catch-up', 'live'], again: 0 });
    expect(findingsOf(stream)).toEqual([
      null,
      expect.objectContaining({ remedy: expect.stringContaining('temp_file_limit') as string }),
    ]);
    await stream.stop();
  });

  it('a copy that is moved on restarts at the last running-transactions record before', async () => {
    const pair = await makePair();
    const first = await copied(pair, 'create table public.t (id int primary key, v text)');
    const scope = makeScope(pair, {}, first);
    const copy = await SlotCopy.open(
      scope,
      await feedOptions(scope),
      new GulpQueue(noSocket),
      new BufferPool(),
      scope.signal,
    );
    for (const round of [1, 2]) {
      let lastRecordAfter = ZERO_LSN;
      for (const n of [1, 2, 3]) {
        await pair.source.query(
          `insert into public.t select ${round * 10 + n} * 1000 + g, repeat('x', 200) from generate_series(1, 99) g`,
        );
        lastRecordAfter = await lsnOf(pair);
        await pair.source.query('checkpoint');
      }
      await copy.moveTo(await lsnOf(pair));
      expect(compareLsn(copy.restartLsn, lastRecordAfter)).toBeGreaterThanOrEqual(0);
    }
    await copy.close();
  });

  it('a call that is given up ends on the source, too', async () => {
    const pair = await makePair();
    const first = await copied(pair, 'create table public.t (id int primary key, v text)');
    await pair.source.query(
      `do $$ begin for n in 0..99 loop
         insert into public.t select n * 5000 + g, repeat('x', 20) from generate_series(1, 5000) g; commit; end loop; end $$`,
    );
    const scope = makeScope(pair, {}, first);
    const open = async (): Promise<SlotCopy> =>
      SlotCopy.open(scope, await feedOptions(scope), new GulpQueue(noSocket), new BufferPool(), scope.signal);
    const gone = async (name: string): Promise<boolean> =>
      (await pair.source.query('select from pg_replication_slots where slot_name = $1', [name])).rowCount ===
      0;
    const whole = await open();
    const began = Date.now();
    whole.begin(await lsnOf(pair));
    let answeredMs = 0;
    await whole.read(() => (answeredMs ||= Date.now() - began));
    await whole.close();
    const givenUp = await open();
    givenUp.begin(await lsnOf(pair));
    const closedAt = Date.now();
    await givenUp.close();
    await waitFor(() => gone(givenUp.name), 10_000, 'the end of the copy');
    expect(Date.now() - closedAt).toBeLessThan(answeredMs / 2);
  });

  it('a call does not end in the header of a page of WAL', async () => {
    const pair = await makePair();
    const first = await copied(pair, 'create table public.t (id int primary key, v text)');
    await pair.source.query(
      `do $$ begin for n in 1..20000 loop insert into public.t values (n, repeat('x', n % 40)); commit; end loop; end $$`,
    );
    const scope = makeScope(pair, {}, first);
    const { consistentLsn } = slotOf(scope);
    const lag = await lagOf(pair, scope);
    const read = async (sizes: { firstCallBytes: number; mostCallBytes: number }): Promise<string[]> => {
      const feed = await openFeed(scope, { fromBytes: 1, toBytes: 1, ...sizes });
      const messages = await messagesOf(feed);
      await feed.close();
      return messages;
    };
    const whole = await read({ firstCallBytes: lag * 2, mostCallBytes: lag * 2 });
    // begin messages name the beginning of the commit record
    const commits = whole.flatMap((message) =>
      message.startsWith('42')
        ? [Number(BigInt(`0x${message.slice(2, 18)}`) - lsnToBigint(consistentLsn))]
        : [],
    );
    const start = Number(lsnToBigint(consistentLsn));
    const [behindHeader = NaN] = commits.filter(
      (at) => (start + at) % 8_192 === 24 && at > 0.3 * lag && at < 0.5 * lag,
    );
    expect(behindHeader).not.toBeNaN();
    // the page, and so the record before it, ends 24 bytes before: between the two there is no commit
    for (const firstCallBytes of [behindHeader - 24, behindHeader - 8, behindHeader])
      expect(await read({ firstCallBytes, mostCallBytes: lag })).toEqual(whole);
  });

  it.each([13, 18] as const)(
    'a call that begins while another of %i is taken goes on where that one ends, wherever that is',
    async (source) => {
      const pair = await makePair({ source });
      const first = await copied(pair, randomTables);
      const writers = startWriters(pair.source, 5);
      await waitFor(() => writers.done() > 150, 60_000, '150 transactions');
      await writers.stop();
      expect(writers.prepared.commit).toBeGreaterThan(0);
      const { scope, said } = listening(makeScope(pair, {}, first));
      const lag = await lagOf(pair, scope);
      const read = async (sizes: { firstCallBytes: number; mostCallBytes: number }): Promise<string[]> => {
        const feed = await openFeed(scope, { fromBytes: 1, toBytes: 1, ...sizes });
        const messages = await messagesOf(feed);
        expect(feed.unfitUntil).toBeNull(); // nothing was left to the walsender
        await feed.close();
        return messages;
      };
      // more than all: the server writes records of its own meanwhile
      const whole = await read({ firstCallBytes: lag * 2, mostCallBytes: lag * 2 });
      expect(whole.length).toBeGreaterThan(500);
      expect(said.callsBeside).toBe(0);
      const places = 40;
      for (let n = 1; n <= places; n++) {
        // the first covers a quarter of the most, the second half of it at most: not all of either within a transaction
        const mostCallBytes = Math.floor(4 * lag * (0.1 + (0.3 * n) / places)) + n;
        expect(await read({ firstCallBytes: 100, mostCallBytes })).toEqual(whole);
      }
      expect(said.callsBeside).toBeGreaterThanOrEqual(places);
      // many on the same two copies
      const before = said.callsBeside;
      for (let n = 1; n <= places; n++) {
        const mostCallBytes = Math.floor(lag * (0.2 + (0.1 * n) / places)) + n;
        expect(await read({ firstCallBytes: 100, mostCallBytes })).toEqual(whole);
      }
      expect(said.callsBeside).toBeGreaterThanOrEqual(before + 3 * places);
    },
  );

  it('a slot is left to others while a call begins beside another', async () => {
    const pair = await makePair();
    const first = await copied(
      pair,
      tables(''),
      `insert into public.t (id, v) select g, 'first' from generate_series(1, 50) g`,
    );
    await pair.source.query(manyChanges);
    const fill = `select pg_create_physical_replication_slot('spare_' || n) from generate_series(1, (
      select current_setting('max_replication_slots')::int - count(*)::int from pg_replication_slots) - $1::int) n`;
    for (const [free, besides] of [
      [2, false],
      [3, true],
    ] as const) {
      await pair.source.query(fill, [free]);
      const { scope, said } = listening(makeScope(pair, {}, first));
      const feed = await openFeed(scope, small);
      expect((await messagesOf(feed)).length).toBeGreaterThan(0);
      await feed.close();
      expect(said.callsBeside > 0).toBe(besides);
      await pair.source.query(
        `select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'spare\\_%'`,
      );
    }
  });

  it('a transaction that is larger than a call is left to the walsender', async () => {
    const pair = await makePair();
    let end: Lsn = ZERO_LSN;
    const { scope, said, stop } = await backlog(
      pair,
      'create table public.t (id int primary key, v text)',
      '',
      async () => {
        await pair.source.query(
          `insert into public.t select g, repeat('x', 100) from generate_series(1, 20000) g`,
        );
        const { rows } = await pair.source.query<{ lsn: Lsn }>('select pg_current_wal_lsn()::text as lsn');
        end = rows[0]?.lsn ?? end;
      },
      small,
    );
    expect(await expectEqual(scope, pair)).toBe(20_000);
    expect(said).toMatchObject({ feeds: ['catch-up', 'live'], again: 0 });
    expect(compareLsn(said.from[1] ?? end, end)).toBeLessThan(0);
    await stop();
  });
});

describe('the slot', () => {
  /** While the target's table is locked: once for all of it, once behind the first batch, whose commit is acknowledged. */
  async function watchSlot(callSizes: CatchUpSizes, feed: string): Promise<void> {
    const pair = await makePair();
    const first = await copied(pair, 'create table public.t (id int primary key)');
    await pair.source.query('create table public.others (v text)');
    // more than a first batch takes, in transactions that are smaller than a call
    await pair.source.query(`do $$ begin for n in 0..249 loop
      insert into public.t select n * 100 + g from generate_series(1, 100) g; commit; end loop; end $$`);
    const { scope, said } = listening(makeScope(pair, {}, first));
    const gates = [await pair.target.connect(), await pair.target.connect()] as const;
    await gates[0].query('begin; lock table public.t');
    const stream = startStream(scope, callSizes);
    await waitFor(() => said.feeds.length > 0, 20_000, 'a feed');

    const stored = async (): Promise<Lsn> => {
      const { rows } = await pair.target.query<{ lsn: Lsn }>(
        'select acked_lsn::text as lsn from dts.progress',
      );
      return rows[0]?.lsn ?? ZERO_LSN;
    };
    /** Until `over`, while other tables' WAL goes on. Resolves to where the slot is. */
    const watch = async (over: (slotAt: Lsn, ms: number) => boolean): Promise<Lsn> => {
      for (const began = Date.now(); ; ) {
        await pair.source.query(`insert into public.others values (repeat('x', 1000))`);
        const { rows } = await pair.source.query<{ lsn: Lsn }>(
          'select confirmed_flush_lsn::text as lsn from pg_replication_slots where slot_name = $1',
          [slotOf(scope).name],
        );
        const slotAt = rows[0]?.lsn ?? 'none';
        const acked = await stored(); // asked behind the slot
        if (compareLsn(slotAt, acked) > 0) expect.fail(`the slot is at ${slotAt}, the target at ${acked}`);
        if (over(slotAt, Date.now() - began)) return slotAt;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    };
    // two intervals of the walsender's status; of the other feed: one until the slot may move
    const stoodAt = await watch((_slotAt, ms) => ms > 11_000);
    expect(said.feeds).toEqual([feed]);
    const before = await stored();
    expect(compareLsn(scope.sync.at(-1)?.receivedLsn ?? ZERO_LSN, before)).toBeGreaterThan(0);
    const locked = gates[1].query('begin; lock table public.t');
    const isQueued = async (): Promise<boolean> =>
      (await pair.target.query(`select from pg_locks where not granted and relation = 'public.t'::regclass`))
        .rowCount === 2;
    await waitFor(isQueued, 5_000, 'a second lock behind the first batch');
    await gates[0].query('rollback');
    await locked;
    const movedTo = await watch((slotAt, ms) => compareLsn(slotAt, stoodAt) > 0 || ms > 10_000);
    expect(compareLsn(movedTo, stoodAt)).toBeGreaterThan(0);
    expect(compareLsn(await stored(), before)).toBeGreaterThan(0);
    await gates[1].query('rollback');
    await drainStream(scope, pair, stream);
    await watch((_slotAt, ms) => ms > 300);
    expect(await expectEqual(scope, pair)).toBe(25_000);
    await stream.stop();
  }

  // a call of the small ones may cover page images only
  const sizes: CatchUpSizes = { ...small, firstCallBytes: 400_000, mostCallBytes: 1_600_000 };

  // one after the other: WAL of other databases in the backlog, such as what CREATE DATABASE writes, is for the walsender
  it.each([
    ['catch-up', sizes],
    ['live', { ...sizes, fromBytes: Infinity }],
  ] as const)(
    'never hears of more than the target has committed, from the %s feed',
    async (feed, callSizes) => {
      await watchSlot(callSizes, feed);
    },
  );
});
