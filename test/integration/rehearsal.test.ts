// What the target would refuse after its opening is found while there is still a way back: the cutover stops before the
// point of no return, the source takes writes again, the error names the statement and what to do, and after the repair
// the same task is completed.
import { describe, expect, test } from 'vitest';
import type { Service } from '../../src/index.ts';
import type { TaskView } from '../../src/model/task.ts';
import { expectEqualTables } from '../support/compare.ts';
import { makePair, type DatabasePair } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';

async function syncing(
  pair: DatabasePair,
  options: Record<string, unknown> = {},
): Promise<{ service: Service; id: string }> {
  const service = startLibrary();
  const { task } = await service.createTask({
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tables: ['*'],
    tableSuffix: '_m',
    options: { keepFence: false, ...options },
  });
  await service.startTask(task.id);
  await reaches(service, task.id, 'syncingWal');
  return { service, id: task.id };
}

/** Asks for the cutover and waits until it has come to an end, one way or the other. */
async function cutOver(service: Service, id: string): Promise<TaskView> {
  const seen = new AbortController();
  const events = service.events({ id, sinceSeq: await lastSeq(service, id), signal: seen.signal });
  await service.cutover(id);
  let begun = false;
  for await (const { kind, state } of events) {
    if (kind !== 'state') continue;
    begun ||= state === 'stoppingWrites';
    if (begun && ['syncingWal', 'paused', 'completed', 'failed'].includes(state)) break;
  }
  return service.getTask(id);
}

/** Of the task's journal: its figures come after every row of it. */
async function lastSeq(service: Service, id: string): Promise<number> {
  let seq = 0;
  for await (const event of service.events({ id, signal: new AbortController().signal })) {
    if (event.kind === 'progress') break;
    seq = event.seq;
  }
  return seq;
}

/** The target got nothing of what was rehearsed. */
async function expectNothingRehearsed(pair: DatabasePair): Promise<void> {
  const { rows } = await pair.target.query(
    `select conname from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace
     union all select tgname from pg_trigger where not tgisinternal`,
  );
  expect(rows).toEqual([]);
}

async function expectWritable(pair: DatabasePair, task: TaskView, sql: string): Promise<void> {
  expect(task).toMatchObject({ fenced: false, certificate: null, endedAt: null });
  expect(task.writeStopMs).toBeGreaterThanOrEqual(0);
  await pair.source.query(sql);
}

const users = `
  create table users (id int primary key, email text constraint users_email unique);
  create table orders (id int primary key, email text references users (email));
  insert into users select i, 'u' || i from generate_series(1, 50) i;
  insert into orders select i, 'u' || i from generate_series(1, 50) i;`;

describe.each([13, 16] as const)('source %i', (major) => {
  test('a foreign key that the target refuses stops the cutover; after the repair it succeeds', async () => {
    const pair = await makePair({ source: major });
    await pair.source.query(users);
    const { service, id } = await syncing(pair);
    const unique = await pair.target.query<{ name: string }>(
      `select conname as name from pg_constraint where contype = 'u' and conrelid = 'users_m'::regclass`,
    );
    await pair.target.query(`alter table users_m drop constraint "${unique.rows[0]?.name}"`);

    const stopped = await cutOver(service, id);
    expect(stopped.state).toBe('paused');
    expect(stopped.error).toMatchObject({ code: 'schema_failed', details: { sqlstate: '42830' } });
    expect(stopped.error?.message).toMatch(/FK CONSTRAINT.*orders/);
    expect(stopped.error?.hint).toContain('resume');
    expect(stopped.error?.hint).toContain('cutover');
    expect(stopped.error?.details?.['statement']).toContain('FOREIGN KEY');
    await expectWritable(pair, stopped, `insert into users values (51, 'u51')`);
    await expectNothingRehearsed(pair);

    await pair.target.query(`alter table users_m add constraint repaired unique (email)`);
    await service.resumeTask(id);
    await reaches(service, id, 'syncingWal');
    await pair.source.query(`insert into orders values (51, 'u51')`);
    const done = await cutOver(service, id);
    expect(done).toMatchObject({ state: 'completed', error: null, cleanupPending: false });
    await expectEqualTables(pair.source, pair.target, [
      ['users', 'users_m'],
      ['orders', 'orders_m'],
    ]);
    const { rows } = await pair.target.query(
      `select convalidated from pg_constraint where contype = 'f' and conrelid = 'orders_m'::regclass`,
    );
    expect(rows).toEqual([{ convalidated: true }]);
  });

  test('a final statement that fails stops the cutover; after the repair it succeeds', async () => {
    const pair = await makePair({ source: major });
    await pair.source.query(`
      create function stamp() returns trigger language plpgsql as 'begin return new; end';
      ${users}
      create trigger stamped before insert on users for each row execute function stamp()`);
    const { service, id } = await syncing(pair);
    await pair.target.query('alter function stamp rename to elsewhere');
    const stopped = await cutOver(service, id);
    expect(stopped).toMatchObject({ state: 'paused', error: { code: 'schema_failed' } });
    expect(stopped.error?.message).toMatch(/TRIGGER.*stamped/);
    expect(stopped.error?.details?.['statement']).toMatch(/CREATE TRIGGER/i);
    await expectWritable(pair, stopped, `insert into users values (51, 'u51')`);
    await expectNothingRehearsed(pair);
    await pair.target.query('alter function elsewhere rename to stamp');
    await service.resumeTask(id);
    await reaches(service, id, 'syncingWal');
    expect(await cutOver(service, id)).toMatchObject({ state: 'completed', error: null });
  });
});

