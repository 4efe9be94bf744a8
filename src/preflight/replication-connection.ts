// Check of run.ts: really opens a walsender connection. Attributes and pg_hba.conf can be right and a pooler in between
// still refuse the replication protocol.
import type { MigrationError } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import type { Endpoint, Role } from '../model/endpoint.ts';
import { fromPostgres } from '../postgres/errors.ts';
import type { Side } from '../postgres/connections.ts';
import { hbaLine } from './connection.ts';
import { mayReplicate, type RoleFacts } from './replication-role.ts';
import { onlyRow, type Ask } from './ask.ts';
import { areWalsendersExhausted, type WalsenderFacts } from './walsenders.ts';

/** The address that the server sees us under; null through a Unix socket. */
export async function readOurAddress(ask: Ask): Promise<string | null> {
  return onlyRow(await ask<{ address: string | null }>(`select host(inet_client_addr()) as address`)).address;
}

/** Null when the walsender answered, else why not. Throws only when aborted. */
export async function tryReplication(side: Side, signal: AbortSignal): Promise<MigrationError | null> {
  try {
    const session = await side.session({
      purpose: 'preflight',
      signal,
      replication: true,
    });
    try {
      // keywords of the replication grammar are upper case only (repl_scanner.l)
      await session.client.query('IDENTIFY_SYSTEM');
      return null;
    } finally {
      await session.close();
    }
  } catch (error) {
    const known = fromPostgres(error, { role: side.role });
    if (known.code === 'aborted') throw known;
    return known;
  }
}

/** What the checks of the role and of the walsenders already say is not said twice. */
export function assessReplicationConnection(
  error: MigrationError | null,
  endpoint: Endpoint,
  address: string | null,
  role: RoleFacts,
  walsenders: WalsenderFacts,
  side: Role = 'source',
): Finding[] {
  if (error === null) return [];
  if (error.code === 'insufficient_privilege' && !mayReplicate(role)) return [];
  if (error.code === 'too_many_connections' && areWalsendersExhausted(walsenders)) return [];
  const remedies: Partial<Record<MigrationError['code'], string>> = {
    insufficient_privilege: 'give the role the right to replicate',
    authentication_failed: `add to pg_hba.conf and reload: ${hbaLine(endpoint, address)}`,
    too_many_connections: 'raise the connection limit of the role or of the database',
  };
  return [
    {
      code: 'replication_connection_refused',
      severity: 'blocking',
      object: side,
      message: `${side}: a connection for replication was refused, although ordinary ones are accepted (${error.message})`,
      remedy:
        remedies[error.code] ??
        `give the server's own address: a connection pooler does not pass the replication protocol on`,
    },
  ];
}
