// pgcopydb's follow beside us and the subscription, at a hundredth of the backlogs: it applies some hundred changes a second.
// From 0.18 on, which reads pgoutput; 0.10, which Debian has, loses transactions at the edges of WAL files.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { cpuSeconds, watchMemory } from '../support/processes.ts';
import { runCommand, type Tool, type ToolCost } from '../support/rounds.ts';
import { DATABASE, expectEqual, makeTables, untilMarked, writeBacklog, type SyncWork } from './tools.ts';

export const SHARE = 0.01;
const NAME = 'bench_pgcopydb';
export const LEAST_VERSION = 0.18;
const READY_MS = 10_000;
/** What it has cost can still be asked for when it has ended. */
const LINGER = '"$@"; code=$?; sleep 1; exit $code';

/** Null: none that is new enough is installed. */
export function pgcopydbVersion(): number | null {
  const { stdout, error } = spawnSync('pgcopydb', ['--version'], { encoding: 'utf8' });
  const version = error ? Number.NaN : Number(/version (\d+\.\d+)/.exec(stdout)?.[1]);
  return version >= LEAST_VERSION ? version : null;
}

interface Running {
  readonly child: ChildProcess;
  readonly pid: number;
  /** The last that it has said. */
  said(): string;
}

function start(command: string, words: readonly string[]): Running {
  // of its own process group, which pgcopydb signals when it ends
  const child = spawn(command, words, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  let said = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => void (said = (said + chunk.toString()).slice(-4_000)));
  return { child, pid: child.pid ?? 0, said: () => said };
}

async function until<T>(found: () => T | undefined | Promise<T | undefined>, what: string): Promise<T> {
  for (const deadline = Date.now() + READY_MS; ; await sleep(50)) {
    const value = await found();
    if (value !== undefined) return value;
    if (Date.now() > deadline) throw new Error(`pgcopydb: no ${what} in time`);
  }
}

export function pgcopydbTool(work: SyncWork): Tool {
  const { source, target } = work;
  const ofSource = ['--source', source.url(DATABASE), '--slot-name', NAME, '--plugin', 'pgoutput'];
  const ofBoth = [...ofSource, '--target', target.url(DATABASE), '--origin', NAME];
  let folder = '';
  let end = '';
  let following: Running | null = null;
  return {
    name: 'pgcopydb follow',
    async prepare() {
      await makeTables(work);
      folder = mkdtempSync(join(tmpdir(), 'dts-bench-pgcopydb-'));
      // makes publication and slot, and holds the snapshot that `setup` asks for
      const holder = start('pgcopydb', ['snapshot', '--follow', ...ofSource, '--dir', folder]);
      const snapshot = await until(() => /^\w{8}-\w{8}-\d+$/m.exec(holder.said())?.[0], 'snapshot');
      await runCommand(['pgcopydb', 'stream', 'setup', ...ofBoth, '--dir', folder, '--snapshot', snapshot]);
      const exit = once(holder.child, 'exit');
      holder.child.kill('SIGTERM');
      await exit;
      await writeBacklog(work);
      const [row] = await source.query(DATABASE, 'select pg_current_wal_flush_lsn()::text as lsn');
      end = String(row?.['lsn']);
    },
    async run(): Promise<ToolCost> {
      const options = ['--dir', folder, '--resume', '--not-consistent', '--endpos', end];
      const running = start('sh', ['-c', LINGER, 'sh', 'pgcopydb', 'follow', ...ofBoth, ...options]);
      following = running;
      const memory = watchMemory(running.pid);
      const marked = untilMarked(target);
      marked.catch(() => undefined); // of a run that fails before
      // it applies when it is told to, and can be told once it listens
      const apply = [
        'pgcopydb',
        'stream',
        'sentinel',
        'set',
        'apply',
        ...ofSource.slice(0, 2),
        '--dir',
        folder,
      ];
      await until(() => runCommand(apply).catch(() => undefined), 'coordinator');
      const failed = once(running.child, 'exit').then(([code]) =>
        code === 0 ? marked : Promise.reject(new Error(`pgcopydb ended with ${code}: ${running.said()}`)),
      );
      failed.catch(() => undefined);
      await Promise.race([marked, failed]);
      return { cpuSeconds: cpuSeconds(running.pid), peakBytes: memory.stop() };
    },
    async verify() {
      if (following !== null && following.child.exitCode === null) await once(following.child, 'exit');
      await expectEqual(work);
      await target.query('postgres', `select pg_replication_origin_drop('${NAME}')`);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
