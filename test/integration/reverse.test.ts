// The way back: after a cutover with options.reverse the old source follows the target, and a rollback loses nothing.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { Service } from '../../src/index.ts';
import type { TaskView } from '../../src/model/task.ts';
import { expectEqualTables, rowsOf } from '../support/compare.ts';
import { leaksOf, makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';
import { verifyCertificateOf } from '../support/verify.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

const FENCED = '25006';

async function migrate(
  service: Service,
  pair: DatabasePair,
  id: string,
  suffix: string,
  options: Record<string, unknown> = {},
): Promise<TaskView> {
  await service.createTask({
    id,
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tableSuffix: suffix,
    options: { reverse: true, ...options },
  });
  await service.startTask(id);
  await reaches(service, id, 'syncingWal');
  await service.cutover(id);
  return reaches(service, id, 'completed');
}

/** What the task's source has committed by now is on its target. */
async function caughtUp(service: Service, id: string, source: TestDatabase): Promise<void> {
  const { rows } = await source.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
  const wanted = rows[0]?.lsn;
  await waitFor(
    async () => {
      const applied = (await service.getTask(id)).detail.sync?.appliedLsn;
      if (applied === undefined) return false;
      return (
        await source.query<{ past: boolean }>('select $1::pg_lsn >= $2::pg_lsn as past', [applied, wanted])
      ).rows[0]?.past;
    },
    30_000,
    `${id} to apply ${wanted}`,
  );
}

async function sqlstateOf(work: Promise<unknown>): Promise<string | undefined> {
  return work.then(
    () => 'accepted',
    (error: unknown) => (error as { code?: string }).code,
  );
}

const back = (suffix: string): [string, string][] =>
  shopTables(suffix).map(([source, target]) => [target, source]);

const identitiesOf = async (database: TestDatabase): Promise<string[]> =>
  (
    await database.query<{ identity: string }>(
      `select relname || ' ' || relreplident::text as identity from pg_class
        where relkind = 'r' and relnamespace = 'public'::regnamespace order by relname`,
    )
  ).rows.map(({ identity }) => identity);

describe.each([
  [16, 18],
  [13, 16],
] as const)('from %i to %i', (sourceMajor, targetMajor) => {
  test('writes to the open target arrive on the old source, which refuses everybody else, until it is finished', async () => {
    const pair = await makePair({ source: sourceMajor, target: targetMajor });
    await loadShop(pair.source, 300);
    const service = startLibrary();
    const writers = await startWriters(pair.source, 2);
    const forward = await migrate(service, pair, 'shop', '_migrated');
    await writers.stop();
    expect(forward).toMatchObject({
      state: 'completed',
      reverseTask: 'shop_reverse',
      fenced: true,
      error: null,
    });
    await reaches(service, 'shop_reverse', 'syncingWal');
    const late = await startWriters(pair.target, 3, '_migrated');
    await waitFor(() => late.writes() > 300);
    await pair.target.query('truncate public.audit_migrated');
    await late.stop();
    await caughtUp(service, 'shop_reverse', pair.target);
    await expectEqualTables(pair.target, pair.source, back('_migrated'));
    expect(
      await sqlstateOf(pair.source.query(`insert into public.audit (at, what) values (now(), 'stray')`)),
    ).toBe(FENCED);
    const { tasks } = await service.listTasks();
    expect(tasks.map(({ id }) => id).toSorted()).toEqual(['shop', 'shop_reverse']);
    await expect(service.unfenceTask('shop')).rejects.toMatchObject({ code: 'task_live' });
    await expect(service.deleteTask('shop', { force: true })).rejects.toMatchObject({ code: 'task_live' });

    await service.finish('shop');
    const ended = await reaches(service, 'shop_reverse', 'completed');
    expect(ended).toMatchObject({ error: null, cleanupPending: false, certificate: null });
    expect((await service.finish('shop')).changed).toBe(false);
    expect(await leaksOf(pair.target)).toEqual([]);
    expect(
      (await rowsOf(pair.source, 'pg_replication_slots')).filter((row) => row.includes(pair.source.dbname)),
    ).toEqual([]);
    await service.unfenceTask('shop');
    expect(
      await sqlstateOf(pair.source.query(`insert into public.audit (at, what) values (now(), 'mine')`)),
    ).toBe('accepted');
  });

  test('a rollback cuts back without losing a write, and forward again, as often as asked', async () => {
    const pair = await makePair({ source: sourceMajor, target: targetMajor });
    await loadShop(pair.source, 300);
    const service = startLibrary();
    await migrate(service, pair, 'shop', '_migrated');
    await reaches(service, 'shop_reverse', 'syncingWal');
    const onTarget = await startWriters(pair.target, 3, '_migrated');
    await waitFor(() => onTarget.writes() > 200);

    expect((await service.rollback('shop')).task.id).toBe('shop_reverse');
    const reversed = await reaches(service, 'shop_reverse', 'completed');
    await onTarget.stop();
    expect(onTarget.refused()).toBeGreaterThan(0);
    expect(reversed).toMatchObject({ error: null, fenced: true, reverseTask: 'shop_forward_2' });
    expect(reversed.certificate).toMatchObject({ taskId: 'shop_reverse', equal: true });
    expect(reversed.certificate?.sequences.map(({ source }) => source)).toContain(
      'public.orders_id_seq_migrated',
    );
    await expectEqualTables(pair.target, pair.source, back('_migrated'));
    expect((await service.getTask('shop')).fenced).toBe(false);
    expect(await sqlstateOf(pair.target.query('delete from public.audit_migrated'))).toBe(FENCED);
    expect((await service.rollback('shop')).changed).toBe(false); // repeated: not forward again

    await reaches(service, 'shop_forward_2', 'syncingWal');
    const onSource = await startWriters(pair.source, 3);
    await waitFor(() => onSource.writes() > 200);
    await service.rollback('shop_reverse');
    await reaches(service, 'shop_forward_2', 'completed');
    await onSource.stop();
    await expectEqualTables(pair.source, pair.target, shopTables('_migrated'));
    expect(await sqlstateOf(pair.source.query('delete from public.audit'))).toBe(FENCED);

    await reaches(service, 'shop_reverse_2', 'syncingWal');
    await pair.target.query(`update public.users_migrated set bio = 'third leg'`);
    await caughtUp(service, 'shop_reverse_2', pair.target);
    await expectEqualTables(pair.target, pair.source, back('_migrated'));
    await service.finish('shop');
    await reaches(service, 'shop_reverse_2', 'completed');
    await service.unfenceTask('shop_forward_2');
    expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
    for (const id of ['shop_reverse_2', 'shop_forward_2', 'shop_reverse', 'shop'])
      await service.deleteTask(id);
  });
});

test('a clone within one database goes back and forth, too', async () => {
  const { source } = await makePair();
  const pair = { source, target: source };
  await loadShop(source, 100);
  const service = startLibrary();
  await migrate(service, pair, 'clone', '_migrated');
  await reaches(service, 'clone_reverse', 'syncingWal');
  const writers = await startWriters(source, 2, '_migrated');
  await waitFor(() => writers.writes() > 100);
  await service.rollback('clone');
  await reaches(service, 'clone_reverse', 'completed');
  await writers.stop();
  await reaches(service, 'clone_forward_2', 'syncingWal');
  await source.query(`update public.users set bio = 'back again' where id < 50`);
  await caughtUp(service, 'clone_forward_2', source);
  await expectEqualTables(source, source, shopTables('_migrated'));
  expect(await sqlstateOf(source.query('delete from public.audit_migrated'))).toBe(FENCED);
  await service.finish('clone');
  await reaches(service, 'clone_forward_2', 'completed');
  await service.unfenceTask('clone_reverse');
  expect(await leaksOf(source)).toEqual([]);
});

test('a database that is read-only for everybody else is written by the stream back, and writable after the rollback', async () => {
  const pair = await makePair();
  await loadShop(pair.source, 50);
  const service = startLibrary();
  await migrate(service, pair, 'shop', '', { fence: 'database-read-only', terminateBlockers: true });
  await reaches(service, 'shop_reverse', 'syncingWal');
  const write = `update public.users set bio = 'x' where id = 1`;
  const attempt = async (database: TestDatabase): Promise<string | undefined> => {
    const client = await database.connect(); // the setting is for new sessions
    return sqlstateOf(client.query(write));
  };
  expect(await attempt(pair.source)).toBe(FENCED);
  expect(await attempt(pair.target)).toBe('accepted');
  await caughtUp(service, 'shop_reverse', pair.target);
  await expectEqualTables(pair.target, pair.source, back(''));
  await service.rollback('shop');
  await reaches(service, 'shop_reverse', 'completed');
  expect(await attempt(pair.target)).toBe(FENCED);
  expect(await attempt(pair.source)).toBe('accepted');
  await service.finish('shop');
  await reaches(service, 'shop_forward_2', 'completed');
  await service.unfenceTask('shop_reverse');
  expect(await attempt(pair.target)).toBe('accepted');
});

test('the source takes writes at once, though a reader keeps its fence from being taken away', async () => {
  const pair = await makePair();
  await loadShop(pair.source, 20);
  const service = startLibrary();
  await migrate(service, pair, 'shop', '');
  await reaches(service, 'shop_reverse', 'syncingWal');
  const reader = await pair.source.connect();
  await reader.query('begin');
  await reader.query('select from public.users');
  await service.rollback('shop');
  await waitFor(async () =>
    (await service.getTask('shop_reverse')).detail.waitingFor?.includes('removing the fence'),
  );
  expect(await sqlstateOf(pair.source.query('update public.users set balance = 1'))).toBe('accepted');
  await reader.query('commit');
  await reaches(service, 'shop_reverse', 'completed');
  await service.finish('shop');
  await reaches(service, 'shop_forward_2', 'completed');
  await service.unfenceTask('shop_reverse');
});

describe('a migration that does not get so far', () => {
  test('leaves nothing when it is cancelled before its cutover', async () => {
    const pair = await makePair();
    await loadShop(pair.source, 20);
    const service = startLibrary();
    await service.createTask({
      id: 'shop',
      sourceDb: pair.source.connection,
      targetDb: pair.target.connection,
      options: { reverse: true },
    });
    await service.startTask('shop');
    await reaches(service, 'shop', 'syncingWal');
    await waitFor(async () => (await service.getTask('shop')).cutoverWaitsFor.length === 0);
    expect(await leaksOf(pair.target)).toContain(`${pair.target.dbname}: publication dts_shop_reverse`);
    await service.cancelTask('shop');
    await reaches(service, 'shop', 'cancelled');
    await waitFor(async () => (await leaksOf(pair.source)).length === 0);
    expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
    await expect(service.rollback('shop')).rejects.toMatchObject({ code: 'event_not_accepted' });
    await expect(service.finish('shop')).rejects.toMatchObject({ code: 'event_not_accepted' });
  });

  test('gives the slot on the target up with the write stop, and arms another at the next cutover', async () => {
    const pair = await makePair();
    await loadShop(pair.source, 20);
    const service = startLibrary();
    // a write transaction on the target: creating the slot waits for it
    const blocker = await pair.target.connect();
    await blocker.query('create table public.elsewhere (id int)');
    await blocker.query('begin');
    await blocker.query('insert into public.elsewhere values (1)');
    await service.createTask({
      id: 'shop',
      sourceDb: pair.source.connection,
      targetDb: pair.target.connection,
      options: { reverse: true, cutoverTimeoutMs: 3_000 },
    });
    await service.startTask('shop');
    await reaches(service, 'shop', 'syncingWal');
    await service.cutover('shop');
    const waiting = await waitFor(async () => {
      const { detail } = await service.getTask('shop');
      return detail.waitingFor?.includes('the replication slot waits for') ? detail.waitingFor : null;
    });
    expect(waiting).toContain('insert into public.elsewhere');
    const failed = await waitFor(async () => {
      const { error } = await service.getTask('shop');
      return error?.code === 'slot_creation_timeout' ? error : null;
    });
    expect(failed.hint).toContain('insert into public.elsewhere');
    expect(failed.hint).toContain('cutover_timeout_ms');
    await reaches(service, 'shop', 'syncingWal');
    await waitFor(async () => (await leaksOf(pair.target)).every((leak) => !leak.includes(': slot')));
    await pair.source.query(`update public.users set bio = 'between the cutovers'`);

    await blocker.query('rollback');
    await service.changeOptions('shop', { cutoverTimeoutMs: 30_000 });
    await service.cutover('shop');
    await reaches(service, 'shop', 'completed');
    await reaches(service, 'shop_reverse', 'syncingWal');
    await pair.target.query(`update public.users set bio = 'on the target' where id < 5`);
    await caughtUp(service, 'shop_reverse', pair.target);
    await expectEqualTables(pair.target, pair.source, back(''));
    await service.cancelTask('shop_reverse', { dropTarget: true });
    await reaches(service, 'shop_reverse', 'cancelled');
    expect((await rowsOf(pair.source, 'public.users')).length).toBe(20);
    await service.unfenceTask('shop');
    expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
  });
});

test('a cutover that turns back after the arming leaves no slot, and the next one begins with a new one', async () => {
  const pair = await makePair();
  await loadShop(pair.source, 20);
  let answer = 500;
  const hook = createServer((_request, response) => response.writeHead(answer).end());
  await new Promise<void>((resolve) => hook.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void hook.close());
  const { port } = hook.address() as AddressInfo;
  const service = startLibrary();
  await service.createTask({
    id: 'shop',
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    options: { reverse: true, hooks: { beforeOpen: { url: `http://127.0.0.1:${port}/` } } },
  });
  await service.startTask('shop');
  await reaches(service, 'shop', 'syncingWal');
  await service.cutover('shop');
  await waitFor(async () => (await service.getTask('shop')).error?.code === 'hook_failed');
  await reaches(service, 'shop', 'syncingWal');
  expect((await leaksOf(pair.target)).filter((leak) => leak.includes(': slot'))).toEqual([]);
  // of these the stream forward brings the target what a slot from before would bring back
  await pair.source.query(
    `insert into public.audit (at, what) select now(), 'between' from generate_series(1, 10)`,
  );
  await caughtUp(service, 'shop', pair.source);

  answer = 200;
  await service.cutover('shop');
  await reaches(service, 'shop', 'completed');
  await reaches(service, 'shop_reverse', 'syncingWal');
  await pair.target.query(`update public.audit set what = 'after' where what = 'between'`);
  await caughtUp(service, 'shop_reverse', pair.target);
  await expectEqualTables(pair.target, pair.source, back(''));
  await service.finish('shop');
  await reaches(service, 'shop_reverse', 'completed');
  await service.unfenceTask('shop');
});

/** What of ours a change of the database could be sent by. */
async function sendersOf(database: TestDatabase): Promise<string[]> {
  const { rows } = await database.query<{ name: string }>(
    `select 'slot ' || slot_name as name from pg_replication_slots where database = current_database()
     union all select 'publication ' || pubname from pg_publication order by 1`,
  );
  return rows.map(({ name }) => name);
}

test('what one direction applies is sent by nobody: each leg has one slot and one publication, and rows are written once', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key, n int); insert into t values (1, 0), (2, 0)');
  const armed: string[][] = [];
  const hook = createServer((_request, response) => {
    void (async () => {
      armed.push(await sendersOf(pair.source), await sendersOf(pair.target));
      response.writeHead(200).end();
    })();
  });
  await new Promise<void>((resolve) => hook.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void hook.close());
  const { port } = hook.address() as AddressInfo;
  const service = startLibrary();
  const hooks = { beforeOpen: { url: `http://127.0.0.1:${port}/` } };
  await migrate(service, pair, 'once', '', { hooks });
  // nobody writes while both are there
  expect(armed).toEqual([
    ['publication dts_once', 'slot dts_once'],
    ['publication dts_once_reverse', 'slot dts_once_reverse'],
  ]);

  const followed = async (id: string, next: string, from: TestDatabase, to: TestDatabase): Promise<void> => {
    await reaches(service, id, 'syncingWal');
    expect(await sendersOf(from)).toEqual([`publication dts_${id}`, `slot dts_${id}`]);
    const sends = async (): Promise<string[]> =>
      (await sendersOf(to)).filter((name) => name !== `publication dts_${next}`); // made in good time
    expect(await sends()).toEqual([]);
    for (let n = 0; n < 5; n++) await from.query('update t set n = n + 1');
    await from.query('insert into t select max(id) + 1, 0 from t');
    const written = `select xmin::text, ctid::text, id, n from t order by id`;
    const before = (await from.query(written)).rows;
    await caughtUp(service, id, from);
    // whatever had come back would have been sent by now
    await from.query('create table if not exists later (id int); insert into later values (1)');
    await caughtUp(service, id, from);
    expect((await from.query(written)).rows).toEqual(before);
    await expectEqualTables(from, to, [['t', 't']]);
    expect(await sends()).toEqual([]);
    const { detail } = await service.getTask(id);
    expect(detail.sync?.changesApplied).toBe(5 * (before.length - 1) + 1);
  };
  await followed('once_reverse', 'once_forward_2', pair.target, pair.source);
  await service.rollback('once');
  await reaches(service, 'once_reverse', 'completed');
  await followed('once_forward_2', 'once_reverse_2', pair.source, pair.target);
  await service.finish('once');
  await reaches(service, 'once_forward_2', 'completed');
  await service.unfenceTask('once_reverse');
  for (const side of [pair.source, pair.target]) expect(await sendersOf(side)).toEqual([]);
});

