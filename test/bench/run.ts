// `npm run bench -- <name> [options]`: measures DTS beside other tools on real servers. Never part of `npm test`.
import { parseArgs } from 'node:util';
import { installedMajors, type EmbeddedMajor } from '../../src/cli/embedded-postgres.ts';
import { runCopyBench } from './copy/bench.ts';
import { runCutoverBench } from './cutover/bench.ts';
import { runSyncBench } from './sync/bench.ts';
import type { ServerChoice } from './support/servers.ts';

/** What every bench is given. */
export interface BenchOptions {
  readonly servers: ServerChoice;
  /** Share of the full size; 1 is what RESULTS.md compares. */
  readonly scale: number;
  readonly rounds: number;
  /** Names of parts of the bench; empty: all. */
  readonly only: readonly string[];
  /** Whether the tables go into RESULTS.md. */
  readonly store: boolean;
}

const benches: Readonly<Record<string, (options: BenchOptions) => Promise<void>>> = {
  copy: runCopyBench,
  cutover: runCutoverBench,
  sync: runSyncBench,
};

const usage = `npm run bench -- <${Object.keys(benches).join(' | ')}> [options]
  --scale 1          share of the full size
  --rounds 3         runs of every tool
  --only a,b         parts of the bench, by name
  --source 15        major of the embedded source (${installedMajors.join(', ')})
  --target 18        major of the embedded target
  --source-url URL   a server to read from instead (a superuser; databases named dts_bench_* are dropped)
  --target-url URL   a server to write to instead
  --store            write the tables into test/bench/RESULTS.md`;

function majorOf(value: string): EmbeddedMajor {
  const major = installedMajors.find((each) => String(each) === value);
  if (major === undefined) throw new Error(`no embedded PostgreSQL ${value}\n${usage}`);
  return major;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      scale: { type: 'string', default: '1' },
      rounds: { type: 'string', default: '3' },
      only: { type: 'string', default: '' },
      source: { type: 'string', default: '15' },
      target: { type: 'string', default: '18' },
      'source-url': { type: 'string' },
      'target-url': { type: 'string' },
      store: { type: 'boolean', default: false },
    },
  });
  const bench = benches[positionals[0] ?? ''];
  const scale = Number(values.scale);
  const rounds = Number(values.rounds);
  if (!bench || positionals.length !== 1 || !(scale > 0) || !Number.isInteger(rounds) || rounds < 1)
    throw new Error(usage);
  await bench({
    servers: {
      sourceUrl: values['source-url'],
      targetUrl: values['target-url'],
      sourceMajor: majorOf(values.source),
      targetMajor: majorOf(values.target),
    },
    scale,
    rounds,
    only: values.only.split(',').filter((name) => name !== ''),
    store: values.store,
  });
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
