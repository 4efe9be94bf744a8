// From an endpoint and its secrets to a `pg` client configuration, with TLS as libpq's sslmode means it
// (https://www.postgresql.org/docs/current/libpq-ssl.html, table 32.1).
import { readFile } from 'node:fs/promises';
import { Client, DatabaseError, type ClientConfig } from 'pg';
import { MigrationError } from '../model/errors.ts';
import type { Endpoint, EndpointSecrets, Role } from '../model/endpoint.ts';
import { fromPostgres } from './errors.ts';

const CONNECT_TIMEOUT_MS = 15_000;
/** Longest wait for the server to close a connection that we have said goodbye on. */
const GOODBYE_TIMEOUT_MS = 2_000;

type TlsOptions = Exclude<ClientConfig['ssl'], boolean | undefined>;

async function pemOf(value: string, field: string): Promise<string> {
  if (value.includes('-----BEGIN')) return value;
  try {
    return await readFile(value, 'utf8');
  } catch (error) {
    throw new MigrationError('tls_failed', `${field}: cannot read ${value}`, {
      hint: `${field} is PEM text or the path of a file that the service can read`,
      cause: error,
    });
  }
}

async function tlsOptions(endpoint: Endpoint, secrets: EndpointSecrets): Promise<TlsOptions> {
  const { sslmode } = endpoint;
  // libpq: `require` with a root certificate behaves like verify-ca.
  const verifyChain =
    sslmode === 'verify-ca' ||
    sslmode === 'verify-full' ||
    (sslmode === 'require' && endpoint.sslrootcert !== undefined);
  const tls: TlsOptions = { rejectUnauthorized: verifyChain };
  if (sslmode !== 'verify-full') tls.checkServerIdentity = () => undefined;
  if (endpoint.sslrootcert !== undefined && endpoint.sslrootcert !== 'system')
    tls.ca = await pemOf(endpoint.sslrootcert, 'sslrootcert');
  if (endpoint.sslcert !== undefined) tls.cert = await pemOf(endpoint.sslcert, 'sslcert');
  const key = secrets.sslkey ?? endpoint.sslkeyPath;
  if (key !== undefined) tls.key = await pemOf(key, 'sslkey');
  return tls;
}

/** The configurations to try, in order: `prefer` tries TLS first and then plain text, every other mode is one try. */
async function clientConfigs(
  endpoint: Endpoint,
  secrets: EndpointSecrets,
  applicationName: string,
): Promise<ClientConfig[]> {
  const base: ClientConfig = {
    host: endpoint.host,
    port: endpoint.port,
    user: endpoint.user,
    database: endpoint.dbname,
    // '' rather than undefined: `pg` would otherwise look into PGPASSWORD and ~/.pgpass of whoever runs the service
    password: secrets.password ?? '',
    application_name: applicationName,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
  };
  const isSocket = endpoint.host.startsWith('/'); // libpq never uses TLS on a Unix socket
  if (endpoint.sslmode === 'disable' || isSocket) return [{ ...base, ssl: false }];
  const ssl = await tlsOptions(endpoint, secrets);
  if (endpoint.sslmode === 'prefer')
    return [
      { ...base, ssl },
      { ...base, ssl: false },
    ];
  return [{ ...base, ssl }];
}

const tlsErrorCodes =
  /^(ERR_TLS|ERR_SSL|CERT_|UNABLE_TO_|SELF_SIGNED|DEPTH_ZERO|ERR_OSSL|HOSTNAME_MISMATCH|EPROTO$)/;

/** Whether the server or the certificate check refused TLS, as opposed to the network or the credentials. */
function isTlsFailure(error: unknown): error is Error {
  if (!(error instanceof Error)) return false;
  const code = (error as { code?: unknown }).code;
  // `pg` raises this text itself (lib/connection.js), so it is neither translated nor a server's.
  return (
    error.message === 'The server does not support SSL connections' ||
    (typeof code === 'string' && tlsErrorCodes.test(code))
  );
}

/** pg_hba.conf has no line for this kind of connection: SQLSTATE 28000; a wrong password is 28P01. */
function isRefusedByHba(error: unknown): boolean {
  return error instanceof DatabaseError && error.code === '28000';
}

/** Breaks the connection at once: what waits on it, connect() included, rejects with `reason`. */
export function destroySocket(client: Client, reason: Error): void {
  (
    client as unknown as { connection: { stream: { destroy(error: Error): void } } }
  ).connection.stream.destroy(reason);
}

/** Says goodbye and waits until the socket is closed, two seconds at most: a dead network must not hold us. */
export async function closeClient(client: Client): Promise<void> {
  const timer = setTimeout(
    () => destroySocket(client, new Error('no answer to the goodbye')),
    GOODBYE_TIMEOUT_MS,
  );
  try {
    await client.end().catch(() => undefined);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Finds the configuration that connects, trying `prefer`'s fallback once so that pools do not repeat it. As in libpq
 * the fallback is taken when TLS fails and when pg_hba.conf refuses the TLS connection, not after a wrong password.
 * Errors: `authentication_failed`, `tls_failed`, `connection_failed`, `too_many_connections`, `aborted`.
 */
export async function negotiate(
  endpoint: Endpoint,
  secrets: EndpointSecrets,
  applicationName: string,
  role: Role,
  signal?: AbortSignal,
): Promise<ClientConfig> {
  const configs = await clientConfigs(endpoint, secrets, applicationName);
  let refused: unknown;
  for (const [index, config] of configs.entries()) {
    const isLast = index + 1 === configs.length;
    try {
      await tryConnect(config, role, signal);
      return config;
    } catch (error) {
      if (!isLast && (isTlsFailure(error) || isRefusedByHba(error))) {
        if (isRefusedByHba(error)) refused = error;
        continue;
      }
      throw connectError(refused ?? error, endpoint, role);
    }
  }
  throw new MigrationError('internal', 'no connection configuration to try');
}

async function tryConnect(config: ClientConfig, role: Role, signal: AbortSignal | undefined): Promise<void> {
  const client = new Client(config);
  client.on('error', () => undefined); // reported by connect()
  const stop = (): void =>
    destroySocket(client, new MigrationError('aborted', `${role}: stopped while connecting`));
  signal?.addEventListener('abort', stop, { once: true });
  try {
    if (signal?.aborted) throw new MigrationError('aborted', `${role}: stopped while connecting`);
    await client.connect();
  } finally {
    signal?.removeEventListener('abort', stop);
    await closeClient(client);
  }
}

function connectError(error: unknown, endpoint: Endpoint, role: Role): MigrationError {
  const { host, port, dbname, user, sslmode } = endpoint;
  if (isTlsFailure(error)) {
    return new MigrationError('tls_failed', `${role}: ${error.message}`, {
      hint: `sslmode is ${sslmode}; check the server's ssl setting, the certificates and sslrootcert`,
      details: { role, host, port },
      cause: error,
    });
  }
  const classified = fromPostgres(error, { role, host, port, dbname, user });
  if (classified.code !== 'internal') return classified;
  // What is left are errors of `pg` itself during the handshake: no password where one is asked for, a method that it
  // does not speak, an answer that is not PostgreSQL's. `SASL` is its own prefix (lib/crypto/sasl.js).
  const isPassword = error instanceof Error && error.message.startsWith('SASL');
  return new MigrationError(isPassword ? 'authentication_failed' : 'connection_failed', classified.message, {
    kind: 'operator',
    hint: isPassword
      ? 'check the password'
      : 'check that a PostgreSQL server listens there, and its authentication method',
    details: { role, host, port, dbname, user },
    cause: error,
  });
}
