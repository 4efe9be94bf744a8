// Starts one PostgreSQL server of each major for the whole run; tests make databases of their own on them.
import type { TestProject } from 'vitest/node';
import type { EmbeddedMajor, EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import { startServer } from './servers.ts';

export interface ServerAddress {
  readonly port: number;
  readonly password: string;
}

/** Others are started by the tests that need them (extra-servers.ts). */
const everyRun = [13, 16, 18] as const;
type ServersOfEveryRun = Record<(typeof everyRun)[number], ServerAddress> &
  Partial<Record<EmbeddedMajor, ServerAddress>>;

declare module 'vitest' {
  export interface ProvidedContext {
    servers: ServersOfEveryRun;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const servers: EmbeddedServer[] = await Promise.all(
    everyRun.map((major) => startServer({ major, settings: { shared_buffers: '64MB' } })),
  );
  const addresses = Object.fromEntries(
    servers.map(({ major, port, password }) => [major, { port, password }]),
  );
  project.provide('servers', addresses as ServersOfEveryRun);
  return async () => {
    await Promise.all(servers.map((server) => server.stop()));
  };
}
