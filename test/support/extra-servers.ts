// Servers that only few tests need, of other majors or with settings of their own: started by those, not for every run.
import { afterAll, beforeAll, onTestFinished } from 'vitest';
import type { EmbeddedMajor, EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import { registerServer } from './databases.ts';
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
    settings: { synchronous_commit: 'off', wal_writer_delay: '10s', bgwriter_delay: '10s' },
  });
  onTestFinished(() => server.stop());
  const { host, port, user, password } = server;
  return {
    server,
    connection: { host, port, user, password, dbname: 'postgres', sslmode: 'disable' },
  } as const;
}
