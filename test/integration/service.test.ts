// The library's surface on real servers: createService and its task manager.
import { expect, onTestFinished, test } from 'vitest';
import Database from 'better-sqlite3';
import { createService, parseConfig, type Service, type TaskRequest } from '../../src/index.ts';
import type { Certificate } from '../../src/model/certificate.ts';
import { cutoverNotes, type VerdictsNote } from '../../src/model/cutover-notes.ts';
import { leaksOf, makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { completes, KilledService } from '../support/kills.ts';
import { reaches, startLibrary } from '../support/library.ts';
import { makeDataDir, migrationBody, startMigration } from '../support/service-process.ts';

const request = (pair: DatabasePair, over: Partial<TaskRequest> = {}): TaskRequest => ({
  sourceDb: pair.source.connection,
  targetDb: pair.target.connection,
  tables: ['t'],
  tableSuffix: '_m',
  ...over,
});

async function makeTables(pair: DatabasePair): Promise<void> {
  await pair.source.query('create table t (id int primary key, v text)');
  await pair.source.query('insert into t select i, md5(i::text) from generate_series(1, 5000) i');
}

test('startTask refuses unknown, running and ended tasks with a code', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const service = startLibrary();
  await expect(service.startTask('nobody')).rejects.toMatchObject({ code: 'task_not_found' });
  const { task } = await service.createTask(
    request(pair, { options: { cutover: 'auto', keepFence: false } }),
  );
  await service.startTask(task.id);
  await expect(service.startTask(task.id)).rejects.toMatchObject({ code: 'task_already_running' });
  await reaches(service, task.id, 'completed');
  await expect(service.startTask(task.id)).rejects.toMatchObject({ code: 'task_ended' });
});

test('of two starts at the same time one wins', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const service = startLibrary();
  const { task } = await service.createTask(
    request(pair, { options: { cutover: 'auto', keepFence: false } }),
  );
  const outcomes = await Promise.allSettled(Array.from({ length: 5 }, () => service.startTask(task.id)));
  expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
  await reaches(service, task.id, 'completed');
});

test('a live task shows state, progress and connections; an ended one has none and is no live task', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const service = startLibrary();
  const { taskManager } = service;
  const { task } = await service.createTask(request(pair, { options: { keepFence: false } }));
  expect(taskManager.getTask(task.id)).toBeUndefined();
  await service.startTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  const live = taskManager.getTask(task.id);
  expect(live).toMatchObject({ id: task.id, state: 'syncingWal', progress: 99 });
  expect(live?.getConnectionCount()).toBeGreaterThan(0);
  expect(taskManager.getTaskCount()).toBe(1);
  expect(taskManager.listTasks().map(({ id }) => id)).toEqual([task.id]);
  await waitFor(async () => {
    await service.cutover(task.id);
    return (await service.getTask(task.id)).state === 'completed';
  });
  await waitFor(() => taskManager.getTaskCount() === 0);
  await waitFor(async () => (await service.getTask(task.id)).connections === 0);
});

test('removeTask closes every connection and returns their errors; the task stays resumable', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const service = startLibrary();
  const { task } = await service.createTask(request(pair));
  await service.startTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  expect(await service.taskManager.removeTask(task.id)).toEqual([]);
  expect(service.taskManager.getTask(task.id)).toBeUndefined();
  await waitFor(async () => (await leaksOf(pair.source)).every((leak) => !leak.includes('connection')));
  await service.cancelTask(task.id);
  await reaches(service, task.id, 'cancelled');
});

test('aborting the signal given to startTask pauses the task', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const service = startLibrary();
  const { task } = await service.createTask(request(pair));
  const controller = new AbortController();
  await service.startTask(task.id, controller.signal);
  await reaches(service, task.id, 'syncingWal');
  controller.abort();
  await waitFor(async () => (await service.getTask(task.id)).state === 'paused');
  await service.cancelTask(task.id);
  await reaches(service, task.id, 'cancelled');
});

test.each(['creatingTables', 'migratingData', 'syncingWal'])(
  'CANCEL in %s leaves nothing on the source; target tables only when asked',
  async (state) => {
    const pair = await makePair();
    await makeTables(pair);
    const service = startLibrary();
    const { task } = await service.createTask(request(pair));
    await service.startTask(task.id);
    const abort = new AbortController();
    for await (const event of service.events({ id: task.id, signal: abort.signal }))
      if (event.state === state) break;
    await service.cancelTask(task.id, { dropTarget: true });
    await reaches(service, task.id, 'cancelled');
    await waitFor(
      async () => (await leaksOf(pair.source)).length + (await leaksOf(pair.target)).length === 0,
      10_000,
      'no leak',
    );
    const { rows } = await pair.target.query(`select to_regclass('public.t_m') is null as gone`);
    expect(rows).toEqual([{ gone: true }]);
  },
);

