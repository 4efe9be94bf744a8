// Starts the servers of the tests, with their files in memory where there is room: making a database and its tables is
// mostly making files.
import { statfsSync } from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import {
  startEmbeddedPostgres,
  type EmbeddedServer,
  type EmbeddedServerOptions,
} from '../../src/cli/embedded-postgres.ts';

const inMemory = '/dev/shm';
/** Bytes: more than all servers of a run hold at any moment, with what else the machine needs. */
const roomNeeded = 12 * 2 ** 30;

function parentFolder(): string {
  try {
    const { bavail, bsize } = statfsSync(inMemory);
    return Math.min(bavail * bsize, freemem()) >= roomNeeded ? inMemory : tmpdir();
  } catch {
    return tmpdir(); // not a Linux
  }
}

export function startServer(options: EmbeddedServerOptions): Promise<EmbeddedServer> {
  const settings = { max_prepared_transactions: '20', ...options.settings };
  return startEmbeddedPostgres({ parent: parentFolder(), ...options, settings });
}
