// Tables added while the task follows a source under writers: only they are copied, no change of any table is lost or
// applied twice, and a SIGKILL in the middle of it is a non-event.
import { expect, test } from 'vitest';
import type { EmbeddedMajor } from '../../src/cli/embedded-postgres.ts';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { expectEqualTables } from '../support/compare.ts';
import { makePair } from '../support/databases.ts';
import { KilledService } from '../support/kills.ts';
import { cutOver, migrationBody, startMigration } from '../support/service-process.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

interface Journey {
  readonly from: EmbeddedMajor;
  readonly to: EmbeddedMajor;
  /** While these are added; in the order in which the addition comes by. */
  readonly places: readonly Failpoint[];
  readonly first: readonly string[];
  /** Added by a service that nobody kills. */
  readonly afterwards: readonly string[];
}

const journeys: readonly Journey[] = [
  {
    from: 16,
    to: 18,
    places: [
      'add.planned',
      'creatingTables.mid-statements',
      'add.published',
      'copy.mid-table',
      'copy.before-marker-commit',
      'copy.marker-committed',
      'copy.before-index',
      'held.applied',
      'held.released',
      'held.settled',
      'held.noted',
    ],
    first: ['users', 'sales.*'],
    afterwards: ['public.audit'],
  },
  {
    from: 13,
    to: 18,
    places: ['add.published'],
    first: ['users', 'sales.*', 'public.audit'],
    afterwards: [],
  },
  { from: 13, to: 16, places: [], first: [], afterwards: ['users', 'sales.*', 'public.audit'] },
];

test.each(journeys)('tables are added under writers; killed at $places, $from to $to', async (journey) => {
  const { from, to, places, first, afterwards } = journey;
  const pair = await makePair({ source: from, target: to });
  await loadShop(pair.source, 600);
  const writers = await startWriters(pair.source, 3);
  const killed = new KilledService();
  let service = await killed.start();
  const id = await startMigration(
    service,
    migrationBody(pair, {
      tables: ['orders'],
      table_suffix: '_migrated',
      options: { copy_jobs: 2, part_bytes: 65_536 },
    }),
  );
  await service.reaches(id, 'syncingWal');
  const parts = `select * from dts.part where relation = 'public.orders' and range !~ '"row"' order by part`;
  const ordersDone = await pair.target.query(parts);
  const tables = `/migrations/${id}/tables`;
  for (const [n, place] of places.entries())
    await killed.killedAt(place, async (armed) => {
      if (n > 0) return; // it goes on by itself
      await armed.reaches(id, 'syncingWal');
      await armed.call('POST', tables, { add: first });
    });
  if (places.length > 0) service = await killed.start();
  await service.copied(id);
  if (afterwards.length > 0) {
    expect(await service.call('POST', tables, { add: afterwards })).toMatchObject({
      status: 200,
      body: { state: 'syncingWal' },
    });
    expect(await service.call('POST', tables, { add: afterwards })).toMatchObject({ status: 409 });
    await service.copied(id);
  }
  expect((await pair.target.query(parts)).rows).toEqual(ordersDone.rows); // read once
  await cutOver(service, id);
  await writers.stop();
  await expectEqualTables(pair.source, pair.target, shopTables('_migrated'));
  const { body } = await service.call<{
    certificate: { tables: { table: string }[]; schema: { equal: boolean; differences: unknown[] } };
  }>('GET', `/migrations/${id}`);
  expect(body.certificate.tables.map(({ table }) => table).sort()).toEqual([
    'public.audit_new',
    'public.audit_old',
    'public.orders',
    'public.users',
    'sales.Order Lines',
  ]);
  expect(body.certificate.schema).toMatchObject({ equal: true, differences: [] });
  await service.call('POST', `/migrations/${id}/unfence`);
});
