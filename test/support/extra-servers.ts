// Servers of majors that only few tests need: started by those test files, not for every run.
import { afterAll, beforeAll } from 'vitest';
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
