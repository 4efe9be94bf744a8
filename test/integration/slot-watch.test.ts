// Slots of tasks whose stream does not run: what they cost is shown, and no paused task fills the source's disk.
import { expect, test } from 'vitest';
import { cutoverNotes, type WriteStop } from '../../src/model/cutover-notes.ts';
import type { Finding } from '../../src/model/finding.ts';
import type { TaskEvent } from '../../src/model/service.ts';
import { ensurePublication } from '../../src/postgres/publication.ts';
import { ensureSlot } from '../../src/postgres/slot.ts';
import { enforceWalCap } from '../../src/postgres/wal-cap.ts';
import { makePair, waitFor, type TestDatabase } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';
import { prepare } from '../support/replication.ts';

const MB = 1024 * 1024;

async function slots(source: TestDatabase, id: string): Promise<number> {
  const { rowCount } = await source.query('select from pg_replication_slots where slot_name = $1', [
    `dts_${id}`,
  ]);
  return rowCount ?? 0;
}

/** WAL that belongs to nobody's table. */
async function writeWal(source: TestDatabase, megabytes: number): Promise<void> {
  await source.query(
    `select pg_logical_emit_message(false, 'waste', repeat('x', 1048576)) from generate_series(1, $1::int)`,
    [megabytes],
  );
}

test.each([
  { source: 16, target: 18 },
  { source: 18, target: 18 },
] as const)('max_retained_wal_bytes holds for a paused task: $source → $target', async (majors) => {
  const pair = await makePair(majors);
  await pair.source.query(
    'create table t (id int primary key); insert into t select generate_series(1, 100)',
  );
  const service = startLibrary({ DTS_SLOT_CHECK_INTERVAL: '200ms' });
  const { task } = await service.createTask({
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tables: ['t'],
    tableSuffix: '_m',
    options: { keepFence: false },
  });
  const { id } = task;
  await service.startTask(id);
  await reaches(service, id, 'syncingWal');
  await service.pauseTask(id);
  await reaches(service, id, 'paused');
  await writeWal(pair.source, 70);
  // it is shown, and it stays as long as nobody has set a cap
  const seen = await waitFor(async () => {
    const { restingSlot } = await service.getTask(id);
    return restingSlot !== null && (restingSlot.retainedBytes ?? 0) > 70 * MB ? restingSlot : null;
  });
  expect(seen).toMatchObject({ walStatus: expect.any(String) as string, error: null });
  expect(await slots(pair.source, id)).toBe(1);
  await waitFor(() => service.taskManager.getTask(id) === undefined);
  await waitFor(async () => (await service.getTask(id)).connections === 0);

  // as fast as that it would not last an hour: said once, although every look says it anew
  const dangers = async (): Promise<Finding[]> =>
    (await service.getTask(id)).findings.filter(({ code }) => code === 'slot_endangered');
  expect(await dangers()).toEqual([]);
  await service.changeOptions(id, { maxRetainedWalBytes: 4096 * MB });
  await waitFor(async () => {
    await writeWal(pair.source, 20);
    return (await dangers()).length > 0;
  });
  await writeWal(pair.source, 20);
  expect(await dangers()).toEqual([
    expect.objectContaining({
      severity: 'warning',
      message: expect.stringContaining('within an hour') as string,
      remedy: expect.stringContaining('max_retained_wal_bytes') as string,
    }),
  ]);

  await service.changeOptions(id, { maxRetainedWalBytes: 64 * MB });
  const lost = await waitFor(async () => {
    const now = await service.getTask(id);
    return now.error?.code === 'slot_lost' ? now : null;
  });
  expect(await slots(pair.source, id)).toBe(0);
  expect(lost).toMatchObject({
    state: 'paused',
    error: { kind: 'lost', details: { maxRetainedWalBytes: 64 * MB } },
    restingSlot: expect.anything() as unknown,
  });
  expect(lost.error?.hint).toContain(`/migrations/${id}/recopy`);
  expect(lost.allowedCommands).toContain('RECOPY');
  expect(lost.findings).toContainEqual(
    expect.objectContaining({ code: 'slot_dropped', severity: 'warning' }),
  );
  const events: TaskEvent[] = [];
  for await (const event of service.events({ id, signal: AbortSignal.timeout(2_000) })) {
    events.push(event);
    if (event.kind === 'state' && event.event === 'SLOT_LOST') break;
  }
  expect(events.at(-1)).toMatchObject({ event: 'SLOT_LOST', state: 'paused' });
  expect(events.filter((event) => event.kind === 'state' && event.event === 'FINDING')).toHaveLength(1);
  expect(await dangers()).toEqual([]); // there is no slot to be lost

  await service.changeOptions(id, { maxRetainedWalBytes: null });
  await pair.source.query('delete from t where id <= 50');
  await service.recopyTask(id);
  await reaches(service, id, 'syncingWal');
  await service.cutover(id);
  await reaches(service, id, 'completed');
  const { rows } = await pair.target.query('select count(*)::int as n, min(id) as first from t_m');
  expect(rows).toEqual([{ n: 50, first: 51 }]);
});

test('a slot that somebody drops is lost at once, although the task is paused', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key)');
  const service = startLibrary({ DTS_SLOT_CHECK_INTERVAL: '200ms' });
  const { task } = await service.createTask({
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tables: ['t'],
    tableSuffix: '_m',
  });
  await service.startTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  await service.pauseTask(task.id);
  await waitFor(async () => (await service.getTask(task.id)).restingSlot !== null);
  await waitFor(() =>
    pair.source.query('select pg_drop_replication_slot($1)', [`dts_${task.id}`]).then(
      () => true,
      () => false,
    ),
  );
  await waitFor(async () => (await service.getTask(task.id)).error?.code === 'slot_lost');
  await service.cancelTask(task.id, { dropTarget: true });
  await waitFor(async () => (await service.getTask(task.id)).state === 'cancelled');
});

test('the cap does not take the slot away under the fence', async () => {
  const pair = await makePair();
  const scope = await prepare(pair, 'create table public.t (id int primary key)', {
    options: { maxRetainedWalBytes: 64 * MB },
  });
  await ensurePublication(scope);
  const slot = await ensureSlot(scope);
  const stop: WriteStop = { armedAt: new Date().toISOString(), liftedAt: null, openedAt: null };
  scope.checkpoints.set(cutoverNotes.writeStop, stop);
  await enforceWalCap(scope, slot, 65 * MB);
  expect(await slots(pair.source, scope.taskId)).toBe(1);
  scope.checkpoints.set(cutoverNotes.writeStop, { ...stop, liftedAt: stop.armedAt });
  await expect(enforceWalCap(scope, slot, 65 * MB)).rejects.toMatchObject({ code: 'slot_lost' });
  expect(await slots(pair.source, scope.taskId)).toBe(0);
});
