// A cancelled or failed task leaves nothing behind, gives writes back first, and drops only what it made.
import { describe, expect, test } from 'vitest';
import { cutoverNotes, type WriteStop } from '../../src/model/cutover-notes.ts';
import { cleanUp } from '../../src/cutover/clean-up.ts';
import { armFence, installFence } from '../../src/cutover/fence.ts';
import { fenceState } from '../../src/cutover/fence-function.ts';
import { ensureBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { ensurePublication } from '../../src/postgres/publication.ts';
import { ensureSlot } from '../../src/postgres/slot.ts';
import { runStatement } from '../../src/postgres/statement-journal.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { leaksOf, makePair, type DatabasePair } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const sourceTables = `
  create table users (id bigserial primary key, boss bigint references users);
  create table orders (id int primary key, user_id bigint references users);
  create table log (id int, day int) partition by list (day);
  create table log_1 partition of log for values in (1);`;

/** The target's tables, made by the task through its journal as creatingTables does. */
async function makeTarget(scope: TestScope): Promise<void> {
  const made: readonly (readonly [string, string | null])[] = [
    [
      'create table public.users (id bigserial primary key, boss bigint references public.users, top int)',
      'users',
    ],
    ['create table public.orders (id int primary key, user_id bigint references public.users)', 'orders'],
    ['alter table public.users add foreign key (top) references public.orders', null],
    ['create table public.log (id int, day int) partition by list (day)', 'log'],
    ['create table public.log_1 partition of public.log for values in (1)', 'log_1'],
  ];
  const session = await scope.target.session({ purpose: 'test', signal: scope.signal });
  for (const [n, [sql, name]] of made.entries())
    await runStatement(scope, session, {
      n,
      phase: 'pre-data',
      sql,
      object: name ?? 'constraint',
      table: null,
      creates: name === null ? null : { schema: 'public', name },
    });
  await session.close();
}

/** A task in the middle of its cutover: everything of ours is there. */
async function inCutover(pair: DatabasePair): Promise<TestScope> {
  await pair.source.query(sourceTables);
  const scope = makeScope(pair);
  await planFromCatalog(scope);
  await ensureBookkeeping(scope);
  await makeTarget(scope);
  await ensurePublication(scope);
  await ensureSlot(scope);
  await installFence(scope);
  await armFence(scope);
  return scope;
}

const tablesOf = async (pair: DatabasePair): Promise<string[]> =>
  (
    await pair.target.query<{ name: string }>(
      `select relname as name from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'S', 'v')
       order by 1`,
    )
  ).rows.map((row) => row.name);

const withoutConnections = (leaks: string[]): string[] =>
  leaks.filter((leak) => !leak.includes(': connection '));

describe.each([13, 16] as const)('source %i', (major) => {
  test('a cancelled cutover gives the writes back and leaves nothing but the tables', async () => {
    const pair = await makePair({ source: major });
    const scope = await inCutover(pair);
    expect(await cleanUp(scope, { dropTarget: false })).toEqual({ cleanupPending: false, error: null });
    expect(withoutConnections([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))])).toEqual(
      [],
    );
    await pair.source.query('insert into users default values');
    expect(await tablesOf(pair)).toEqual(['log', 'log_1', 'orders', 'users', 'users_id_seq']);
    expect(scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.liftedAt).not.toBeNull();
    expect(await cleanUp(scope, { dropTarget: false })).toEqual({ cleanupPending: false, error: null });
  });

  test('dropTarget drops what the task made, foreign keys in a ring included, and nothing else', async () => {
    const pair = await makePair({ source: major });
    await pair.target.query('create table theirs (id int primary key)');
    const scope = await inCutover(pair);
    expect(await cleanUp(scope, { dropTarget: true })).toEqual({ cleanupPending: false, error: null });
    expect(await tablesOf(pair)).toEqual(['theirs']);
  });
});

test('a task that never began has nothing to clean up', async () => {
  const pair = await makePair();
  expect(await cleanUp(makeScope(pair), { dropTarget: true })).toEqual({
    cleanupPending: false,
    error: null,
  });
});

test('a kill in the middle of cleaning up is made good by the next run', async () => {
  const pair = await makePair();
  const scope = await inCutover(pair);
  const killed = makeScope(pair, {}, scope);
  killed.failpoint = (name) => {
    if (name === 'cancel.mid-cleanup') throw new Error('killed');
  };
  await expect(cleanUp(killed, { dropTarget: true })).rejects.toThrow('killed');
  await pair.source.query('insert into users default values'); // writes came first
  expect(await cleanUp(scope, { dropTarget: true })).toEqual({ cleanupPending: false, error: null });
  expect(await tablesOf(pair)).toEqual([]);
});

test('objects of others on our tables are kept: the clean-up is pending until they are gone', async () => {
  const pair = await makePair();
  const scope = await inCutover(pair);
  await pair.target.query('create view theirs as select * from orders');
  const first = await cleanUp(scope, { dropTarget: true });
  expect(first.cleanupPending).toBe(true);
  expect(first.error?.code).toBe('target_conflict');
  expect(withoutConnections(await leaksOf(pair.source))).toEqual([]);
  expect(await tablesOf(pair)).toContain('theirs');
  await pair.target.query('drop view theirs; create table log_2 partition of log for values in (2)');
  const second = await cleanUp(scope, { dropTarget: true });
  expect(second.error?.message).toContain('public.log_2');
  await pair.target.query('alter table log detach partition log_2');
  expect(await cleanUp(scope, { dropTarget: true })).toEqual({ cleanupPending: false, error: null });
  expect(await tablesOf(pair)).toEqual(['log_2']);
});

test('a foreign key from a table of somebody else is not dropped', async () => {
  const pair = await makePair();
  const scope = await inCutover(pair);
  await pair.target.query('create table theirs (id int references orders)');
  expect((await cleanUp(scope, { dropTarget: true })).error?.code).toBe('target_conflict');
  expect(
    (
      await pair.target.query(
        `select 1 from pg_constraint where conrelid = 'theirs'::regclass and contype = 'f'`,
      )
    ).rowCount,
  ).toBe(1);
  await pair.target.query('drop table theirs');
  expect((await cleanUp(scope, { dropTarget: true })).cleanupPending).toBe(false);
});

test('a source that is gone leaves the clean-up pending with the reason, and the target is cleaned all the same', async () => {
  const pair = await makePair();
  const scope = await inCutover(pair);
  const unreachable = makeScope(pair, { sourceDb: { ...pair.source.connection, port: 1 } }, scope);
  const result = await cleanUp(unreachable, { dropTarget: true });
  expect(result.cleanupPending).toBe(true);
  expect(result.error?.code).toBe('connection_failed');
  expect(await tablesOf(pair)).toEqual([]);
  expect(await fenceState(scope)).toBe('armed');
  expect(await cleanUp(scope, { dropTarget: true })).toEqual({ cleanupPending: false, error: null });
});

test('an unreachable target does not keep the source from its writes', async () => {
  const pair = await makePair();
  const scope = await inCutover(pair);
  const unreachable = makeScope(pair, { targetDb: { ...pair.target.connection, port: 1 } }, scope);
  const result = await cleanUp(unreachable, { dropTarget: true });
  expect(result).toMatchObject({ cleanupPending: true, error: { code: 'connection_failed' } });
  expect(withoutConnections(await leaksOf(pair.source))).toEqual([]);
  await pair.source.query('insert into users default values');
  expect(await cleanUp(scope, { dropTarget: true })).toEqual({ cleanupPending: false, error: null });
});

test('a completed task keeps its tables and its fence, whatever is asked', async () => {
  const pair = await makePair({ checkLeaks: false });
  const scope = await inCutover(pair);
  scope.checkpoints.set(cutoverNotes.certificate, { taskId: scope.taskId });
  expect((await cleanUp(scope, { dropTarget: true })).cleanupPending).toBe(false);
  expect(await tablesOf(pair)).toContain('users');
  expect(await fenceState(scope)).toBe('armed');
});
