// A pair of databases for one test: an old source, a new target. Teardown fails the test on anything that DTS left
// behind: slots, publications, connections, fence triggers.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { expect, inject, onTestFinished } from 'vitest';
import type { EmbeddedMajor } from '../../src/cli/embedded-postgres.ts';
import type { ServerAddress } from './global-setup.ts';

export interface TestDatabase {
  readonly major: EmbeddedMajor;
  readonly port: number;
  readonly password: string;
  readonly dbname: string;
  readonly url: string;
  /** Connection fields of a create request (superuser). */
  readonly connection: {
    host: string;
    port: number;
    user: string;
    password: string;
    dbname: string;
    sslmode: 'disable';
  };
  query<R extends pg.QueryResultRow = pg.QueryResultRow>(
    sql: string,
    params?: unknown[],
  ): Promise<pg.QueryResult<R>>;
  /** A connection of its own (transactions, locks); closed by the teardown. */
  connect(): Promise<pg.Client>;
}

export interface DatabasePair {
  readonly source: TestDatabase;
  readonly target: TestDatabase;
}

const extraServers = new Map<EmbeddedMajor, ServerAddress>();

/** Of a server that the test file started itself. */
export function registerServer(major: EmbeddedMajor, address: ServerAddress): void {
  extraServers.set(major, address);
}

function serverOf(major: EmbeddedMajor): ServerAddress {
  const address = extraServers.get(major) ?? inject('servers')[major];
  if (!address) throw new Error(`no server ${major} runs: call startServers(${major}) in the test file`);
  return address;
}

async function makeDatabase(
  major: EmbeddedMajor,
  prefix: string,
  encoding?: string,
): Promise<{ database: TestDatabase; drop: () => Promise<void> }> {
  const { port, password } = serverOf(major);
  const dbname = `${prefix}_${randomBytes(5).toString('hex')}`;
  const server = { host: '127.0.0.1', port, user: 'postgres', password, ssl: false } as const;
  const asAdmin = async (work: (client: pg.Client) => Promise<void>): Promise<void> => {
    const client = new pg.Client({ ...server, database: 'postgres' });
    await client.connect();
    try {
      await work(client);
    } finally {
      await client.end();
    }
  };
  // copying the template's files is several times cheaper than writing each of its blocks to the WAL (the default since 15)
  const strategy = major >= 15 ? ' strategy file_copy' : '';
  const encoded = encoding === undefined ? '' : ` encoding '${encoding}' template template0 locale 'C'`;
  await asAdmin(
    async (admin) => void (await admin.query(`create database "${dbname}"${strategy}${encoded}`)),
  );
  const pool = new pg.Pool({ ...server, database: dbname, max: 8, application_name: 'test' });
  pool.on('error', () => undefined);
  const clients: pg.Client[] = [];
  const database: TestDatabase = {
    major,
    port,
    password,
    dbname,
    url: `postgresql://postgres:${password}@127.0.0.1:${port}/${dbname}?sslmode=disable`,
    connection: { host: '127.0.0.1', port, user: 'postgres', password, dbname, sslmode: 'disable' },
    query: (sql, params) => pool.query(sql, params),
    async connect() {
      const client = new pg.Client({ ...server, database: dbname, application_name: 'test' });
      client.on('error', () => undefined);
      await client.connect();
      clients.push(client);
      return client;
    },
  };
  const drop = async (): Promise<void> => {
    await Promise.all(clients.map((client) => client.end().catch(() => undefined)));
    await pool.end();
    await asAdmin(async (admin) => {
      const slots = await admin.query<{ slot_name: string; active_pid: number | null }>(
        `select slot_name, active_pid from pg_replication_slots where database = '${dbname}'`,
      );
      for (const { slot_name, active_pid } of slots.rows) {
        if (active_pid !== null) await admin.query(`select pg_terminate_backend(${active_pid})`);
        const isActive = `select 1 from pg_replication_slots where slot_name = '${slot_name}' and active`;
        await waitFor(async () => (await admin.query(isActive)).rowCount === 0);
        await admin.query(`select pg_drop_replication_slot('${slot_name}')`);
      }
      await admin.query(`drop database "${dbname}" with (force)`);
    });
  };
  return { database, drop };
}

/** A role that may log in with password `secret` and nothing else; make it before the databases in which it will own things. */
export async function makeRole(major: EmbeddedMajor): Promise<string> {
  const { port, password } = serverOf(major);
  const role = `plain_${randomBytes(4).toString('hex')}`;
  const admin = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', password, database: 'postgres' });
  await admin.connect();
  await admin.query(`create role ${role} login password 'secret'`);
  onTestFinished(async () => {
    await admin.query(`drop role ${role}`);
    await admin.end();
  });
  return role;
}

/**
 * Databases that live until the test has finished. With `checkLeaks` (default) the teardown asserts that nothing of DTS is
 * left. `encodings`: else those of the servers.
 */
export async function makePair(
  options: {
    source?: EmbeddedMajor;
    target?: EmbeddedMajor;
    checkLeaks?: boolean;
    encodings?: { readonly source: string; readonly target: string };
  } = {},
): Promise<DatabasePair> {
  const [source, target] = await Promise.all([
    makeDatabase(options.source ?? 16, 'src', options.encodings?.source),
    makeDatabase(options.target ?? 18, 'tgt', options.encodings?.target),
  ]);
  onTestFinished(async () => {
    const leaks = options.checkLeaks === false ? [] : await lastingLeaks([source.database, target.database]);
    await Promise.all([source.drop(), target.drop()]);
    expect(leaks).toEqual([]);
  });
  return { source: source.database, target: target.database };
}

/** A backend outlives its closed socket by some milliseconds: what is still there after two seconds is a leak. */
async function lastingLeaks(databases: readonly TestDatabase[]): Promise<string[]> {
  for (const deadline = Date.now() + 2_000; ; ) {
    const leaks = (await Promise.all(databases.map(leaksOf))).flat();
    if (leaks.length === 0 || Date.now() > deadline) return leaks;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Everything of ours that is left in a database, in words. */
export async function leaksOf(database: TestDatabase): Promise<string[]> {
  const { rows } = await database.query<{ leak: string }>(`
    select 'slot ' || slot_name as leak from pg_replication_slots where database = current_database()
    union all select 'publication ' || pubname from pg_publication where pubname like 'dts\\_%'
    union all select 'trigger ' || tgname from pg_trigger where tgname like 'dts\\_%'
    union all select 'schema ' || nspname from pg_namespace where nspname = 'dts'
    union all select 'connection ' || application_name from pg_stat_activity
      where datname = current_database() and application_name like 'dts/%'`);
  return rows.map((row) => `${database.dbname}: ${row.leak}`);
}

/**
 * Polls until `condition` holds, ever less often up to ten times a second: what is asked shall not keep what is awaited from
 * working. Fails after `timeoutMs` with the last value seen.
 */
export async function waitFor<T>(
  condition: () => Promise<T> | T,
  timeoutMs = 30_000,
  what = 'condition',
): Promise<NonNullable<T>> {
  const began = Date.now();
  for (;;) {
    const value = await condition();
    if (value) return value;
    const waited = Date.now() - began;
    if (waited > timeoutMs)
      throw new Error(`${what} did not hold within ${timeoutMs} ms; last value ${JSON.stringify(value)}`);
    await new Promise((resolve) => setTimeout(resolve, Math.min(Math.max(waited / 10, 20), 100)));
  }
}
