// SIGKILL in the middle of a repair: nothing of it is on the target, and the restarted service carries it out.
import { expect, test } from 'vitest';
import type { ValidationView } from '../../src/model/validation.ts';
import { expectEqualTables } from '../support/compare.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { KilledService } from '../support/kills.ts';
import { cutOver, migrationBody, startMigration, type ServiceProcess } from '../support/service-process.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

interface Wire {
  readonly settled_at: string | null;
  readonly repairs: readonly { readonly state: ValidationView['repairs'][number]['state'] }[];
  readonly tables: readonly { readonly table: string; readonly differences: { readonly missing: number } }[];
}

const validationOf = async (service: ServiceProcess, id: string): Promise<Wire> =>
  (await service.call<Wire>('GET', `/migrations/${id}/validation`)).body;

test('killed at repair.before-commit the restarted service repairs, and the cutover finds both sides equal', async () => {
  const pair = await makePair();
  await loadShop(pair.source, 600);
  const writers = await startWriters(pair.source, 2);
  const killed = new KilledService();
  const id = pair.source.dbname;
  const keys = [1700, 1701, 1702, 1703, 1704, 1705].flatMap((order) => [
    [String(order), '1'],
    [String(order), '2'],
  ]);
  await killed.killedAt('repair.before-commit', async (armed) => {
    await startMigration(armed, migrationBody(pair, { id, options: { keep_fence: false } }));
    await armed.reaches(id, 'syncingWal');
    await waitFor(async () => (await validationOf(armed, id)).settled_at !== null, 60_000, 'settled');
    // a change of a row that is missing would pause the task before it is repaired
    await writers.stop();
    await pair.target.query(`delete from sales."Order Lines" where order_id between 1700 and 1705`);
    const asked = await armed.call('POST', `/migrations/${id}/repair`, { table: 'sales.Order Lines', keys });
    expect(asked.status, JSON.stringify(asked.body)).toBe(200);
  });
  expect((await pair.target.query('select from sales."Order Lines" where order_id = 1700')).rowCount).toBe(0);
  const service = await killed.start();
  await waitFor(
    async () => (await validationOf(service, id)).repairs[0]?.state === 'done',
    60_000,
    'repaired',
  );
  await cutOver(service, id);
  await expectEqualTables(pair.source, pair.target, shopTables(''));
});
