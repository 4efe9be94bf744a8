// The two servers of a bench: embedded ones of our own, or given by --source-url and --target-url. Settings are the same
// for every tool. Of a given server the CPU is unknown unless its data directory is on this machine.
import pg from 'pg';
import { startEmbeddedPostgres, type EmbeddedMajor } from '../../../src/cli/embedded-postgres.ts';
import { cpuSeconds, postmasterOf } from './processes.ts';

export interface BenchServer {
  readonly role: 'source' | 'target';
  /** `server_version`. */
  readonly version: string;
  url(dbname: string): string;
  /** CPU seconds of the server so far; null when it is not of this machine. */
  cpuSeconds(): number | null;
  /** Runs statements one by one on a connection of its own and returns the last one's rows. */
  query(dbname: string, ...statements: readonly string[]): Promise<readonly Record<string, unknown>[]>;
  /** Drops and makes a database. */
  freshDatabase(dbname: string): Promise<void>;
  stop(): Promise<void>;
}

/** Both of a bench. */
export interface BenchServers {
  readonly source: BenchServer;
  readonly target: BenchServer;
}

/** What a bench's server gets; the machine's disk is not what is measured, but nothing durable is switched off. */
const settings: Readonly<Record<string, string>> = {
  shared_buffers: '512MB',
  max_wal_size: '8GB',
  checkpoint_timeout: '30min',
  maintenance_work_mem: '128MB',
  max_connections: '200',
  max_locks_per_transaction: '256',
  fsync: 'on',
  autovacuum: 'off', // would hit one tool and not the other
};

async function describe(
  role: BenchServer['role'],
  base: string,
  directory: string | null,
  stop: () => Promise<void>,
): Promise<BenchServer> {
  const url = (dbname: string): string => {
    const each = new URL(base);
    each.pathname = `/${encodeURIComponent(dbname)}`;
    each.searchParams.set('sslmode', 'disable');
    return each.href;
  };
  const query: BenchServer['query'] = async (dbname, ...statements) => {
    const client = new pg.Client({ connectionString: url(dbname) });
    await client.connect();
    try {
      let rows: readonly Record<string, unknown>[] = [];
      for (const statement of statements)
        rows = (await client.query(statement)).rows as Record<string, unknown>[];
      return rows;
    } finally {
      await client.end();
    }
  };
  const postmaster = directory === null ? null : postmasterOf(`${directory}/data`);
  const [row] = await query('postgres', 'show server_version');
  return {
    role,
    version: String(row?.['server_version']),
    url,
    cpuSeconds: () => (postmaster === null ? null : cpuSeconds(postmaster)),
    query,
    async freshDatabase(dbname) {
      await query(
        'postgres',
        `drop database if exists "${dbname}" with (force)`,
        `create database "${dbname}"`,
      );
    },
    stop,
  };
}

async function start(
  role: BenchServer['role'],
  given: string | undefined,
  major: EmbeddedMajor,
): Promise<BenchServer> {
  if (given !== undefined) return describe(role, given, null, () => Promise.resolve());
  const server = await startEmbeddedPostgres({ major, settings });
  return describe(role, server.url('postgres'), server.directory, () => server.stop());
}

export interface ServerChoice {
  readonly sourceUrl?: string | undefined;
  readonly targetUrl?: string | undefined;
  readonly sourceMajor: EmbeddedMajor;
  readonly targetMajor: EmbeddedMajor;
}

/** Starts (or reaches) both servers, runs `work` and stops what was started, whatever happens. */
export async function withServers<T>(
  choice: ServerChoice,
  work: (source: BenchServer, target: BenchServer) => Promise<T>,
): Promise<T> {
  const source = await start('source', choice.sourceUrl, choice.sourceMajor);
  try {
    const target = await start('target', choice.targetUrl, choice.targetMajor);
    try {
      return await work(source, target);
    } finally {
      await target.stop();
    }
  } finally {
    await source.stop();
  }
}