test('findings block before anything is made and name the remedy', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (v text)');
  const service = startLibrary();
  const { task } = await service.createTask(request(pair));
  await service.startTask(task.id);
  await waitFor(async () => (await service.getTask(task.id)).state === 'paused');
  const view = await service.getTask(task.id);
  expect(view.error).toMatchObject({ code: 'preflight_blocked' });
  expect(view.findings.find((finding) => finding.severity === 'blocking')?.remedy).toContain('alter table');
  await pair.source.query('alter table t add column id serial primary key');
  await service.resumeTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  await service.cancelTask(task.id, { dropTarget: true });
  await reaches(service, task.id, 'cancelled');
});

test('lists by state with limit, offset and total; deletes only what has ended', async () => {
  const pair = await makePair();
  const service = startLibrary();
  for (const id of ['a', 'b', 'c']) await service.createTask(request(pair, { id }));
  await service.cancelTask('b');
  expect(await service.listTasks({ state: 'created', limit: 1, offset: 1 })).toMatchObject({
    total: 2,
    tasks: [{ id: 'a' }],
  });
  await expect(service.listTasks({ limit: 0 })).rejects.toMatchObject({ code: 'invalid_request' });
  await service.deleteTask('b');
  await expect(service.getTask('b')).rejects.toMatchObject({ code: 'task_not_found' });
  await expect(service.cutover('a')).rejects.toMatchObject({
    code: 'event_not_accepted',
    details: { state: 'created', allowed: ['START', 'CANCEL'] },
  });
});

test('one row that cannot be restored fails alone', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const dataDir = makeDataDir();
  const config = parseConfig({ DTS_DATA_DIR: dataDir });
  const first = createService(config);
  for (const id of ['good', 'bad']) {
    await first.createTask(request(pair, { id, tableSuffix: `_${id}`, options: { keepFence: false } }));
    await first.startTask(id);
    await reaches(first, id, 'syncingWal');
  }
  await first.stop();
  const sqlite = new Database(config.databasePath);
  sqlite
    .prepare(
      `update task set actor_snapshot = '{"value":"nowhere","status":"active","context":{},"children":{}}' where id = 'bad'`,
    )
    .run();
  sqlite.close();
  const second = createService(config);
  onTestFinished(() => second.stop());
  await waitFor(async () => (await second.getTask('bad')).state === 'failed');
  expect((await second.listTasks()).total).toBe(2);
  await second.cutover('good');
  await reaches(second, 'good', 'completed');
  // what the broken task left on the servers goes at once, not with the next periodic clean-up
  await waitFor(async () => !(await second.getTask('bad')).cleanupPending);
  await pair.target.query('drop table t_bad');
});

/** Changes the row of a task while no service runs. */
function changeRow(databasePath: string, assignment: string): void {
  const sqlite = new Database(databasePath);
  sqlite.prepare(`update task set ${assignment}`).run();
  sqlite.close();
}

test('an older service leaves the tasks of a newer one as they are', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const config = parseConfig({ DTS_DATA_DIR: makeDataDir(), DTS_CLEANUP_INTERVAL: '200ms' });
  const first = createService(config);
  await first.createTask(request(pair, { id: 'newer', options: { keepFence: false } }));
  await first.startTask('newer');
  await reaches(first, 'newer', 'syncingWal');
  await first.stop();
  changeRow(config.databasePath, 'machine_version = machine_version + 1');
  const older = createService(config);
  await older.taskManager.cleanupCompletedTasks();
  expect(await older.getTask('newer')).toMatchObject({ state: 'syncingWal', cleanupPending: false });
  await expect(older.cancelTask('newer')).rejects.toMatchObject({ hint: 'start the newer version again' });
  await older.stop();
  changeRow(config.databasePath, 'machine_version = machine_version - 1');
  const newer = createService(config);
  onTestFinished(() => newer.stop());
  await newer.cutover('newer');
  await reaches(newer, 'newer', 'completed');
});

/** A note of a task while no service runs; undefined when there is none. */
function readNote(databasePath: string, id: string, key: string): unknown {
  const sqlite = new Database(databasePath, { readonly: true });
  const row = sqlite.prepare('select value from checkpoint where task_id = ? and key = ?').get(id, key) as
    | { value: string }
    | undefined;
  sqlite.close();
  return row && JSON.parse(row.value);
}

