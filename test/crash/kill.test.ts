// SIGKILL at a named place of every state, a restart, and both databases compared row by row: a crash is a non-event.
import { expect, test } from 'vitest';
import { expectEqualTables } from '../support/compare.ts';
import { leaksOf, makePair, waitFor } from '../support/databases.ts';
import { completes, KilledService, type Place } from '../support/kills.ts';
import { migrationBody, startMigration, type ServiceProcess } from '../support/service-process.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

interface Journey {
  readonly name: string;
  /** In the order in which a migration comes by. */
  readonly places: readonly Place[];
  /** Whether its cutover is asked for until it is killed: a stream that nobody stops comes by its places by itself. */
  readonly cutsOver: boolean;
  readonly options?: Record<string, unknown>;
  /** Of the shop; a few by default. */
  readonly users?: number;
}

const journeys: readonly Journey[] = [
  {
    name: 'on its way to the stream',
    cutsOver: false,
    places: [
      'init.before-done',
      ['creatingTables.mid-statements', 4],
      'slot.created',
      ['copy.mid-table', 2],
      ['copy.before-marker-commit', 2],
      ['copy.marker-committed', 2],
      'copy.before-index',
      'fence.installed',
    ],
  },
  {
    name: 'with tables that are frozen, and indexes that are built at the same time',
    cutsOver: false,
    users: 6_000,
    options: { part_bytes: null },
    places: [
      ['copy.mid-table', 2],
      ['copy.before-marker-commit', 2],
      ['copy.marker-committed', 2],
      'copy.before-index',
      ['copy.before-index', 3],
      ['copy.before-index', 4],
    ],
  },
  {
    name: 'while it follows',
    cutsOver: false,
    options: { cutover_max_validation_age_ms: 60_000 },
    places: [
      ['sync.before-target-commit', 3],
      ['sync.committed-not-acknowledged', 3],
      ['sync.batch-applied', 2],
      ['validate.range-compared', 2],
      'validate.keys-compared',
    ],
  },
  {
    name: 'in its cutover',
    cutsOver: true,
    places: [
      'fence.armed',
      'drain.marker-emitted',
      'drain.marker-applied',
      ['validate.mid-tables', 2],
      'finalize.sequences-set',
      'finalize.hook-called',
      'finalize.before-point-of-no-return',
      'finalize.after-point-of-no-return',
      'finalize.opened',
      'finalize.before-source-cleanup',
      'finalize.after-slot-drop',
    ],
  },
];

test.each(journeys)('killed again and again $name, it ends with an identical target', async (journey) => {
  const { places, cutsOver, options, users = 600 } = journey;
  const pair = await makePair();
  await loadShop(pair.source, users);
  const writers = await startWriters(pair.source, 3);
  const id = `k${pair.source.dbname}`;
  const body = migrationBody(pair, {
    id,
    table_suffix: '_migrated',
    options: { copy_jobs: 2, part_bytes: 65_536, ...options },
  });
  const killed = new KilledService();
  let begun = false;
  const drive = async (service: ServiceProcess, place: Place): Promise<void> => {
    if (!begun) {
      begun = true;
      await startMigration(service, body);
    }
    if (place[0] === 'validate.range-compared') {
      // the services before have read all ranges
      await service.reaches(id, 'syncingWal');
      await service.call('POST', `/migrations/${id}/validate`);
    }
    if (cutsOver) await completes(service, id);
  };
  for (const place of places) await killed.killedAt(place, (service) => drive(service, place));
  const service = await killed.start();
  await completes(service, id);
  await writers.stop();
  await expectEqualTables(pair.source, pair.target, shopTables('_migrated'));
  const status = await service.status(id);
  expect(status).toMatchObject({
    state: 'completed',
    progress: 100,
    fenced: true,
    cleanup_pending: false,
    error: null,
  });
  await waitFor(async () => (await service.status(id)).connections === 0);
  expect((await service.call('POST', `/migrations/${id}/unfence`)).status).toBe(200);
  expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
});
