// The stream where it hurts: slow networks, a target that does not take them, a session of ours that
// commits after its connection broke, a slot whose WAL was removed.
import { writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import pg from 'pg';
import { describe, expect, it, onTestFinished } from 'vitest';
import type { EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import type { StreamEvent } from '../../src/model/stream.ts';
import { catchUpSizes, type CatchUpSizes } from '../../src/postgres/call-size.ts';
import { sourceVersion } from '../../src/postgres/marker.ts';
import { ensurePublication } from '../../src/postgres/publication.ts';
import { ensureSlot } from '../../src/postgres/slot.ts';
import { slotOf } from '../../src/postgres/slot-record.ts';
import { taskObjectName } from '../../src/postgres/sql.ts';
import { WalStream } from '../../src/postgres/wal-stream.ts';
import { OldSnapshots } from '../../src/sync/old-snapshots.ts';
import { newFigures } from '../../src/sync/replay-figures.ts';
import { sampleReplay, type ReplayView } from '../../src/sync/sampler.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { enableTls } from '../support/extra-servers.ts';
import {
  contents,
  copyAll,
  drainStream,
  prepare,
  startStream,
  untilEvent,
  type RunningStream,
} from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';
import { startServer } from '../support/servers.ts';

async function streaming(
  pair: DatabasePair,
  ddl: string,
  sizes?: CatchUpSizes,
): Promise<{ scope: TestScope; stream: RunningStream }> {
  const scope = await prepare(pair, ddl);
  const stream = startStream(scope, sizes);
  await untilEvent(stream, 'SLOT_READY');
  await copyAll(scope, pair);
  await untilEvent(stream, 'CAUGHT_UP');
  return { scope, stream };
}

/** Forwards to `port`, holding everything back for `delayMs` in each direction, order kept. */
async function delayingProxy(port: number, delayMs: number): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(port, '127.0.0.1');
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.setNoDelay(true);
      from.on('error', () => to.destroy());
      from.on('data', (chunk) => void setTimeout(() => void to.write(chunk), delayMs));
      from.on('close', () => void setTimeout(() => void to.end(), delayMs * 2));
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return address.port;
}

describe('the stream', () => {
  it('does not spend a round trip on every row', async () => {
    const pair = await makePair();
    const port = await delayingProxy(pair.target.port, 20);
    const near: DatabasePair = {
      source: pair.source,
      target: { ...pair.target, connection: { ...pair.target.connection, port } },
    };
    const { scope, stream } = await streaming(near, 'create table public.t (id int primary key, n int)');
    await pair.source.query('insert into public.t select g, 0 from generate_series(1, 3000) g');
    await drainStream(scope, pair, stream);
    const started = Date.now();
    await pair.source.query('update public.t set n = n + 1');
    // and 300 small transactions of their own
    await pair.source.query(
      `do $$ begin for i in 1..300 loop update public.t set n = -i where id = i; commit; end loop; end $$`,
    );
    await drainStream(scope, pair, stream);
    // 3,300 rows of 40 ms each would be more than two minutes
    expect(Date.now() - started).toBeLessThan(20_000);
    expect(await contents(scope, pair.target, 'target')).toEqual(
      await contents(scope, pair.source, 'source'),
    );
    await stream.stop();
  });

  it('says that it waits for the source when that is far away', async () => {
    const pair = await makePair();
    const port = await delayingProxy(pair.source.port, 20);
    const far: DatabasePair = {
      source: { ...pair.source, connection: { ...pair.source.connection, port } },
      target: pair.target,
    };
    const { scope, stream } = await streaming(far, 'create table public.t (id int primary key, n int)');
    let id = 0;
    await waitFor(
      async () => {
        await pair.source.query('insert into public.t values ($1, 0)', [++id]);
        return scope.sync.some(({ limitedBy }) => limitedBy === 'source');
      },
      30_000,
      'a source that limits',
    );
    await stream.stop();
  });

  it('answers the walsender while nobody takes what it has sent', async () => {
    const pair = await makePair();
    const scope = await prepare(pair, 'create table public.t (id int primary key)');
    await ensurePublication(scope);
    const slot = await ensureSlot(scope);
    const timeoutMs = 2_000;
    const feed = await WalStream.open(
      scope,
      {
        slot,
        publication: taskObjectName(scope.taskId),
        startLsn: slot.consistentLsn,
        ackedLsn: slot.consistentLsn,
        sourceVersion: await sourceVersion(scope),
        binary: true,
        streaming: false,
      },
      scope.signal,
      timeoutMs,
    );
    onTestFinished(() => feed.close());
    await pair.source.query('insert into public.t values (1)');
    const sender = async (): Promise<{ pid: number; ageMs: number } | undefined> => {
      const { rows } = await pair.source.query<{ pid: number; ageMs: number }>(
        `select pid, extract(epoch from clock_timestamp() - backend_start)::float8 * 1000 as "ageMs"
         from pg_stat_replication where application_name = $1`,
        [`dts/${scope.taskId}/source/walsender`],
      );
      return rows[0];
    };
    const first = await sender();
    // at the end of a timeout without an answer it would be gone
    const last = await waitFor(async () => {
      const now = await sender();
      return now === undefined || now.ageMs > 2 * timeoutMs ? { now } : null;
    });
    expect(last.now?.pid).toBe(first?.pid);
    expect(await feed.take(0)).not.toEqual([]);
  });

  it('waits for a session of ours that commits after its connection broke, and does not repeat its batch', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key)');
    await drainStream(scope, pair, stream);
    await stream.stop();
    await pair.source.query('insert into public.t values (1)');
    const { rows } = await pair.source.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
    // What the server still runs for a dead connection: row and position, not committed yet.
    const zombie = await pair.target.connect();
    await zombie.query('begin; insert into public.t values (1)');
    await zombie.query(
      'update dts.progress set applied_lsn = $2::pg_lsn, acked_lsn = $2::pg_lsn where task_id = $1',
      [scope.taskId, rows[0]?.lsn],
    );
    const again = makeScope(pair, {}, scope);
    const second = startStream(again);
    await waitFor(
      async () => {
        const { rowCount } = await pair.target.query(
          `select 1 from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock'`,
          [`dts/${scope.taskId}/target/apply`],
        );
        return rowCount === 1;
      },
      20_000,
      'a wait for the progress row',
    );
    await zombie.query('commit');
    await pair.source.query('insert into public.t values (2)');
    await drainStream(again, pair, second);
    expect(await contents(scope, pair.target, 'target')).toEqual({ 'public.t': ['(1)', '(2)'] });
    expect(again.waits.some((wait) => wait?.includes('connects again'))).toBe(true);
    await second.stop();
  });

  it('that is behind when it connects again says so at once: the gate of the cutover must not stay open', async () => {
    const pair = await makePair();
    const scope = await prepare(pair, 'create table public.t (id int primary key)');
    await ensurePublication(scope);
    const slot = await ensureSlot(scope);
    const { rows } = await pair.target.query<{ pid: number }>('select pg_backend_pid() as pid');
    const view: ReplayView = {
      receivedLsn: () => '0/1',
      position: () => '0/1',
      waitingMs: () => 0,
      silentMs: () => 0,
      applyPid: rows[0]?.pid ?? 0,
      feed: 'live',
      inProgress: () => null,
      oldSnapshots: new OldSnapshots(scope, 0),
      onSample: () => undefined,
      figures: newFigures(),
    };
    const events: string[] = [];
    const emit = ({ type }: StreamEvent): void => void events.push(type);
    const sampling = sampleReplay(scope, slot, await sourceVersion(scope), view, emit, scope.signal);
    await waitFor(() => events.length > 0, 10_000, 'an event');
    // and while it lags, who on the target may be the reason
    const other = await pair.target.connect();
    await other.query(`begin isolation level repeatable read; select 'a report'`);
    await waitFor(() => scope.waits.some((wait) => wait?.includes('a report')), 20_000, 'a reason');
    await other.query('rollback');
    scope.controller.abort();
    await expect(sampling).rejects.toMatchObject({ code: 'aborted' });
    expect(events).toEqual(['FELL_BEHIND']);
  });

  it('tells who keeps a transaction open on the target, of others, and asks every ten seconds', async () => {
    const pair = await makePair();
    const scope = makeScope(pair);
    const snapshots = new OldSnapshots(scope, 0);
    const ours = await scope.target.session({ purpose: 'test', signal: scope.signal });
    await ours.client.query('begin isolation level repeatable read; select 1');
    expect(await snapshots.reason(0, 60)).toBeNull();
    const other = await pair.target.connect();
    const { rows } = await other.query<{ pid: number }>('select pg_backend_pid() as pid');
    await other.query('begin; create table public.w ()'); // who has written keeps rows without a snapshot, too
    expect(await snapshots.reason(9_999, 60)).toBeNull();
    expect(await snapshots.reason(10_000, 60)).toContain(`pid ${rows[0]?.pid} (postgres)`);
    await other.query('rollback');
    expect(await snapshots.reason(10_001, 2)).toBeNull();
    expect(await snapshots.reason(20_000, 60)).toBeNull();
    await other.query('begin isolation level repeatable read; select 1');
    expect(await new OldSnapshots(scope).reason(0, 60)).toBeNull(); // it may end by itself
    await ours.close();
  });

  it('tells the slot all of what is stored on the target', async () => {
    const pair = await makePair();
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key)');
    for (let id = 1; id <= 3; id++) {
      await pair.source.query('insert into public.t values ($1)', [id]);
      await drainStream(scope, pair, stream);
      await waitFor(
        async () => {
          const confirmed = await pair.source.query<{ lsn: string }>(
            'select confirmed_flush_lsn::text as lsn from pg_replication_slots where slot_name = $1',
            [slotOf(scope).name],
          );
          const acked = await pair.target.query<{ lsn: string }>(
            'select acked_lsn::text as lsn from dts.progress where task_id = $1',
            [scope.taskId],
          );
          return confirmed.rows[0]?.lsn === acked.rows[0]?.lsn;
        },
        15_000,
        'confirmed_flush_lsn = acked_lsn',
      );
    }
    await stream.stop();
  });
});

