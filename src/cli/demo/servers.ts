// The demo's two servers and the source's contents.
import pg from 'pg';
import { startEmbeddedPostgres } from '../embedded-postgres.ts';
import type { Cleanup } from './cleanup.ts';
import type { Display } from './display.ts';
import { loadShop, LOAD_STEPS } from './schema.ts';

const DATABASE = 'shop';

/** Starts 16 and 18 with an empty database each; returns the URLs of source and target. */
export async function startServers(cleanup: Cleanup, signal: AbortSignal): Promise<[string, string]> {
  const start = async (major: 16 | 18): Promise<string> => {
    const server = await startEmbeddedPostgres({
      major,
      settings: { shared_buffers: '256MB', max_wal_size: '4GB', max_connections: '100' },
    });
    cleanup.add(() => server.stop());
    const admin = new pg.Client({ connectionString: server.url('postgres'), ssl: false });
    await admin.connect();
    try {
      await admin.query(`create database ${DATABASE}`);
    } finally {
      await admin.end();
    }
    return server.url(DATABASE);
  };
  const [source, target] = await Promise.allSettled([start(16), start(18)]); // both have settled before cleaning up
  signal.throwIfAborted();
  if (source.status === 'rejected') throw source.reason;
  if (target.status === 'rejected') throw target.reason;
  return [source.value, target.value];
}

/** Fills the source and returns the number of rows. */
export async function loadSource(
  url: string,
  display: Display,
  cleanup: Cleanup,
  signal: AbortSignal,
): Promise<number> {
  const loader = new pg.Client({ connectionString: url, ssl: false, application_name: 'demo/load' });
  loader.on('error', () => undefined); // the query in flight rejects with it
  await loader.connect();
  const end = (): Promise<void> => loader.end().catch(() => undefined);
  const onAbort = (): void => void end(); // with a query in flight this closes the socket
  signal.addEventListener('abort', onAbort, { once: true });
  cleanup.add(end);
  let begun = 0;
  try {
    return await loadShop(loader, (step) => {
      display.progress((begun++ / LOAD_STEPS) * 100, step);
    });
  } finally {
    signal.removeEventListener('abort', onAbort);
    await end();
  }
}
