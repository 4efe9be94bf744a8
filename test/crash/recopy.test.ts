// A table copied again while the task follows a source under writers: damage on the target is gone, no change is lost or
// applied twice, and a SIGKILL in the middle of it is a non-event.
import { expect, test } from 'vitest';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { expectEqualTables } from '../support/compare.ts';
import { makePair } from '../support/databases.ts';
import {
  cutOver,
  makeDataDir,
  migrationBody,
  startMigration,
  startService,
} from '../support/service-process.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

const places: readonly (Failpoint | null)[] = [
  null,
  'copy.forgotten',
  'copy.mid-table',
  'copy.before-marker-commit',
  'copy.marker-committed',
];

test.each(places)('a table is copied again under writers; killed at %s', async (failpoint) => {
  const pair = await makePair();
  await loadShop(pair.source, 600);
  const writers = await startWriters(pair.source, 3);
  const dataDir = makeDataDir();
  let service = await startService({ dataDir });
  const id = await startMigration(
    service,
    migrationBody(pair, { table_suffix: '_migrated', options: { copy_jobs: 2, part_bytes: 65_536 } }),
  );
  await service.reaches(id, 'syncingWal');
  if (failpoint !== null) {
    await service.kill();
    service = await startService({ dataDir, failpoint: `${failpoint}:1` });
    await service.reaches(id, 'syncingWal');
  }
  await pair.target.query(`update public.users_migrated set email = 'damaged' || id where id > 400`);
  const asked = service.call('POST', `/migrations/${id}/tables/public.users/recopy`).catch(() => null); // it may die
  if (failpoint === null) {
    expect(await asked).toMatchObject({ status: 200, body: { state: 'migratingData' } });
    expect(await service.call('POST', `/migrations/${id}/tables/public.users/recopy`)).toMatchObject({
      status: 409,
    });
    expect(await service.call('POST', `/migrations/${id}/tables/public.none/recopy`)).toMatchObject({
      status: 400,
    });
  } else {
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await asked;
    service = await startService({ dataDir });
  }
  await service.reaches(id, 'syncingWal');
  const markers = await pair.target.query(
    `select from dts.part where relation = 'public.users' and range is null`,
  );
  expect(markers.rowCount).toBe(1); // users.email is unique: one snapshot must read the whole table
  await cutOver(service, id);
  await writers.stop();
  await expectEqualTables(pair.source, pair.target, shopTables('_migrated'));
  await service.call('POST', `/migrations/${id}/unfence`);
});
