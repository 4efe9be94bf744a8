// Results as tables in test/bench/RESULTS.md: every bench owns the sections whose titles it writes and leaves the others
// as they are. The machine is stated with each, because figures of two machines say nothing about each other.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, platform, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { median, type Run } from './rounds.ts';
import type { BenchServers } from './servers.ts';

/** In the checkout, not in dist/. */
const RESULTS = join(process.cwd(), 'test/bench/RESULTS.md');
const MEGABYTE = 1024 * 1024;

/** Whether the servers' shared buffers can be in huge pages: without, every new backend pays a fault for each page it touches. */
function hugePages(): string {
  if (!existsSync('/proc/meminfo')) return 'huge pages unknown';
  const total = /^HugePages_Total:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? '0';
  return `${total === '0' ? 'no' : total} huge pages`;
}

function describeMachine({ source, target }: BenchServers): string {
  const all = cpus();
  return (
    `${all.length} × ${all[0]?.model.trim() ?? 'unknown processor'}, ${Math.round(totalmem() / 1024 ** 3)} GB, ${hugePages()}, ` +
    `${platform()} ${release()}, Node ${process.version}; source PostgreSQL ${source.version}, target ${target.version}, ` +
    `all on this machine unless a URL was given`
  );
}

function row(cells: readonly string[]): string {
  return `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
}

/** A Markdown table: the first column is text, the others are as given. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  return [row(head), row(head.map((_, at) => (at === 0 ? '---' : '---:'))), ...rows.map(row)].join('\n');
}

const seconds = (value: number | null): string => (value === null ? '–' : value.toFixed(2));

/** Medians of every tool, and the first tool's wall as a share of each other's. */
export function medianTable(runs: ReadonlyMap<string, readonly Run[]>): string {
  const medians = [...runs].map(([name, all]) => {
    const of = (pick: (run: Run) => number | null): number | null => {
      const values = all.map(pick).filter((value) => value !== null);
      return values.length === 0 ? null : median(values);
    };
    return {
      name,
      wall: of((run) => run.wallSeconds) ?? Number.NaN,
      spread: all.map((run) => run.wallSeconds.toFixed(2)).join(' '),
      tool: of((run) => run.cpuSeconds),
      source: of((run) => run.sourceCpuSeconds),
      target: of((run) => run.targetCpuSeconds),
      peak: of((run) => run.peakBytes) ?? 0,
    };
  });
  const ours = medians[0];
  return table(
    ['tool', 'wall s', 'ours / this', 'tool CPU s', 'source CPU s', 'target CPU s', 'peak MB', 'each wall s'],
    medians.map((each) => [
      each.name,
      seconds(each.wall),
      ours === undefined ? '–' : (ours.wall / each.wall).toFixed(2),
      seconds(each.tool),
      seconds(each.source),
      seconds(each.target),
      (each.peak / MEGABYTE).toFixed(0),
      each.spread,
    ]),
  );
}

/** Writes (or replaces) the section `## title` of RESULTS.md. */
function storeSection(title: string, body: string): void {
  const head = `# Results of the benches\n\nWritten by \`npm run bench\`. Every section states its machine and when it was measured.\n`;
  const text = existsSync(RESULTS) ? readFileSync(RESULTS, 'utf8') : head;
  const [intro = head, ...sections] = text.split(/^(?=## )/m);
  const kept = sections.filter((section) => !section.startsWith(`## ${title}\n`));
  const section = `## ${title}\n\n${body.trim()}\n`;
  writeFileSync(RESULTS, [intro, ...kept, section].map((part) => `${part.trim()}\n`).join('\n'));
}

export const say = (line: string): void => void process.stdout.write(`${line}\n`);

/**
 * Prints the machine, and then every section that it is told; with `store` that is kept, too. `facts`: what is stated of it
 * beside the scale.
 */
export function startReport(
  servers: BenchServers,
  { scale, store }: { readonly scale: number; readonly store: boolean },
  facts = '',
): (title: string, body: string) => void {
  const machine = describeMachine(servers);
  say(machine);
  return (title, body) => {
    say(`\n## ${title}\n\n${body}\n`);
    const day = new Date().toISOString().slice(0, 10);
    if (store) storeSection(title, `${day}, scale ${scale}${facts}. ${machine}.\n\n${body}`);
  };
}

/** Throws when --only names something that is no part of the bench. */
export function checkOnly(only: readonly string[], parts: readonly string[]): void {
  for (const name of only)
    if (!parts.includes(name)) throw new Error(`--only: ${name} is none of ${parts.join(', ')}`);
}