test('ids of reverse tasks are kept free', async () => {
  const pair = await makePair();
  const service = startLibrary();
  const request = { sourceDb: pair.source.connection, targetDb: pair.target.connection };
  await service.createTask({ id: 'shop', ...request, options: { reverse: true } });
  await expect(service.createTask({ id: 'shop_reverse', ...request })).rejects.toMatchObject({
    code: 'task_exists',
  });
  await service.createTask({ id: 'other_reverse', ...request });
  await expect(
    service.createTask({ id: 'other', ...request, options: { reverse: true } }),
  ).rejects.toMatchObject({
    code: 'task_exists',
  });
});

test('tables that stood before, also one without a key, are followed back and forth, and get their identities back', async () => {
  const pair = await makePair({ source: 13, target: 18 });
  const tables = `create table item (id int primary key, name text);
    create table log (at int, what text)`;
  await pair.source.query(`${tables}; insert into item select g, 'item ' || g from generate_series(1, 50) g;
    insert into log select g % 10, 'line' from generate_series(1, 50) g`);
  // rows are found by an index here, by the primary key there
  await pair.target.query(`${tables}; create unique index item_by_id on item (id);
    alter table item replica identity using index item_by_id`);
  const service = startLibrary();
  const options = { schema: 'existing', replicaIdentity: 'full' };
  const forward = await migrate(service, pair, 'stood', '', options);
  expect(forward.certificate).toMatchObject({ equal: true });
  const both: [string, string][] = [
    ['public.item', 'public.item'],
    ['public.log', 'public.log'],
  ];
  await reaches(service, 'stood_reverse', 'syncingWal');
  expect(await verifyCertificateOf(pair, forward.certificate)).toMatchObject({ code: 0 });
  await pair.target.query(`update item set name = 'after' where id % 2 = 0; delete from item where id % 7 = 0;
    insert into item values (100, 'new'); update log set what = 'after' where at = 3; delete from log where at = 4;
    insert into log values (3, 'after'), (11, 'new')`);
  await caughtUp(service, 'stood_reverse', pair.target);
  await expectEqualTables(pair.target, pair.source, both);

  await service.rollback('stood');
  const reversed = await reaches(service, 'stood_reverse', 'completed');
  expect(reversed.certificate).toMatchObject({ equal: true });
  expect(await identitiesOf(pair.target)).toEqual(['item i', 'log d']);
  await reaches(service, 'stood_forward_2', 'syncingWal');
  const turned = { source: pair.target, target: pair.source };
  expect(await verifyCertificateOf(turned, reversed.certificate)).toMatchObject({ code: 0 });
  await pair.source.query(`update log set what = 'forward' where at = 3; delete from item where id = 100`);
  await caughtUp(service, 'stood_forward_2', pair.source);
  await expectEqualTables(pair.source, pair.target, both);

  await service.finish('stood');
  await reaches(service, 'stood_forward_2', 'completed');
  expect(await identitiesOf(pair.source)).toEqual(['item d', 'log d']);
  expect(await identitiesOf(pair.target)).toEqual(['item i', 'log d']);
  await service.unfenceTask('stood_reverse');
  expect(await leaksOf(pair.source)).toEqual([]);
  expect(await leaksOf(pair.target)).toEqual([]);
});

