// `npm run bench -- cutover`: how fast the online validation reads, beside the plainest digest of both sides, and how long
// the source refuses writes, under a steady load, at several sizes. The write stop must not grow with the data.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { createService, parseConfig, type Service } from '../../../src/index.ts';
import type { BenchOptions } from '../run.ts';
import { describeMachine, storeSection, table } from '../support/report.ts';
import { median } from '../support/rounds.ts';
import { withServers, type BenchServer } from '../support/servers.ts';

const DATABASE = 'dts_bench_cutover';
/** About 130 bytes a row in the heap and 20 in the key. */
const ROWS_PER_GB = 7_000_000;
const SIZES_GB = [0.1, 0.5, 1, 2] as const;
const WRITERS = 4;
const WRITES_PER_SECOND = 2_000;

interface Measured {
  readonly rowsPerSecond: number;
  /** Of `select sum(hashtextextended(row::text, 1))`, both sides at once. */
  readonly plainRowsPerSecond: number;
  /** Arming to opening, as the service notes it. */
  readonly writeStopMs: number;
  /** First write refused to opening, as a writer sees it. */
  readonly refusedMs: number;
  readonly writesPerSecond: number;
}

export async function runCutoverBench(options: BenchOptions): Promise<void> {
  const { scale, rounds, store } = options;
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  await withServers(options.servers, async (source, target) => {
    const machine = describeMachine(source, target);
    say(machine);
    const rows: string[][] = [];
    for (const size of SIZES_GB) {
      if (options.only.length > 0 && !options.only.includes(String(size))) continue;
      const count = Math.max(1_000, Math.round(size * scale * ROWS_PER_GB));
      const runs: Measured[] = [];
      for (let round = 1; round <= rounds; round++) {
        const run = await measure(source, target, count);
        runs.push(run);
        say(`${size} GB × ${scale}, round ${round}: ${JSON.stringify(run)}`);
      }
      const of = (pick: (run: Measured) => number): number => median(runs.map(pick));
      rows.push([
        `${count.toLocaleString('en')} rows`,
        Math.round(of((run) => run.writesPerSecond)).toLocaleString('en'),
        Math.round(of((run) => run.rowsPerSecond)).toLocaleString('en'),
        of((run) => run.rowsPerSecond / run.plainRowsPerSecond).toFixed(2),
        String(Math.round(of((run) => run.writeStopMs))),
        String(Math.max(...runs.map((run) => run.writeStopMs))),
        String(Math.round(of((run) => run.refusedMs))),
      ]);
    }
    const body = table(
      [
        'size',
        'writes/s',
        'validated rows/s',
        '× plain sum(hash)',
        'write stop ms',
        'worst',
        'first refusal to opening ms',
      ],
      rows,
    );
    const title = 'cutover: validation and write stop under load';
    say(`\n## ${title}\n\n${body}\n`);
    if (store)
      storeSection(
        title,
        `${new Date().toISOString().slice(0, 10)}, scale ${scale}, ${rounds} rounds, medians. ${machine}.\n\n${body}`,
      );
  });
}

