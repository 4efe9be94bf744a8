// Tables that are copied while the stream goes on: others are followed meanwhile, nothing is lost or applied twice, whoever
// is in the way is named, and what cannot be done at the same time is refused.
import { expect, test } from 'vitest';
import type { Service, TaskRequest } from '../../src/index.ts';
import { expectEqualTables } from '../support/compare.ts';
import { leaksOf, makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import { copied, reaches, startLibrary } from '../support/library.ts';
import { randomTables, startWriters } from '../support/random-writers.ts';

startServers(15);

async function follow(
  pair: DatabasePair,
  over: Partial<TaskRequest> = {},
): Promise<{ service: Service; id: string }> {
  const service = startLibrary();
  const { task } = await service.createTask({
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tableSuffix: '_m',
    ...over,
    tables: over.tables ?? ['a'],
    options: { keepFence: false, ...over.options },
  });
  await service.startTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  return { service, id: task.id };
}

async function complete(service: Service, id: string): Promise<void> {
  await service.cutover(id);
  await reaches(service, id, 'completed');
}

/** Rows that compress little, so that the limit of bytes a second is met. */
const rows = (table: string, from: number, to: number): string =>
  `insert into ${table} select g, (select string_agg(md5((g * 100 + n)::text), '') from generate_series(1, 30) n)
     from generate_series(${from}, ${to}) g`;

/** Writes into `a` and waits until the target has it: the stream goes on while something is copied. */
async function passes(pair: DatabasePair, service: Service, id: string, key: number): Promise<void> {
  await pair.source.query('insert into a values ($1)', [key]);
  await waitFor(async () => (await pair.target.query('select from a_m where id = $1', [key])).rowCount === 1);
  const { state, detail, cutoverWaitsFor } = await service.getTask(id);
  expect(state).toBe('syncingWal');
  expect(detail.copying).not.toBeNull();
  expect(cutoverWaitsFor[0]).toMatch(/^the copy of .* to be done$/);
}

const none = { missing: 0, extra: 0, changed: 0, samples: [] };
/** The least that is accepted. */
const SLOW = 65_536;
/** Of a stream that goes on. */
const SMALL_LAG = 200_000;

test('an added and then a re-copied table are written while they are copied, and the others are followed meanwhile', async () => {
  const pair = await makePair();
  await pair.source.query(`create table a (id int primary key);
    create table big (id int primary key, v text, u int unique); create index on big (v);
    ${rows('big (id, v)', 1, 3_000)}`);
  const { service, id } = await follow(pair, { options: { copyJobs: 2, partBytes: 1_000_000 } });
  await service.changeOptions(id, { maxBytesPerSecond: SLOW });
  const write = async (n: number): Promise<void> => {
    await pair.source.query(`
      update big set u = id where id % 97 = ${n}; delete from big where id % 101 = ${n};
      update big set id = id + 10000 where id % 103 = ${n};
      begin; ${rows('big (id, v)', 20_000 + n * 10, 20_009 + n * 10)}; rollback;
      ${rows('big (id, v)', 30_000 + n * 10, 30_009 + n * 10)}; update big set v = 'new' where id = ${30_000 + n * 10}`);
  };
  const meanwhile = async (from: number): Promise<void> => {
    await waitFor(async () => {
      const big = (await service.getTables(id)).find(({ table }) => table === 'public.big');
      return big?.state === 'copying' && big.bytesCopied > 0;
    });
    for (let n = from; n < from + 4; n++) {
      await write(n);
      await passes(pair, service, id, n);
    }
    await expect(service.addTables(id, { add: ['big'] })).rejects.toMatchObject({
      code: 'event_not_accepted',
      message: expect.stringContaining('is not done') as string,
    });
    await expect(service.recopyTable(id, 'a')).rejects.toMatchObject({ code: 'event_not_accepted' });
    await expect(service.forecastCutover(id)).rejects.toMatchObject({ code: 'event_not_accepted' });
    const { copying } = await waitFor(async () => {
      const { detail } = await service.getTask(id);
      const isClose = (detail.sync?.lagBytes ?? SMALL_LAG) < SMALL_LAG;
      return detail.copying !== null && detail.copying.heldBytes > 0 && isClose ? detail : null;
    });
    expect(copying).toMatchObject({ tables: ['public.big'] });
    expect(copying?.bytesCopied).toBeLessThan(copying?.bytesEstimated ?? 0);
    const { tables } = await service.getValidation(id);
    expect(tables.find(({ table }) => table === 'public.big')?.differences ?? none).toEqual(none);
  };
  await service.addTables(id, { add: ['big'] });
  await meanwhile(1);
  await service.changeOptions(id, { maxBytesPerSecond: null });
  await copied(service, id);
  await write(5);
  await pair.target.query(`delete from big_m where id % 7 = 0; update big_m set v = 'damaged' where id % 5 = 0;
    insert into big_m values (-5, 'stranger')`);
  await service.changeOptions(id, { maxBytesPerSecond: SLOW });
  await service.recopyTable(id, 'public.big');
  await meanwhile(6);
  // what was there stays until what replaces it comes, in the same transaction
  expect((await pair.target.query('select from big_m where id = -5')).rowCount).toBe(1);
  await service.changeOptions(id, { maxBytesPerSecond: null });
  await copied(service, id);
  await write(10);
  expect((await pair.target.query('select from dts.held_change')).rowCount).toBe(0);
  await complete(service, id);
  await expectEqualTables(pair.source, pair.target, [
    ['a', 'a_m'],
    ['big', 'big_m'],
  ]);
});

test.each([
  [16, 18],
  [15, 16],
] as const)('every kind of table is copied again under random writers, %i to %i', async (from, to) => {
  const pair = await makePair({ source: from, target: to });
  await pair.source.query(randomTables);
  const writers = startWriters(pair.source, 42);
  const { service, id } = await follow(pair, {
    tables: ['plain', 'always', 'pair', 'part'],
    options: { partBytes: 65_536, onDdl: 'pause' },
  });
  const again = async (work: () => Promise<unknown>): Promise<void> => {
    const before = writers.done();
    await service.changeOptions(id, { maxBytesPerSecond: SLOW });
    await work();
    await waitFor(() => writers.done() > before + 100);
    await service.changeOptions(id, { maxBytesPerSecond: null });
    await copied(service, id);
  };
  await again(() => service.addTables(id, { add: ['keyless'] }));
  for (const table of ['public.plain', 'public.keyless', 'public.part_1'])
    await again(() => service.recopyTable(id, table));
  await again(() => service.recopyTask(id));
  await writers.stop();
  await complete(service, id);
  await expectEqualTables(
    pair.source,
    pair.target,
    ['plain', 'always', 'keyless', 'pair', 'part'].map((name) => [name, `${name}_m`] as const),
  );
});

test('what is applied and not shown to snapshots yet is waited for', async () => {
  const pair = await makePair({ source: 15, target: 18 });
  const { source } = pair;
  await source.query(`create table a (id int primary key, v text); insert into a values (1, 'old')`);
  const { service, id } = await follow(pair);
  await source.query('alter system set synchronous_commit = local');
  await source.query(`alter system set synchronous_standby_names = 'nobody'`);
  await source.query('select pg_reload_conf()');
  await waitFor(
    async () =>
      (await source.query(`show synchronous_standby_names`)).rows[0]?.['synchronous_standby_names'] ===
      'nobody',
  );
  const hanging = await source.connect();
  const { rows: pids } = await hanging.query<{ pid: number }>('select pg_backend_pid() as pid');
  const pid = pids[0]?.pid ?? 0;
  await hanging.query(`set synchronous_commit = on; begin; update a set v = 'new'`);
  const committed = hanging.query('commit');
  // the stream has it, and nobody who reads the source has
  await waitFor(async () => (await pair.target.query(`select from a_m where v = 'new'`)).rowCount === 1);
  expect((await source.query(`select from a where v = 'old'`)).rowCount).toBe(1);
  await service.recopyTable(id, 'a');
  await waitFor(async () =>
    (await service.getTask(id)).detail.waitingFor?.includes(`the copy waits for pid ${pid} `),
  );
  await source.query('select pg_cancel_backend($1)', [pid]); // the commit is local then
  await committed;
  await copied(service, id);
  await source.query('alter system reset synchronous_standby_names');
  await source.query('select pg_reload_conf()');
  await complete(service, id);
  await expectEqualTables(pair.source, pair.target, [['a', 'a_m']]);
});

test('a pause in the middle keeps the request; cancelled in the middle, nothing is left', async () => {
  const pair = await makePair();
  await pair.source.query(`create table a (id int primary key); create table big (id int primary key, v text);
    ${rows('big', 1, 2_000)}`);
  const { service, id } = await follow(pair, {
    tables: ['a', 'big'],
    options: { copyJobs: 1, partBytes: 500_000 },
  });
  await pair.target.query(`update big_m set v = 'damaged'`);
  await service.changeOptions(id, { maxBytesPerSecond: SLOW });
  await service.recopyTable(id, 'big');
  await passes(pair, service, id, 1);
  await pair.source.query(`update big set v = 'held' where id = 1`);
  await service.pauseTask(id);
  const paused = await reachesPaused(service, id);
  expect(paused.detail.copying).toMatchObject({ tables: ['public.big'] });
  await pair.source.query(`update big set v = 'later' where id = 2; insert into a values (2)`);
  await service.changeOptions(id, { maxBytesPerSecond: null });
  await service.resumeTask(id);
  await copied(service, id);
  await waitFor(
    async () => (await pair.target.query(`select from big_m where v in ('held', 'later')`)).rowCount === 2,
  );
  await expectEqualTables(pair.source, pair.target, [
    ['a', 'a_m'],
    ['big', 'big_m'],
  ]);
  await service.changeOptions(id, { maxBytesPerSecond: SLOW });
  await service.recopyTable(id, 'big');
  await passes(pair, service, id, 3);
  await service.cancelTask(id, { dropTarget: true });
  await reaches(service, id, 'cancelled');
  expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
});

async function reachesPaused(service: Service, id: string) {
  return waitFor(async () => {
    const task = await service.getTask(id);
    return task.state === 'paused' && task.connections === 0 ? task : null;
  });
}

test.each(['pause', 'apply-additive'] as const)(
  'DDL on a table that is being copied pauses; then it is copied from its beginning (on_ddl: %s)',
  async (onDdl) => {
    const pair = await makePair();
    await pair.source.query(`create table a (id int primary key); create table big (id int primary key, v text);
      ${rows('big', 1, 1_000)}`);
    const { service, id } = await follow(pair, { options: { onDdl, copyJobs: 1, partBytes: 250_000 } });
    await service.changeOptions(id, { maxBytesPerSecond: SLOW });
    await service.addTables(id, { add: ['big'] });
    await waitFor(
      async () =>
        (await pair.target.query('select from dts.part where relation = $1', ['public.big'])).rowCount,
    );
    // the copy's generation gives way
    await pair.source.query(`alter table big add column w int; update big set w = id where id % 3 = 0`);
    await service.changeOptions(id, { maxBytesPerSecond: null });
    const { error } = await reachesPaused(service, id);
    expect(error).toMatchObject({ code: 'source_ddl', hint: expect.stringContaining('resume') as string });
    if (onDdl === 'pause') {
      await pair.source.query(`alter table big drop column w; update big set v = 'behind' where id < 10`);
    }
    await service.resumeTask(id);
    await copied(service, id);
    await pair.source.query(`update big set v = 'followed' where id < 5`);
    await complete(service, id);
    await expectEqualTables(pair.source, pair.target, [
      ['a', 'a_m'],
      ['big', 'big_m'],
    ]);
  },
);
