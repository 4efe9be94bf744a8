// Work on a borrowed connection has to end: a peer that vanished says nothing until TCP gives up, which takes a quarter of
// an hour, and one that was stopped says nothing at all. Used by connections.ts for everything that is pooled.
import type { Client } from 'pg';
import { MigrationError } from '../model/errors.ts';
import type { Role } from '../model/endpoint.ts';
import { backendPid } from './backend.ts';
import { destroySocket } from './connect.ts';

/** Of one statement by `query`: they look at catalogs and positions, or change one row. */
export const STATEMENT_TIMEOUT_MS = 120_000;
/** Of some of them together; transaction-options.ts has a longer one. */
export const TRANSACTION_TIMEOUT_MS = 300_000;

interface Borrowed {
  readonly client: Client;
  readonly role: Role;
  readonly timeoutMs: number;
  /** Ends the backend, which may go on after the socket is closed. */
  readonly endBackend: (pid: number) => void;
}

/** Throws `deadline_exceeded`, naming the statement that is not answered; the connection is broken then. */
export async function withinDeadline<T>(
  { client, role, timeoutMs, endBackend }: Borrowed,
  work: () => Promise<T>,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const expired = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const error = new MigrationError(
        'deadline_exceeded',
        `${role}: no answer to a statement within ${timeoutMs} ms: ${runningStatement(client)}`,
        { hint: 'look for a lock that it waits for, and at the network', details: { role } },
      );
      const pid = backendPid(client);
      destroySocket(client, error);
      if (pid !== null) endBackend(pid);
      reject(error);
    }, timeoutMs);
  });
  const working = work();
  working.catch(() => undefined); // after the deadline nobody waits for it
  try {
    return await Promise.race([working, expired]);
  } finally {
    clearTimeout(timer);
  }
}

function runningStatement(client: Client): string {
  // its public name warns of deprecation and is the same
  const running = Reflect.get(client, '_activeQuery') as { readonly text?: string } | null;
  return running?.text?.trim().replace(/\s+/g, ' ').slice(0, 100) ?? 'none, its transaction is still open';
}
