// SIGKILL in the states beside the straight way: waiting, giving up, un-fencing. What a person asked for still happens
// after the restart, and nothing is left on the servers.
import { expect, test } from 'vitest';
import { expectEqualTables } from '../support/compare.ts';
import { leaksOf, makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { KilledService } from '../support/kills.ts';
import { cutOver, migrationBody, startMigration, type ServiceProcess } from '../support/service-process.ts';

const ROWS = 500;

async function makeTable(): Promise<DatabasePair> {
  const pair = await makePair();
  await pair.source.query(`create table t (id int primary key, v text);
    insert into t select i, md5(i::text) from generate_series(1, ${ROWS}) i`);
  return pair;
}

const body = (pair: DatabasePair, options: Record<string, unknown> = {}): Record<string, unknown> =>
  migrationBody(pair, {
    id: pair.source.dbname,
    tables: ['t'],
    table_suffix: '_m',
    options: { keep_fence: false, ...options },
  });

async function expectMigrated(service: ServiceProcess, id: string, pair: DatabasePair): Promise<void> {
  await cutOver(service, id);
  await expectEqualTables(pair.source, pair.target, [['t', 't_m']]);
}

test('killed in paused, the task stays paused, holds no connection, and goes on when resumed', async () => {
  const pair = await makeTable();
  const killed = new KilledService();
  const doomed = await killed.start();
  const id = await startMigration(doomed, body(pair));
  await doomed.reaches(id, 'syncingWal');
  await doomed.call('POST', `/migrations/${id}/pause`);
  await waitFor(async () => (await doomed.status(id)).connections === 0);
  await doomed.kill();
  await pair.source.query(`update t set v = 'changed while nobody looked' where id <= 10`);
  const service = await killed.start();
  expect(await service.status(id)).toMatchObject({ state: 'paused', connections: 0 });
  expect((await service.call('POST', `/migrations/${id}/resume`)).status).toBe(200);
  await expectMigrated(service, id, pair);
});

test('killed in retrying, the task tries again at its time', async () => {
  const pair = await makeTable();
  const killed = new KilledService();
  const doomed = await killed.start();
  const holder = await pair.source.connect();
  await holder.query('create table held (); drop table held; begin; select pg_current_xact_id()');
  const id = await startMigration(doomed, body(pair, { slot_timeout_ms: 1_000 }));
  await waitFor(async () => (await doomed.status(id)).state === 'retrying', 30_000, 'retrying');
  await doomed.kill();
  await holder.query('rollback');
  await expectMigrated(await killed.start(), id, pair);
});

test('killed in queued, the task waits for its place again', async () => {
  const pair = await makeTable();
  const killed = new KilledService({ DTS_MAX_RUNNING_TASKS: '1' });
  const doomed = await killed.start();
  const first = await startMigration(doomed, body(pair));
  const second = await startMigration(doomed, { ...body(pair), id: `${first}_2`, table_suffix: '_n' });
  expect((await doomed.status(second)).state).toBe('queued');
  const service = await killed.start();
  expect((await service.status(second)).state).toBe('queued');
  await expectMigrated(service, first, pair);
  await cutOver(service, second);
  await expectEqualTables(pair.source, pair.target, [['t', 't_n']]);
});

test.each(['cancel', 'abandon'])(
  'killed while %s cleans up, nothing is left on either server',
  async (command) => {
    const pair = await makeTable();
    const killed = new KilledService();
    const id = pair.source.dbname;
    await killed.killedAt('cancel.mid-cleanup', async (armed) => {
      await startMigration(armed, body(pair));
      await armed.reaches(id, 'syncingWal');
      await armed.call('POST', `/migrations/${id}/${command}`, { drop_target: true });
    });
    const service = await killed.start();
    const ended = command === 'cancel' ? 'cancelled' : 'failed';
    await waitFor(async () => (await service.status(id)).state === ended, 30_000, ended);
    expect(await service.status(id)).toMatchObject({ cleanup_pending: false, connections: 0 });
    expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
    expect((await pair.target.query(`select to_regclass('t_m') as t`)).rows).toEqual([{ t: null }]);
  },
);

test('killed with the fence armed, the source takes writes again after the restart', async () => {
  const pair = await makeTable();
  const killed = new KilledService();
  const id = pair.source.dbname;
  await killed.killedAt('fence.armed', async (armed) => {
    await startMigration(armed, body(pair));
    await armed.reaches(id, 'syncingWal');
    await armed.call('POST', `/migrations/${id}/cutover`);
  });
  await expect(pair.source.query('delete from t where id = 1')).rejects.toMatchObject({ code: '25006' });
  const service = await killed.start();
  await service.reaches(id, 'syncingWal');
  expect(await service.status(id)).toMatchObject({ fenced: false, error: { code: 'cutover_interrupted' } });
  await pair.source.query('delete from t where id = 1');
  await expectMigrated(service, id, pair);
});

test.each([
  ['syncingWal', 'cutover_timeout'],
  ['paused', 'cutover_interrupted'],
] as const)(
  'killed twice while the fence is lifted, the source takes writes again and the task is %s',
  async (state, code) => {
    const pair = await makeTable();
    const killed = new KilledService();
    const id = pair.source.dbname;
    const write = async (): Promise<unknown> =>
      pair.source.query(`update t set v = 'after the kill' where id = 2`);
    const writer = await pair.source.connect();
    await killed.killedAt('fence.lifting', async (armed) => {
      const hurried = state === 'syncingWal' ? { cutover_timeout_ms: 1_000 } : {};
      await startMigration(armed, body(pair, hurried));
      await waitFor(async () => {
        const { body: status } = await armed.call('GET', `/migrations/${id}/status`);
        return status['state'] === 'syncingWal' && (status['cutover_waits_for'] as unknown[]).length === 0;
      });
      await writer.query('begin; delete from t where id = 1');
      await armed.call('POST', `/migrations/${id}/cutover`);
      if (state !== 'paused') return;
      await armed.reaches(id, 'stoppingWrites');
      await armed.call('POST', `/migrations/${id}/pause`);
    });
    await writer.query('commit');
    await expect(write()).rejects.toMatchObject({ code: '25006' });
    await killed.killedAt('fence.lifted', async () => undefined);
    await write();
    const service = await killed.start();
    await waitFor(async () => (await service.status(id)).state === state, 30_000, state);
    expect(await service.status(id)).toMatchObject({ fenced: false, error: { code } });
    await write();
    await service.call('PATCH', `/migrations/${id}/options`, { cutover_timeout_ms: 30_000 });
    if (state === 'paused') await service.call('POST', `/migrations/${id}/resume`);
    await expectMigrated(service, id, pair);
  },
);

test('a whole database, killed at each place of its own, arrives identical', async () => {
  const pair = await makePair();
  await pair.source.query(`
    create table users (id int primary key, name text);
    create unlogged table sessions (token text, user_id int);
    create unlogged table caches (k int primary key);
    create materialized view counts as select count(*) as n from users;
    create materialized view twice as select n * 2 as n from counts;
    insert into users select n, 'u' || n from generate_series(1, ${ROWS}) n;
    insert into sessions select 't' || n, n from generate_series(1, ${ROWS}) n;
    insert into caches select generate_series(1, ${ROWS});
    refresh materialized view counts; refresh materialized view twice;
    select lo_create(70001), lo_from_bytea(70002, '\\x00'), lo_from_bytea(70004, '\\x04');
    select lo_from_bytea(70003, string_agg(sha256(i::text::bytea), '')) from generate_series(1, 98304) i;
    select lo_from_bytea((80000 + i)::oid, sha256(i::text::bytea)) from generate_series(1, 100) i`);
  const killed = new KilledService();
  const id = pair.source.dbname;
  const asksForCutover = async (armed: ServiceProcess): Promise<void> => {
    await armed.reaches(id, 'syncingWal');
    await armed.call('POST', `/migrations/${id}/cutover`);
  };
  await killed.killedAt('copy.mid-unlogged', async (armed) => {
    await startMigration(armed, migrationBody(pair, { id, tables: ['*'], options: { keep_fence: false } }));
    await armed.reaches(id, 'syncingWal');
    // the views are to be filled with what came later
    await pair.source.query(`insert into users values (${ROWS + 1}, 'late'); refresh materialized view counts;
      refresh materialized view twice`);
    await asksForCutover(armed);
  });
  // the kill ends the cutover, and writes are allowed again: what was copied is old
  await (await killed.start()).reaches(id, 'syncingWal');
  await pair.source.query(`delete from sessions where user_id > 10; insert into caches values (0);
    select lo_unlink(70002), lo_put(80001, 0, '\\x07'), lo_create(90000)`);
  await killed.killedAt('copy.mid-large-objects', asksForCutover);
  await (await killed.start()).reaches(id, 'syncingWal');
  await pair.source.query(`delete from sessions where user_id > 5; insert into caches values (-1);
    select lo_unlink(70004), lo_put(80002, 0, '\\x07'), lo_create(90001)`);
  await killed.killedAt('finalize.mid-refresh', asksForCutover); // past the point of no return
  const service = await killed.start();
  await service.reaches(id, 'completed');
  await expectEqualTables(
    pair.source,
    pair.target,
    ['users', 'sessions', 'caches', 'counts', 'twice'].map((name) => [name, name] as const),
  );
  const objects = 'select oid, md5(lo_get(oid)) as md5 from pg_largeobject_metadata order by oid';
  const expected = (await pair.source.query(objects)).rows;
  expect((await pair.target.query(objects)).rows).toEqual(expected);
  const certificate = await service.call('GET', `/migrations/${id}/certificate`);
  expect(certificate.body).toMatchObject({ equal: true, large_objects: { count: expected.length } });
});