test('a table without a key has an identity on the target before it is published there, which the schema verdict does not take for a difference', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  await pair.source.query(
    `create table log (at int, what text); insert into log select g, 'line' from generate_series(1, 20) g`,
  );
  const service = startLibrary();
  const forward = await migrate(service, pair, 'bare', '', { replicaIdentity: 'full' });
  expect(forward.certificate).toMatchObject({ equal: true, schema: { equal: true, differences: [] } });
  await reaches(service, 'bare_reverse', 'syncingWal');
  expect(await verifyCertificateOf(pair, forward.certificate)).toMatchObject({ code: 0 });
  await pair.target.query(`update log set what = 'after' where at < 5; delete from log where at = 7`);
  await caughtUp(service, 'bare_reverse', pair.target);
  await expectEqualTables(pair.target, pair.source, [['public.log', 'public.log']]);
  await service.finish('bare');
  await reaches(service, 'bare_reverse', 'completed');
  expect(await identitiesOf(pair.target)).toEqual(['log d']);
  await service.unfenceTask('bare');
});

test('a target whose table has lost its identity does not open, and opens when it has one', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  await pair.source.query('create table item (id int primary key); insert into item values (1)');
  await pair.target.query(`create table item (id int primary key); create unique index other on item (id);
    alter table item replica identity using index other`);
  const service = startLibrary();
  await service.createTask({
    id: 'lost',
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    options: { reverse: true, schema: 'existing' },
  });
  await service.startTask('lost');
  await reaches(service, 'lost', 'syncingWal');
  await pair.target.query('drop index other');
  await service.cutover('lost').catch(() => undefined);
  const refused = await waitFor(async () => (await service.getTask('lost')).error, 30_000, 'an error');
  expect(refused).toMatchObject({ code: 'source_ddl' });
  expect(refused?.message).toContain('public.item');
  // noticed before the write stop, or under it: then the error is told while the fence is being lifted
  const insert = 'insert into item values (2)';
  await waitFor(async () => (await sqlstateOf(pair.source.query(insert))) === 'accepted', 10_000, 'writes');

  await pair.target.query('alter table item replica identity default');
  await waitFor(async () => {
    const { state } = await service.getTask('lost');
    if (state === 'paused') await service.resumeTask('lost').catch(() => undefined);
    return state === 'syncingWal';
  });
  await service.cutover('lost');
  await reaches(service, 'lost', 'completed');
  await expectEqualTables(pair.source, pair.target, [['public.item', 'public.item']]);
  await reaches(service, 'lost_reverse', 'syncingWal');
  await service.finish('lost');
  await reaches(service, 'lost_reverse', 'completed');
  await service.unfenceTask('lost');
});
