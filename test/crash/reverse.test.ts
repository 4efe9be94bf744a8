// SIGKILL at every place of the way back, with writers on whichever side is open, also while the service is down: nothing
// is lost in either direction, and nothing is left behind.
import { describe, expect, test } from 'vitest';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { expectEqualTables } from '../support/compare.ts';
import { leaksOf, makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import {
  makeDataDir,
  migrationBody,
  startMigration,
  startService,
  type ServiceProcess,
} from '../support/service-process.ts';
import { loadShop, shopTables, startWriters, type Writers } from '../support/shop.ts';

const forth = shopTables('_migrated');
const back = forth.map(([source, target]): [string, string] => [target, source]);

/** Asks for the cutover of `id` (by `command` on `of`) whenever it may, until it is completed. */
async function completes(service: ServiceProcess, id: string, of: string, command: string): Promise<void> {
  await waitFor(
    async () => {
      const { state, error } = await service.status(id);
      if (state === 'completed') return true;
      if (['failed', 'cancelled', 'paused'].includes(state))
        throw new Error(`${state}: ${JSON.stringify(error)}`);
      if (state === 'syncingWal') await service.call('POST', `/migrations/${of}/${command}`);
      return false;
    },
    90_000,
    `${id} completed`,
  );
}

/** What the task's source has committed by now is on its target. */
async function caughtUp(service: ServiceProcess, id: string, source: TestDatabase): Promise<void> {
  await service.reaches(id, 'syncingWal');
  const { rows } = await source.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
  await waitFor(
    async () => {
      const { body } = await service.call<{ sync: { applied_lsn: string } | null }>(
        'GET',
        `/migrations/${id}/status`,
      );
      const applied = body.sync?.applied_lsn;
      if (applied === undefined) return false;
      const { rows: compared } = await source.query<{ past: boolean }>(
        'select $1::pg_lsn >= $2::pg_lsn as past',
        [applied, rows[0]?.['lsn']],
      );
      return compared[0]?.past;
    },
    60_000,
    `${id} caught up`,
  );
}

async function written(writers: Writers): Promise<void> {
  const before = writers.writes();
  await waitFor(() => writers.writes() > before + 100);
}

async function migrated(
  pair: DatabasePair,
  dataDir: string,
  failpoint?: string,
  options: Record<string, unknown> = {},
): Promise<ServiceProcess> {
  await loadShop(pair.source, 300);
  const service = await startService({ dataDir, ...(failpoint === undefined ? {} : { failpoint }) });
  await startMigration(
    service,
    migrationBody(pair, { id: 'shop', table_suffix: '_migrated', options: { reverse: true, ...options } }),
  );
  return service;
}

async function expectNothingLeft(service: ServiceProcess, pair: DatabasePair): Promise<void> {
  expect((await service.call('POST', '/migrations/shop/finish')).status).toBe(200);
  const { body } = await service.call<{ tasks: { id: string }[] }>('GET', '/migrations');
  for (const { id } of body.tasks) {
    await service.reaches(id, 'completed');
    await waitFor(async () => !(await service.status(id)).cleanup_pending);
    expect((await service.call('POST', `/migrations/${id}/unfence`)).status).toBe(200);
  }
  expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
}

const opening: readonly Failpoint[] = [
  'reverse.slot-created',
  'reverse.armed',
  'finalize.hook-called',
  'finalize.after-point-of-no-return',
  'finalize.opened',
  'finalize.after-slot-drop',
  'reverse.before-handover',
  'reverse.handed-over',
];
/** From here on the target takes writes. */
const opened: ReadonlySet<Failpoint> = new Set(opening.slice(opening.indexOf('finalize.opened')));

describe.each(opening)('killed at %s of the cutover', (failpoint) => {
  test('the old source gets every write of the target', async () => {
    const pair = await makePair();
    const dataDir = makeDataDir();
    const doomed = await migrated(pair, dataDir, failpoint);
    const onSource = await startWriters(pair.source, 2);
    const driven = completes(doomed, 'shop', 'shop', 'cutover').catch(() => undefined);
    expect(await doomed.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await driven;
    let onTarget = opened.has(failpoint) ? await startWriters(pair.target, 3, '_migrated') : null;
    if (onTarget) await written(onTarget);
    const service = await startService({ dataDir });
    await completes(service, 'shop', 'shop', 'cutover');
    await onSource.stop();
    onTarget ??= await startWriters(pair.target, 3, '_migrated');
    await written(onTarget);
    await onTarget.stop();
    await caughtUp(service, 'shop_reverse', pair.target);
    await expectEqualTables(pair.target, pair.source, back);
    await expectNothingLeft(service, pair);
  });
});

const rollingBack: readonly Failpoint[] = [
  'sync.before-target-commit',
  'sync.committed-not-acknowledged',
  'fence.armed',
  'drain.marker-applied',
  'reverse.slot-created',
  'reverse.armed',
  'finalize.after-point-of-no-return',
  'reverse.source-unfenced',
  'finalize.before-source-cleanup',
  'reverse.before-handover',
  'reverse.handed-over',
];
/** From here on the old source takes writes. */
const reopened: ReadonlySet<Failpoint> = new Set(
  rollingBack.slice(rollingBack.indexOf('reverse.source-unfenced')),
);

describe.each(rollingBack)('killed at %s of the rollback', (failpoint) => {
  test('no write of either side is lost, back and forward again', async () => {
    const pair = await makePair();
    const dataDir = makeDataDir();
    // where the online validation is done, the certificate's digests are of snapshots from before the opening
    const options = failpoint === 'reverse.source-unfenced' ? { cutover_max_validation_age_ms: 60_000 } : {};
    const first = await migrated(pair, dataDir, undefined, options);
    await completes(first, 'shop', 'shop', 'cutover');
    await first.kill('SIGTERM');
    const onTarget = await startWriters(pair.target, 2, '_migrated');
    const doomed = await startService({ dataDir, failpoint });
    const follows = doomed.reaches('shop_reverse', 'syncingWal');
    // a stream that nobody stops comes by its places by itself, with the target open
    const streams = failpoint.startsWith('sync.');
    const driven = (
      streams ? follows : follows.then(() => completes(doomed, 'shop_reverse', 'shop', 'rollback'))
    ).catch(() => undefined);
    expect(await doomed.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await driven;
    let onSource = reopened.has(failpoint) ? await startWriters(pair.source, 2) : null;
    if (onSource) await written(onSource);
    if (streams) await written(onTarget);
    const service = await startService({ dataDir });
    await completes(service, 'shop_reverse', 'shop', 'rollback');
    await onTarget.stop();
    const { body } = await service.call('GET', '/migrations/shop_reverse/certificate');
    expect(body).toMatchObject({ equal: true });
    onSource ??= await startWriters(pair.source, 2);
    await written(onSource);
    await onSource.stop();
    await caughtUp(service, 'shop_forward_2', pair.source);
    await expectEqualTables(pair.source, pair.target, forth);
    await expectNothingLeft(service, pair);
  });
});

test('killed while it is finished, nothing is left all the same', async () => {
  const pair = await makePair();
  const dataDir = makeDataDir();
  const first = await migrated(pair, dataDir);
  await completes(first, 'shop', 'shop', 'cutover');
  await first.reaches('shop_reverse', 'syncingWal');
  await first.kill('SIGTERM');
  const doomed = await startService({ dataDir, failpoint: 'cancel.mid-cleanup' });
  await doomed.reaches('shop_reverse', 'syncingWal');
  const asked = doomed.call('POST', '/migrations/shop/finish').catch(() => undefined);
  expect(await doomed.exited).toEqual({ code: null, signal: 'SIGKILL' });
  await asked;
  await expectNothingLeft(await startService({ dataDir }), pair);
});
