// The drain waits for its own marker and for nothing else. The stream's part (noting the marker on the target) is played
// by the tests.
import { describe, expect, test } from 'vitest';
import { cutoverNotes, type DrainNote, type FenceNote } from '../../src/model/cutover-notes.ts';
import { MigrationError } from '../../src/model/errors.ts';
import { compareLsn } from '../../src/model/lsn.ts';
import { liftFence } from '../../src/cutover/clean-up.ts';
import { drain } from '../../src/cutover/drain.ts';
import { armFence, installFence } from '../../src/cutover/fence.ts';
import { ensureBookkeeping, removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { dropPublication, ensurePublication } from '../../src/postgres/publication.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

async function fencedScope(pair: DatabasePair, cutoverTimeoutMs = 20_000): Promise<TestScope> {
  await pair.source.query('create table t (id int primary key)');
  const scope = makeScope(pair, { options: { cutoverTimeoutMs } });
  await planFromCatalog(scope);
  await ensureBookkeeping(scope);
  await scope.target.query(
    `insert into dts.progress (task_id, slot_incarnation, applied_lsn, acked_lsn) values ($1, 'x', '0/1', '0/1')`,
    [scope.taskId],
  );
  await ensurePublication(scope);
  await installFence(scope);
  await armFence(scope);
  return scope;
}

async function undo(scope: TestScope): Promise<void> {
  await liftFence(scope);
  await dropPublication(scope);
  await removeBookkeeping(scope);
}

const markerOf = (scope: TestScope): string | undefined =>
  scope.checkpoints.get<DrainNote>(cutoverNotes.drain)?.markerId;

async function apply(scope: TestScope, marker: string, lsn: string): Promise<void> {
  await scope.target.query(
    'update dts.progress set marker = $2, marker_lsn = $3::pg_lsn, applied_lsn = $3::pg_lsn where task_id = $1',
    [scope.taskId, marker, lsn],
  );
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

describe.each([13, 16] as const)('source %i', (major) => {
  test('it ends when its marker has been applied, and not for an older one', async () => {
    const pair = await makePair({ source: major });
    const scope = await fencedScope(pair);
    await apply(scope, 'a marker of an earlier attempt', 'FFFF/0');
    let drained = false;
    const draining = drain(scope).then((result) => {
      drained = true;
      return result;
    });
    await waitFor(() => scope.failpointsHit.includes('drain.marker-emitted'));
    await waitFor(() => scope.waits.some((wait) => /the marker .* \d+ bytes behind/.test(wait ?? '')));
    expect(drained).toBe(false);
    const { rows } = await pair.source.query<{ lsn: string }>(
      'select pg_current_wal_insert_lsn()::text as lsn',
    );
    const markerLsn = rows[0]?.lsn ?? '';
    await apply(scope, markerOf(scope) ?? '', markerLsn);
    expect(await draining).toEqual({ markerLsn });
    const fence = scope.checkpoints.get<FenceNote>(cutoverNotes.fence);
    expect(compareLsn(markerLsn, fence?.fenceLsn ?? '')).toBeGreaterThan(0);
    expect(scope.checkpoints.get<DrainNote>(cutoverNotes.drain)?.markerLsn).toBe(markerLsn);
    expect(scope.failpointsHit).toContain('drain.marker-applied');
    expect(scope.waits.at(-1)).toBeNull();
    await undo(scope);
  });
});

test('every attempt has a marker of its own: one applied before a later fence proves nothing', async () => {
  const pair = await makePair();
  const scope = await fencedScope(pair);
  const killed = makeScope(pair, { options: { cutoverTimeoutMs: 20_000 } }, scope);
  killed.failpoint = (name) => {
    if (name === 'drain.marker-emitted') throw new Error('killed');
  };
  await expect(drain(killed)).rejects.toThrow('killed');
  const first = markerOf(scope) ?? '';
  await apply(scope, first, 'FFFF/0');
  const aborted = errorOf(drain(scope));
  await waitFor(() => markerOf(scope) !== first && scope.waits.at(-1)?.includes('the marker'));
  const since = Date.now();
  scope.controller.abort();
  expect((await aborted).code).toBe('aborted');
  expect(Date.now() - since).toBeLessThan(1_000);
  await undo(makeScope(pair, {}, scope));
});

test('a marker that is not applied in time is cutover_timeout with the lag', async () => {
  const scope = await fencedScope(await makePair(), 1_000);
  const error = await errorOf(drain(scope));
  expect(error.code).toBe('cutover_timeout');
  expect(error.message).toMatch(/\d+ bytes behind/);
  expect(scope.waits.at(-1)).toBeNull();
  await undo(scope);
});

test('a drain without a fence is refused', async () => {
  const pair = await makePair();
  expect((await errorOf(drain(makeScope(pair)))).code).toBe('internal');
});
