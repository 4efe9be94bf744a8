// A task that is given up while a server cannot be reached ends all the same; what it left there is pending, with the
// reason, and goes by itself as soon as the server is back.
import type { Client } from 'pg';
import { describe, expect, test } from 'vitest';
import type { Service } from '../../src/index.ts';
import type { TaskView } from '../../src/model/task.ts';
import { leaksOf, makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';
import { makeProxy, through, type Proxy } from '../support/proxy.ts';

interface Fixture {
  readonly pair: DatabasePair;
  readonly network: Proxy;
  readonly service: Service;
  readonly id: string;
}

/** A task in syncingWal with its fence installed, whose source is behind a proxy. */
async function syncing(options: { source?: 13 | 16; cleanupInterval?: string } = {}): Promise<Fixture> {
  const pair = await makePair({ source: options.source ?? 16 });
  await pair.source.query('create table t (id int primary key, v text)');
  await pair.source.query('insert into t select i, md5(i::text) from generate_series(1, 1000) i');
  const network = await makeProxy(pair.source.port);
  const service = startLibrary({ DTS_CLEANUP_INTERVAL: options.cleanupInterval ?? '1h' });
  const { task } = await service.createTask({
    sourceDb: through(network, pair.source).connection,
    targetDb: pair.target.connection,
    tables: ['t'],
    tableSuffix: '_m',
  });
  await service.startTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  await waitFor(async () => (await leaksOf(pair.source)).some((leak) => leak.includes('trigger dts_fence')));
  return { pair, network, service, id: task.id };
}

/** Connections come and go with the periodic cleanup. */
const objectsOf = async (database: TestDatabase): Promise<string[]> =>
  (await leaksOf(database))
    .filter((leak) => !leak.includes(': connection '))
    .map((leak) => leak.split(' ')[1] ?? '');

function expectPending(task: TaskView): void {
  expect(task).toMatchObject({
    state: 'cancelled',
    cleanupPending: true,
    error: { code: 'connection_failed', message: expect.stringMatching(/^source: /) as string },
  });
  expect(task.error?.hint).toContain('tried again');
}

async function expectNothingLeft({ pair, service, id }: Fixture): Promise<void> {
  await waitFor(
    async () => (await leaksOf(pair.source)).length + (await leaksOf(pair.target)).length === 0,
    10_000,
    'nothing left',
  );
  await pair.source.query(`insert into t values (-1, 'writable')`);
  expect(await service.getTask(id)).toMatchObject({ cleanupPending: false, fenced: false, error: null });
  await service.deleteTask(id);
}

describe.each([13, 16] as const)('source %i', (source) => {
  test('a source that refuses connections: cancelled, pending, and clean by itself once it is back', async () => {
    const fixture = await syncing({ source, cleanupInterval: '200ms' });
    const { pair, network, service, id } = fixture;
    await network.close();
    await service.cancelTask(id, { dropTarget: true });
    expectPending(await reaches(service, id, 'cancelled'));
    // slot, publication, trigger, schema of the fence's function: all of it is still there
    expect(new Set(await objectsOf(pair.source))).toEqual(
      new Set(['slot', 'publication', 'trigger', 'schema']),
    );
    // the reachable side was cleaned at once
    expect(await objectsOf(pair.target)).toEqual([]);
    const { rows } = await pair.target.query(`select to_regclass('public.t_m') is null as gone`);
    expect(rows).toEqual([{ gone: true }]);
    await expect(service.deleteTask(id)).rejects.toMatchObject({
      code: 'task_live',
      details: { cleanupPending: true },
    });
    await network.open();
    await waitFor(async () => !(await service.getTask(id)).cleanupPending, 30_000, 'cleaned up');
    await expectNothingLeft(fixture);
  });
});

test('a source that swallows every byte does not keep a task from ending', async () => {
  const fixture = await syncing();
  const { network, service, id } = fixture;
  network.freeze();
  await service.cancelTask(id);
  expectPending(await reaches(service, id, 'cancelled', 60_000));
  await network.open();
  await service.taskManager.cleanupCompletedTasks();
  await expectNothingLeft(fixture);
});

/** A source that goes while its writes are stopped. */
async function lostUnderFence(): Promise<Fixture & { readonly writer: Client }> {
  const fixture = await syncing();
  const { pair, network, service, id } = fixture;
  const writer = await pair.source.connect();
  await writer.query(`begin; insert into t values (0, 'holds up the fence')`);
  await service.cutover(id);
  await waitFor(
    () =>
      pair.source.query(`insert into t values (-2, 'x') on conflict do nothing`).then(
        () => false,
        (error: { code?: string }) => error.code === '25006',
      ),
    10_000,
    'an armed fence',
  );
  await network.close();
  return { ...fixture, writer };
}

test('a source that goes while writes are stopped gets them back as soon as it is there, before the clean-up', async () => {
  const { writer, ...fixture } = await lostUnderFence();
  const { pair, network, service, id } = fixture;
  await service.cancelTask(id);
  const waiting = await waitFor(async () => {
    const view = await service.getTask(id);
    return view.detail.waitingFor?.startsWith('the source to take writes again') ? view : null;
  });
  expect(waiting).toMatchObject({ state: 'stoppingWrites', fenced: true });
  await writer.query('rollback');
  await expect(pair.source.query(`insert into t values (-3, 'x')`)).rejects.toMatchObject({ code: '25006' });
  await network.open();
  expect(await reaches(service, id, 'cancelled')).toMatchObject({ cleanupPending: false });
  await expectNothingLeft(fixture);
});

test('abandoned twice, a task ends without its source, which gets its writes back with the rest of the clean-up', async () => {
  const { writer, ...fixture } = await lostUnderFence();
  const { pair, network, service, id } = fixture;
  await service.abandonTask(id);
  expect((await service.getTask(id)).state).toBe('stoppingWrites');
  await service.abandonTask(id);
  expect(await reaches(service, id, 'failed')).toMatchObject({ cleanupPending: true, fenced: true }); // as far as anybody can know
  await writer.query('rollback');
  await expect(pair.source.query(`insert into t values (-3, 'x')`)).rejects.toMatchObject({ code: '25006' });
  await network.open();
  await service.taskManager.cleanupCompletedTasks();
  await waitFor(async () => (await leaksOf(pair.source)).length + (await leaksOf(pair.target)).length === 0);
  await pair.source.query(`insert into t values (-1, 'writable')`);
});

test('a target that cannot be reached is pending too, while the source is clean at once', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key)');
  const network = await makeProxy(pair.target.port);
  const service = startLibrary();
  const { task } = await service.createTask({
    sourceDb: pair.source.connection,
    targetDb: through(network, pair.target).connection,
    tables: ['t'],
    tableSuffix: '_m',
  });
  await service.startTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  await network.close();
  await service.cancelTask(task.id, { dropTarget: true });
  expect(await reaches(service, task.id, 'cancelled')).toMatchObject({
    cleanupPending: true,
    error: { code: 'connection_failed', message: expect.stringMatching(/^target: /) as string },
  });
  await waitFor(async () => (await leaksOf(pair.source)).length === 0);
  await network.open();
  await service.taskManager.cleanupCompletedTasks();
  expect(await service.getTask(task.id)).toMatchObject({ cleanupPending: false, error: null });
  const { rows } = await pair.target.query(`select to_regclass('public.t_m') is null as gone`);
  expect(rows).toEqual([{ gone: true }]);
});

test('force forgets a task and leaves its objects where they are', async () => {
  const { pair, network, service, id } = await syncing();
  await network.close();
  await service.cancelTask(id);
  await reaches(service, id, 'cancelled');
  await service.deleteTask(id, { force: true });
  await expect(service.getTask(id)).rejects.toMatchObject({ code: 'task_not_found' });
  expect(await objectsOf(pair.source)).toContain('slot');
  // what the operator does by hand then
  await waitFor(
    async () =>
      (
        await pair.source.query(
          'select 1 from pg_replication_slots where database = current_database() and not active',
        )
      ).rowCount === 1,
  );
  await pair.source.query(
    'select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()',
  );
  const { rows } = await pair.source.query<{ name: string }>('select pubname as name from pg_publication');
  await pair.source.query(`drop publication "${rows[0]?.name}"`);
  await pair.source.query('drop schema dts cascade');
});
