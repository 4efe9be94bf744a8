// SIGKILL at a named place of every state, a restart, and both databases compared row by row: a crash is a non-event.
import { describe, expect, test } from 'vitest';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { expectEqualTables } from '../support/compare.ts';
import { leaksOf, makePair, waitFor } from '../support/databases.ts';
import {
  makeDataDir,
  migrationBody,
  startMigration,
  startService,
  type ServiceProcess,
} from '../support/service-process.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

/** The cutover of these waits for the online validation. */
const validated: ReadonlySet<Failpoint> = new Set(['validate.range-compared', 'validate.keys-compared']);

/** Where the killed task is, and how often the place is passed before the kill. */
const places: readonly (readonly [Failpoint, number])[] = [
  ['init.before-done', 1],
  ['creatingTables.mid-statements', 4],
  ['slot.created', 1],
  ['copy.mid-table', 2],
  ['copy.before-marker-commit', 2],
  ['copy.marker-committed', 2],
  ['copy.before-index', 1],
  ['sync.before-target-commit', 3],
  ['sync.committed-not-acknowledged', 3],
  ['sync.batch-applied', 2],
  ['validate.range-compared', 2],
  ['validate.keys-compared', 1],
  ['fence.installed', 1],
  ['fence.armed', 1],
  ['drain.marker-emitted', 1],
  ['drain.marker-applied', 1],
  ['validate.mid-tables', 2],
  ['finalize.sequences-set', 1],
  ['finalize.hook-called', 1],
  ['finalize.before-point-of-no-return', 1],
  ['finalize.after-point-of-no-return', 1],
  ['finalize.opened', 1],
  ['finalize.before-source-cleanup', 1],
  ['finalize.after-slot-drop', 1],
];

/** Cuts over as often as it takes: a kill under the fence un-fences, and the cutover is requested again. */
async function cutOverUntilCompleted(service: ServiceProcess, id: string): Promise<void> {
  await waitFor(
    async () => {
      const { state, error } = await service.status(id);
      if (state === 'completed') return true;
      if (['failed', 'cancelled', 'paused'].includes(state))
        throw new Error(`task is ${state}: ${JSON.stringify(error)}`);
      if (state === 'syncingWal') await service.call('POST', `/migrations/${id}/cutover`);
      return false;
    },
    90_000,
    'completed',
  );
}

describe.each(places)('killed at %s', (failpoint, nth) => {
  test('the restarted service finishes with an identical target', async () => {
    const pair = await makePair();
    await loadShop(pair.source, 600);
    const writers = await startWriters(pair.source, 3);
    const dataDir = makeDataDir();
    const gate = validated.has(failpoint) ? { cutover_max_validation_age_ms: 60_000 } : {};
    const doomed = await startService({ dataDir, failpoint: `${failpoint}:${nth}` });
    const id = await startMigration(
      doomed,
      migrationBody(pair, { table_suffix: '_migrated', options: { copy_jobs: 2, ...gate } }),
    );
    // The service dies under the cutover, or before it: a stream that nobody stops comes by its places again and again.
    const driven = failpoint.startsWith('sync.')
      ? undefined
      : cutOverUntilCompleted(doomed, id).catch(() => undefined);
    expect(await doomed.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await driven;
    const service = await startService({ dataDir });
    await cutOverUntilCompleted(service, id);
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
});
