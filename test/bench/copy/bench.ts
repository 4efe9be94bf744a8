// `npm run bench -- copy`: the whole copy beside other tools, and what it promises of memory, many tables and resuming.
import type { BenchOptions } from '../run.ts';
import { checkOnly, medianTable, say, startReport } from '../support/report.ts';
import { runRounds, type Tool } from '../support/rounds.ts';
import { withServers, type BenchServers } from '../support/servers.ts';
import { bigTables, buildIndexes, loadBigTables, loadManyTables } from './data.ts';
import { measureMemory } from './memory.ts';
import { measureResume } from './resume.ts';
import { cloningTools, toolsFor, type Work } from './tools.ts';

const SOURCE_DB = 'dts_bench_source';
const TARGET_DB = 'dts_bench_target';
/** Of the machine that RESULTS.md names; every tool gets the same. */
const JOBS = 4;
/** The data of the resumed copy, as times of the others'. */
const RESUMED_TIMES = 3;

export interface Bench extends BenchServers {
  readonly options: BenchOptions;
  readonly say: (line: string) => void;
  /** Prints a section and, with --store, keeps it. */
  readonly report: (title: string, body: string) => void;
  workOf(over: Pick<Work, 'tables' | 'withIndexes'>): Work;
}

async function compare(
  bench: Bench,
  title: string,
  tools: readonly Tool[],
  missing: readonly string[],
): Promise<void> {
  const { options, source, target } = bench;
  const runs = await runRounds(tools, options.rounds, { source, target }, bench.say);
  const absent = missing.length === 0 ? '' : `\n\nNot installed: ${missing.join(', ')}.`;
  bench.report(title, `${options.rounds} rounds, medians.\n\n${medianTable(runs)}${absent}`);
}

/** Every part by its name for --only, in the order in which they run. */
const parts: Readonly<Record<string, (bench: Bench) => Promise<void>>> = {
  async whole(bench) {
    await loadBigTables(bench.source, SOURCE_DB, bench.options.scale, true);
    const work = bench.workOf({ tables: bigTables, withIndexes: true });
    const { tools, missing } = toolsFor(work, () => buildIndexes(bench.target, TARGET_DB));
    await compare(bench, 'copy: whole database with keys and indexes', tools, missing);
  },
  async data(bench) {
    await loadBigTables(bench.source, SOURCE_DB, bench.options.scale, false);
    const work = bench.workOf({ tables: bigTables, withIndexes: false });
    const { tools, missing } = toolsFor(work, () => Promise.resolve());
    await compare(bench, 'copy: data only', tools, missing);
  },
  async many(bench) {
    const tables = Math.max(10, Math.round(2_000 * bench.options.scale));
    await loadManyTables(bench.source, SOURCE_DB, tables);
    const work = bench.workOf({ tables: [], withIndexes: true });
    await compare(bench, `copy: many small tables`, cloningTools(work), []);
  },
  async memory(bench) {
    const work = bench.workOf({ tables: bigTables, withIndexes: true });
    await measureMemory(bench, work);
  },
  async resume(bench) {
    // so large that every table is cut into parts
    await loadBigTables(bench.source, SOURCE_DB, bench.options.scale * RESUMED_TIMES, true);
    await measureResume(bench, bench.workOf({ tables: bigTables, withIndexes: true }));
  },
};

export async function runCopyBench(options: BenchOptions): Promise<void> {
  checkOnly(options.only, Object.keys(parts));
  await withServers(options.servers, async (source, target) => {
    const bench: Bench = {
      options,
      source,
      target,
      say,
      report: startReport({ source, target }, options, `, ${JOBS} jobs for every tool`),
      workOf: (over) => ({ source, target, sourceDb: SOURCE_DB, targetDb: TARGET_DB, jobs: JOBS, ...over }),
    };
    for (const [name, run] of Object.entries(parts))
      if (options.only.length === 0 || options.only.includes(name)) await run(bench);
  });
}
