// The end of a migration: sequences, rehearsal, settling. Every step may be killed and run again; the certificate stays.
import { describe, expect, test } from 'vitest';
import { cutoverNotes, type DrainNote, type WriteStop } from '../../src/model/cutover-notes.ts';
import { MigrationError } from '../../src/model/errors.ts';
import type { Failpoint } from '../../src/model/failpoints.ts';
import type { PlannedStatement, StatementPhase } from '../../src/model/schema-plan.ts';
import { cleanUp, liftFence } from '../../src/cutover/clean-up.ts';
import { armFence, installFence } from '../../src/cutover/fence.ts';
import { fenceState } from '../../src/cutover/fence-function.ts';
import { prepareTarget } from '../../src/cutover/prepare-target.ts';
import { copySequences } from '../../src/cutover/sequences.ts';
import { ensureBookkeeping, removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { ensurePublication } from '../../src/postgres/publication.ts';
import { ensureSlot } from '../../src/postgres/slot.ts';
import { compareTables } from '../../src/validate/compare.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { leaksOf, makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { startForgetfulServer } from '../support/extra-servers.ts';
import { makeScope, type TestScope } from '../support/scope.ts';
import { settleTask } from '../support/settle.ts';

const tables = `
  create table users (id bigserial primary key, name text);
  create table orders (id int primary key, user_id bigint);
  insert into users (name) select 'u' || i from generate_series(1, 10) i;
  insert into orders select i, i from generate_series(1, 10) i;`;

const statement = (n: number, phase: StatementPhase, sql: string, object: string): PlannedStatement => ({
  n,
  phase,
  sql,
  object,
  table: null,
  creates: null,
});

const lastStatements = [
  statement(
    10,
    'foreign-key',
    'alter table public.orders add constraint orders_users foreign key (user_id) references public.users not valid',
    'CONSTRAINT orders_users',
  ),
  statement(
    11,
    'validate',
    'alter table public.orders validate constraint orders_users',
    'CONSTRAINT orders_users',
  ),
  statement(12, 'final', `comment on table public.users is 'moved'`, 'COMMENT ON TABLE public.users'),
];

/** A migration at the beginning of finalizing: fenced, drained, compared. */
async function compared(
  pair: DatabasePair,
  options: Record<string, unknown> = {},
  statements: readonly PlannedStatement[] = lastStatements,
): Promise<TestScope> {
  await pair.source.query(tables);
  await pair.target.query(tables);
  const scope = makeScope(pair, { options });
  await planFromCatalog(scope, { statements });
  await ensureBookkeeping(scope);
  await ensurePublication(scope);
  await ensureSlot(scope);
  await installFence(scope);
  await armFence(scope);
  scope.checkpoints.set(cutoverNotes.drain, {
    markerId: 'm',
    markerLsn: 'FF/0',
    appliedAt: new Date().toISOString(),
  } satisfies DrainNote);
  await compareTables(scope);
  return scope;
}

async function errorOf(work: Promise<unknown>): Promise<MigrationError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof MigrationError) return error;
    throw error;
  }
  throw new Error('it did not fail');
}

/** A restart of the service that dies again at `failpoint`. */
function dyingAt(
  pair: DatabasePair,
  scope: TestScope,
  options: Record<string, unknown>,
  failpoint: Failpoint,
): TestScope {
  const next = makeScope(pair, { options }, scope);
  next.failpoint = (name) => {
    if (name === failpoint) throw new Error(`killed at ${name}`);
  };
  return next;
}