test('a task that cannot be restored past the point of no return is not un-fenced, and certified with whole digests', async () => {
  const pair = await makePair({ checkLeaks: false });
  await makeTables(pair);
  const killed = new KilledService();
  const id = pair.source.dbname;
  await killed.killedAt('finalize.after-point-of-no-return', async (armed) => {
    const options = { cutover_max_validation_age_ms: 60_000 };
    await startMigration(armed, migrationBody(pair, { id, tables: ['t'], table_suffix: '_m', options }));
    await completes(armed, id);
  });
  const config = parseConfig({ DTS_DATA_DIR: killed.dataDir });
  const compared = readNote(config.databasePath, id, cutoverNotes.verdicts) as VerdictsNote;
  expect(compared.tables.map(({ method }) => method)).toEqual(['changes']);
  changeRow(config.databasePath, `actor_snapshot = json_set(actor_snapshot, '$.value', 'nowhere')`);
  const service = createService(config);
  onTestFinished(() => service.stop());
  await waitFor(async () => (await service.getTask(id)).state === 'failed');
  await waitFor(async () => !(await service.getTask(id)).cleanupPending);
  expect(await service.getTask(id)).toMatchObject({ fenced: true });
  await expect(pair.source.query('delete from t')).rejects.toMatchObject({ code: '25006' });
  const { rows } = await pair.source.query<{ rows: number }>('select count(*)::int as rows from t');
  const certificate = readNote(config.databasePath, id, cutoverNotes.certificate) as Certificate;
  expect(certificate).toMatchObject({
    equal: true,
    schema: { equal: true },
    tables: [{ table: 'public.t', method: 'full', sourceRows: rows[0]?.rows, targetRows: rows[0]?.rows }],
  });
});

/** A service whose task is created, and its store, which can be made to refuse writes. */
async function startWithStore(
  pair: DatabasePair,
): Promise<{ service: Service; id: string; sqlite: Database.Database }> {
  const config = parseConfig({ DTS_DATA_DIR: makeDataDir() });
  const service = createService(config);
  onTestFinished(() => service.stop());
  const { task } = await service.createTask(request(pair, { options: { keepFence: false } }));
  const sqlite = new Database(config.databasePath);
  onTestFinished(() => void sqlite.close());
  return { service, id: task.id, sqlite };
}

test('a store that cannot be written does not keep the source fenced', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const { service, id, sqlite } = await startWithStore(pair);
  await service.startTask(id);
  await reaches(service, id, 'syncingWal');
  // every transition out of stoppingWrites fails, as on a full disk
  sqlite.exec(`create trigger full before update on task when old.state = 'stoppingWrites'
    begin select raise(abort, 'disk full'); end`);
  await service.cutover(id);
  await waitFor(async () => (await service.getTask(id)).state === 'stoppingWrites');
  await waitFor(() => service.taskManager.getTask(id) === undefined);
  await waitFor(
    () =>
      pair.source.query('delete from t where id = 1').then(
        () => true,
        () => false,
      ),
    10_000,
    'writes allowed again',
  );
  sqlite.exec('drop trigger full');
  await reaches(service, id, 'syncingWal');
  await service.cutover(id);
  await reaches(service, id, 'completed');
});

test('a note that cannot be written costs an attempt, not the migration', async () => {
  const pair = await makePair();
  await makeTables(pair);
  const { service, id, sqlite } = await startWithStore(pair);
  sqlite.exec(`create trigger full before insert on checkpoint when new.key in ('slot', 'writeStop')
    begin select raise(abort, 'disk full'); end`);
  await service.startTask(id);
  await waitFor(async () => (await service.getTask(id)).error?.code === 'store_failed');
  sqlite.exec('drop trigger full');
  await reaches(service, id, 'syncingWal');
  await service.cutover(id);
  await reaches(service, id, 'completed');
});

test('limits of a task are changed while it has not ended, and only those', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key)');
  const service = startLibrary();
  const { task } = await service.createTask(request(pair));
  const changed = await service.changeOptions(task.id, {
    maxBytesPerSecond: 1_000_000,
    maxSourceLagBytes: 2 ** 30,
  });
  expect(changed.spec.options).toEqual({
    ...task.spec.options,
    maxBytesPerSecond: 1_000_000,
    maxSourceLagBytes: 2 ** 30,
  });
  expect((await service.changeOptions(task.id, { maxBytesPerSecond: null })).spec.options).toMatchObject({
    maxBytesPerSecond: null,
    maxSourceLagBytes: 2 ** 30,
  });
  for (const bad of [{ maxBytesPerSecond: 1 }, { partBytes: 1e8 }, { maxSnapshotAgeMs: null }])
    await expect(service.changeOptions(task.id, bad as never)).rejects.toMatchObject({
      code: 'invalid_request',
      details: { fields: [{ field: Object.keys(bad)[0] }] },
    });
  await service.cancelTask(task.id);
  await expect(service.changeOptions(task.id, {})).rejects.toMatchObject({ code: 'task_ended' });
});
