// The other ways to stop the source's writers, and what they do not promise.
import { expect, onTestFinished, test } from 'vitest';
import { certificateSoFar } from '../../src/cutover/certificate.ts';
import { armFence, confirmFence, disarmFence, forecastFence, installFence } from '../../src/cutover/fence.ts';
import { copySequences } from '../../src/cutover/sequences.ts';
import { MigrationError } from '../../src/model/errors.ts';
import { runPreflight } from '../../src/preflight/run.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { leaksOf, makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

async function planned(pair: DatabasePair, options: Record<string, unknown>): Promise<TestScope> {
  await pair.source.query('create table t (id int primary key); insert into t values (1)');
  const scope = makeScope(pair, { options: { cutoverTimeoutMs: 3_000, ...options } });
  await planFromCatalog(scope);
  await installFence(scope);
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

const settingOf = async (pair: DatabasePair): Promise<string[] | undefined> =>
  (
    await pair.source.query<{ setconfig: string[] }>(
      `select setconfig from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase where d.datname = current_database()`,
    )
  ).rows[0]?.setconfig;

test('terminate_blockers ends the session that holds the fence up, and nobody else', async () => {
  const pair = await makePair();
  const scope = await planned(pair, { terminateBlockers: true });
  const writer = await pair.source.connect();
  const reader = await pair.source.connect();
  await writer.query('begin; insert into t values (2)');
  await reader.query('begin; select * from t');
  await armFence(scope);
  await expect(writer.query('commit')).rejects.toThrow();
  expect((await reader.query('select id from t')).rows).toEqual([{ id: 1 }]);
  await reader.query('rollback');
  await disarmFence(scope);
  await pair.source.query(`drop schema dts cascade`);
});

test('without it the error names the blocker, and a prepared transaction is never ended', async () => {
  const pair = await makePair();
  const scope = await planned(pair, { terminateBlockers: true });
  const writer = await pair.source.connect();
  await writer.query(`begin; insert into t values (2); prepare transaction 'p${pair.source.dbname}'`);
  const error = await errorOf(armFence(scope));
  expect(error.code).toBe('cutover_timeout');
  expect(error.hint).toContain(`rollback prepared 'p${pair.source.dbname}'`);
  await writer.query(`commit prepared 'p${pair.source.dbname}'`);
  await disarmFence(scope);
  await pair.source.query(`drop schema dts cascade`);
});

test('database-read-only waits for the old sessions, refuses new ones, and gives the setting back', async () => {
  const pair = await makePair();
  await pair.source.query(`alter database ${pair.source.dbname} set default_transaction_read_only = 'off'`);
  const old = await pair.source.connect();
  await old.query('select 1');
  const scope = await planned(pair, { fence: 'database-read-only' });
  const itself = expect.objectContaining({
    user: 'postgres',
    query: 'select 1',
    ageSeconds: expect.any(Number) as number,
  }) as unknown;
  expect(await forecastFence(scope)).toEqual(expect.arrayContaining([itself]));
  const error = await errorOf(armFence(scope));
  expect(error.code).toBe('cutover_timeout');
  expect(error.details?.['blockers']).toEqual(expect.arrayContaining([itself]));
  await disarmFence(scope);
  expect(await settingOf(pair)).toEqual(['default_transaction_read_only=off']);

  const ending = makeScope(
    pair,
    { options: { fence: 'database-read-only', terminateBlockers: true } },
    scope,
  );
  await armFence(ending);
  await confirmFence(ending);
  await expect(old.query('insert into t values (2)')).rejects.toThrow();
  const fresh = await pair.source.connect();
  await expect(fresh.query('insert into t values (2)')).rejects.toMatchObject({ code: '25006' });
  // killed under the fence: another process finds what it has to restore
  const restarted = makeScope(pair, { options: { fence: 'database-read-only' } }, scope);
  await disarmFence(restarted);
  expect(await settingOf(pair)).toEqual(['default_transaction_read_only=off']);
  await (await pair.source.connect()).query('insert into t values (3)');
  expect((await errorOf(confirmFence(restarted))).code).toBe('fence_failed');
});

test('database-read-only names the roles that write on under it, in preflight and in the certificate', async () => {
  const pair = await makePair();
  const role = `past_${pair.source.dbname}`;
  await pair.source.query(
    `create role ${role} login; create role ${role}_kept login; create role ${role}_other login`,
  );
  onTestFinished(
    async () => void (await pair.source.query(`drop role ${role}, ${role}_kept, ${role}_other`)),
  );
  await pair.source.query(`alter role ${role} set default_transaction_read_only = false`);
  // what is set for this database wins over what is set everywhere
  await pair.source.query(`alter role ${role}_kept set default_transaction_read_only = off`);
  await pair.source.query(
    `alter role ${role}_kept in database ${pair.source.dbname} set default_transaction_read_only = on`,
  );
  await pair.source.query(
    `alter role ${role}_other in database postgres set default_transaction_read_only = off`,
  );
  const scope = await planned(pair, { fence: 'database-read-only', terminateBlockers: true });
  const named = async (): Promise<string[]> =>
    (await runPreflight(scope))
      .filter(({ code }) => code === 'role_passes_fence')
      .map(({ object }) => object);
  expect((await named()).filter((name) => name.startsWith(role))).toEqual([role]);
  await armFence(scope);
  expect(certificateSoFar(scope).rolesPastFence).toContain(role);
  expect(certificateSoFar(scope).rolesPastFence).not.toContain(`${role}_kept`);
  await disarmFence(scope);
});

test('database-read-only is refused where it would shut the target, too', async () => {
  const pair = await makePair();
  const scope = makeScope(pair, {
    targetDb: pair.source.connection,
    tableSuffix: '_new',
    options: { fence: 'database-read-only' },
  });
  await planFromCatalog(scope, { suffix: '_new' });
  expect((await errorOf(armFence(scope))).code).toBe('fence_failed');
  await disarmFence(scope);
  expect(await settingOf(pair)).toBeUndefined();
});

test('none waits for who writes at the moment, and touches nothing', async () => {
  const pair = await makePair();
  const scope = await planned(pair, { fence: 'none' });
  const writer = await pair.source.connect();
  await writer.query('begin; insert into t values (2)');
  const arming = armFence(scope);
  await waitFor(() => scope.waits.some((wait) => wait?.includes('the fence waits for')));
  await writer.query('commit');
  await arming;
  await confirmFence(scope);
  expect([...new Set(await leaksOf(pair.source))]).toEqual([expect.stringContaining('connection')]);
  await pair.source.query('insert into t values (3)');
});

test('sequence_margin sets the sequences ahead and says where the source stood', async () => {
  const pair = await makePair();
  for (const side of [pair.source, pair.target])
    await side.query(
      'create sequence up; create sequence down increment -2; create sequence round maxvalue 5 cycle',
    );
  await pair.source.query(`select setval('up', 7), setval('down', -9), setval('round', 4)`);
  const scope = makeScope(pair, { options: { sequenceMargin: 100 } });
  await planFromCatalog(scope);
  expect(await copySequences(scope)).toEqual([
    {
      source: 'public.down',
      target: 'public.down',
      sourceLastValue: '-9',
      lastValue: '-209',
      isCalled: true,
    },
    { source: 'public.round', target: 'public.round', sourceLastValue: '4', lastValue: '4', isCalled: true },
    { source: 'public.up', target: 'public.up', sourceLastValue: '7', lastValue: '107', isCalled: true },
  ]);
  expect((await pair.target.query(`select nextval('up') as up`)).rows).toEqual([{ up: '108' }]);
});
