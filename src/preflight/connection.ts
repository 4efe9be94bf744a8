// Check of run.ts: why a side could not be reached, as a finding. Both sides are reported at once.
import { DatabaseError } from 'pg';
import type { MigrationError } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import type { Endpoint, Role } from '../model/endpoint.ts';
import { ident } from '../postgres/sql.ts';

/** `<role>_<error code>`, or `<role>_database_missing`. */
export function assessConnection(role: Role, endpoint: Endpoint, error: MigrationError): Finding {
  const sqlstate = error.details?.['sqlstate'];
  const finding = (code: string, remedy: string | null): Finding => ({
    code: `${role}_${code}`,
    severity: 'blocking',
    object: role,
    message: error.message.startsWith(`${role}: `) ? error.message : `${role}: ${error.message}`,
    remedy,
  });
  const { host, port, dbname, user } = endpoint;
  if (sqlstate === '3D000')
    return finding('database_missing', `correct dbname, or: create database ${ident(dbname)}`);
  // A role that is missing or NOLOGIN has the SQLSTATE of pg_hba.conf's refusal; the routine that raised it differs.
  if (
    sqlstate === '28000' &&
    error.cause instanceof DatabaseError &&
    error.cause.routine === 'InitializeSessionUserId'
  )
    return finding(error.code, `correct user, or: alter role ${ident(user)} login`);
  if (sqlstate === '28000')
    return finding(error.code, `add to pg_hba.conf and reload: ${hbaLine(endpoint, null)}`);
  if (sqlstate === '28P01')
    return finding(error.code, `correct the password, or: alter role ${ident(user)} password '…'`);
  if (error.code === 'connection_failed')
    return finding(
      error.code,
      error.hint ?? `check that PostgreSQL listens on ${host}:${port} and that nothing between us blocks it`,
    );
  return finding(error.code, error.hint ?? null);
}

/** The line that admits us; `address` as the server sees us, null when unknown. */
export function hbaLine(endpoint: Endpoint, address: string | null): string {
  const type = endpoint.host.startsWith('/')
    ? 'local'
    : endpoint.sslmode === 'disable'
      ? 'hostnossl'
      : 'host';
  const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;
  const from =
    address === null ? '<address of this service>/32' : `${address}/${address.includes(':') ? 128 : 32}`;
  const columns = [type, quoted(endpoint.dbname), quoted(endpoint.user), ...(type === 'local' ? [] : [from])];
  return `${columns.join(' ')} scram-sha-256`;
}