async function measure(source: BenchServer, target: BenchServer, count: number): Promise<Measured> {
  await source.freshDatabase(DATABASE);
  await target.freshDatabase(DATABASE);
  await source.query(
    DATABASE,
    'create table accounts (id bigint primary key, branch int not null, balance numeric(14,2) not null, filler text)',
    `insert into accounts select i, i % 100, i / 7.0, repeat(md5(i::text), 2) from generate_series(1, ${count}) i`,
    'vacuum analyze accounts',
  );
  const dataDir = mkdtempSync(join(tmpdir(), 'dts-bench-'));
  const service = createService(parseConfig({ DTS_DATA_DIR: dataDir }));
  const load = startLoad(source.url(DATABASE), count);
  try {
    const { task } = await service.createTask({
      sourceDb: source.url(DATABASE),
      targetDb: target.url(DATABASE),
      tables: ['accounts'],
    });
    await service.startTask(task.id);
    await until(service, task.id, ({ state }) => state === 'syncingWal');
    const settledMs = await validationMs(service, task.id);
    const plainMs = await plainDigestMs(source, target);
    await service.cutover(task.id);
    const refusedAt = await load.refused;
    await until(service, task.id, ({ state }) => state === 'completed');
    const { writeStopMs, certificate } = await service.getTask(task.id);
    if (!certificate?.equal || writeStopMs === null) throw new Error('the cutover was not clean');
    await service.unfenceTask(task.id);
    return {
      rowsPerSecond: Math.round(count / (settledMs / 1_000)),
      plainRowsPerSecond: Math.round(count / (plainMs / 1_000)),
      writeStopMs,
      refusedMs: Date.parse(certificate.openedAt) - refusedAt,
      writesPerSecond: load.rate(),
    };
  } finally {
    await load.stop();
    await service.stop();
    rmSync(dataDir, { recursive: true, force: true });
  }
}

/** From the beginning of a new pass to its last range. */
async function validationMs(service: Service, id: string): Promise<number> {
  const before = (await service.getValidation(id)).startedAt;
  await service.validateTask(id);
  let beganMs = 0;
  for (;;) {
    const view = await service.getValidation(id);
    if (beganMs === 0 && view.startedAt !== null && view.startedAt !== before)
      beganMs = Date.parse(view.startedAt);
    if (beganMs > 0 && view.tables.every(({ state }) => state === 'verified')) {
      const tookMs = Date.now() - beganMs;
      await waitUntil(async () => (await service.getValidation(id)).clean, 'clean');
      return tookMs;
    }
    await pause(5);
  }
}

async function plainDigestMs(source: BenchServer, target: BenchServer): Promise<number> {
  const sql = `select sum(hashtextextended(t::text, 1)) from accounts t`;
  const serial = 'set max_parallel_workers_per_gather = 0';
  const began = performance.now();
  await Promise.all([source.query(DATABASE, serial, sql), target.query(DATABASE, serial, sql)]);
  return performance.now() - began;
}

interface Load {
  /** Time of the first write that the fence refused. */
  readonly refused: Promise<number>;
  rate(): number;
  stop(): Promise<void>;
}

function startLoad(url: string, count: number): Load {
  let running = true;
  let writes = 0;
  let refusedMs: number | null = null;
  const beganMs = Date.now();
  let tell: (ms: number) => void = () => undefined;
  const refused = new Promise<number>((resolve) => (tell = resolve));
  const loop = async (seed: number): Promise<void> => {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    for (let n = seed; running && refusedMs === null; n += WRITERS) {
      try {
        await client.query(
          'update accounts set balance = balance + 1 where id = 1 + ($1::bigint * 7919) % $2',
          [n, count],
        );
        writes++;
      } catch (error) {
        if ((error as { code?: unknown }).code !== '25006') throw error;
        refusedMs ??= Date.now();
        tell(refusedMs);
      }
      const dueMs = beganMs + (writes / WRITES_PER_SECOND) * 1_000;
      if (dueMs > Date.now()) await pause(dueMs - Date.now());
    }
    await client.end();
  };
  const loops = Promise.all(Array.from({ length: WRITERS }, (_, n) => loop(n + 1)));
  return {
    refused,
    rate: () => writes / (((refusedMs ?? Date.now()) - beganMs) / 1_000),
    stop: async () => {
      running = false;
      await loops;
    },
  };
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function waitUntil(condition: () => Promise<boolean>, what: string): Promise<void> {
  const deadline = Date.now() + 3_600_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`${what} did not hold within an hour`);
    await pause(20);
  }
}

async function until(
  service: Service,
  id: string,
  reached: (task: Awaited<ReturnType<Service['getTask']>>) => boolean,
): Promise<void> {
  await waitUntil(async () => {
    const task = await service.getTask(id);
    if (['failed', 'paused'].includes(task.state)) throw new Error(JSON.stringify(task.error));
    return reached(task);
  }, 'the state');
}