/** A source that the test has for itself, with settings of its own; the target is a test database as usual. */
async function ownSource(
  settings: Readonly<Record<string, string>>,
  sslmode: 'disable' | 'require',
): Promise<{ pair: DatabasePair; server: EmbeddedServer }> {
  const server = await startServer({ major: 16, settings });
  onTestFinished(() => server.stop());
  const pair = await makePair();
  const pool = new pg.Pool({ connectionString: server.url('postgres'), ssl: false });
  onTestFinished(() => pool.end());
  const { host, port, user, password } = server;
  const source = {
    ...pair.source,
    // `require` without a root certificate encrypts and does not verify
    connection: { host, port, user, password, dbname: 'postgres', sslmode: sslmode as 'disable' },
    query: (sql: string, params?: unknown[]) => pool.query(sql, params),
    connect: async () => {
      const client = new pg.Client({ connectionString: server.url('postgres'), ssl: false });
      await client.connect();
      onTestFinished(() => client.end());
      return client;
    },
  } as DatabasePair['source'];
  return { pair: { source, target: pair.target }, server };
}

describe('a slot whose WAL was removed', () => {
  it('is lost, with a remedy, before a connection and under a running stream', async () => {
    const { pair } = await ownSource(
      { max_slot_wal_keep_size: '1MB', wal_keep_size: '0', max_wal_size: '32MB', min_wal_size: '32MB' },
      'disable',
    );
    const scope = await prepare(pair, 'create table public.t (id int primary key)');
    await ensurePublication(scope);
    const slot = await ensureSlot(scope);
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await waitFor(() => scope.sync.length > 0);
    await pair.source.query('create table public.waste (v text)');
    await pair.source.query(
      'insert into public.waste select repeat(md5(g::text), 100) from generate_series(1, 300) g',
    );
    const said = (): StreamEvent[] => stream.events.filter(({ type }) => type === 'FINDING');
    await waitFor(() => said().length > 0, 20_000, 'a finding');
    expect(said()).toEqual([
      expect.objectContaining({
        code: 'slot_endangered',
        finding: expect.objectContaining({ severity: 'warning' }) as unknown,
      }),
    ]);
    const removed = async (): Promise<boolean> => {
      await pair.source.query(
        'insert into public.waste select repeat(md5(g::text), 100) from generate_series(1, 5000) g',
      );
      await pair.source.query('select pg_switch_wal()');
      await pair.source.query('checkpoint');
      const { rows } = await pair.source.query<{ status: string }>(
        'select wal_status as status from pg_replication_slots where slot_name = $1',
        [slot.name],
      );
      return rows[0]?.status === 'lost';
    };
    await waitFor(removed, 60_000, 'a lost slot');
    const error = await stream.failed;
    expect(error).toMatchObject({ code: 'slot_lost', kind: 'lost' });
    expect(error.message).toContain('max_slot_wal_keep_size');
    expect(said().length).toBeLessThanOrEqual(2); // and then the next checkpoint: not with every sample
    await expect(ensureSlot(makeScope(pair, {}, scope))).rejects.toMatchObject({ code: 'slot_lost' });
  });
});