describe.each([13, 16] as const)('source %i', (major) => {
  test('sequences arrive exactly, also those that count down, have begun again, were never called or ran ahead of the rows', async () => {
    const pair = await makePair({ source: major });
    const sequences = `
      create sequence untouched start 7; create sequence down increment -3 minvalue -100 maxvalue 100 start 50;
      create sequence big; create sequence cached cache 50; create sequence "Od d";
      create sequence round maxvalue 3 cycle; create sequence "round down" increment -1 minvalue -3 cycle;
      create sequence "at its end" maxvalue 3 cycle; create sequence "down untouched" increment -2 cycle;
      create table t (id bigserial primary key, n int generated always as identity);`;
    await pair.source.query(sequences);
    await pair.target.query(sequences);
    await pair.source.query(`select nextval('down'), nextval('down'), setval('big', 9223372036854775807),
      nextval('cached'), setval('"Od d"', 42, false);
      select nextval('round'), nextval('"round down"') from generate_series(1, 5);
      select nextval('"at its end"') from generate_series(1, 3);
      insert into t default values; insert into t default values; delete from t`);
    const scope = makeScope(pair);
    await planFromCatalog(scope);
    const verdicts = await copySequences(scope);
    expect(await copySequences(scope)).toEqual(verdicts);
    const by = new Map(verdicts.map(({ source, lastValue, isCalled }) => [source, [lastValue, isCalled]]));
    expect(Object.fromEntries(by)).toEqual({
      'public.Od d': ['42', false],
      'public.at its end': ['3', true],
      'public.big': ['9223372036854775807', true],
      'public.cached': ['50', true],
      'public.down': ['47', true],
      'public.down untouched': ['-1', false],
      'public.round': ['2', true],
      'public.round down': ['-2', true],
      'public.t_id_seq': ['2', true],
      'public.t_n_seq': ['2', true],
      'public.untouched': ['7', false],
    });
    const { rows } = await pair.target.query(
      `select nextval('untouched') as untouched, nextval('down') as down, nextval('"Od d"') as odd, nextval('cached') as cached,
        nextval('round') as round, nextval('"round down"') as "roundDown", nextval('"at its end"') as again,
        nextval('"down untouched"') as "downUntouched"`,
    );
    expect(rows).toEqual([
      {
        untouched: '7',
        down: '44',
        odd: '42',
        cached: '51',
        round: '3',
        roundDown: '-3',
        again: '1',
        downUntouched: '-1',
      },
    ]);
    expect((await pair.target.query('insert into t default values returning id, n')).rows).toEqual([
      { id: '3', n: 3 },
    ]);
  });

  test('a finished migration leaves a certificate, the fence that was asked for, and nothing else', async () => {
    const pair = await makePair({ source: major });
    const scope = await compared(pair);
    await prepareTarget(scope);
    const { certificate, cleanupPending } = await settleTask(scope);
    expect(cleanupPending).toBe(false);
    expect(certificate.sourceVersion).toMatch(new RegExp(`^${major}`));
    expect(certificate.targetVersion).toMatch(/^18/);
    expect(certificate).toMatchObject({ taskId: scope.taskId, markerLsn: 'FF/0' });
    expect(certificate.tables.map(({ table, equal }) => [table, equal])).toEqual([
      ['public.orders', true],
      ['public.users', true],
    ]);
    expect(certificate.sequences).toEqual([
      {
        source: 'public.users_id_seq',
        target: 'public.users_id_seq',
        sourceLastValue: '10',
        lastValue: '10',
        isCalled: true,
      },
    ]);
    expect(certificate.unvalidatedConstraints).toBeUndefined();
    const { ms, predictedMs, steps } = certificate.writeStop ?? expect.unreachable();
    expect(ms).toBe(Date.parse(certificate.openedAt) - Date.parse(certificate.armedAt));
    expect(Object.values(steps).reduce((sum, step) => sum + step, 0)).toBe(ms);
    expect(predictedMs).toBeNull();
    const target = await pair.target.query(
      `select (select convalidated from pg_constraint where conname = 'orders_users') as valid,
         obj_description('users'::regclass) as comment, (select count(*) > 0 from pg_stats where tablename = 'users') as analyzed`,
    );
    expect(target.rows).toEqual([{ valid: true, comment: 'moved', analyzed: true }]);
    expect([...new Set(await leaksOf(pair.target))]).toEqual([
      `${pair.target.dbname}: connection dts/${scope.taskId}/target`,
    ]);
    expect(await fenceState(scope)).toBe('armed'); // keepFence is the default
    const stop = scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop);
    expect(stop?.openedAt).not.toBeNull();
    expect(stop?.liftedAt).toBeNull();
    await liftFence(scope);
    const lifted = scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop);
    expect(lifted).toMatchObject({ openedAt: stop?.openedAt });
    expect(lifted?.liftedAt).not.toBeNull();
    await pair.source.query(`insert into users (name) values ('after')`);
  });
});

