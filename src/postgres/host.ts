// What a server's machine has, as far as the server lets us see it, and how much is done at once because of it. SQL tells
// neither cores nor memory; a role that may read the server's files sees what Linux says of both. Asked by preflight and
// once by the copy; what is done under the fence goes by what was chosen then.
import type { Side } from './connections.ts';
import type { TaskScope } from './task-scope.ts';

export interface Host {
  /** Null: the server does not say. */
  readonly cores: number | null;
  /** Memory that could be had when it was asked; null: the server does not say. */
  readonly freeBytes: number | null;
}

export const unknownHost: Host = { cores: null, freeBytes: null };

/** Parts copied and indexes built at once where nothing is known of the machines. */
const COPY_JOBS = 4;
const INDEX_JOBS = 2;
/** More parts at once than these are not worth their connections. */
const MAX_COPY_JOBS = 16;
const MAX_INDEX_JOBS = 8;

/** A container's limits count as the machine's. Errors: those of a query. */
export async function readHost(side: Side): Promise<Host> {
  // a function without EXECUTE fails its whole statement, called or not: so it is a statement of its own
  const { rows: allowed } = await side.query<{ allowed: boolean }>(
    `select has_function_privilege('pg_read_file(text, bigint, bigint, boolean)', 'execute')
        and pg_has_role(current_user, 'pg_read_server_files', 'usage') as allowed`,
  );
  if (allowed[0]?.allowed !== true) return unknownHost;
  const paths = [
    '/proc/cpuinfo',
    '/proc/meminfo',
    '/sys/fs/cgroup/cpu.max',
    '/sys/fs/cgroup/memory.max',
    '/sys/fs/cgroup/memory.current',
  ];
  // with an explicit length: the kernel says of these files that they are empty
  const { rows } = await side.query<{ text: string | null }>(
    `select pg_read_file(path, 0, 4194304, true) as text from unnest($1::text[]) with ordinality as f(path, n) order by n`,
    [paths],
  );
  const [cpus = '', memory = '', cpuMax = '', memoryMax = '', memoryUsed = ''] = rows.map(
    ({ text }) => text ?? '',
  );
  return hostFrom({ cpus, memory, cpuMax, memoryMax, memoryUsed });
}

/** Pure: the texts of `/proc/cpuinfo`, `/proc/meminfo` and of cgroup v2; empty where a file is missing. */
export function hostFrom(texts: {
  readonly cpus: string;
  readonly memory: string;
  readonly cpuMax: string;
  readonly memoryMax: string;
  readonly memoryUsed: string;
}): Host {
  const cores: number[] = [];
  const processors = texts.cpus.match(/^processor\s*:/gm)?.length ?? 0;
  if (processors > 0) cores.push(processors);
  const quota = /^(\d+) (\d+)/.exec(texts.cpuMax); // microseconds of CPU in each period of so many
  if (quota) cores.push(Math.max(1, Math.floor(Number(quota[1]) / Number(quota[2]))));
  const free: number[] = [];
  const available = /^MemAvailable:\s*(\d+) kB/m.exec(texts.memory);
  if (available) free.push(Number(available[1]) * 1024);
  const [limit, used] = [Number.parseInt(texts.memoryMax, 10), Number.parseInt(texts.memoryUsed, 10)];
  if (Number.isFinite(limit) && Number.isFinite(used)) free.push(Math.max(0, limit - used));
  return {
    cores: cores.length === 0 ? null : Math.min(...cores),
    freeBytes: free.length === 0 ? null : Math.min(...free),
  };
}

/**
 * Pure: `copy_jobs` where nobody says otherwise. COPY keeps a core of the source and one of the target busy: half of the
 * source's are left to its applications, and small machines still get some, for much of a COPY is waiting.
 */
export function defaultCopyJobs(source: Host, target: Host): number {
  if (source.cores === null && target.cores === null) return COPY_JOBS;
  const most = Math.min((source.cores ?? Infinity) / 2, target.cores ?? Infinity);
  return Math.min(MAX_COPY_JOBS, Math.max(COPY_JOBS, Math.floor(most)));
}

/** Pure: `index_jobs` where nobody says otherwise. */
export function defaultIndexJobs({ cores }: Host): number {
  return cores === null ? INDEX_JOBS : Math.min(MAX_INDEX_JOBS, Math.max(INDEX_JOBS, cores));
}

export interface Hosts {
  readonly source: Host;
  readonly target: Host;
}

/** The source's is not asked where `options.copyJobs` says it all. */
export async function readHosts(scope: TaskScope): Promise<Hosts> {
  const given = scope.spec.options.copyJobs !== null;
  const [source, target] = await Promise.all([
    given ? unknownHost : readHost(scope.source),
    readHost(scope.target),
  ]);
  return { source, target };
}

/** Checkpoint. */
const COPY_JOBS_NOTE = 'copyJobs';

/** Tables or parts that the task reads at once: `options.copyJobs`, or what both machines are good for. Kept for later. */
export function chooseCopyJobs(scope: TaskScope, { source, target }: Hosts): number {
  const copyJobs = scope.spec.options.copyJobs ?? defaultCopyJobs(source, target);
  scope.checkpoints.set(COPY_JOBS_NOTE, copyJobs);
  return copyJobs;
}

/** Of a task that has copied nothing (a reverse task): asks before there is a fence. */
export async function ensureCopyJobs(scope: TaskScope): Promise<void> {
  if (scope.spec.options.copyJobs === null && scope.checkpoints.get(COPY_JOBS_NOTE) === undefined)
    chooseCopyJobs(scope, await readHosts(scope));
}

/** What was chosen; under the fence nobody is asked. */
export function copyJobsOf(scope: TaskScope): number {
  return scope.spec.options.copyJobs ?? scope.checkpoints.get<number>(COPY_JOBS_NOTE) ?? COPY_JOBS;
}
