// Used by plan.ts and compare.ts: the schema of a server, as pg_dump prints it, taken apart into entries. pg_dump is the
// machine's own where it is new enough for both servers, else the bundled one; either talks to the server through a
// session of the task that is lent to it. Output is taken apart in a worker.
import { setFlagsFromString } from 'node:v8';
import { MessageChannel, Worker } from 'node:worker_threads';
import pg from 'pg';
import { MigrationError } from '../model/errors.ts';
import type { Role } from '../model/endpoint.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { nativeMajor, runNativeDump } from './dump-native.ts';
import type { BundledDump, DumpWorkerInput, DumpWorkerResult } from './dump-worker.ts';
import type { ErrorFields } from './dump-wire.ts';
import { LentSession } from './lent-session.ts';
import type { DumpEntry } from './split.ts';

/** The major of the bundled pg_dump; it refuses newer servers. */
const BUNDLED_MAJOR = 18;

const DUMP_TIMEOUT_MS = 15 * 60_000;
/** pg_dump takes ACCESS SHARE on every table; somebody's ALTER TABLE must not keep us longer than this. */
const LOCK_WAIT_MS = 30_000;
/** A dump takes about 110 MB: tasks that start together take turns. */
const MAX_DUMPS = 2;
let dumpsRunning = 0;

const dumpOptions = [
  '--schema-only',
  '--verbose', // prints every entry's catalog identity and dependencies as comments
  '--encoding=UTF8',
  `--lock-wait-timeout=${LOCK_WAIT_MS}`,
];

export type Dumper = 'native' | 'bundled';

export interface DumpRequest {
  readonly role: Role;
  /** Only these schemas; null: the whole database, with what lies in no schema. */
  readonly schemas: readonly string[] | null;
  /** What is printed besides: by default none of it. */
  readonly besides?: {
    readonly owners: boolean;
    readonly privileges: boolean;
    readonly tablespaces: boolean;
  };
  /** Extensions to print along with `schemas`, which alone would leave them out. */
  readonly extensions: readonly string[];
}

/**
 * The pg_dump that both servers are read with: what two of different majors print could not be compared, and only a
 * pg_dump of the target's major or later knows what the target accepts. Errors: `schema_unsupported` (both too old).
 */
export async function chooseDumper(scope: TaskScope): Promise<Dumper> {
  const [source, target, native] = await Promise.all([
    majorOf(scope, 'source'),
    majorOf(scope, 'target'),
    nativeMajor(),
  ]);
  const newest = Math.max(source, target);
  if (native !== null && native >= newest) return 'native';
  if (newest <= BUNDLED_MAJOR) return 'bundled';
  throw new MigrationError('schema_unsupported', `PostgreSQL ${newest} is newer than every pg_dump here`, {
    hint: `install pg_dump ${newest} or later on this machine and let PATH find it; the bundled one is ${BUNDLED_MAJOR}`,
  });
}

export async function majorOf(scope: TaskScope, role: Role): Promise<number> {
  const { rows } = await scope[role].query<{ version: number }>(
    `select current_setting('server_version_num')::int as version`,
  );
  return Math.floor((rows[0]?.version ?? 0) / 10_000);
}

/**
 * Runs pg_dump. Entries come in pg_dump's order, which is one that can be executed.
 * Errors: `schema_unsupported` (text that the parser refuses), `schema_failed`, `lock_timeout`, `deadline_exceeded`, and
 * those of a query.
 */
export async function dumpSchema(
  scope: TaskScope,
  dumper: Dumper,
  request: DumpRequest,
): Promise<readonly DumpEntry[]> {
  await takeTurn(scope);
  const deadline = AbortSignal.timeout(DUMP_TIMEOUT_MS);
  const signal = AbortSignal.any([scope.signal, deadline]);
  try {
    scope.progress.setWaitingFor(`pg_dump reads the schema of the ${request.role}`);
    const session = await scope[request.role].session({ purpose: 'dump', signal });
    try {
      const lent = await LentSession.lend(session);
      try {
        return await entriesFrom(lent, dumper, request, signal);
      } catch (error) {
        const { role } = request;
        if (lent.error !== null) throw refused(lent.error, role, error);
        throw fromPostgres(error, { role });
      } finally {
        lent.giveBack();
      }
    } finally {
      await session.close();
    }
  } catch (error) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    if (deadline.aborted)
      throw new MigrationError(
        'deadline_exceeded',
        `pg_dump took longer than ${DUMP_TIMEOUT_MS / 60_000} minutes`,
        { cause: error },
      );
    throw error;
  } finally {
    dumpsRunning--;
    scope.progress.setWaitingFor(null);
  }
}

async function takeTurn(scope: TaskScope): Promise<void> {
  while (dumpsRunning >= MAX_DUMPS) {
    scope.progress.setWaitingFor('other tasks read their schema first');
    await sleep(50, scope.signal).catch((error: unknown) => {
      scope.progress.setWaitingFor(null);
      throw error;
    });
  }
  dumpsRunning++;
}

