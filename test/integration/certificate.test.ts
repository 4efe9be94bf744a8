// The end of a cutover: hooks, digests of the moment of opening, the certificate and its re-check, the dry run before it.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { verify } from '../../src/cli/verify.ts';
import { cleanUp } from '../../src/cutover/clean-up.ts';
import { armFence, disarmFence, installFence } from '../../src/cutover/fence.ts';
import { fenceState, setFence } from '../../src/cutover/fence-function.ts';
import { drain } from '../../src/cutover/drain.ts';
import { readingSteps } from '../../src/cutover/forecast-reading.ts';
import { forecastCutover } from '../../src/cutover/forecast.ts';
import { prepareTarget } from '../../src/cutover/prepare-target.ts';
import { certificateHash } from '../../src/model/certificate-hash.ts';
import type { Certificate } from '../../src/model/certificate.ts';
import { cutoverNotes } from '../../src/model/cutover-notes.ts';
import { MigrationError } from '../../src/model/errors.ts';
import type { ComparisonForecast } from '../../src/model/forecast.ts';
import type { PlannedStatement } from '../../src/model/schema-plan.ts';
import { toSnake } from '../../src/model/case.ts';
import { schemaPlanOf, saveSchemaPlan } from '../../src/postgres/task-scope.ts';
import { compareTables } from '../../src/validate/compare.ts';
import { forecastComparison } from '../../src/validate/forecast.ts';
import { findRun, saveTableNote, tableNote } from '../../src/validate/notes.ts';
import { validateOnline } from '../../src/validate/online.ts';
import { holdSnapshots } from '../../src/validate/snapshots.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { copyAll, drainStream, prepare, startStream } from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';
import { settleTask } from '../support/settle.ts';
import { verifyCertificateOf } from '../support/verify.ts';

const comparison: ComparisonForecast = {
  keys: 0,
  wholeTables: 0,
  wholeRows: 0,
  unlogged: { tables: 0, rows: 0, bytes: 0 },
  largeObjects: { objects: 0, bytes: 0 },
  differing: [],
};

const ddl = `create table users (id int primary key, name text); create table notes (body text);
  alter table notes replica identity full; create sequence s;`;

/** A migration that syncs, its tables verified; `scope` is for the cutover, apart from the stream. */
async function verified(
  options: Record<string, unknown> = {},
  statements: readonly PlannedStatement[] = [],
): Promise<{ pair: DatabasePair; scope: TestScope; stopStream: () => Promise<void> }> {
  const pair = await makePair({ source: 13 });
  const streaming = await prepare(pair, ddl);
  const sequence = { schema: 'public', name: 's' };
  saveSchemaPlan(streaming, {
    ...schemaPlanOf(streaming),
    statements,
    sequences: [{ source: sequence, target: sequence }],
  });
  await pair.source.query(`insert into users select i, 'u' || i from generate_series(1, 1000) i; select setval('s', 42);
    insert into notes values ('a'), ('a')`);
  const stream = startStream(streaming);
  await waitFor(() => stream.events.some((event) => event.type === 'SLOT_READY'));
  await copyAll(streaming, pair);
  await drainStream(streaming, pair, stream);
  const validating = makeScope(pair, {}, streaming);
  const ended = validateOnline(validating, 0).catch(() => undefined);
  const isVerified = (name: string): boolean =>
    tableNote(streaming.checkpoints, `public.${name}`).state === 'verified';
  await waitFor(
    () =>
      (findRun(streaming.checkpoints)?.settledAt ?? null) !== null && ['users', 'notes'].every(isVerified),
    30_000,
    'verified',
  );
  validating.controller.abort();
  await ended;
  // which of its rows are new is not known: it is compared as a whole under the fence
  await pair.source.query(`insert into notes values ('a')`);
  await drainStream(streaming, pair, stream);
  await validating.connections.closeAll();
  return {
    pair,
    scope: makeScope(pair, { options }, streaming),
    stopStream: async () => void (await stream.stop()),
  };
}

async function fenced(scope: TestScope): Promise<void> {
  await installFence(scope);
  await armFence(scope);
  await drain(scope);
  expect((await compareTables(scope)).tables.map(({ method, equal }) => [method, equal])).toEqual([
    ['full', true],
    ['changes', true],
  ]);
}

