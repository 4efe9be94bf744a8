// The real service as a child process, `node` itself, so that a SIGKILL reaches it and nobody else.
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { expect, onTestFinished } from 'vitest';
import { waitFor, type DatabasePair } from './databases.ts';

const main = join(import.meta.dirname, '../../dist/app/main.js');

export interface ServiceStatus {
  readonly state: string;
  readonly progress: number;
  readonly lag_bytes: number | null;
  readonly connections: number;
  readonly fenced: boolean;
  readonly cleanup_pending: boolean;
  /** Of tables that are copied beside the stream. */
  readonly copying: { readonly tables: readonly string[]; readonly held_bytes: number } | null;
  readonly error: { readonly code: string; readonly message: string; readonly hint?: string } | null;
}

export interface ServiceProcess {
  readonly url: string;
  readonly pid: number;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  /** JSON request; the answer's body is parsed when there is one. */
  call<T = Record<string, unknown>>(
    method: string,
    path: string,
    body?: unknown,
  ): Promise<{ status: number; body: T }>;
  status(id: string): Promise<ServiceStatus>;
  /** Waits for a state; fails at once when the task ends or pauses elsewhere. */
  reaches(id: string, state: string, timeoutMs?: number): Promise<ServiceStatus>;
  /** Waits until what is copied beside the stream is done. */
  copied(id: string, timeoutMs?: number): Promise<ServiceStatus>;
  kill(signal?: NodeJS.Signals): Promise<void>;
  readonly log: string[];
}

/** A folder for SQLite and key file that lives as long as the test. */
export function makeDataDir(): string {
  const folder = mkdtempSync(join(tmpdir(), 'dts-data-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

const terminal = new Set(['completed', 'cancelled', 'failed', 'paused']);

/** Starts `dts serve` on a free port; it is killed when the test ends. Rejects with its end as the cause when it ends first. */
export async function startService(options: {
  dataDir: string;
  failpoint?: string;
  env?: Record<string, string>;
}): Promise<ServiceProcess> {
  if (!existsSync(main)) throw new Error('dist/ is missing: run npm run build');
  const child: ChildProcess = spawn(process.execPath, [main, 'serve'], {
    env: {
      PATH: process.env['PATH'],
      DTS_PORT: '0',
      DTS_DATA_DIR: options.dataDir,
      DTS_LOG_LEVEL: 'debug',
      ...(options.failpoint === undefined ? {} : { DTS_FAILPOINT: options.failpoint }),
      ...options.env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const log: string[] = [];
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) =>
    child.once('exit', (code, signal) => resolve({ code, signal })),
  );
  onTestFinished(async () => {
    child.kill('SIGKILL');
    await exited;
  });
  child.stderr?.on('data', (chunk: Buffer) => log.push(chunk.toString()));
  const url = await new Promise<string>((resolve, reject) => {
    if (!child.stdout) return reject(new Error('no output'));
    createInterface({ input: child.stdout }).on('line', (line) => {
      log.push(line);
      const { msg, url: listening } = JSON.parse(line) as { msg?: string; url?: string };
      if (msg === 'DTS is listening' && listening !== undefined) resolve(listening);
    });
    void exited.then((exit) => reject(new Error(`the service ended: ${log.join('\n')}`, { cause: exit })));
  });
  const call = async <T>(
    method: string,
    path: string,
    body?: unknown,
  ): Promise<{ status: number; body: T }> => {
    const response = await fetch(`${url}/api/v1${path}`, {
      method,
      ...(body === undefined
        ? {}
        : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
    });
    const text = await response.text();
    return { status: response.status, body: (text === '' ? null : JSON.parse(text)) as T };
  };
  const status = async (id: string): Promise<ServiceStatus> =>
    (await call<ServiceStatus>('GET', `/migrations/${id}/status`)).body;
  return {
    pid: child.pid ?? 0,
    url,
    exited,
    call,
    status,
    log,
    async reaches(id, state, timeoutMs = 60_000) {
      return waitFor(
        async () => {
          const now = await status(id);
          if (now.state === state) return now;
          if (terminal.has(now.state))
            throw new Error(`task ${id} is ${now.state}, not ${state}: ${JSON.stringify(now.error)}`);
          return null;
        },
        timeoutMs,
        `task ${id} in ${state}`,
      );
    },
    async copied(id, timeoutMs = 60_000) {
      return waitFor(
        async () => {
          const now = await status(id);
          if (terminal.has(now.state))
            throw new Error(`task ${id} is ${now.state}: ${JSON.stringify(now.error)}`);
          return now.state === 'syncingWal' && now.copying === null ? now : null;
        },
        timeoutMs,
        `the copy of task ${id} beside its stream`,
      );
    },
    async kill(signal = 'SIGKILL') {
      child.kill(signal);
      await exited;
    },
  };
}

/** Whether the streams of the service sent binary values, in the order in which they began. */
export function streamForms({ log }: Pick<ServiceProcess, 'log'>): boolean[] {
  return log.flatMap((line) => {
    if (!line.includes('the stream begins')) return [];
    return [(JSON.parse(line) as { binary: boolean }).binary];
  });
}

/** The create request for a pair, in the API's spelling. */
export function migrationBody(
  pair: DatabasePair,
  over: Record<string, unknown> = {},
): Record<string, unknown> {
  return { source_db: pair.source.connection, target_db: pair.target.connection, ...over };
}

/** Creates and starts a task; returns its id. */
export async function startMigration(
  service: ServiceProcess,
  body: Record<string, unknown>,
): Promise<string> {
  const created = await service.call<{ id: string }>('POST', '/migrations', body);
  expect(created.status, JSON.stringify(created.body)).toBe(201);
  const { id } = created.body;
  const started = await service.call('POST', `/migrations/${id}/start`);
  expect(started.status, JSON.stringify(started.body)).toBe(200);
  return id;
}

/** Waits until the target has nearly caught up, then asks for the cutover. */
export async function cutOver(service: ServiceProcess, id: string): Promise<void> {
  await service.reaches(id, 'syncingWal');
  const answer = await service.call('POST', `/migrations/${id}/cutover`);
  expect(answer.status, JSON.stringify(answer.body)).toBe(200);
  await service.reaches(id, 'completed');
}
