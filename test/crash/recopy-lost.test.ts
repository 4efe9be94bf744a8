// A task whose slot is gone is copied again behind a new one by a single command, whatever was written in between: the
// target equals the source in the end, also when the service is killed in the middle of it.
import { expect, test } from 'vitest';
import type { EmbeddedMajor } from '../../src/cli/embedded-postgres.ts';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { expectEqualTables } from '../support/compare.ts';
import { makePair } from '../support/databases.ts';
import { KilledService } from '../support/kills.ts';
import { cutOver, migrationBody, startMigration, type ServiceProcess } from '../support/service-process.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

/** In the order in which the re-copy comes by. */
const journeys: readonly (readonly [EmbeddedMajor, readonly Failpoint[]])[] = [
  [
    16,
    [
      'recopy.slot-left',
      'recopy.progress-forgotten',
      'slot.created',
      'copy.forgotten',
      'copy.mid-table',
      'sync.before-target-commit',
    ],
  ],
  [13, ['copy.mid-table']],
];

test.each(journeys)(
  'a lost slot of %i is answered by a new one and all rows again; killed at %j',
  async (major, places) => {
    const pair = await makePair({ source: major });
    await loadShop(pair.source, 600);
    const writers = await startWriters(pair.source, 3);
    const killed = new KilledService();
    let service = await killed.start();
    const id = await startMigration(
      service,
      migrationBody(pair, { table_suffix: '_migrated', options: { copy_jobs: 2, part_bytes: 65_536 } }),
    );
    await service.reaches(id, 'syncingWal');
    const recopy = `/migrations/${id}/recopy`;
    const tables = async (): Promise<readonly unknown[]> =>
      (
        await pair.target.query(
          `select oid from pg_class where relnamespace = 'public'::regnamespace order by 1`,
        )
      ).rows;
    const made = await tables();
    const loseSlot = async (serving: ServiceProcess, unseen: string): Promise<void> => {
      await serving.call('POST', `/migrations/${id}/pause`);
      await serving.reaches(id, 'paused');
      expect(await serving.call('POST', recopy)).toMatchObject({ status: 409 }); // nothing is lost
      await pair.source.query('select pg_drop_replication_slot($1)', [`dts_${id}`]);
      // no stream will ever tell these
      await pair.source.query(`update public.users set bio = $1 where id <= 50`, [unseen]);
      await pair.source.query(
        `delete from sales."Order Lines" where order_id in (select distinct order_id from sales."Order Lines" order by 1 limit 30)`,
      );
      await serving.call('POST', `/migrations/${id}/resume`);
      const lost = await serving.reaches(id, 'paused');
      expect(lost.error).toMatchObject({
        code: 'slot_lost',
        hint: expect.stringContaining(`/migrations/${id}/recopy`) as string,
      });
    };
    const expectOneSlot = async (serving: ServiceProcess): Promise<void> => {
      await serving.reaches(id, 'syncingWal');
      const slots = await pair.target.query(
        `select distinct slot_incarnation from dts.part union select slot_incarnation from dts.progress`,
      );
      expect(slots.rowCount).toBe(1); // nothing of the lost slot counts
    };

    await loseSlot(service, 'unseen');
    for (const [n, place] of places.entries())
      await killed.killedAt(place, async (armed) => {
        if (n === 0) await armed.call('POST', recopy); // it goes on by itself then
      });
    service = await killed.start();
    await expectOneSlot(service);

    await loseSlot(service, 'unseen again');
    expect(await service.call('POST', recopy)).toMatchObject({ status: 200, body: { error: null } });
    await expectOneSlot(service);
    await cutOver(service, id);
    await writers.stop();
    await expectEqualTables(pair.source, pair.target, shopTables('_migrated'));
    expect(await tables()).toEqual(expect.arrayContaining([...made])); // the schema stays
    await service.call('POST', `/migrations/${id}/unfence`);
  },
);
