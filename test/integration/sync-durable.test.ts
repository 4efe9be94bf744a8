// A target that crashes takes back what was committed and was not on its disk yet: nothing of it may have been acknowledged
// to the source, which would throw its WAL away.
import { expect, it } from 'vitest';
import type { EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { compareLsn, ZERO_LSN, type Lsn } from '../../src/model/lsn.ts';
import { catchUpSizes } from '../../src/postgres/call-size.ts';
import { slotOf } from '../../src/postgres/slot-record.ts';
import { copied, expectEqual } from '../support/backlog.ts';
import { makePair, registerServer, waitFor, type DatabasePair } from '../support/databases.ts';
import { startForgetfulServer } from '../support/extra-servers.ts';
import { drainStream, startStream, type RunningStream } from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const ROWS = 40_000;
/** The walsender alone, which is told at once what is acknowledged. */
const live = { ...catchUpSizes, fromBytes: Infinity };

/** More than three batches, the last of which is not full. */
async function writeRows({ source }: DatabasePair, round: number): Promise<void> {
  await source.query(`do $$ begin for i in 0..${ROWS / 100 - 1} loop
    insert into public.t select ${round} * ${ROWS} + i * 100 + g, 'v' from generate_series(1, 100) g; commit;
  end loop; end $$`);
}

/** What is on the target: rows, and how far its progress says that it is. */
async function readTarget(pair: DatabasePair): Promise<{ rows: number; applied: Lsn }> {
  const found = await waitFor(async () => {
    const { rows } = await pair.target
      .query<{ rows: number; applied: Lsn }>(
        'select (select count(*)::int from public.t) as rows, applied_lsn::text as applied from dts.progress',
      )
      .catch(() => ({ rows: [] }));
    return rows[0];
  });
  return found ?? { rows: 0, applied: ZERO_LSN };
}

/** Starts the stream, whose target takes nothing before the source has sent all: each batch then follows another one. */
async function startBehind(pair: DatabasePair, scope: TestScope): Promise<RunningStream> {
  const gate = await pair.target.connect();
  await gate.query('begin; lock table public.t in access exclusive mode');
  const { rows } = await pair.source.query<{ lsn: Lsn }>('select pg_current_wal_lsn()::text as lsn');
  const stream = startStream(scope, live);
  const isSent = async (): Promise<boolean> =>
    (
      await pair.source.query(
        'select from pg_stat_replication join pg_replication_slots on pid = active_pid where slot_name = $1 and sent_lsn >= $2',
        [slotOf(scope).name, rows[0]?.lsn],
      )
    ).rowCount === 1;
  await waitFor(isSent, 20_000, 'all of it');
  await gate.query('commit');
  return stream;
}

async function forgetfulTarget(): Promise<{ pair: DatabasePair; scope: TestScope; target: EmbeddedServer }> {
  const { server: target } = await startForgetfulServer(18);
  registerServer(18, target);
  const pair = await makePair();
  const scope = await copied(pair, 'create table public.t (id int primary key, v text)');
  return { pair, scope, target };
}

async function confirmedLsn(pair: DatabasePair, scope: TestScope): Promise<Lsn> {
  const { rows } = await pair.source.query<{ lsn: Lsn }>(
    'select confirmed_flush_lsn::text as lsn from pg_replication_slots where slot_name = $1',
    [slotOf(scope).name],
  );
  return rows[0]?.lsn ?? ZERO_LSN;
}

/** Runs `act` at the first commit that is not durable. */
function atLateCommit(scope: TestScope, act: () => void): void {
  let commits = 0;
  Object.assign(scope, {
    failpoint: (name: Failpoint) => {
      if (name === 'sync.committed-not-durable' && ++commits === 1) act();
    },
  });
}

const isBehind = (a: Lsn, b: Lsn): boolean => compareLsn(a, b) < 0;

it('what a crash of the target takes back was not acknowledged', async () => {
  const { pair, scope: first, target } = await forgetfulTarget();
  let scope = first;
  let takenBack = 0;
  for (const round of [1, 2, 3]) {
    await writeRows(pair, round);
    scope = makeScope(pair, {}, scope);
    let crashed: Promise<Lsn> | null = null;
    atLateCommit(scope, () => {
      crashed = readTarget(pair).then(async ({ applied }) => {
        await target.crash();
        return applied;
      });
    });
    const stream = await startBehind(pair, scope);
    const committed: Lsn = (await waitFor(() => crashed, 30_000, 'the commit')) ?? ZERO_LSN;
    await stream.stop();
    await target.restart();
    const { applied } = await readTarget(pair);
    if (isBehind(applied, committed)) takenBack++;
    expect(isBehind(applied, await confirmedLsn(pair, scope))).toBe(false);
    scope = makeScope(pair, {}, scope);
    const again = startStream(scope, live);
    await drainStream(scope, pair, again);
    await again.stop();
    expect((await readTarget(pair)).rows).toBe(round * ROWS);
  }
  expect(takenBack).toBeGreaterThan(0);
  expect(await expectEqual(scope, pair)).toBe(3 * ROWS);
});

it('what a killed process has committed last is durable before another tells the source of it', async () => {
  const { pair, scope: first, target } = await forgetfulTarget();
  let scope = first;
  for (const round of [1, 2]) {
    await writeRows(pair, round);
    scope = makeScope(pair, {}, scope);
    const killed = scope;
    let isKilled = false;
    atLateCommit(killed, () => {
      isKilled = true;
      killed.controller.abort();
    });
    const stream = await startBehind(pair, killed);
    await waitFor(() => isKilled, 30_000, 'the commit');
    await stream.stop();
    const { applied } = await readTarget(pair);
    // the next one commits nothing, and tells the source now and then how far it is
    scope = makeScope(pair, {}, scope);
    const gate = await pair.target.connect();
    await gate.query('begin; lock table public.t in access exclusive mode');
    const next = startStream(scope, live);
    await waitFor(async () => !isBehind(await confirmedLsn(pair, scope), applied), 30_000, 'the source');
    await target.crash();
    await next.stop();
    await target.restart();
    expect(isBehind((await readTarget(pair)).applied, await confirmedLsn(pair, scope))).toBe(false);
    scope = makeScope(pair, {}, scope);
    const again = startStream(scope, live);
    await drainStream(scope, pair, again);
    await again.stop();
  }
  expect(await expectEqual(scope, pair)).toBe(2 * ROWS);
});
