// What a stream holds in memory while the source has far more for it than the target takes: as little as its feed promises.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, it, onTestFinished } from 'vitest';
import { catchUpSizes } from '../../src/postgres/call-size.ts';
import { copied } from '../support/backlog.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { copyAll, drainStream, prepare, startStream, untilEvent } from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const MEGABYTE = 1024 * 1024;
const ROWS = 300_000;
const rows = (from: string, to: string): string =>
  `insert into public.t select g, repeat(md5(g::text), 10) from generate_series(${from}, ${to}) g`;

/** Watches what this process holds from now on, not what waits for the collector; the result is the peak in MB. */
function watchHeld(): () => number {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const used = (): number => {
    collect();
    const { heapUsed, external } = process.memoryUsage();
    return heapUsed + external;
  };
  const base = used();
  let peak = 0;
  const timer = setInterval(() => (peak = Math.max(peak, used() - base)), 250);
  const stop = (): number => {
    clearInterval(timer);
    return Math.round(peak / MEGABYTE);
  };
  onTestFinished(() => void stop());
  return stop;
}

/** The source's session waits for us, lastingly: what we do not take stays there. Or it has sent everything. */
async function untilHeldBack(
  { source }: DatabasePair,
  { taskId }: TestScope,
  purpose: string,
  waits: string,
): Promise<void> {
  let held = 0;
  await waitFor(
    async () => {
      const found = await source.query<{ event: string | null }>(
        'select wait_event as event from pg_stat_activity where application_name = $1',
        [`dts/${taskId}/source/${purpose}`],
      );
      const events = found.rows.map(({ event }) => event ?? '');
      held = events.includes(waits) ? held + 1 : 0;
      return held >= 50 || events.some((event) => /WalSenderMain|WalSenderWaitForWAL/i.test(event));
    },
    60_000,
    'backpressure',
  );
}

async function expectAll({ target }: DatabasePair): Promise<void> {
  const found = await target.query('select count(*)::int as count, sum(length(v))::int as sum from public.t');
  expect(found.rows[0]).toEqual({ count: ROWS, sum: ROWS * 320 });
}

it('takes a transaction of 300,000 rows with bounded memory, also while the target does not move', async () => {
  const pair = await makePair();
  const scope = await prepare(pair, 'create table public.t (id int primary key, v text)');
  const stream = startStream(scope, { ...catchUpSizes, fromBytes: Infinity });
  await untilEvent(stream, 'SLOT_READY');
  await copyAll(scope, pair);
  await untilEvent(stream, 'CAUGHT_UP');
  const locker = await pair.target.connect();
  await locker.query('begin; lock table public.t in access exclusive mode');
  const heldMb = watchHeld();
  await pair.source.query(rows('1', String(ROWS)));
  await untilHeldBack(pair, scope, 'walsender', 'WalSenderWriteData');
  await locker.query('commit');
  await drainStream(scope, pair, stream, 100_000);
  // 100 MB of rows; queue and window are 8 + 16 MB, decoded rows weigh more than their bytes
  const peakMb = heldMb();
  expect(peakMb).toBeGreaterThan(0);
  expect(peakMb).toBeLessThan(64);
  await expectAll(pair);
  await stream.stop();
});

it('catches up with 100 MB with bounded memory, also while the target does not move', async () => {
  const pair = await makePair();
  const first = await copied(pair, 'create table public.t (id int primary key, v text)');
  await pair.source.query(
    `do $$ begin for i in 1..${ROWS / 1_000} loop ${rows('(i - 1) * 1000 + 1', 'i * 1000')}; commit; end loop; end $$`,
  );
  const locker = await pair.target.connect();
  await locker.query('begin; lock table public.t in access exclusive mode');
  const heldMb = watchHeld();
  const scope = makeScope(pair, {}, first);
  const stream = startStream(scope);
  await untilHeldBack(pair, scope, 'catch-up', 'ClientWrite');
  await locker.query('commit');
  await drainStream(scope, pair, stream, 100_000);
  // a queue of 32 MB, what is in hand of it, and two batches
  const peakMb = heldMb();
  expect(peakMb).toBeGreaterThan(16);
  expect(peakMb).toBeLessThan(72);
  await expectAll(pair);
  await stream.stop();
});

it('takes updates that keep a large value with bounded memory', async () => {
  const pair = await makePair();
  const first = await copied(
    pair,
    `create table public.t (id int primary key, status text, v text); alter table public.t alter v set storage external`,
    `insert into public.t values (1, '', '')`,
  );
  await pair.source.query(`update public.t set v = repeat('x', ${MEGABYTE})`);
  await pair.source.query(
    `do $$ begin for i in 1..200 loop update public.t set status = repeat('y', i % 7); commit; end loop; end $$`,
  );
  const scope = makeScope(pair, {}, first);
  const heldMb = watchHeld();
  const stream = startStream(scope);
  await drainStream(scope, pair, stream);
  const peakMb = heldMb();
  expect(peakMb).toBeLessThan(100);
  const found = await pair.target.query('select length(status) as status, length(v) as v from public.t');
  expect(found.rows).toEqual([{ status: 200 % 7, v: MEGABYTE }]);
  await stream.stop();
});