interface Called {
  readonly headers: IncomingHttpHeaders;
  readonly body: { hook: string; task_id: string; certificate: Record<string, unknown> };
}

/** An endpoint that answers `status` after `work`. */
async function listener(
  status: () => number,
  work: () => Promise<unknown> = () => Promise.resolve(),
): Promise<{ url: string; calls: Called[] }> {
  const calls: Called[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => void chunks.push(chunk));
    request.on('end', () => {
      calls.push({
        headers: request.headers,
        body: JSON.parse(Buffer.concat(chunks).toString()) as Called['body'],
      });
      void work().then(() => response.writeHead(status()).end('told'));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`, calls };
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

test('the certificate has whole digests of the moment of opening, although the application writes at once', async () => {
  const { pair, scope, stopStream } = await verified();
  const written = await listener(
    () => 204,
    () =>
      pair.target.query(`insert into users values (5000, 'new'); update users set name = 'x' where id = 1`),
  );
  vi.stubEnv('HOOK_TOKEN', 'secret of the hook\n');
  onTestFinished(() => void vi.unstubAllEnvs());
  const told = makeScope(
    pair,
    {
      options: {
        hooks: {
          beforeOpen: null,
          afterOpen: { url: written.url, headers: [{ name: 'Authorization', env: 'HOOK_TOKEN' }] },
        },
      },
    },
    scope,
  );
  await fenced(told);
  await prepareTarget(told);
  await stopStream();
  const { certificate } = await settleTask(told, holdSnapshots);
  expect(written.calls).toHaveLength(1);
  expect(written.calls[0]?.headers).toMatchObject({ authorization: 'secret of the hook' });
  expect(written.calls[0]?.body).toMatchObject({
    hook: 'after_open',
    direction: 'forward',
    task_id: scope.taskId,
    certificate: { fence: 'triggers', fence_lsn: certificate.fenceLsn, equal: true },
  });
  expect(certificate).toMatchObject({
    equal: true,
    afterOpen: 'done',
    fence: 'triggers',
    digests: { extent: 'whole', reason: null },
  });
  expect(
    certificate.tables.map(({ table, method, sourceRows, targetRows, equal }) => [
      table,
      method,
      sourceRows,
      targetRows,
      equal,
    ]),
  ).toEqual([
    ['public.notes', 'full', 3, 3, true],
    ['public.users', 'full', 1000, 1000, true],
  ]);
  expect(JSON.stringify([...scope.waits, certificate])).not.toContain('secret of the hook');

  const file = join(mkdtempSync(join(tmpdir(), 'dts-certificate-')), 'certificate.json');
  const check = async (): Promise<{ code: number; lines: string[] }> => {
    const lines: string[] = [];
    const env = {
      DTS_SOURCE_URL: pair.source.url,
      DTS_TARGET_PASSWORD: pair.target.password,
    };
    const target = pair.target.url.replace(`:${pair.target.password}@`, '@');
    const code = await verify(file, { target }, env, (line) => lines.push(line));
    return { code, lines };
  };
  writeFileSync(file, JSON.stringify(toSnake(certificate)));
  expect(await check()).toEqual({
    code: 1,
    lines: [
      'ok      public.notes: 3 rows',
      'FAILED  public.users: differs now (1000 and 1001 rows)',
      'the certificate does not hold',
    ],
  });
  await pair.target.query(`delete from users where id = 5000; update users set name = 'u1' where id = 1`);
  expect((await check()).code).toBe(0);
  await pair.target.query(`select setval('s', 41)`);
  expect((await check()).lines).toContain('FAILED  sequence public.s: 41 is behind 42');
  await pair.target.query(`select setval('s', 42)`);
  writeFileSync(file, JSON.stringify({ ...certificate, markerLsn: 'F/F' }));
  expect((await check()).code).toBe(1);
  writeFileSync(file, '{}');
  expect(await check()).toMatchObject({ code: 2 });

  await disarmFence(told, { evenIfOpened: true }); // as `unfence` does
  await pair.source.query('delete from users where id = 7');
  await pair.target.query('delete from users where id = 7');
  writeFileSync(file, JSON.stringify(certificate));
  expect((await check()).lines).toContain('FAILED  public.users: the source has changed since');
  await pair.source.query('drop schema dts cascade');
});

test('a certificate made after a restart says that its digests are of the last changes, and so does its check', async () => {
  const { pair, scope, stopStream } = await verified({ keepFence: false });
  await fenced(scope);
  await prepareTarget(scope);
  await stopStream();
  const dying = makeScope(pair, { options: { keepFence: false } }, scope);
  dying.failpoint = (name) => {
    if (name === 'finalize.opened') throw new Error('killed');
  };
  await expect(settleTask(dying, holdSnapshots)).rejects.toThrow('killed');
  await pair.target.query(`insert into users values (5000, 'the application')`);
  const { certificate } = await settleTask(scope, holdSnapshots);
  expect(certificate.digests).toEqual({
    extent: 'changes',
    reason: 'it was made by another attempt than the one that had opened the target',
  });
  expect(certificate.tables.map(({ method }) => method)).toEqual(['full', 'changes']);
  await pair.target.query('delete from users where id = 5000');
  expect(await verifyCertificateOf(pair, certificate)).toEqual({
    code: 0,
    lines: [
      'ok      public.notes: 3 rows',
      'ok      public.users: 1000 rows',
      'note    1 of 2 tables were certified by the keys that had changed last (it was made by another attempt than the one that had opened the target): whether their source has changed since is not known',
      'the certificate holds',
    ],
  });
  // the source compared with itself, which would hold: named by the certificate, in an older one, and when both were copies
  const { source } = certificate.servers ?? expect.unreachable();
  for (const servers of [certificate.servers, undefined, { source, target: source }]) {
    const changed = { ...certificate, servers };
    const { code, lines } = await verifyCertificateOf(
      pair,
      { ...changed, hash: certificateHash(changed as Certificate) },
      { DTS_TARGET_URL: pair.source.url },
    );
    expect(lines.join('\n')).toContain('source and target are one database');
    expect(code).toBe(2);
  }
});

test('a failing before_open lifts the fence and changes nothing, a failing after_open is only told', async () => {
  const { pair, scope, stopStream } = await verified();
  let status = 503;
  const endpoint = await listener(() => status);
  const hooks = { beforeOpen: { url: endpoint.url }, afterOpen: { url: endpoint.url, timeoutMs: 2_000 } };
  const told = makeScope(pair, { options: { hooks, keepFence: false } }, scope);
  await fenced(told);
  const error = await errorOf(prepareTarget(told));
  expect([error.code, error.kind]).toEqual(['hook_failed', 'transient']); // un-fences, and the stream goes on
  expect(endpoint.calls.map(({ body }) => body.hook)).toEqual(['before_open']);
  status = 200;
  await prepareTarget(told);
  status = 500;
  await stopStream();
  const { certificate } = await settleTask(told, () => Promise.resolve(null)); // as when a server does not answer
  expect(certificate.digests).toEqual({
    extent: 'changes',
    reason: expect.stringContaining('answer') as string,
  });
  expect(certificate.afterOpen).toMatchObject({ code: 'hook_failed' });
  expect(endpoint.calls.map(({ body }) => body.hook)).toEqual([
    'before_open',
    'before_open',
    'after_open',
    'after_open',
    'after_open',
  ]);
  const keys = new Set(endpoint.calls.map(({ headers }) => headers['idempotency-key']));
  expect(keys.size).toBe(2); // one a hook
});

test('a fence that is lifted while the hook is called, or before, stops the cutover', async () => {
  const { pair, scope, stopStream } = await verified();
  const lifting = await listener(
    () => 204,
    () => setFence(scope, false),
  );
  const told = makeScope(
    pair,
    { options: { hooks: { beforeOpen: { url: lifting.url }, afterOpen: null } } },
    scope,
  );
  await fenced(told);
  expect((await errorOf(prepareTarget(told))).code).toBe('fence_failed');
  expect(lifting.calls).toHaveLength(1);
  expect((await errorOf(prepareTarget(told))).code).toBe('fence_failed'); // it is lifted by now
  expect(lifting.calls).toHaveLength(1);
  await stopStream();
  await cleanUp(told, { dropTarget: false });
});

test('a hook does not outlast the cutover', async () => {
  const { pair, scope, stopStream } = await verified();
  const slow = await listener(
    () => 204,
    () => new Promise((resolve) => setTimeout(resolve, 3_000)),
  );
  const told = makeScope(
    pair,
    { options: { hooks: { beforeOpen: { url: slow.url, timeoutMs: 60_000 }, afterOpen: null } } },
    scope,
  );
  await fenced(told);
  const error = await errorOf(prepareTarget(told, Date.now() + 1_000));
  expect(error.code).toBe('hook_failed');
  expect(error.message).toMatch(/did not answer within \d{2,3} ms/);
  await stopStream();
  await cleanUp(told, { dropTarget: false });
});

test('the dry run names who would hold the fence up and what would fail, and changes nothing', async () => {
  const { pair, scope } = await verified({}, [
    {
      n: 0,
      phase: 'final',
      sql: 'create trigger t before insert on public.users execute function public.nobody()',
      object: 'TRIGGER t',
      table: 'public.users',
      creates: null,
    },
  ]);
  await installFence(scope);
  const writer = await pair.source.connect();
  await writer.query(`begin; update users set name = 'w' where id = 1`);
  await pair.source.query('update users set name = name where id between 10 and 14');
  await waitFor(async () => (await forecastComparison(scope)).keys >= 5, 10_000, 'the changes');
  const forecast = await forecastCutover(scope, await forecastComparison(scope), ['a gate']);
  expect(forecast.waitsFor).toEqual(['a gate']);
  expect(forecast.blockers).toMatchObject([
    { user: 'postgres', state: 'idle in transaction', relation: 'public.users' },
  ]);
  expect(forecast.problems).toMatchObject([{ code: 'schema_failed' }]);
  expect(forecast.steps.map(({ step }) => step)).toEqual([
    'fence',
    'drain',
    'compare',
    'sequences',
    'statements',
  ]);
  expect(forecast.writeStopMs).toBe(forecast.steps.reduce((sum, { ms }) => sum + ms, 0));
  expect(forecast.steps[2]?.detail).toContain('5 changed keys, 1 whole tables');
  expect(scope.checkpoints.get(cutoverNotes.forecast)).toBe(forecast.writeStopMs); // for the certificate
  expect(await fenceState(scope)).toBe('disarmed');
  await writer.query(`insert into users values (5000, 'w'); commit`);
  // a difference that is known would fail the cutover
  const note = tableNote(scope.checkpoints, 'public.users');
  const differences = [{ key: ['7'], kind: 'missing' as const }];
  saveTableNote(scope.checkpoints, 'public.users', { ...note, differences });
  const worse = await forecastCutover(scope, await forecastComparison(scope), []);
  expect(worse.problems).toMatchObject([
    { code: 'validation_failed', details: { tables: ['public.users'] } },
    { code: 'schema_failed' },
  ]);
  await cleanUp(scope, { dropTarget: false });
});

test('the dry run names transactions on the target that the slot of the way back would wait for', async () => {
  const { pair, scope } = await verified();
  const busy = await pair.target.connect();
  await busy.query('begin; create temporary table unfinished (id int)');
  const { rows } = await busy.query<{ pid: number }>('select pg_backend_pid() as pid');
  const back = makeScope(pair, { options: { reverse: true } }, scope);
  // a slot waits for writers of every database of the server, other tests' among them
  const blocked = await waitFor(async () => {
    const found = await forecastCutover(back, comparison, []);
    return found.targetBlockers.some(({ pid }) => pid === rows[0]?.pid) ? found : null;
  });
  expect(blocked.targetBlockers.find(({ pid }) => pid === rows[0]?.pid)).toMatchObject({
    user: 'postgres',
    database: pair.target.dbname,
    query: 'select pg_backend_pid() as pid',
  });
  const wayBack = {
    step: 'reverse',
    ms: 0,
    detail: expect.stringContaining(
      `${blocked.targetBlockers.length} transactions that write on the target`,
    ) as string,
  };
  expect(blocked.steps.at(-1)).toEqual(wayBack);
  const without = await forecastCutover(scope, comparison, []); // nobody waits
  expect(without.targetBlockers).toEqual([]);
  expect(without.steps.map(({ step }) => step)).not.toContain('reverse');
  await busy.query('rollback');
});

test('the dry run measures how long the slot of the way back takes, and leaves none', async () => {
  const { pair, scope } = await verified();
  const back = makeScope(pair, { options: { reverse: true } }, scope);
  // a slot waits for writers of every database of the server, other tests' among them
  const forecast = await waitFor(async () => {
    const found = await forecastCutover(back, comparison, []);
    return found.targetBlockers.length + found.problems.length === 0 ? found : null;
  }, 60_000);
  const step = forecast.steps.at(-1);
  expect(step).toMatchObject({ step: 'reverse', detail: expect.stringContaining('measured') as string });
  expect(step?.ms).toBeGreaterThan(1); // a server decodes for it
  expect(forecast.writeStopMs).toBe(forecast.steps.reduce((sum, { ms }) => sum + ms, 0));
  const { rows } = await pair.target.query(
    'select slot_name from pg_replication_slots where database = current_database()',
  );
  expect(rows).toEqual([]);
});

test('the dry run counts what is copied under the fence, and says that nobody knows how long the hook takes', async () => {
  const { pair, scope } = await verified();
  const without = await forecastComparison(scope);
  await pair.source.query(`create unlogged table cache (k int primary key, v text);
    insert into cache select n, repeat('v', 100) from generate_series(1, 20000) n; analyze cache;
    select lo_from_bytea(70001, convert_to(repeat('x', 4000000), 'UTF8')), lo_create(70002)`);
  const [table = expect.unreachable()] = schemaPlanOf(scope).tables;
  const cache = { schema: 'public', name: 'cache' };
  const unlogged = [{ ...table, source: cache, target: cache, rowsEstimated: 0, bytesEstimated: 0 }];
  saveSchemaPlan(scope, { ...schemaPlanOf(scope), unlogged, largeObjects: true });
  const hooks = { beforeOpen: { command: 'repoint', timeoutMs: 7_000 } };
  const told = makeScope(pair, { options: { hooks } }, scope);
  const comparing = await forecastComparison(told);
  expect(comparing).toMatchObject({ keys: 0, wholeTables: 1, unlogged: { tables: 1, rows: 20_000 } });
  expect(comparing.unlogged.bytes).toBeGreaterThan(2_000_000);
  expect(comparing.largeObjects.objects).toBe(2);

  const forecast = await forecastCutover(told, comparing, []);
  expect(forecast.problems).toEqual([]);
  const steps = new Map(forecast.steps.map((step) => [step.step, step]));
  expect([...steps.keys()]).toEqual([
    'fence',
    'drain',
    'copy',
    'compare',
    'sequences',
    'statements',
    'before_open',
  ]);
  expect(steps.get('copy')?.ms).toBeGreaterThan(50);
  expect(steps.get('copy')?.detail).toMatch(
    /^1 unlogged tables of about \d+ bytes, 2 large objects of about \d+ bytes$/,
  );
  // of one round trip: two forecasts measure it anew, and a busy machine's differ by more
  const comparedIn = (what: ComparisonForecast): number =>
    readingSteps(what, 1).find(({ step }) => step === 'compare')?.ms ?? expect.unreachable();
  expect(comparedIn(comparing)).toBeGreaterThanOrEqual(comparedIn(without) + 40);
  expect(steps.get('compare')?.detail).toContain('1 unlogged tables of about 20000 rows, 2 large objects');
  expect(steps.get('before_open')).toMatchObject({
    ms: 0,
    detail: expect.stringMatching(/before_open \(command repoint\).* at most 7000 ms/) as string,
  });
  expect(forecast.writeStopMs).toBe(forecast.steps.reduce((sum, { ms }) => sum + ms, 0));
  expect(readingSteps(without, 1).map(({ step }) => step)).not.toContain('copy');
});
