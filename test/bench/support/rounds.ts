// Rounds of several tools over one piece of work, in turn, so that a slow minute of the machine hits all of them: wall,
// CPU and memory of each run, medians, and their ratios to the first tool's.
import { spawn } from 'node:child_process';
import type { Readable } from 'node:stream';
import { watchMemory } from './processes.ts';
import type { BenchServers } from './servers.ts';

/** What a tool's own processes cost. */
export interface ToolCost {
  readonly cpuSeconds: number;
  /** Largest resident memory of all its processes together. */
  readonly peakBytes: number;
}

export interface Run extends ToolCost {
  readonly wallSeconds: number;
  /** Null of a server that is not on this machine. */
  readonly sourceCpuSeconds: number | null;
  readonly targetCpuSeconds: number | null;
}

export interface Tool {
  readonly name: string;
  /** Not measured: fresh databases, schemas. */
  prepare(): Promise<void>;
  run(): Promise<ToolCost>;
  /** Not measured: throws when the result is not what it should be. */
  verify(): Promise<void>;
  /** CPU seconds so far of what goes on after `run`; 0 of what runs in a server. */
  cpuSeconds?(): number;
  /** Its largest resident memory so far. */
  peakBytes?(): number;
}

/** What these have said last, up to 4,000 characters. */
export function lastWords(...streams: readonly (Readable | null)[]): () => string {
  let said = '';
  for (const stream of streams)
    stream?.on('data', (chunk: Buffer) => void (said = (said + chunk.toString()).slice(-4_000)));
  return () => said;
}

/** Runs a command to its end and says what it and its children cost; throws with its output when it fails. */
export async function runCommand(
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<ToolCost> {
  // `times` of the shell prints what its children took; descriptor 3, because 1 and 2 are the command's own
  const child = spawn('sh', ['-c', '"$@" 3>&-; code=$?; times >&3; exit $code', 'sh', ...command], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    detached: true, // pgcopydb signals its whole process group when it ends
  });
  const memory = watchMemory(child.pid ?? 0);
  const said = lastWords(child.stdout, child.stderr);
  let times = '';
  child.stdio[3]?.on('data', (chunk: Buffer) => void (times += chunk.toString()));
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const peakBytes = memory.stop();
  if (code !== 0) throw new Error(`${command.join(' ')} ended with ${code}: ${said()}`);
  const spent = [...(times.split('\n')[1] ?? '').matchAll(/(\d+)m([\d.]+)s/g)];
  return { cpuSeconds: spent.reduce((sum, [, m, s]) => sum + Number(m) * 60 + Number(s), 0), peakBytes };
}

/** Null where one of them is not known. */
export function spentSince(before: number | null, now: number | null): number | null {
  return now === null || before === null ? null : now - before;
}

/**
 * `rounds` runs of every tool, one tool after the other within each round, each round beginning with another: the first
 * run finds servers whose WAL files are still to be made, and memory that nobody has touched. By the tool's name.
 */
export async function runRounds(
  tools: readonly Tool[],
  rounds: number,
  servers: BenchServers,
  say: (line: string) => void,
): Promise<ReadonlyMap<string, readonly Run[]>> {
  const { source, target } = servers;
  const runs = new Map<string, Run[]>(tools.map((tool) => [tool.name, []]));
  for (let round = 1; round <= rounds; round++) {
    const first = (round - 1) % tools.length;
    for (const tool of [...tools.slice(first), ...tools.slice(0, first)]) {
      await tool.prepare();
      const before = { source: source.cpuSeconds(), target: target.cpuSeconds() };
      const began = performance.now();
      const cost = await tool.run();
      const run: Run = {
        ...cost,
        wallSeconds: (performance.now() - began) / 1_000,
        sourceCpuSeconds: spentSince(before.source, source.cpuSeconds()),
        targetCpuSeconds: spentSince(before.target, target.cpuSeconds()),
      };
      await tool.verify();
      runs.get(tool.name)?.push(run);
      say(`round ${round}: ${tool.name} ${run.wallSeconds.toFixed(2)} s`);
    }
  }
  return runs;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
  const lower = sorted[Math.ceil(sorted.length / 2) - 1] ?? Number.NaN;
  return (lower + upper) / 2;
}