/** Rows that the source holds past its own check, as session_replication_role = replica allows. */
const orphans = `
  create table users (id int primary key);
  create table orders (id int primary key, user_id int references users) partition by list (id);
  create table orders_1 partition of orders default;
  insert into users values (1);
  insert into orders values (1, 1);
  set session_replication_role = replica;
  insert into orders values (2, 404)`;

test('orphans under a foreign key that cannot be NOT VALID stop the cutover; they are repaired on the source', async () => {
  // Up to 17 a foreign key of a partitioned table is checked at once.
  const pair = await makePair({ source: 13, target: 16 });
  await (await pair.source.connect()).query(orphans);
  const { service, id } = await syncing(pair);
  const stopped = await cutOver(service, id);
  expect(stopped.state).toBe('paused');
  expect(stopped.error).toMatchObject({ code: 'schema_failed', details: { sqlstate: '23503' } });
  expect(stopped.error?.message).toMatch(/FK CONSTRAINT.*orders/);
  // removed on the target only, they would be a difference
  expect(stopped.error?.hint).toContain('on the source');
  expect(JSON.stringify(stopped.error?.details)).toContain('404');
  await expectWritable(pair, stopped, 'insert into users values (404)');
  await expectNothingRehearsed(pair);
  await service.resumeTask(id);
  await reaches(service, id, 'syncingWal');
  expect(await cutOver(service, id)).toMatchObject({ state: 'completed', error: null });
});

test('orphans under a foreign key that can be NOT VALID do not stop it; the certificate names the key', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  await (await pair.source.connect()).query(orphans);
  const { service, id } = await syncing(pair);
  const done = await cutOver(service, id);
  expect(done).toMatchObject({ state: 'completed', error: null });
  expect(done.certificate?.unvalidatedConstraints).toEqual([expect.stringMatching(/orders/)]);
});

test('rows planted in the target are a difference: the cutover stops, and succeeds once they are gone', async () => {
  const pair = await makePair();
  await pair.source.query(users);
  // what the online validation has read before they come is told of the opening only
  const { service, id } = await syncing(pair, { validation: 'cutover' });
  await pair.target.query(`insert into orders_m values (404, 'nobody')`);
  const stopped = await cutOver(service, id);
  expect(stopped).toMatchObject({ state: 'syncingWal', error: { code: 'validation_failed' } });
  expect(stopped.error?.message).toContain('public.orders');
  await expectWritable(pair, stopped, `insert into users values (51, 'u51')`);
  await expectNothingRehearsed(pair);
  await pair.target.query('delete from orders_m where id = 404');
  expect(await cutOver(service, id)).toMatchObject({ state: 'completed', error: null });
});

test('somebody who holds a lock on the target stops the cutover for a while, and is named', async () => {
  const pair = await makePair();
  await pair.source.query(users);
  const { service, id } = await syncing(pair);
  const user = await pair.target.connect();
  const { rows } = await user.query<{ pid: number }>('select pg_backend_pid() as pid');
  await user.query('begin; lock table users_m in row exclusive mode');
  const stopped = await cutOver(service, id);
  expect(stopped).toMatchObject({ state: 'syncingWal', error: { code: 'lock_timeout' } });
  expect(stopped.error?.message).toMatch(/FK CONSTRAINT.*orders/);
  expect(stopped.error?.message).toContain(`pid ${rows[0]?.pid}`);
  expect(stopped.error?.hint).toContain(`pg_terminate_backend(${rows[0]?.pid})`);
  expect(stopped.error?.hint).toContain('on the target');
  await expectWritable(pair, stopped, `insert into users values (51, 'u51')`);
  await expectNothingRehearsed(pair);
  await user.query('commit');
  expect(await cutOver(service, id)).toMatchObject({ state: 'completed', error: null });
});
