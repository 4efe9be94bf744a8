// Of `dts verify`: whether the two databases that were given are those of the certificate. Another address is none of its
// business, a physical standby has the same system identifier. One database for both sides would be compared with itself, and
// everything would hold.
//
//   the certificate's sides              those that were given      answer
//   two databases                        one                        error
//   not told                             one                        error where a table has one name on both sides
//   one, its tables have two names       one                        compared
//   one by all that tells, names alike   one, under one address     error: they were copies, of a disk say
//   any                                  another                    a check that fails, naming both
import type { Certificate, CertifiedServer } from '../model/certificate.ts';
import { MigrationError } from '../model/errors.ts';
import type { Side } from '../postgres/connections.ts';
import { readIdentity, type DatabaseIdentity } from '../postgres/database-identity.ts';

/** A side that is another one than was certified. */
export interface OtherServer {
  readonly role: 'source' | 'target';
  /** What is not the same. */
  readonly parts: readonly {
    readonly name: 'system identifier' | 'database';
    readonly certified: string;
    readonly found: string;
  }[];
}

export interface ServerCheck {
  readonly others: readonly OtherServer[];
  /** What could not be checked. */
  readonly unknown: readonly string[];
}

/** Errors: `invalid_request` when both sides are one database, those of the connections. */
export async function checkServers(
  { source, target }: { readonly source: Side; readonly target: Side },
  certificate: Certificate,
): Promise<ServerCheck> {
  const found = { source: await readIdentity(source), target: await readIdentity(target) };
  if (isOneByMistake(source, target, found, certificate))
    throw new MigrationError(
      'invalid_request',
      `source and target are one database, which would be compared with itself: ${inWords(found.source)}`,
      { hint: 'give each side its own URL; a standby of the source is no target' },
    );
  const { servers } = certificate;
  if (!servers) return { others: [], unknown: ['the certificate does not name its servers'] };
  const others: OtherServer[] = [];
  const unknown: string[] = [];
  for (const role of ['source', 'target'] as const) {
    const [was, is] = [servers[role], found[role]];
    const parts = differenceOf(was, is);
    if (parts.length > 0) others.push({ role, parts });
    if (was.systemIdentifier === null)
      unknown.push(`the certificate has no system identifier of the ${role}`);
    else if (is.systemIdentifier === null) unknown.push(`the ${role} does not tell its system identifier`);
  }
  return { others, unknown };
}

function isOneByMistake(
  source: Side,
  target: Side,
  found: Readonly<Record<'source' | 'target', DatabaseIdentity>>,
  { servers, tables }: Certificate,
): boolean {
  const isOneAddress = isSameAddress(source, target);
  const isOne = areOne(found.source, found.target) ?? isOneAddress;
  const wasOne = servers ? areOne(servers.source, servers.target) : null;
  if (!isOne || wasOne === false) return isOne;
  return tables.some(({ table, target: name }) => table === name) && (wasOne === null || isOneAddress);
}

function differenceOf(was: CertifiedServer, is: DatabaseIdentity): OtherServer['parts'] {
  const system = {
    name: 'system identifier',
    certified: was.systemIdentifier,
    found: is.systemIdentifier,
  } as const;
  const database = { name: 'database', certified: was.dbname, found: is.dbname } as const;
  return [system, database].flatMap(({ name, certified, found }) =>
    certified === null || found === null || certified === found ? [] : [{ name, certified, found }],
  );
}

/** Null: a server does not tell. */
function areOne(a: DatabaseIdentity, b: DatabaseIdentity): boolean | null {
  if (a.dbname !== b.dbname) return false;
  if (a.systemIdentifier === null || b.systemIdentifier === null) return null;
  return a.systemIdentifier === b.systemIdentifier;
}

function isSameAddress({ endpoint: a }: Side, { endpoint: b }: Side): boolean {
  return a.host === b.host && a.port === b.port && a.dbname === b.dbname;
}

function inWords({ dbname, systemIdentifier }: DatabaseIdentity): string {
  return systemIdentifier === null ? dbname : `${dbname} of system identifier ${systemIdentifier}`;
}
