// A store that was put back to a copy from before the cutover: the target is open, so the source must not take writes again.
import { copyFileSync } from 'node:fs';
import Database from 'better-sqlite3';
import { expect, onTestFinished, test } from 'vitest';
import { createService, parseConfig } from '../../src/index.ts';
import { armFence, disarmFence, installFence, removeFence } from '../../src/cutover/fence.ts';
import { liftFence } from '../../src/cutover/clean-up.ts';
import { fenceState, markOpened } from '../../src/cutover/fence-function.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { reaches } from '../support/library.ts';
import { makeScope } from '../support/scope.ts';
import { makeDataDir } from '../support/service-process.ts';

test.each(['syncingWal', 'stoppingWrites'] as const)(
  'one from %s leaves the source fenced, and says why the task does not go on',
  async (state) => {
    const pair = await makePair({ checkLeaks: false });
    await pair.source.query(
      'create table t (id int primary key); insert into t select generate_series(1, 10)',
    );
    const config = parseConfig({ DTS_DATA_DIR: makeDataDir() });
    const backup = parseConfig({ DTS_DATA_DIR: makeDataDir() });
    const service = createService(config);
    onTestFinished(() => service.stop());
    await service.createTask({
      id: 'shop',
      sourceDb: pair.source.connection,
      targetDb: pair.target.connection,
    });
    await service.startTask('shop');
    await reaches(service, 'shop', 'syncingWal');
    const writer = await pair.source.connect();
    if (state === 'stoppingWrites') {
      await writer.query('begin; insert into t values (11)');
      await service.cutover('shop');
      await waitFor(async () =>
        (await service.getTask('shop')).detail.waitingFor?.includes('the fence waits'),
      );
    }
    const store = new Database(config.databasePath, { readonly: true });
    store.exec(`vacuum into '${backup.databasePath}'`);
    store.close();
    copyFileSync(config.keyPath, backup.keyPath);
    if (state === 'stoppingWrites') await writer.query('commit');
    else await service.cutover('shop');
    await reaches(service, 'shop', 'completed');
    await service.stop();

    const old = createService(backup);
    onTestFinished(() => old.stop());
    const stuck = await waitFor(async () => {
      const task = await old.getTask('shop');
      return task.state === 'paused' ? task : null;
    });
    // the slot is gone, too: whoever finds its trouble first is told
    expect(['already_opened', 'slot_lost', 'publication_lost']).toContain(stuck.error?.code);
    const refused = { code: '25006' };
    await expect(pair.source.query('insert into t values (12)')).rejects.toMatchObject(refused);
    await old.cancelTask('shop');
    const cancelled = await reaches(old, 'shop', 'cancelled');
    expect(cancelled).toMatchObject({ cleanupPending: true, error: { code: 'already_opened' } });
    expect(cancelled.error?.hint).toContain('drop function "dts"."fence_shop"() cascade');
    await expect(pair.source.query('insert into t values (12)')).rejects.toMatchObject(refused);
    expect((await pair.target.query('select * from t')).rowCount).toBe(state === 'syncingWal' ? 10 : 11);
  },
);

test('a fence that stands because the target is open is lifted by who knows that', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key)');
  const scope = makeScope(pair);
  await planFromCatalog(scope);
  await markOpened(scope, 1_000); // no fence, nothing to say
  await installFence(scope);
  await armFence(scope);
  await markOpened(scope, 1_000);
  await markOpened(scope, 1_000);
  expect(await fenceState(scope)).toBe('armed');
  for (const work of [disarmFence, installFence, removeFence])
    await expect(work(scope)).rejects.toMatchObject({ code: 'already_opened', kind: 'operator' });
  await liftFence(scope);
  expect(await fenceState(scope)).toBe('none');
  await pair.source.query('insert into t values (1)');
});
