// Who drains a backlog: our stream, and PostgreSQL's own subscription in its variants. Each is set up before the backlog is
// written and let go when the clock starts.
import { setTimeout as sleep } from 'node:timers/promises';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { cpuSeconds, peakResidentBytes } from '../support/processes.ts';
import { lastWords, type Tool, type ToolCost } from '../support/rounds.ts';
import type { BenchServer, BenchServers } from '../support/servers.ts';
import type { Backlog } from './backlogs.ts';

export interface SyncWork extends BenchServers {
  readonly backlog: Backlog;
  readonly scale: number;
}

export const DATABASE = 'dts_bench_sync';
const TIMEOUT_MS = 600_000;

export async function makeTables({ source, target, backlog, scale }: SyncWork): Promise<void> {
  await source.query(
    'postgres',
    `select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '${DATABASE}' and not active`,
  );
  for (const server of [source, target]) {
    await server.freshDatabase(DATABASE);
    await server.query(DATABASE, 'create table mark (id int primary key)', ...backlog.tables(scale));
    await server.query(DATABASE, 'vacuum analyze');
  }
}

export async function writeBacklog({ source, backlog, scale }: SyncWork): Promise<void> {
  const statements = [...backlog.write(scale), 'insert into mark values (1)'];
  // loops plan their statements once, for tables that are still empty: without this they scan them for every row
  const settings = ['set synchronous_commit = off', 'set enable_seqscan = off'];
  await source.query(DATABASE, ...settings, ...statements, 'checkpoint');
}

/** Until the target has so many marks: on a connection of its own that holds no snapshot between two looks. */
export async function untilMarked(target: BenchServer, marks = 1): Promise<void> {
  const client = new pg.Client({ connectionString: target.url(DATABASE) });
  client.on('error', () => undefined); // the next query says it
  await client.connect();
  try {
    for (const deadline = Date.now() + TIMEOUT_MS; ; ) {
      if ((await client.query('select from mark')).rowCount === marks) return;
      if (Date.now() > deadline) throw new Error('the backlog was not drained in time');
      await sleep(10);
    }
  } finally {
    await client.end();
  }
}

export async function expectEqual({ source, target }: SyncWork): Promise<void> {
  const [list] = await source.query(
    DATABASE,
    `select string_agg(format('select %L, count(*), sum(hashtextextended(t::text, 0)) from %I t', relname, relname), ' union all ' order by relname) || ' order by 1' as q
     from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace`,
  );
  const digest = (server: BenchServer): Promise<unknown> => server.query(DATABASE, String(list?.['q']));
  const [a, b] = [JSON.stringify(await digest(source)), JSON.stringify(await digest(target))];
  if (a !== b) throw new Error(`source and target differ: ${a} ${b}`);
}

export function ourTool(work: SyncWork): Tool {
  let child: ChildProcess | null = null;
  let said = (): string => '';
  return {
    name: 'DTS',
    async prepare() {
      await makeTables(work);
      const script = fileURLToPath(new URL('our-process.js', import.meta.url));
      const urls = [work.source.url(DATABASE), work.target.url(DATABASE)];
      const made = spawn(process.execPath, [script, ...urls], { stdio: ['pipe', 'pipe', 'pipe'] });
      child = made;
      said = lastWords(made.stderr);
      await Promise.race([
        once(made.stdout, 'data'),
        once(made, 'exit').then(() => Promise.reject(new Error(said()))),
      ]);
      await writeBacklog(work);
    },
    async run(): Promise<ToolCost> {
      const running = child;
      if (running?.pid === undefined) throw new Error('the stream was not prepared');
      const before = cpuSeconds(running.pid);
      const ended = once(running, 'exit').then(() =>
        Promise.reject(new Error(`the stream ended: ${said()}`)),
      );
      running.stdin?.end('go\n');
      await Promise.race([untilMarked(work.target), ended]);
      const spent = cpuSeconds(running.pid) - before;
      ended.catch(() => undefined);
      return { cpuSeconds: spent, peakBytes: peakResidentBytes(running.pid) };
    },
    async verify() {
      const exit = child && once(child, 'exit');
      child?.kill('SIGTERM');
      await exit;
      await expectEqual(work);
    },
    cpuSeconds: () => (child?.pid === undefined ? 0 : cpuSeconds(child.pid)),
    peakBytes: () => (child?.pid === undefined ? 0 : peakResidentBytes(child.pid)),
  };
}

function nativeTool(work: SyncWork, name: string, options: string): Tool {
  const { source, target } = work;
  return {
    name,
    async prepare() {
      await makeTables(work);
      await source.query(
        DATABASE,
        'create publication bench for all tables',
        `select pg_create_logical_replication_slot('bench_native', 'pgoutput')`,
      );
      const url = source.url(DATABASE).replaceAll("'", "''");
      await target
        .query(
          DATABASE,
          `create subscription bench connection '${url}' publication bench
         with (enabled = false, create_slot = false, slot_name = 'bench_native', copy_data = false${options})`,
          'alter subscription bench refresh publication with (copy_data = false)',
        )
        .catch(async (error: unknown) => {
          // refresh is refused while disabled: the tables are listed when it is enabled
          if (!String(error).includes('not allowed')) throw error;
        });
      await writeBacklog(work);
    },
    async run(): Promise<ToolCost> {
      await target.query(
        DATABASE,
        'alter subscription bench enable',
        'alter subscription bench refresh publication with (copy_data = false)',
      );
      await untilMarked(target);
      return { cpuSeconds: 0, peakBytes: 0 };
    },
    async verify() {
      await expectEqual(work);
      await target.query(DATABASE, 'alter subscription bench disable');
      await target.query(
        DATABASE,
        'alter subscription bench set (slot_name = none)',
        'drop subscription bench',
      );
      for (const deadline = Date.now() + 10_000; ; ) {
        const [slot] = await source.query(
          'postgres',
          `select active from pg_replication_slots where slot_name = 'bench_native'`,
        );
        if (slot?.['active'] !== true) break;
        if (Date.now() > deadline) throw new Error('the native walsender does not end');
        await sleep(50);
      }
      await source.query('postgres', `select pg_drop_replication_slot('bench_native')`);
    },
  };
}

export const binarySubscription = (work: SyncWork): Tool =>
  nativeTool(work, 'subscription, binary', ', binary = true');

/** `streaming = parallel` needs 16 or newer on both sides. */
export function hasParallel(servers: BenchServers): boolean {
  return [servers.source, servers.target].every(({ version }) => Number.parseInt(version, 10) >= 16);
}

/** Ours first. */
export function syncTools(work: SyncWork): Tool[] {
  return [
    ourTool(work),
    nativeTool(work, 'subscription, text', ''),
    binarySubscription(work),
    ...(hasParallel(work)
      ? [nativeTool(work, 'subscription, streaming = parallel', ', streaming = parallel')]
      : []),
  ];
}
