// A small pool whose every connection is known from birth to the closed socket, as connections.ts must to count them and to
// end what they run.
import pg, { type Client, type ClientConfig, type Pool } from 'pg';
import { destroySocket } from './connect.ts';

const POOL_SIZE = 4;
const IDLE_TIMEOUT_MS = 30_000;

export interface Tracking {
  /** Holds each connection until its socket is closed: the pool itself forgets it before. */
  readonly open: Set<Client>;
  readonly borrowed: Set<Client>;
  /** Settings of a new connection; without them it is thrown away. */
  readonly prepare: (client: Client) => Promise<void>;
}

export function makeTrackedPool(config: ClientConfig, { open, borrowed, prepare }: Tracking): Pool {
  const track = (client: Client): void => {
    open.add(client);
    client.once('end', () => open.delete(client));
    // Without a listener of ours a borrowed connection that dies between two queries would end the process.
    client.on('error', () => undefined);
  };
  class TrackedClient extends pg.Client {
    constructor(options?: ClientConfig) {
      super(options);
      track(this);
    }
  }
  const pool = new pg.Pool({
    ...config,
    Client: TrackedClient,
    max: POOL_SIZE,
    idleTimeoutMillis: IDLE_TIMEOUT_MS,
  });
  pool.on('error', () => undefined); // an idle connection died; the pool has already removed it
  pool.on('connect', (client) => {
    prepare(client).catch((error: unknown) => destroySocket(client, asError(error)));
  });
  pool.on('acquire', (client) => void borrowed.add(client));
  pool.on('release', (_error, client) => void borrowed.delete(client));
  return pool;
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
