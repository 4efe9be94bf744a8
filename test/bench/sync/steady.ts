// The lag of a stream that runs, under a steady load: from a commit on the source to the moment when a reader of the target
// sees it. Every transaction of the writer brings a row of `mark`, whose arrival is watched.
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { cpuSeconds } from '../support/processes.ts';
import { table } from '../support/report.ts';
import { median, spentSince, type Tool } from '../support/rounds.ts';
import type { BenchServer, BenchServers } from '../support/servers.ts';
import { accounts, type Backlog } from './backlogs.ts';

const CHANGES_PER_SECOND = 3_000;
const TICK_MS = 10;
/** CPU is counted behind these: a load that lasts is meant, not the start of a program. Lag is watched from the beginning. */
const WARM_UP_SECONDS = 10;
const SECONDS = 20;
const LOOK_MS = 2;
const ARRIVAL_TIMEOUT_MS = 60_000;
const ROWS = 100_000;

export const costOfSteady = `CPU of ${SECONDS} s, behind ${WARM_UP_SECONDS} s of the same load, without that reader's; the subscription's own is in the target's.`;

/** Nothing to drain: the stream runs when the clock starts. */
export const steady: Backlog = {
  name: 'steady',
  title: `lag under ${CHANGES_PER_SECOND.toLocaleString('en')} changes a second`,
  tables: () => accounts(ROWS),
  write: () => [],
  changes: (scale) => Math.round(CHANGES_PER_SECOND * (WARM_UP_SECONDS + SECONDS) * scale),
};

/** CPU seconds of the tool, the source and the target; null of a server that is not on this machine. */
type Spent = readonly (number | null)[];

interface Measured {
  readonly changesPerSecond: number;
  readonly lagsMs: readonly number[];
  readonly spent: Spent;
}

async function connected(server: BenchServer, database: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: server.url(database) });
  await client.connect();
  return client;
}

/** Writes for (WARM_UP_SECONDS + SECONDS) × scale and watches what arrives. `spentBy`: the tool so far. */
async function measure(
  { source, target }: BenchServers,
  database: string,
  scale: number,
  spentBy: () => number,
): Promise<Measured> {
  const [writer, reader] = [await connected(source, database), await connected(target, database)];
  try {
    const { rows: backends } = await reader.query<{ pid: number }>('select pg_backend_pid() as pid');
    // the reader looks as often at every tool's target: its own cost would be most of it
    const ofTarget = (): number | null => {
      const all = target.cpuSeconds();
      return all === null ? null : all - cpuSeconds(backends[0]?.pid ?? 0);
    };
    const spent = (): Spent => [spentBy(), source.cpuSeconds(), ofTarget()];
    let before: Spent = [];
    const ticksOf = (seconds: number): number =>
      Math.max(50, Math.round((seconds * scale * 1_000) / TICK_MS));
    const warmUp = ticksOf(WARM_UP_SECONDS);
    const ticks = warmUp + ticksOf(SECONDS);
    const perTick = (CHANGES_PER_SECOND * TICK_MS) / 1_000;
    const committedAt: number[] = [];
    const lagsMs: number[] = [];
    const began = performance.now();
    const write = async (): Promise<void> => {
      for (let tick = 0; tick < ticks; tick++) {
        if (tick === warmUp) before = spent();
        await sleep(Math.max(0, began + tick * TICK_MS - performance.now()));
        const ids = Array.from({ length: perTick }, (_, n) => 1 + (((tick * perTick + n) * 7_919) % ROWS));
        await writer.query(
          'with changed as (update accounts set n = n + 1 where id = any ($1)) insert into mark values ($2)',
          [ids, tick + 2],
        );
        committedAt.push(performance.now());
      }
    };
    const watch = async (): Promise<void> => {
      for (const deadline = began + ticks * TICK_MS + ARRIVAL_TIMEOUT_MS; lagsMs.length < ticks; ) {
        if (performance.now() > deadline) throw new Error('what was written did not arrive');
        const { rows } = await reader.query<{ seen: number }>('select max(id)::int as seen from mark');
        const now = performance.now();
        while (lagsMs.length < (rows[0]?.seen ?? 0) - 1)
          lagsMs.push(Math.max(0, now - (committedAt[lagsMs.length] ?? now)));
        await sleep(LOOK_MS);
      }
    };
    await Promise.all([write(), watch()]);
    const seconds = ((committedAt.at(-1) ?? began) - began) / 1_000;
    return {
      changesPerSecond: (ticks * (perTick + 1)) / seconds,
      lagsMs,
      spent: spent().map((now, at) => spentSince(before[at] ?? null, now)),
    };
  } finally {
    await Promise.all([writer.end(), reader.end()]);
  }
}

/** One tool after the other; a Markdown table of their lags and what they cost. */
export async function runSteady(
  tools: readonly Tool[],
  servers: BenchServers,
  database: string,
  scale: number,
  say: (line: string) => void,
): Promise<string> {
  const all: (Measured & { readonly name: string })[] = [];
  for (const tool of tools) {
    await tool.prepare();
    await tool.run();
    const measured = await measure(servers, database, scale, () => tool.cpuSeconds?.() ?? 0);
    await tool.verify();
    all.push({ name: tool.name, ...measured });
    say(`steady: ${tool.name} ${median(measured.lagsMs).toFixed(1)} ms`);
  }
  return table(
    ['tool', 'changes/s', 'median ms', '99 % ms', 'worst ms', 'tool CPU s', 'source CPU s', 'target CPU s'],
    all.map(({ name, changesPerSecond, lagsMs, spent }) => {
      const sorted = [...lagsMs].sort((a, b) => a - b);
      const at = (share: number): string =>
        (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN).toFixed(1);
      return [
        name,
        Math.round(changesPerSecond).toLocaleString('en'),
        median(lagsMs).toFixed(1),
        at(0.99),
        at(1),
        ...spent.map((seconds) => seconds?.toFixed(2) ?? '–'),
      ];
    }),
  );
}
