// pgcopydb's follow beside us and the subscription, at a hundredth of the backlogs: it applies some hundred changes a second.
// From 0.18 on, which reads pgoutput; 0.10, which Debian has, loses transactions at the edges of WAL files.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BenchOptions } from '../run.ts';
import { cpuSeconds, watchMemory } from '../support/processes.ts';
import { medianTable } from '../support/report.ts';
import { lastWords, runCommand, runRounds, type Tool, type ToolCost } from '../support/rounds.ts';
import type { BenchServers } from '../support/servers.ts';
import { backlogs } from './backlogs.ts';
import {
  binarySubscription,
  DATABASE,
  expectEqual,
  makeTables,
  ourTool,
  untilMarked,
  writeBacklog,
  type SyncWork,
} from './tools.ts';

const SHARE = 0.01;
const NAME = 'bench_pgcopydb';
const LEAST_VERSION = 0.18;
const READY_MS = 10_000;
const LATE_MS = 1_000;
/** What it has cost can still be asked for when it has ended. */
const LINGER = '"$@"; code=$?; sleep 1; exit $code';

/** Every backlog, small, by us, by a subscription and by pgcopydb; null where that is not to be had, which is said. */
export async function runBesidePgcopydb(
  servers: BenchServers,
  { scale, rounds }: BenchOptions,
  say: (line: string) => void,
): Promise<string | null> {
  const version = pgcopydbVersion();
  if (version === null || version < LEAST_VERSION) {
    say(`left out: pgcopydb is ${version ?? 'not installed'}, and ${LEAST_VERSION} or newer is needed`);
    return null;
  }
  const small = scale * SHARE;
  const parts: string[] = [];
  for (const backlog of backlogs) {
    const work = { ...servers, backlog, scale: small };
    const tools = [ourTool(work), binarySubscription(work), pgcopydbTool(work)];
    const runs = await runRounds(tools, rounds, servers, say);
    const changes = backlog.changes(small).toLocaleString('en');
    parts.push(`${backlog.name}, ${backlog.title}: ${changes} changes.\n\n${medianTable(runs)}`);
  }
  return `${rounds} rounds, medians, pgcopydb ${version}, ${SHARE} of each backlog: at this size the start of every tool counts.\n\n${parts.join('\n\n')}`;
}

function pgcopydbVersion(): number | null {
  const { stdout, error } = spawnSync('pgcopydb', ['--version'], { encoding: 'utf8' });
  return error ? null : Number(/version (\d+\.\d+)/.exec(stdout)?.[1] ?? 0);
}

interface Running {
  readonly child: ChildProcess;
  readonly pid: number;
  /** The last that it has said. */
  readonly said: () => string;
  /** Rejects when it ends, with what it has said; resolves when it ends well. */
  readonly ended: Promise<void>;
}

function start(command: string, words: readonly string[]): Running {
  // of its own process group, which pgcopydb signals when it ends
  const child = spawn(command, words, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const said = lastWords(child.stdout, child.stderr);
  const ended = new Promise<void>((resolve, reject) =>
    child.once('exit', (code) =>
      code === 0 ? resolve() : reject(new Error(`pgcopydb ended with ${code}: ${said()}`)),
    ),
  );
  ended.catch(() => undefined);
  return { child, pid: child.pid ?? 0, said, ended };
}

/** Looks until something is found, as long as the process lives. */
async function until<T>({ said, ended }: Running, found: () => Promise<T | undefined>): Promise<T> {
  for (const deadline = Date.now() + READY_MS; ; await Promise.race([sleep(50), ended])) {
    const value = await found();
    if (value !== undefined) return value;
    if (Date.now() > deadline) throw new Error(`pgcopydb was not ready in time: ${said()}`);
  }
}

function pgcopydbTool(work: SyncWork): Tool {
  const { source, target } = work;
  const ofSource = ['--source', source.url(DATABASE)];
  const ofSlot = [...ofSource, '--slot-name', NAME, '--plugin', 'pgoutput'];
  const ofBoth = [...ofSlot, '--target', target.url(DATABASE), '--origin', NAME];
  let folder = '';
  let end = '';
  let following: Running | null = null;
  return {
    name: 'pgcopydb follow',
    async prepare() {
      await makeTables(work);
      folder = mkdtempSync(join(tmpdir(), 'dts-bench-pgcopydb-'));
      // makes publication and slot, and holds the snapshot that `setup` asks for
      const holder = start('pgcopydb', ['snapshot', '--follow', ...ofSlot, '--dir', folder]);
      try {
        const snapshot = await until(holder, () =>
          Promise.resolve(/^\w{8}-\w{8}-\d+$/m.exec(holder.said())?.[0]),
        );
        await runCommand(['pgcopydb', 'stream', 'setup', ...ofBoth, '--dir', folder, '--snapshot', snapshot]);
      } finally {
        holder.child.kill('SIGTERM');
        await holder.ended.catch(() => undefined);
      }
      await writeBacklog(work);
      const [row] = await source.query(DATABASE, 'select pg_current_wal_flush_lsn()::text as lsn');
      end = String(row?.['lsn']);
    },
    async run(): Promise<ToolCost> {
      const options = ['--dir', folder, '--resume', '--not-consistent', '--endpos', end];
      const running = start('sh', ['-c', LINGER, 'sh', 'pgcopydb', 'follow', ...ofBoth, ...options]);
      following = running;
      const memory = watchMemory(running.pid);
      try {
        const marked = untilMarked(target);
        marked.catch(() => undefined); // of a run that fails before
        // it applies when it is told to, and can be told once it listens
        const apply = ['pgcopydb', 'stream', 'sentinel', 'set', 'apply', ...ofSource, '--dir', folder];
        await until(running, () => runCommand(apply).catch(() => undefined));
        const short = running.ended.then(async () => {
          await sleep(LATE_MS);
          throw new Error(`pgcopydb has ended without the last transaction: ${running.said()}`);
        });
        short.catch(() => undefined); // of a run that has succeeded
        await Promise.race([marked, short]);
        return { cpuSeconds: cpuSeconds(running.pid), peakBytes: memory.stop() };
      } catch (error) {
        memory.stop();
        if (running.child.exitCode === null) process.kill(-running.pid, 'SIGKILL');
        rmSync(folder, { recursive: true, force: true });
        throw error;
      }
    },
    async verify() {
      await following?.ended;
      rmSync(folder, { recursive: true, force: true });
      await expectEqual(work);
      await target.query('postgres', `select pg_replication_origin_drop('${NAME}')`);
    },
  };
}
