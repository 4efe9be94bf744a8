// A cutover beside a writer that never commits, as the application meets it: until the deadline its writes are refused with
// the documented error, from the un-fence on every one succeeds again, and none is lost.
import { expect, onTestFinished, test } from 'vitest';
import type { ErrorReport } from '../../src/model/errors.ts';
import type { TaskRequest } from '../../src/model/request.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';

interface Attempt {
  readonly id: number;
  readonly beganMs: number;
  readonly endedMs: number;
  /** SQLSTATE; null: accepted. */
  readonly refusedWith: string | null;
}

/** A service with a migration of one table of one row. */
async function ofOneRow(request: Pick<TaskRequest, 'tables' | 'options'>) {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key); insert into t values (1)');
  const service = startLibrary();
  const { task } = await service.createTask({
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    ...request,
  });
  return { pair, service, id: task.id };
}

test.each([13, 16] as const)(
  'source %i: at the deadline the application gets its writes back, and the next cutover finds all of them',
  async (source) => {
    const pair = await makePair({ source });
    await pair.source.query(
      'create table t (id int primary key, v int); insert into t values (0, 0); create table other (id int primary key)',
    );
    const service = startLibrary();
    const { task } = await service.createTask({
      sourceDb: pair.source.connection,
      targetDb: pair.target.connection,
      tables: ['t', 'other'],
      options: { cutoverTimeoutMs: 2_000 },
    });
    await service.startTask(task.id);
    await reaches(service, task.id, 'syncingWal');
    await waitFor(async () => (await service.getTask(task.id)).cutoverWaitsFor.length === 0);

    const blocker = await pair.source.connect();
    await blocker.query('begin; insert into other values (1)');
    const client = await pair.source.connect();
    const attempts: Attempt[] = [];
    let writing = true;
    const application = (async () => {
      for (let id = 1; writing; id++) {
        const beganMs = Date.now();
        const refusedWith = await client.query('insert into t values ($1, 1)', [id]).then(
          () => null,
          (error: unknown) => String((error as { code?: unknown }).code),
        );
        attempts.push({ id, beganMs, endedMs: Date.now(), refusedWith });
      }
    })();
    onTestFinished(async () => {
      writing = false;
      await application;
    });
    const accepted = (): Attempt[] => attempts.filter(({ refusedWith }) => refusedWith === null);
    await waitFor(() => accepted().length > 10, 10_000, 'writes before');

    await service.cutover(task.id);
    const refusing = await waitFor(() => attempts.find(({ refusedWith }) => refusedWith !== null));
    const given = await waitFor(async () => {
      const view = await service.getTask(task.id);
      return view.state === 'syncingWal' && view.error?.code === 'cutover_timeout' ? view : null;
    }, 30_000);
    // the blocker is still there: only the un-fence gives the writes back
    expect(given.fenced).toBe(false);
    const { rows: blockers } = await blocker.query<{ pid: number }>('select pg_backend_pid() as pid');
    expect(given.error?.message).toContain(`pid ${blockers[0]?.pid}`);
    expect(given.error?.hint).toContain(`pg_terminate_backend(${blockers[0]?.pid})`);
    const liftedMs = Date.now();
    const before = accepted().length;
    await waitFor(() => accepted().length > before + 20, 10_000, 'writes afterwards');
    writing = false;
    await application;

    const refused = attempts.filter(({ refusedWith }) => refusedWith !== null);
    expect(new Set(refused.map(({ refusedWith }) => refusedWith))).toEqual(new Set(['25006']));
    expect(attempts.filter(({ beganMs }) => beganMs >= liftedMs).length).toBeGreaterThan(20);
    expect(
      attempts.filter(({ beganMs, refusedWith }) => beganMs >= liftedMs && refusedWith !== null),
    ).toEqual([]);
    // one write stop, no second one: between the first refused write and the last none was accepted
    const [first, last] = [refusing.id, refused.at(-1)?.id ?? 0];
    expect(accepted().filter(({ id }) => id > first && id < last)).toEqual([]);
    // how long the task says that writes were refused holds every refused one
    expect(given.writeStopMs).toBeGreaterThanOrEqual(
      (refused.at(-1)?.beganMs ?? 0) - (refused[0]?.endedMs ?? 0),
    );

    await blocker.query('rollback');
    await waitFor(async () => {
      await service.cutover(task.id);
      return (await service.getTask(task.id)).state === 'completed';
    }, 60_000);
    const done = await service.getTask(task.id);
    expect(done.certificate?.equal).toBe(true);
    const { rows } = await pair.target.query<{ id: number }>('select id from t where id > 0 order by id');
    expect(rows.map(({ id }) => id)).toEqual(accepted().map(({ id }) => id));
    await service.unfenceTask(task.id);
  },
);

