// The tools that are compared, each from an empty target database to the copied one. Where a tool is not installed it is
// left out, and the report says so.
import { setTimeout as sleep } from 'node:timers/promises';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { BenchServer } from '../support/servers.ts';
import { runCommand, type Tool, type ToolCost } from '../support/rounds.ts';
import { makeBareTables, verifyCopy } from './data.ts';

/** One database to copy, and what the target must have afterwards. */
export interface Work {
  readonly source: BenchServer;
  readonly target: BenchServer;
  readonly sourceDb: string;
  readonly targetDb: string;
  readonly tables: readonly string[];
  readonly withIndexes: boolean;
  readonly jobs: number;
}

const here = import.meta.dirname;

function isInstalled(command: string): boolean {
  return spawnSync('sh', ['-c', 'command -v "$1"', 'sh', command]).status === 0;
}

async function inFolder(work: (folder: string) => Promise<ToolCost>): Promise<ToolCost> {
  const folder = mkdtempSync(join(tmpdir(), 'dts-bench-'));
  try {
    return await work(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Removes what an earlier run of ours left on the source: it stops in syncingWal, with its slot. */
export async function dropLeftovers({ source, sourceDb }: Work): Promise<void> {
  await source.query(
    sourceDb,
    `select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null and database = current_database()`,
    `do $$ begin
       for i in 1..100 loop
         exit when not exists (select from pg_replication_slots where active and database = current_database());
         perform pg_sleep(0.1);
       end loop;
     end $$`,
    'select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()',
    'drop publication if exists dts_bench, native_bench',
    'drop schema if exists dts cascade',
  );
}

/** DTS: a process that runs the task until every part and index stands. */
export function ours(work: Work, options: Readonly<Record<string, unknown>> = {}, name = 'dts'): Tool {
  const { source, target, sourceDb, targetDb, jobs } = work;
  return {
    name,
    async prepare() {
      await dropLeftovers(work);
      await target.freshDatabase(targetDb);
      await target.query('postgres', 'checkpoint');
    },
    run: () =>
      inFolder((folder) =>
        runCommand([
          process.execPath,
          join(here, 'our-process.js'),
          source.url(sourceDb),
          target.url(targetDb),
          folder,
          JSON.stringify({ copyJobs: jobs, indexJobs: jobs, ...options }),
        ]),
      ),
    async verify() {
      await verifyCopy(work);
      await dropLeftovers(work);
    },
  };
}

function empty(work: Work): () => Promise<void> {
  return async () => {
    await work.target.freshDatabase(work.targetDb);
    await work.target.query('postgres', 'checkpoint');
  };
}

function bare(work: Work): () => Promise<void> {
  return async () => {
    await makeBareTables(work.target, work.targetDb);
    await work.target.query('postgres', 'checkpoint');
  };
}

function pgcopydb(work: Work): Tool {
  const { source, target, sourceDb, targetDb, jobs } = work;
  return {
    name: 'pgcopydb clone',
    prepare: empty(work),
    run: () =>
      inFolder((folder) =>
        runCommand([
          'pgcopydb',
          'clone',
          '--dir',
          join(folder, 'work'),
          '--source',
          source.url(sourceDb),
          '--target',
          target.url(targetDb),
          '--table-jobs',
          String(jobs),
          '--index-jobs',
          String(jobs),
        ]),
      ),
    verify: () => verifyCopy(work),
  };
}

function dumpAndRestore(work: Work): Tool {
  const { source, target, sourceDb, targetDb, jobs } = work;
  return {
    name: `pg_dump | pg_restore -j ${jobs}`,
    prepare: empty(work),
    run: () =>
      inFolder((folder) =>
        runCommand([
          'sh',
          '-c',
          // directory format without compression: both can then work in parallel
          'pg_dump -Fd -Z0 -j "$1" -f "$2" "$3" && pg_restore -j "$1" -d "$4" "$2"',
          'sh',
          String(jobs),
          join(folder, 'dump'),
          source.url(sourceDb),
          target.url(targetDb),
        ]),
      ),
    verify: () => verifyCopy(work),
  };
}

/** `psql … | psql` a table, as many at once as there are jobs. */
function psqlPipe(work: Work): Tool {
  const { source, target, sourceDb, targetDb, tables, jobs } = work;
  return {
    name: 'psql | psql',
    prepare: bare(work),
    run: () =>
      runCommand(
        [
          'sh',
          '-c',
          `printf '%s\\n' ${tables.join(' ')} | xargs -P ${jobs} -I{} sh -c 'psql -qXc "copy {} to stdout" "$SOURCE" | psql -qXc "copy {} from stdin" "$TARGET"'`,
        ],
        { SOURCE: source.url(sourceDb), TARGET: target.url(targetDb) },
      ),
    verify: () => verifyCopy(work),
  };
}

function copyStreams(work: Work): Tool {
  const { source, target, sourceDb, targetDb, tables, jobs } = work;
  return {
    name: 'pg-copy-streams',
    prepare: bare(work),
    run: () =>
      runCommand([
        process.execPath,
        join(here, 'copy-streams-process.js'),
        source.url(sourceDb),
        target.url(targetDb),
        String(jobs),
        ...tables,
      ]),
    verify: () => verifyCopy(work),
  };
}

/** Its time with what somebody who uses it has to do by hand afterwards. */
function followedBy(finish: () => Promise<void>, tool: Tool): Tool {
  return {
    ...tool,
    async run() {
      const costs = await tool.run();
      await finish();
      return costs;
    },
  };
}

/** The initial synchronisation of a subscription; into tables that exist, with their keys and indexes where asked for. */
function subscription(work: Work, makeIndexes: () => Promise<void>): Tool {
  const { source, target, sourceDb, targetDb, tables, jobs, withIndexes } = work;
  return {
    name: 'native subscription',
    async prepare() {
      await bare(work)();
      if (withIndexes) await makeIndexes();
      await dropLeftovers(work);
      await source.query(sourceDb, `create publication native_bench for table ${tables.join(', ')}`);
      await target.query('postgres', `alter system set max_sync_workers_per_subscription = ${jobs}`);
      await target.query('postgres', 'select pg_reload_conf()');
    },
    async run() {
      await target.query(
        targetDb,
        `create subscription native_bench connection '${source.url(sourceDb)}' publication native_bench`,
      );
      for (;;) {
        const rows = await target.query(
          targetDb,
          `select from pg_subscription_rel where srsubstate not in ('r', 's')`,
        );
        if (rows.length === 0) return { cpuSeconds: 0, peakBytes: 0 };
        await sleep(50);
      }
    },
    async verify() {
      await target.query(targetDb, 'drop subscription native_bench');
      await target.query('postgres', 'alter system reset max_sync_workers_per_subscription');
      await verifyCopy(work);
      await dropLeftovers(work);
    },
  };
}

/** Every tool for the work that is installed here, ours first; `missing` are the others' names. */
export function toolsFor(
  work: Work,
  makeIndexes: () => Promise<void>,
): { readonly tools: readonly Tool[]; readonly missing: readonly string[] } {
  const missing: string[] = [];
  const tools: Tool[] = [ours(work)];
  const add = (command: string, tool: Tool): void => {
    if (isInstalled(command)) tools.push(tool);
    else missing.push(tool.name);
  };
  add('pgcopydb', pgcopydb(work));
  add('pg_restore', dumpAndRestore(work));
  // these two copy rows and nothing else
  const finish = work.withIndexes ? makeIndexes : () => Promise.resolve();
  add('psql', followedBy(finish, psqlPipe(work)));
  tools.push(followedBy(finish, copyStreams(work)));
  tools.push(subscription(work, makeIndexes));
  return { tools, missing };
}

/** Tools for a database whose tables the bench does not make by hand. */
export function cloningTools(work: Work): readonly Tool[] {
  return [
    ours(work),
    ...(isInstalled('pgcopydb') ? [pgcopydb(work)] : []),
    ...(isInstalled('pg_restore') ? [dumpAndRestore(work)] : []),
  ];
}
