import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { TaskNotes } from '../../db/notes.ts';
import { openStore } from '../../db/open.ts';
import { TaskStore } from '../../db/tasks.ts';
import { parseConfig, parseDuration } from '../../src/config.ts';
import { parseRequest } from '../../src/model/request.ts';
import type { TableProgress } from '../../src/model/progress.ts';
import { ActivityRunner } from '../../src/runtime/activity-runner.ts';
import { makeFailpoint } from '../../src/runtime/failpoint.ts';
import { keyFromFile, SecretVault } from '../../src/runtime/secrets.ts';
import { copiedFraction, progressPercent, TaskTelemetry } from '../../src/runtime/telemetry.ts';

const silent = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
};

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'dts-test-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

describe('settings', () => {
  test('every fault is reported at once, secrets not repeated', () => {
    const given = {
      DTS_PORT: '99999',
      DTS_LOG_LEVEL: 'loud',
      DTS_MAX_RUNNING_TASKS: '0',
      DTS_CLEANUP_INTERVAL: '5',
      DTS_SLOT_CHECK_INTERVAL: '1ms',
      DTS_HOOKS_DIR: 'hooks',
      DTS_SECRET_KEY: 'hunter2',
      DTS_TOKEN: 'short',
    };
    try {
      parseConfig(given);
      expect.unreachable();
    } catch (error) {
      const { message } = error as Error;
      for (const name of Object.keys(given)) expect(message).toContain(name);
      expect(message).not.toMatch(/hunter2|short"/);
    }
  });

  test('defaults are loopback, 8080, ./data, info, 16, 5 minutes', () => {
    expect(parseConfig({})).toMatchObject({
      host: '127.0.0.1',
      port: 8080,
      dataDir: './data',
      logLevel: 'info',
      maxRunningTasks: 16,
      cleanupIntervalMs: 300_000,
      slotCheckIntervalMs: 15_000,
      hooksDir: null,
      token: null,
    });
  });

  test.each([
    ['500ms', 500],
    ['30s', 30_000],
    ['5m', 300_000],
    ['1h', 3_600_000],
    ['5', undefined],
    ['-1s', undefined],
    ['1ms', undefined],
    ['25h', undefined],
  ])('%s is %s ms', (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });
});

test('a store is one service’s at a time, and free again once it is closed', () => {
  const path = join(temporaryFolder(), 'dts.sqlite');
  const first = openStore(path);
  expect(() => openStore(path, 50)).toThrow(expect.objectContaining({ code: 'store_in_use' }));
  first.close();
  openStore(path, 50).close();
});

describe('secrets', () => {
  const endpoint = {
    host: 'h',
    port: 5432,
    user: 'u',
    dbname: 'd',
    sslmode: 'prefer',
    password: { from: 'stored' },
  } as const;

  test('a password is nowhere in the SQLite file and comes back only with the key', async () => {
    const folder = temporaryFolder();
    const path = join(folder, 'dts.sqlite');
    const store = openStore(path);
    const { spec } = parseRequest({
      sourceDb: { host: 'h', user: 'u', dbname: 'd' },
      targetDb: { host: 'h', user: 'u', dbname: 'd' },
    });
    new TaskStore(store).insert(
      { id: 't', incarnation: 'i', bodyHash: 'b', spec, machineVersion: 1, actorSnapshot: {} },
      'created',
    );
    const notes = new TaskNotes(store);
    const vault = new SecretVault(randomBytes(32), notes);
    vault.store('t', 'source', { password: 'correct horse battery staple' });
    expect(await vault.open('t', 'source', endpoint)).toEqual({ password: 'correct horse battery staple' });
    await expect(new SecretVault(randomBytes(32), notes).open('t', 'source', endpoint)).rejects.toMatchObject(
      { code: 'secret_unavailable' },
    );
    store.close();
    expect(readFileSync(path).includes('correct horse')).toBe(false);
  });

  test('the key file is made once, readable for its owner only', () => {
    const path = join(temporaryFolder(), 'sub', 'secret.key');
    const key = keyFromFile(path, silent);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(keyFromFile(path, silent)).toEqual(key);
  });

  test('password_env and password_file are read at connect', async () => {
    const store = openStore(':memory:');
    const vault = new SecretVault(randomBytes(32), new TaskNotes(store));
    const path = join(temporaryFolder(), 'pw');
    writeFileSync(path, 'from-file\n');
    expect(await vault.open('t', 'source', { ...endpoint, password: { from: 'file', path } })).toEqual({
      password: 'from-file',
    });
    process.env['DTS_TEST_PW'] = 'from-env';
    onTestFinished(() => void delete process.env['DTS_TEST_PW']);
    expect(
      await vault.open('t', 'source', { ...endpoint, password: { from: 'env', name: 'DTS_TEST_PW' } }),
    ).toEqual({ password: 'from-env' });
    await expect(
      vault.open('t', 'source', { ...endpoint, password: { from: 'env', name: 'DTS_NOT_SET' } }),
    ).rejects.toMatchObject({ code: 'secret_unavailable' });
    store.close();
  });
});

describe('activity runner', () => {
  const deferred = (): { promise: Promise<void>; resolve: () => void } => {
    let resolve = (): void => undefined;
    const promise = new Promise<void>((done) => (resolve = done));
    return { promise, resolve };
  };

  test('what starts next waits until the aborted activity has really ended', async () => {
    const runner = new ActivityRunner(silent, async () => undefined);
    const order: string[] = [];
    const arming = deferred();
    const controller = new AbortController();
    const first = runner.run('t', 'armFence', controller.signal, async () => {
      await arming.promise;
      order.push('arming ended');
    });
    controller.abort();
    const second = runner.run(
      't',
      'disarmFence',
      new AbortController().signal,
      async () => void order.push('disarmed'),
    );
    const other = runner.run(
      'other',
      'drain',
      new AbortController().signal,
      async () => void order.push('other task'),
    );
    await other;
    arming.resolve();
    await Promise.all([first, second]);
    expect(order).toEqual(['other task', 'arming ended', 'disarmed']);
  });

  test('an activity beside a running one does not wait for it', async () => {
    const runner = new ActivityRunner(silent, async () => undefined);
    const stream = deferred();
    const running = runner.run('t', 'stream', new AbortController().signal, () => stream.promise);
    await runner.run('t', 'copyTables', new AbortController().signal, async () => undefined);
    expect(await runner.idle('t', 10)).toBe(false);
    stream.resolve();
    await running;
    expect(await runner.idle('t', 10)).toBe(true);
  });

  test('a failure after the abort is reported as aborted', async () => {
    const runner = new ActivityRunner(silent, async () => undefined);
    const controller = new AbortController();
    const run = runner.run('t', 'drain', controller.signal, async () => {
      controller.abort();
      throw new Error('socket closed');
    });
    await expect(run).rejects.toMatchObject({ kind: 'aborted' });
  });
});

describe('progress', () => {
  const table = (patch: Partial<TableProgress>): TableProgress => ({
    table: 'public.t',
    target: 'public.t',
    state: 'copying',
    rowsCopied: 0,
    rowsEstimated: 100,
    bytesCopied: 0,
    bytesEstimated: 1_000_000,
    partsDone: 0,
    partsTotal: 1,
    format: null,
    formatReason: null,
    ...patch,
  });

  test('weighs tables by size and counts a table fully only when it is done', () => {
    const small = table({ bytesEstimated: 1_000_000, state: 'ready', rowsCopied: 100 });
    const big = table({ bytesEstimated: 9_000_000, rowsCopied: 50 });
    expect(copiedFraction([small, big])).toBeCloseTo(0.55);
    expect(copiedFraction([table({ rowsCopied: 1_000_000 })])).toBe(0.99);
    expect(copiedFraction([])).toBe(0);
  });

  test('weighs them alike when the first of them is finished and its estimate corrected', () => {
    const finished = table({ bytesOnDisk: 9_000_000, bytesEstimated: 10_000, state: 'ready' });
    expect(copiedFraction([finished, table({ bytesOnDisk: 1_000_000 })])).toBeCloseTo(0.9);
  });

  test('is at most 99 until completed', () => {
    const done = [table({ state: 'ready' })];
    expect(progressPercent('finalizing', done)).toBe(99);
    expect(progressPercent('completed', [])).toBe(100);
  });

  /** Of one table with 1,000 rows that nobody copies yet, with a clock of the test's own. */
  function telling(): TaskTelemetry {
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const notes = { tables: () => [], saveTables: () => undefined } as unknown as TaskNotes;
    const silence = (): void => undefined;
    const listeners = { changed: silence, partDone: silence, validated: silence };
    const telemetry = new TaskTelemetry('t', notes, listeners);
    telemetry.setTables([table({ state: 'pending', rowsEstimated: 1_000 })]);
    return telemetry;
  }

  function copy(telemetry: TaskTelemetry, seconds: number, rowsPerSecond: number): void {
    for (let n = 0; n < seconds * 10; n++) {
      vi.advanceTimersByTime(100);
      const rowsCopied = (telemetry.tables[0]?.rowsCopied ?? 0) + rowsPerSecond / 10;
      telemetry.updateTable('public.t', { state: 'copying', rowsCopied, bytesCopied: rowsCopied * 1_000 });
    }
  }

  const isAbout = (seconds: number | null, expected: number): void => {
    expect(seconds).toBeGreaterThanOrEqual(expected);
    expect(seconds).toBeLessThanOrEqual(expected + 1); // it is rounded up
  };

  test('when half is copied in 10 s, the rest takes as long; more when there is more than was thought', () => {
    const telemetry = telling();
    expect(telemetry.snapshot()).toMatchObject({ bytesPerSecond: 0, etaSeconds: null });
    copy(telemetry, 10, 50);
    isAbout(telemetry.snapshot().etaSeconds, 10);
    expect(telemetry.snapshot().bytesPerSecond).toBe(50_000);
    telemetry.updateTable('public.t', { rowsEstimated: 2_000 });
    isAbout(telemetry.snapshot().etaSeconds, 30); // at once, and the rate is what it was
    expect(telemetry.snapshot().bytesPerSecond).toBe(50_000);
    copy(telemetry, 10, 50);
    isAbout(telemetry.snapshot().etaSeconds, 20);
  });

  test('nobody knows how long it takes when nothing has moved of late, or what moved is lost', () => {
    const telemetry = telling();
    copy(telemetry, 10, 50);
    vi.advanceTimersByTime(5_001);
    expect(telemetry.snapshot()).toMatchObject({ bytesPerSecond: 0, etaSeconds: null });
    copy(telemetry, 2, 50);
    isAbout(telemetry.snapshot().etaSeconds, 8);
    telemetry.updateTable('public.t', { state: 'copying', rowsCopied: 0, bytesCopied: 0 });
    copy(telemetry, 1, 50);
    expect(telemetry.snapshot()).toMatchObject({ bytesPerSecond: 0, etaSeconds: null });
  });

  test('what a former run has finished is no rate of this one', () => {
    const telemetry = telling();
    telemetry.updateTable('public.t', { state: 'pending', rowsCopied: 0 });
    vi.advanceTimersByTime(1_000);
    telemetry.updateTable('public.t', { rowsCopied: 800, bytesCopied: 800_000 });
    copy(telemetry, 3, 10);
    expect(telemetry.snapshot().bytesPerSecond).toBe(10_000);
    isAbout(telemetry.snapshot().etaSeconds, 17);
  });
});

test('an unknown failpoint is refused with the known ones', () => {
  expect(() => makeFailpoint('nowhere')).toThrow(/nowhere/);
  expect(() => makeFailpoint('slot.created:0')).toThrow();
  expect(makeFailpoint(undefined)('slot.created')).toBeUndefined();
});
