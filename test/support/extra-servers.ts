// Servers that only few tests need, of other majors or with settings of their own: started by those, not for every run.
import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, statSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, onTestFinished } from 'vitest';
import type { EmbeddedMajor, EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import { registerServer, waitFor } from './databases.ts';
import { startServer } from './servers.ts';

/** Call it at the top of a test file; `makePair` knows the majors from then on. */
export function startServers(...majors: readonly EmbeddedMajor[]): void {
  const servers: EmbeddedServer[] = [];
  beforeAll(async () => {
    servers.push(...(await Promise.all(majors.map((major) => startServer({ major })))));
    for (const server of servers) registerServer(server.major, server);
  });
  afterAll(async () => void (await Promise.all(servers.map((server) => server.stop()))));
}

/** A server that takes asynchronous commits back when it crashes; it is stopped with the test. With its connection fields. */
export async function startForgetfulServer(major: EmbeddedMajor) {
  const server = await startServer({
    major,
    settings: {
      synchronous_commit: 'off',
      wal_writer_delay: '10s',
      wal_writer_flush_after: '1GB',
      wal_buffers: '64MB',
      bgwriter_delay: '10s',
    },
  });
  onTestFinished(() => server.stop());
  const { host, port, user, password } = server;
  return {
    server,
    connection: { host, port, user, password, dbname: 'postgres', sslmode: 'disable' },
  } as const;
}

/** With a certificate of its own; connections without TLS are still taken. */
export async function enableTls(server: EmbeddedServer): Promise<void> {
  const { uid, gid } = statSync(server.directory);
  const request =
    'req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout server.key -out server.crt';
  execFileSync('openssl', request.split(' '), { cwd: server.directory, stdio: 'pipe' });
  for (const name of ['server.key', 'server.crt']) {
    chownSync(join(server.directory, name), uid, gid);
    chmodSync(join(server.directory, name), 0o600);
  }
  const client = new pg.Client({ connectionString: server.url('postgres'), ssl: false });
  await client.connect();
  try {
    await client.query(`alter system set ssl_cert_file = '${join(server.directory, 'server.crt')}'`);
    await client.query(`alter system set ssl_key_file = '${join(server.directory, 'server.key')}'`);
    await client.query('alter system set ssl = on');
    await client.query('select pg_reload_conf()');
    await waitFor(async () => (await client.query<{ ssl: string }>('show ssl')).rows[0]?.ssl === 'on');
  } finally {
    await client.end();
  }
}