describe('the guard of the slot', () => {
  it('shows what decoding spills to the disk of the source, and keeps an idle slot moving', async () => {
    const { pair } = await ownSource({ logical_decoding_work_mem: '64kB', shared_buffers: '1MB' }, 'disable');
    const { scope, stream } = await streaming(pair, 'create table public.t (id int primary key, v text)');
    // our own disk refuses it: it comes when it has committed
    writeFileSync(scope.spillFolder, '');
    await pair.source.query(
      'insert into public.t select g, repeat(md5(g::text), 20) from generate_series(1, 20000) g',
    );
    await drainStream(scope, pair, stream);
    await waitFor(() => (scope.sync.at(-1)?.slot?.spillBytes ?? 0) > 100_000, 30_000, 'spilled bytes');
    await stream.stop();
    // nobody writes any more: what comes is the heartbeat
    await pair.source.query(`select pg_create_logical_replication_slot('probe', 'pgoutput')`);
    const again = makeScope(pair, {}, scope);
    const second = startStream(again);
    await waitFor(
      async () => {
        const { rowCount } = await pair.source.query(
          `select from pg_logical_slot_peek_binary_changes('probe', null, null, 'proto_version', '1', 'publication_names', $1,
             'messages', 'true') where position('heartbeat'::bytea in data) > 0`,
          [slotOf(scope).name],
        );
        return (rowCount ?? 0) > 0;
      },
      30_000,
      'a heartbeat',
    );
    await second.stop();
  });
});