test('without keepFence the source is writable again and has nothing of ours', async () => {
  const pair = await makePair();
  const scope = await compared(pair, { keepFence: false });
  await prepareTarget(scope);
  expect((await settleTask(scope)).cleanupPending).toBe(false);
  await pair.source.query(`insert into users (name) values ('after')`);
  expect(scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.liftedAt).not.toBeNull();
});

test('a cutover that turns back before the point of no return leaves no key and no trigger on the target', async () => {
  const pair = await makePair();
  const scope = await compared(pair, { keepFence: false });
  await prepareTarget(scope);
  expect(
    (await pair.target.query(`select 1 from pg_constraint where conname = 'orders_users'`)).rowCount,
  ).toBe(0);
  expect(scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.openedAt).toBeNull();
  await cleanUp(scope, { dropTarget: false });
});

test('what would fail after the opening fails before the point of no return, with the object named', async () => {
  const pair = await makePair();
  const scope = await compared(pair, {}, [
    ...lastStatements,
    statement(13, 'final', 'comment on table public.gone is null', 'COMMENT ON TABLE public.gone'),
  ]);
  const error = await errorOf(prepareTarget(scope));
  expect(error.code).toBe('schema_failed');
  expect(error.message).toContain('COMMENT ON TABLE public.gone');
  await cleanUp(scope, { dropTarget: false });
});

test('settling goes on after a kill at every point, to the same certificate', async () => {
  const pair = await makePair();
  const options = { keepFence: false };
  const scope = await compared(pair, options);
  for (const failpoint of ['finalize.sequences-set', 'finalize.before-point-of-no-return'] as const)
    await expect(prepareTarget(dyingAt(pair, scope, options, failpoint))).rejects.toThrow(failpoint);
  await prepareTarget(scope);
  await expect(settleTask(dyingAt(pair, scope, options, 'finalize.before-source-cleanup'))).rejects.toThrow(
    'killed',
  );
  const certificate = scope.checkpoints.get(cutoverNotes.certificate);
  expect(certificate).toBeDefined();
  expect(
    (await pair.source.query(`select 1 from pg_replication_slots where database = current_database()`))
      .rowCount,
  ).toBe(1);
  await expect(settleTask(dyingAt(pair, scope, options, 'finalize.after-slot-drop'))).rejects.toThrow(
    'killed',
  );
  const settled = await settleTask(makeScope(pair, { options }, scope));
  expect(settled).toEqual({ certificate, cleanupPending: false });
  expect(await settleTask(makeScope(pair, { options }, scope))).toEqual(settled);
});

test('a fence that was dropped before the target opens is armed again, and what the source took meanwhile keeps it closed', async () => {
  const pair = await makePair();
  const scope = await compared(pair, { keepFence: false });
  await prepareTarget(scope);
  await pair.source.query(`drop function dts.fence_${scope.taskId}() cascade`);
  await pair.source.query(
    `insert into users (name) values ('late'); update orders set user_id = 1 where id = 2`,
  );
  const error = await errorOf(settleTask(scope));
  expect(error).toMatchObject({ code: 'validation_failed', kind: 'divergence' });
  expect(error.details?.['tables']).toEqual(['public.orders', 'public.users']);
  await expect(pair.source.query('delete from users')).rejects.toMatchObject({ code: '25006' });
  await expect(
    pair.target.query('select 1 from pg_constraint where conname = $1', ['orders_users']),
  ).resolves.toMatchObject({
    rowCount: 0, // it has not opened
  });
  await pair.target.query(
    `insert into users values (11, 'late'); update orders set user_id = 1 where id = 2`,
  );
  const { certificate } = await settleTask(scope);
  expect(certificate.equal).toBe(true);
  expect(certificate.tables.map(({ method, sourceRows }) => [method, sourceRows])).toEqual([
    ['full', 10],
    ['full', 11],
  ]);
  expect(certificate.sequences).toMatchObject([{ sourceLastValue: '11' }]);
});

