// A task whose slot is gone is copied again behind a new one by a single command, whatever was written in between: the
// target equals the source in the end, also when the service is killed in the middle of it.
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
  'recopy.slot-left',
  'recopy.progress-forgotten',
  'slot.created',
  'copy.forgotten',
  'copy.mid-table',
  'sync.before-target-commit',
];

test.each(places)('a lost slot is answered by a new one and all rows again; killed at %s', async (place) => {
  const pair = await makePair({ source: place === 'copy.mid-table' ? 13 : 16 });
  await loadShop(pair.source, 600);
  const writers = await startWriters(pair.source, 3);
  const dataDir = makeDataDir();
  let service = await startService({ dataDir });
  const id = await startMigration(
    service,
    migrationBody(pair, { table_suffix: '_migrated', options: { copy_jobs: 2, part_bytes: 65_536 } }),
  );
  await service.reaches(id, 'syncingWal');
  const recopy = `/migrations/${id}/recopy`;
  await service.call('POST', `/migrations/${id}/pause`);
  await service.reaches(id, 'paused');
  expect(await service.call('POST', recopy)).toMatchObject({ status: 409 }); // nothing is lost
  await pair.source.query('select pg_drop_replication_slot($1)', [`dts_${id}`]);
  // no stream will ever tell these
  await pair.source.query(`update public.users set bio = 'unseen' where id <= 50`);
  await pair.source.query('delete from sales."Order Lines" where order_id <= 30');
  await service.call('POST', `/migrations/${id}/resume`);
  const lost = await service.reaches(id, 'paused');
  expect(lost.error).toMatchObject({
    code: 'slot_lost',
    hint: expect.stringContaining(`/migrations/${id}/recopy`) as string,
  });
  const made = await pair.target.query(
    `select oid from pg_class where relnamespace = 'public'::regnamespace order by 1`,
  );
  if (place !== null) {
    await service.kill();
    service = await startService({ dataDir, failpoint: `${place}:1` });
  }
  const asked = service.call('POST', recopy).catch(() => null); // it may die
  if (place === null) expect(await asked).toMatchObject({ status: 200, body: { error: null } });
  else {
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await asked;
    service = await startService({ dataDir });
  }
  await service.reaches(id, 'syncingWal');
  const slots = await pair.target.query(
    `select distinct slot_incarnation from dts.part union select slot_incarnation from dts.progress`,
  );
  expect(slots.rowCount).toBe(1); // nothing of the lost slot counts
  await cutOver(service, id);
  await writers.stop();
  await expectEqualTables(pair.source, pair.target, shopTables('_migrated'));
  const after = await pair.target.query(
    `select oid from pg_class where relnamespace = 'public'::regnamespace order by 1`,
  );
  expect(after.rows).toEqual(expect.arrayContaining(made.rows)); // the schema stays
  await service.call('POST', `/migrations/${id}/unfence`);
});