async function entriesFrom(
  lent: LentSession,
  dumper: Dumper,
  request: DumpRequest,
  signal: AbortSignal,
): Promise<readonly DumpEntry[]> {
  const args = argumentsOf(request);
  if (dumper === 'native') {
    const text = await runNativeDump(lent, args, signal);
    return runWorker({ text }, [], lent);
  }
  const { port1: ours, port2: theirs } = new MessageChannel();
  const answered = new SharedArrayBuffer(4);
  const input: BundledDump = { args, parameters: lent.parameters, port: theirs, answered };
  const counter = new Int32Array(answered);
  let chunks: Buffer[] = [];
  lent.receive((chunk, endsAnswer) => {
    chunks.push(chunk);
    if (!endsAnswer) return;
    ours.postMessage(Uint8Array.from(chunks.length === 1 ? chunk : Buffer.concat(chunks)));
    chunks = [];
    Atomics.add(counter, 0, 1);
    Atomics.notify(counter, 0);
  });
  ours.on('message', (bytes: Uint8Array) => lent.send(bytes));
  try {
    return await runWorker(input, [theirs], lent);
  } finally {
    ours.close();
  }
}

function argumentsOf({ schemas, extensions, besides }: DumpRequest): string[] {
  const options = [
    ...dumpOptions,
    ...(besides?.owners ? [] : ['--no-owner']),
    ...(besides?.privileges ? [] : ['--no-privileges']),
    ...(besides?.tablespaces ? [] : ['--no-tablespaces']),
  ];
  if (schemas === null) return options;
  return [
    ...options,
    ...schemas.map((schema) => `--schema=${exactPattern(schema)}`),
    ...extensions.map((name) => `--extension=${exactPattern(name)}`),
  ];
}

/** A psql pattern that matches one name: quoted, it has no wildcards and keeps its case. */
function exactPattern(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/**
 * V8's optimising compiler for WebAssembly takes three times the CPU of a dump, which runs for a fraction of a second, and
 * does not pay for itself with thousands of tables either. The flags are the process's; the other
 * WebAssembly here, postgres/pack-rows.ts, sees to itself.
 */
function keepWasmSimple(): void {
  setFlagsFromString('--no-wasm-tier-up');
  setFlagsFromString('--no-wasm-dynamic-tiering');
}

/** Of the worker's heap; V8's default of 48 lets a dump of 2,000 tables take 30 MB more, and no less CPU. */
const YOUNG_MB = 8;

async function runWorker(
  input: DumpWorkerInput,
  transferList: readonly BundledDump['port'][],
  lent: LentSession,
): Promise<readonly DumpEntry[]> {
  keepWasmSimple();
  const worker = new Worker(workerUrl(), {
    workerData: input,
    transferList: [...transferList],
    env: {},
    execArgv: [],
    resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MB },
  });
  try {
    const result = await new Promise<DumpWorkerResult>((resolve, reject) => {
      lent.onClose(() => reject(new Error('Connection terminated unexpectedly')));
      worker.once('message', resolve);
      worker.once('error', reject);
      worker.once('exit', () => reject(new Error('the pg_dump worker ended without a result')));
    });
    if ('entries' in result) return result.entries;
    if (result.failed === 'parse')
      throw new MigrationError('schema_unsupported', `the dump cannot be parsed: ${result.message}`);
    throw new MigrationError('schema_failed', result.message);
  } finally {
    await worker.terminate();
  }
}

/** node below 22 cannot run TypeScript: from sources, the worker is the one that `npm run build` made. */
function workerUrl(): URL {
  return import.meta.url.endsWith('.ts')
    ? new URL('../../dist/src/schema/dump-worker.js', import.meta.url)
    : new URL('./dump-worker.js', import.meta.url);
}

/** What it means that the server refused a query of pg_dump. */
function refused(fields: ErrorFields, role: Role, dumpError: unknown): MigrationError {
  const cause = new pg.DatabaseError(fields['M'] ?? 'the server refused a query of pg_dump', 0, 'error');
  cause.code = fields['C'];
  cause.detail = fields['D'];
  cause.hint = fields['H'];
  cause.cause = dumpError;
  // pg_dump bounds its LOCK TABLE by statement_timeout, so a lock that is not granted is query_canceled
  if (fields['C'] === '57014')
    return new MigrationError(
      'lock_timeout',
      `${role}: pg_dump waited ${LOCK_WAIT_MS / 1000} s for a table lock`,
      {
        hint: 'another session holds ACCESS EXCLUSIVE on a table (ALTER TABLE, TRUNCATE, VACUUM FULL)',
        details: { role, sqlstate: '57014' },
        cause,
      },
    );
  return fromPostgres(cause, { role, statement: 'pg_dump' });
}