test('a target that commits asynchronously and crashes right after the point of no return keeps its sequences', async () => {
  const pair = await makePair();
  const { server, connection: targetDb } = await startForgetfulServer(18);
  const over = { targetDb, options: { keepFence: false } };
  await pair.source.query(tables);
  const scope = makeScope(pair, over);
  const ask = async (sql: string): Promise<unknown> =>
    (await scope.target.query<{ value: string }>(sql)).rows[0]?.value;
  await scope.target.query(`set search_path = public; ${tables} set search_path = ''`);
  await planFromCatalog(scope);
  await ensureBookkeeping(scope);
  await ensurePublication(scope);
  await ensureSlot(scope);
  await installFence(scope);
  await armFence(scope);
  scope.checkpoints.set(cutoverNotes.drain, { markerId: 'm', markerLsn: 'FF/0' } satisfies DrainNote);
  await compareTables(scope);
  await ask(`select setval('public.users_id_seq', 1)`); // as the schema made it
  await ask('checkpoint'); // everything older is on disk
  await prepareTarget(scope);
  await server.crash();
  await server.restart();
  const read = 'select last_value::text as value from public.users_id_seq';
  expect(await waitFor(() => ask(read).catch(() => null))).toBe('10');
  const { certificate } = await settleTask(makeScope(pair, over, scope));
  expect(certificate.sequences).toMatchObject([{ lastValue: '10' }]);
  expect(await ask(`select nextval('public.users_id_seq')::text as value`)).toBe('11');
});

test('settling sets a sequence again that the target has lost, and never sets one back', async () => {
  const pair = await makePair();
  const sequences = `create sequence lost; create sequence down increment -2 minvalue -100 start 0 maxvalue 0;
    create sequence called; create sequence used; create sequence untouched;`;
  await pair.target.query(sequences);
  await pair.source.query(
    `${sequences} select setval('lost', 1000), setval('down', -40), setval('called', 5), setval('used', 20)`,
  );
  const scope = await compared(pair, { keepFence: false });
  await prepareTarget(scope);
  // what a failover to a standby that was behind leaves, and an application that was too early
  await pair.target.query(
    `select setval('lost', 1, false), setval('down', -2), setval('called', 5, false), setval('used', 33)`,
  );
  const next = async (): Promise<unknown> =>
    (
      await pair.target.query(`select (select last_value || ' ' || is_called from lost) as lost,
        (select last_value || ' ' || is_called from down) as down, (select last_value || ' ' || is_called from called) as called,
        (select last_value || ' ' || is_called from used) as used, (select last_value || ' ' || is_called from untouched) as untouched`)
    ).rows[0];
  const stopped = dyingAt(pair, scope, { keepFence: false }, 'finalize.before-source-cleanup');
  await expect(settleTask(stopped)).rejects.toThrow('killed');
  expect(await next()).toEqual({
    lost: '1000 true',
    down: '-40 true',
    called: '5 true',
    used: '33 true',
    untouched: '1 false',
  });
  // once the target is open its sequences are the application's, wherever they stand
  await pair.target.query(`select setval('lost', 7)`);
  scope.checkpoints.delete(cutoverNotes.certificate);
  await settleTask(scope);
  expect(await next()).toMatchObject({ lost: '7 true', used: '33 true' });
});