test('a cutover that fails says what held it up, and the options that its hint names may be changed', async () => {
  const { pair, service, id } = await ofOneRow({ tables: ['t'], options: { cutoverTimeoutMs: 2_000 } });
  await service.startTask(id);
  await reaches(service, id, 'syncingWal');
  await waitFor(async () => (await service.getTask(id)).cutoverWaitsFor.length === 0);
  const failure = async (): Promise<ErrorReport> =>
    waitFor(async () => {
      const { state, error } = await service.getTask(id);
      return state === 'syncingWal' && error !== null ? error : null;
    }, 30_000);

  // the stream cannot apply the marker
  const holder = await pair.target.connect();
  await holder.query('begin; lock table dts.progress in exclusive mode');
  await service.cutover(id);
  const late = await failure();
  expect(late.code).toBe('cutover_timeout');
  expect(late.message).toMatch(
    /still waiting for the marker to be applied on the target, which is \d+ bytes behind/,
  );
  expect(late.hint).toContain('PATCH');
  await holder.query('rollback');
  await waitFor(async () => (await service.getTask(id)).cutoverWaitsFor.length === 0);

  const blocker = await pair.source.connect();
  await blocker.query('begin; insert into t values (2)');
  blocker.on('error', () => undefined); // it is ended below
  await service.cutover(id);
  expect(
    (
      await waitFor(async () => {
        const error = await failure();
        return error.message === late.message ? null : error;
      })
    ).hint,
  ).toContain('terminate_blockers');
  await expect(service.changeOptions(id, { terminateBlockers: 'yes' as never })).rejects.toMatchObject({
    code: 'invalid_request',
    details: { fields: [{ field: 'terminateBlockers' }] },
  });
  const hooks = {
    afterOpen: { url: 'http://127.0.0.1:9/', command: undefined, timeoutMs: 1_000, headers: [] },
  };
  const changed = await service.changeOptions(id, {
    terminateBlockers: true,
    cutoverTimeoutMs: 20_000,
    hooks,
  });
  expect(changed.spec.options).toMatchObject({
    terminateBlockers: true,
    cutoverTimeoutMs: 20_000,
    hooks: { beforeOpen: null, afterOpen: { url: 'http://127.0.0.1:9/' } },
  });
  await service.cutover(id);
  const done = await reaches(service, id, 'completed');
  expect(done.certificate).toMatchObject({ equal: true, afterOpen: { code: 'hook_failed' } });
  await service.unfenceTask(id);
});

test('after an automatic cutover that failed, a person who asks need not wait for the next', async () => {
  const { pair, service, id } = await ofOneRow({
    options: { cutover: 'auto', fence: 'none', cutoverTimeoutMs: 1_000 },
  });
  const blocker = await pair.source.connect();
  await blocker.query('begin; lock table t in row exclusive mode');
  await service.startTask(id);
  await waitFor(async () => (await service.getTask(id)).error?.code === 'cutover_timeout');
  await blocker.query('commit');
  const paused = await waitFor(async () => {
    const view = await service.getTask(id);
    return view.cutoverWaitsFor.find((gate) => gate.startsWith('the pause after a failed cutover, until '));
  });
  const until = Date.parse(paused.slice(paused.lastIndexOf(' ') + 1));
  expect(until).toBeGreaterThan(Date.now() + 15_000);
  await service.changeOptions(id, { cutoverTimeoutMs: 30_000 });
  expect((await service.cutover(id)).changed).toBe(true);
  await reaches(service, id, 'completed');
  expect(Date.now()).toBeLessThan(until);
});
