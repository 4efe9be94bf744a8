// What processes cost, from /proc: CPU seconds and peak memory of whole trees, so that a server counts with every backend
// that it forked and a tool with its children. Linux only, like every figure in RESULTS.md.
import { readdirSync, readFileSync } from 'node:fs';

/** Clock ticks a second in /proc (sysconf(_SC_CLK_TCK), 100 on every Linux that we know). */
const TICKS_PER_SECOND = 100;

interface ProcessStat {
  readonly pid: number;
  readonly parent: number;
  /** utime + stime of the process. */
  readonly ownTicks: number;
  /** The same of its children that have ended and were waited for. */
  readonly endedTicks: number;
}

function readStat(pid: number): ProcessStat | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // the command's name, in parentheses, may contain anything
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    const at = (n: number): number => Number(fields[n - 3]);
    return { pid, parent: at(4), ownTicks: at(14) + at(15), endedTicks: at(16) + at(17) };
  } catch {
    return null; // it has ended
  }
}

/** The process and everything that descends from it. */
function treeOf(root: number): ProcessStat[] {
  const all = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => readStat(Number(name)) ?? []);
  const children = new Map<number, ProcessStat[]>();
  for (const stat of all) children.set(stat.parent, [...(children.get(stat.parent) ?? []), stat]);
  const tree = all.filter((stat) => stat.pid === root);
  for (const stat of tree) tree.push(...(children.get(stat.pid) ?? []));
  return tree;
}

/** A tree in which processes end faster than it can be read is taken as it is after so many tries. */
const MOST_TRIES = 50;

/**
 * The tree as of one moment. /proc gives one process after the other: of a backend that ends meanwhile, and that the
 * postmaster waits for, the CPU would be counted twice (before it, as its own, then as the postmaster's) or, the other way
 * round, not at all. So it is read again when anybody in it is gone, or has waited for somebody, since.
 */
function treeAtOnce(root: number): ProcessStat[] {
  for (let tries = 1; ; tries++) {
    const tree = treeOf(root);
    const still = tree.every(({ pid, endedTicks }) => readStat(pid)?.endedTicks === endedTicks);
    if (still || tries === MOST_TRIES) return tree;
  }
}

/** CPU seconds of a tree so far, ended children included; it never goes down while the root lives. */
export function cpuSeconds(root: number): number {
  const ticks = treeAtOnce(root).reduce((sum, stat) => sum + stat.ownTicks + stat.endedTicks, 0);
  return ticks / TICKS_PER_SECOND;
}

/** A size of /proc/<pid>/status; NaN where it has none. Throws when the process has ended. */
function statusBytes(pid: number, field: 'VmRSS' | 'VmHWM'): number {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1');
  return Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(status)?.[1]) * 1024;
}

/** Resident memory of a tree in bytes; pages shared by its processes (a server's buffers) count once for each. */
function residentBytes(root: number): number {
  let bytes = 0;
  for (const { pid } of treeOf(root)) {
    try {
      bytes += statusBytes(pid, 'VmRSS') || 0;
    } catch {
      // it has ended
    }
  }
  return bytes;
}

/** Watches a tree's memory until stopped; `stop` returns the largest sum seen. */
export function watchMemory(root: number, everyMs = 50): { stop(): number } {
  let peak = residentBytes(root);
  const timer = setInterval(() => (peak = Math.max(peak, residentBytes(root))), everyMs);
  return {
    stop() {
      clearInterval(timer);
      return Math.max(peak, residentBytes(root));
    },
  };
}

/**
 * The most that one process ever held, in bytes, as the kernel keeps it: to look every few milliseconds would take CPU from
 * what is measured, and miss peaks between two looks.
 */
export function peakResidentBytes(pid: number): number {
  return statusBytes(pid, 'VmHWM');
}

/** The postmaster of a data directory. */
export function postmasterOf(directory: string): number {
  return Number(readFileSync(`${directory}/postmaster.pid`, 'latin1').split('\n')[0]);
}