test('a constraint that rows violate stays NOT VALID, the certificate says so and the migration ends', async () => {
  const pair = await makePair();
  const scope = await compared(pair, { keepFence: false });
  await pair.target.query('delete from users where id = 3');
  await prepareTarget(scope);
  const { certificate, cleanupPending } = await settleTask(scope);
  expect(cleanupPending).toBe(false);
  expect(certificate.unvalidatedConstraints).toEqual(['CONSTRAINT orders_users']);
});

test('a source that is gone keeps neither the certificate nor the target from being finished', async () => {
  const pair = await makePair();
  const scope = await compared(pair, { keepFence: false });
  await prepareTarget(scope);
  const unreachable = makeScope(
    pair,
    { sourceDb: { ...pair.source.connection, port: 1 }, options: { keepFence: false } },
    scope,
  );
  const first = await settleTask(unreachable);
  expect(first.cleanupPending).toBe(true);
  expect(first.certificate.fenceLsn).toMatch(/^[0-9A-F]+\/[0-9A-F]+$/);
  expect((await pair.target.query(`select 1 from pg_namespace where nspname = 'dts'`)).rowCount).toBe(0);
  expect(await settleTask(scope)).toEqual({ certificate: first.certificate, cleanupPending: false });
});

test('a reader that holds up the removal of the fence leaves it pending, and the next call finishes', async () => {
  const pair = await makePair();
  const scope = await compared(pair);
  await prepareTarget(scope);
  const { certificate } = await settleTask(scope);
  const reader = await pair.source.connect();
  await reader.query('begin; select * from users');
  const lifting = errorOf(liftFence(makeScope(pair, {}, scope)));
  await pair.source.query(`insert into users (name) values ('already allowed')`).catch(() => undefined);
  await reader.query('commit');
  await lifting.catch(() => undefined);
  await liftFence(scope);
  expect(await settleTask(scope)).toEqual({ certificate, cleanupPending: false });
});

test('source and target in one database share the schema dts and both leave it', async () => {
  const single = await makePair();
  const pair: DatabasePair = { source: single.source, target: single.source };
  await pair.source.query('create table users (id bigserial primary key, name text)');
  await pair.source.query(`insert into users (name) values ('a')`);
  await pair.source.query('create table users_new (id bigint primary key, name text)');
  await pair.source.query('insert into users_new select * from users; create sequence users_id_seq_new');
  const scope = makeScope(pair, { tableSuffix: '_new', options: { keepFence: false } });
  await planFromCatalog(scope, { tables: ['users'], suffix: '_new' });
  const plan = scope.checkpoints.get<{ sequences: unknown[] }>('schemaPlan');
  scope.checkpoints.set('schemaPlan', { ...plan, sequences: plan?.sequences.slice(0, 1) });
  await ensureBookkeeping(scope);
  await ensurePublication(scope);
  await ensureSlot(scope);
  await installFence(scope);
  await armFence(scope);
  await pair.source.query(`insert into users_new values (2, 'the target is not fenced')`);
  await pair.source.query('delete from users_new where id = 2');
  scope.checkpoints.set(cutoverNotes.drain, { markerId: 'm', markerLsn: 'FF/0' } satisfies DrainNote);
  expect((await compareTables(scope)).tables).toMatchObject([{ target: 'public.users_new', equal: true }]);
  await prepareTarget(scope);
  const { certificate, cleanupPending } = await settleTask(scope);
  expect(cleanupPending).toBe(false);
  expect(certificate.sequences).toMatchObject([{ target: 'public.users_id_seq_new', lastValue: '1' }]);
  await removeBookkeeping(scope);
});

test('a reader of our bookkeeping delays the end of a task for a moment, not for ever', async () => {
  const pair = await makePair();
  const scope = await compared(pair, { keepFence: false });
  await prepareTarget(scope);
  const reader = await pair.target.connect();
  await reader.query('begin; select * from dts.progress');
  const { certificate, cleanupPending } = await settleTask(scope);
  expect(cleanupPending).toBe(true);
  await reader.query('commit');
  expect(await settleTask(scope)).toEqual({ certificate, cleanupPending: false });
});
