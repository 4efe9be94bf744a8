// The lag of a stream that runs, under a steady load: from a commit on the source to the moment when a reader of the target
// sees it. Every transaction of the writer brings a row of `mark`, whose arrival is watched.
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { table } from '../support/report.ts';
import { median, type Tool } from '../support/rounds.ts';
import type { BenchServer, BenchServers } from '../support/servers.ts';
import { accounts, type Backlog } from './backlogs.ts';

const CHANGES_PER_SECOND = 3_000;
const TICK_MS = 10;
const SECONDS = 20;
const LOOK_MS = 2;
const ARRIVAL_TIMEOUT_MS = 60_000;
const ROWS = 100_000;

/** Nothing to drain: the stream runs when the clock starts. */
export const steady: Backlog = {
  name: 'steady',
  title: `lag under ${CHANGES_PER_SECOND.toLocaleString('en')} changes a second`,
  tables: () => accounts(ROWS),
  write: () => [],
  changes: (scale) => Math.round(CHANGES_PER_SECOND * SECONDS * scale),
};

interface Lag {
  readonly name: string;
  readonly changesPerSecond: number;
  readonly lagsMs: readonly number[];
  /** The tool's, the source's and the target's. */
  readonly cpuSeconds: readonly (number | null)[];
}

async function connected(server: BenchServer, database: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: server.url(database) });
  await client.connect();
  return client;
}

/** Writes for SECONDS × scale and watches what arrives. */
async function measure(
  source: BenchServer,
  target: BenchServer,
  database: string,
  scale: number,
): Promise<{ readonly changesPerSecond: number; readonly lagsMs: readonly number[] }> {
  const [writer, reader] = [await connected(source, database), await connected(target, database)];
  try {
    const ticks = Math.max(100, Math.round((SECONDS * scale * 1_000) / TICK_MS));
    const perTick = (CHANGES_PER_SECOND * TICK_MS) / 1_000;
    const committedAt: number[] = [];
    const lagsMs: number[] = [];
    const began = performance.now();
    const write = async (): Promise<void> => {
      for (let tick = 0; tick < ticks; tick++) {
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
    return { changesPerSecond: (ticks * (perTick + 1)) / seconds, lagsMs };
  } finally {
    await Promise.all([writer.end(), reader.end()]);
  }
}

/** One tool after the other; a Markdown table of their lags. */
export async function runSteady(
  tools: readonly Tool[],
  servers: BenchServers,
  database: string,
  scale: number,
  say: (line: string) => void,
): Promise<string> {
  const { source, target } = servers;
  const lags: Lag[] = [];
  for (const tool of tools) {
    await tool.prepare();
    await tool.run();
    const spent = (): readonly (number | null)[] => [
      tool.cpuSeconds?.() ?? 0,
      source.cpuSeconds(),
      target.cpuSeconds(),
    ];
    const before = spent();
    const measured = await measure(source, target, database, scale);
    const cpuSeconds = spent().map((after, at) => {
      const since = before[at] ?? null;
      return after === null || since === null ? null : after - since;
    });
    await tool.verify();
    lags.push({ name: tool.name, cpuSeconds, ...measured });
    say(`steady: ${tool.name} ${median(measured.lagsMs).toFixed(1)} ms`);
  }
  return table(
    ['tool', 'changes/s', 'median ms', '99 % ms', 'worst ms', 'tool CPU s', 'source CPU s', 'target CPU s'],
    lags.map(({ name, changesPerSecond, lagsMs, cpuSeconds }) => {
      const sorted = [...lagsMs].sort((a, b) => a - b);
      const at = (share: number): string =>
        (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN).toFixed(1);
      return [
        name,
        Math.round(changesPerSecond).toLocaleString('en'),
        median(lagsMs).toFixed(1),
        at(0.99),
        at(1),
        ...cpuSeconds.map((seconds) => seconds?.toFixed(2) ?? '–'),
      ];
    }),
  );
}
