// SIGKILL at every place of the way back, with writers on whichever side is open, also while the service is down: nothing
// is lost in either direction, and nothing is left behind.
import { expect, test } from 'vitest';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { expectEqualTables } from '../support/compare.ts';
import { leaksOf, makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { completes, KilledService } from '../support/kills.ts';
import { migrationBody, startMigration, type ServiceProcess } from '../support/service-process.ts';
import { loadShop, shopTables, startWriters, type Writers } from '../support/shop.ts';

const forth = shopTables('_migrated');
const back = forth.map(([source, target]): [string, string] => [target, source]);

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

/** A shop whose migration `id`, with a way back, may begin. */
async function makeShop(): Promise<{ pair: DatabasePair; id: string }> {
  const pair = await makePair();
  await loadShop(pair.source, 300);
  return { pair, id: pair.source.dbname };
}

const begin = (
  service: ServiceProcess,
  pair: DatabasePair,
  id: string,
  options: Record<string, unknown> = {},
): Promise<string> =>
  startMigration(
    service,
    migrationBody(pair, { id, table_suffix: '_migrated', options: { reverse: true, ...options } }),
  );

async function expectNothingLeft(service: ServiceProcess, id: string, pair: DatabasePair): Promise<void> {
  expect((await service.call('POST', `/migrations/${id}/finish`)).status).toBe(200);
  const { body } = await service.call<{ tasks: { id: string }[] }>('GET', '/migrations');
  for (const { id: each } of body.tasks) {
    await service.reaches(each, 'completed');
    await waitFor(async () => !(await service.status(each)).cleanup_pending);
    expect((await service.call('POST', `/migrations/${each}/unfence`)).status).toBe(200);
  }
  expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
}

/** In the order in which a cutover comes by. */
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

test('killed again and again in its cutover, the old source gets every write of the target', async () => {
  const { pair, id } = await makeShop();
  const onSource = await startWriters(pair.source, 2);
  const killed = new KilledService();
  let onTarget: Writers | null = null;
  for (const [n, place] of opening.entries()) {
    await killed.killedAt(place, async (armed) => {
      if (n === 0) await begin(armed, pair, id);
      await completes(armed, id);
    });
    if (!opened.has(place)) continue;
    onTarget ??= await startWriters(pair.target, 3, '_migrated');
    await written(onTarget);
  }
  const service = await killed.start();
  await completes(service, id);
  await onSource.stop();
  onTarget ??= await startWriters(pair.target, 3, '_migrated');
  await written(onTarget);
  await onTarget.stop();
  await caughtUp(service, `${id}_reverse`, pair.target);
  await expectEqualTables(pair.target, pair.source, back);

  // killed while it is finished, nothing is left all the same
  await killed.killedAt('cancel.mid-cleanup', async (armed) => {
    await armed.reaches(`${id}_reverse`, 'syncingWal');
    await armed.call('POST', `/migrations/${id}/finish`);
  });
  await expectNothingLeft(await killed.start(), id, pair);
});

/** In the order in which a rollback comes by. */
const rollingBack: readonly Failpoint[] = [
  'sync.before-target-commit',
  'sync.committed-not-acknowledged',
  'fence.armed',
  'drain.marker-applied',
  'reverse.slot-created',
  'reverse.armed',
  'finalize.after-point-of-no-return',
  'finalize.before-source-cleanup',
  'reverse.before-handover',
  'reverse.handed-over',
];
/** From here on the old source takes writes. */
const reopened: ReadonlySet<Failpoint> = new Set([
  'reverse.source-unfenced',
  ...rollingBack.slice(rollingBack.indexOf('finalize.before-source-cleanup')),
]);

interface Journey {
  readonly places: readonly Failpoint[];
  readonly options: Record<string, unknown>;
}

const journeys: readonly Journey[] = [
  { places: rollingBack, options: {} },
  // where the online validation is done, the certificate's digests are of snapshots from before the opening
  { places: ['reverse.source-unfenced'], options: { cutover_max_validation_age_ms: 60_000 } },
];

test.each(journeys)(
  'killed at $places of the rollback, no write of either side is lost, back and forward again',
  async ({ places, options }) => {
    const { pair, id } = await makeShop();
    const [reverse, forward] = [`${id}_reverse`, `${id}_forward_2`];
    const rollBack = (service: ServiceProcess): Promise<void> =>
      completes(service, reverse, { of: id, command: 'rollback' });
    const killed = new KilledService();
    const first = await killed.start();
    await begin(first, pair, id, options);
    await completes(first, id);
    await first.kill('SIGTERM');
    const onTarget = await startWriters(pair.target, 2, '_migrated');
    let onSource: Writers | null = null;
    for (const place of places) {
      // a stream that nobody stops comes by its places by itself, with the target open
      const streams = place.startsWith('sync.');
      await killed.killedAt(place, async (armed) => {
        if (!reopened.has(place)) await armed.reaches(reverse, 'syncingWal');
        if (!streams) await rollBack(armed);
      });
      if (streams) await written(onTarget);
      if (!reopened.has(place)) continue;
      onSource ??= await startWriters(pair.source, 2);
      await written(onSource);
    }
    const service = await killed.start();
    await rollBack(service);
    await onTarget.stop();
    const { body } = await service.call('GET', `/migrations/${reverse}/certificate`);
    expect(body).toMatchObject({ equal: true });
    onSource ??= await startWriters(pair.source, 2);
    await written(onSource);
    await onSource.stop();
    await caughtUp(service, forward, pair.source);
    await expectEqualTables(pair.source, pair.target, forth);
    await expectNothingLeft(service, id, pair);
  },
);
