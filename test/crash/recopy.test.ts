// A table copied again while the task follows a source under writers and validates its other tables: damage on the target is
// gone, no change is lost or applied twice, and a SIGKILL or a pause in the middle of it is a non-event.
import { expect, test } from 'vitest';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { expectEqualTables } from '../support/compare.ts';
import { makePair } from '../support/databases.ts';
import { KilledService } from '../support/kills.ts';
import { cutOver, migrationBody, startMigration } from '../support/service-process.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

/** In the order in which a re-copy comes by. */
const places: readonly Failpoint[] = [
  'held.begun',
  'copy.mid-table',
  'copy.before-marker-commit',
  'copy.marker-committed',
  'held.applied',
  'held.released',
  'held.drained',
  'held.settled',
  'held.noted',
];

test('a table is copied again under writers and a validation, paused and killed again and again and not at all', async () => {
  const pair = await makePair();
  await loadShop(pair.source, 600);
  const writers = await startWriters(pair.source, 3);
  const damage = (): Promise<unknown> =>
    pair.target.query(`update public.users_migrated set email = 'damaged' || id where id > 400`);
  const expectOneMarker = async (): Promise<void> => {
    const markers = await pair.target.query(
      `select from dts.part where relation = 'public.users' and range is null`,
    );
    expect(markers.rowCount).toBe(1); // users.email is unique: one snapshot must read the whole table
  };
  const killed = new KilledService();
  let service = await killed.start();
  const id = await startMigration(
    service,
    migrationBody(pair, { table_suffix: '_migrated', options: { copy_jobs: 2, part_bytes: 65_536 } }),
  );
  await service.reaches(id, 'syncingWal');
  const recopy = `/migrations/${id}/tables/public.users/recopy`;
  for (const [n, place] of places.entries())
    await killed.killedAt(place, async (armed) => {
      await armed.reaches(id, 'syncingWal');
      if (n > 0) {
        // it goes on by itself, beside a validation of all other tables, and after a pause in the middle
        await armed.call('POST', `/migrations/${id}/validate`);
        if (n % 2 === 0) return;
        await armed.call('POST', `/migrations/${id}/pause`);
        await armed.reaches(id, 'paused');
        await armed.call('POST', `/migrations/${id}/resume`);
        return;
      }
      await damage();
      await armed.call('POST', recopy);
    });
  service = await killed.start();
  await service.copied(id);
  await expectOneMarker();
  await damage();
  expect(await service.call('POST', recopy)).toMatchObject({ status: 200, body: { state: 'syncingWal' } });
  expect(await service.call('POST', recopy)).toMatchObject({ status: 409 });
  expect(await service.call('POST', `/migrations/${id}/tables/public.none/recopy`)).toMatchObject({
    status: 400,
  });
  await service.copied(id);
  await expectOneMarker();
  await cutOver(service, id);
  await writers.stop();
  await expectEqualTables(pair.source, pair.target, shopTables('_migrated'));
  await service.call('POST', `/migrations/${id}/unfence`);
});
