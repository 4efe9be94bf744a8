// Tables added while the task follows a source under writers: only they are copied, no change of any table is lost or
// applied twice, and a SIGKILL in the middle of it is a non-event.
import { expect, test } from 'vitest';
import type { EmbeddedMajor } from '../../src/cli/embedded-postgres.ts';
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

const places: readonly (readonly [Failpoint | null, EmbeddedMajor, EmbeddedMajor])[] = [
  [null, 16, 18],
  [null, 13, 16],
  ['add.planned', 16, 18],
  ['creatingTables.mid-statements', 16, 18],
  ['add.published', 16, 18],
  ['add.published', 13, 18],
  ['copy.mid-table', 16, 18],
  ['copy.before-marker-commit', 16, 18],
  ['copy.marker-committed', 16, 18],
  ['copy.before-index', 16, 18],
];

test.each(places)('tables are added under writers; killed at %s, %i to %i', async (failpoint, from, to) => {
  const pair = await makePair({ source: from, target: to });
  await loadShop(pair.source, 600);
  const writers = await startWriters(pair.source, 3);
  const dataDir = makeDataDir();
  let service = await startService({ dataDir });
  const id = await startMigration(
    service,
    migrationBody(pair, {
      tables: ['orders'],
      table_suffix: '_migrated',
      options: { copy_jobs: 2, part_bytes: 65_536 },
    }),
  );
  await service.reaches(id, 'syncingWal');
  const ordersDone = await pair.target.query('select * from dts.part order by part');
  if (failpoint !== null) {
    await service.kill();
    service = await startService({ dataDir, failpoint: `${failpoint}:1` });
    await service.reaches(id, 'syncingWal');
  }
  const add = { add: ['users', 'sales.*', 'public.audit'] };
  const asked = service.call('POST', `/migrations/${id}/tables`, add).catch(() => null); // it may die
  if (failpoint === null) {
    expect(await asked).toMatchObject({ status: 200, body: { state: 'creatingTables' } });
    expect(await service.call('POST', `/migrations/${id}/tables`, add)).toMatchObject({ status: 409 });
  } else {
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await asked;
    service = await startService({ dataDir });
  }
  await service.reaches(id, 'syncingWal');
  const ordersAfter = await pair.target.query(
    `select * from dts.part where relation = 'public.orders' and range !~ '"row"' order by part`,
  );
  expect(ordersAfter.rows).toEqual(ordersDone.rows); // read once
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