describe('max_retained_wal_bytes', () => {
  it('drops the slot of a stream that cannot follow, and says so', async () => {
    const pair = await makePair();
    const cap = 64 * 1024 * 1024;
    const scope = await prepare(pair, 'create table public.t (id int primary key, v text)', {
      options: { maxRetainedWalBytes: cap },
    });
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await waitFor(() => scope.sync.length > 0);
    expect(scope.sync.at(-1)).toMatchObject({
      lagSeconds: expect.any(Number) as number,
      slot: { warning: null },
    });
    // the copy is not complete: nothing is streamed, and the slot keeps everything
    await pair.source.query(
      `insert into public.t select g, repeat(md5(g::text), 20) from generate_series(1, 100000) g`,
    );
    const error = await stream.failed;
    expect(error).toMatchObject({ code: 'slot_lost', kind: 'lost', details: { maxRetainedWalBytes: cap } });
    const { rowCount } = await pair.source.query('select 1 from pg_replication_slots where slot_name = $1', [
      slotOf(scope).name,
    ]);
    expect(rowCount).toBe(0);
    await expect(ensureSlot(makeScope(pair, {}, scope))).rejects.toMatchObject({ code: 'slot_lost' });
  });
});

describe('a source with TLS', () => {
  it('is streamed encrypted, held back while the target is slow, and left at once', async () => {
    const { pair, server } = await ownSource({}, 'require');
    await enableTls(server);
    const { scope, stream } = await streaming(
      pair,
      'create table public.t (id int primary key, v text)',
      { ...catchUpSizes, fromBytes: Infinity }, // the walsender's, however far behind it is
    );
    const locker = await pair.target.connect();
    await locker.query('begin; lock table public.t in access exclusive mode');
    await pair.source.query(
      'insert into public.t select g, repeat(md5(g::text), 10) from generate_series(1, 240000) g',
    );
    await waitFor(
      async () => {
        const { rowCount } = await pair.source.query(
          `select 1 from pg_stat_activity a join pg_stat_ssl s using (pid)
           where application_name = $1 and s.ssl and wait_event = 'WalSenderWriteData'`,
          [`dts/${scope.taskId}/source/walsender`],
        );
        return rowCount === 1;
      },
      30_000,
      'an encrypted walsender that is held back',
    );
    await locker.query('commit');
    await drainStream(scope, pair, stream);
    expect((await pair.target.query('select 1 from public.t')).rowCount).toBe(240_000);
    expect(await stream.stop()).toBeLessThan(2_000);
  });
});
