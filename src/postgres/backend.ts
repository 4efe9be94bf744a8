// The server's end of a connection of ours: closing a socket does not stop a statement that does not read from it (CREATE
// INDEX, pg_sleep), ending its backend does.
import pg, { type Client, type ClientConfig } from 'pg';
import { MigrationError } from '../model/errors.ts';
import type { Role } from '../model/endpoint.ts';
import { closeClient, destroySocket } from './connect.ts';

/** Longest wait for the connection that ends what our other connections still run. */
const TERMINATE_TIMEOUT_MS = 3_000;

/** Process id of the server's backend; null until connected. */
export function backendPid(client: Client): number | null {
  return (client as unknown as { processID: number | null }).processID;
}

/** Ends those of `pids` whose application_name begins with `name`, over a connection of its own: a pool may be exhausted or closed. */
export async function terminateBackends(
  pids: readonly number[],
  { config, name, role }: { readonly config: ClientConfig; readonly name: string; readonly role: Role },
): Promise<void> {
  const client = new pg.Client({ ...config, connectionTimeoutMillis: TERMINATE_TIMEOUT_MS });
  client.on('error', () => undefined); // reported by the query
  const timer = setTimeout(
    () => destroySocket(client, new MigrationError('deadline_exceeded', `${role}: no answer`)),
    TERMINATE_TIMEOUT_MS * 2,
  );
  try {
    await client.connect();
    // by name, too: a pid may have been given to somebody else meanwhile
    await client.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where pid = any($1::int[]) and starts_with(application_name, $2)`,
      [pids, name],
    );
  } finally {
    clearTimeout(timer);
    await closeClient(client);
  }
}
