// `dts verify certificate.json`: re-checks a certificate against both servers. Exit code 0: everything holds; 1: something
// differs; 2: it could not be checked. Connections come from the environment, so that no password is in the list of
// processes; a flag may give a URL without one.
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { toCamel } from '../model/case.ts';
import { asMigrationError, MigrationError } from '../model/errors.ts';
import { parseRequest } from '../model/request.ts';
import type { Certificate } from '../model/certificate.ts';
import type { Role } from '../model/endpoint.ts';
import { TaskConnections } from '../postgres/task-connections.ts';
import type { LargeObjectsCheck } from '../validate/large-objects.ts';
import {
  verifyCertificate,
  type CertificateCheck,
  type SequenceCheck,
  type TableCheck,
} from '../validate/verify-certificate.ts';
import type { OtherServer } from '../validate/verify-servers.ts';
import type { StructureChange } from '../validate/verify-structure.ts';

export interface VerifyOptions {
  /** `postgresql://` URLs; a password is better given by `PGPASSWORD`-like variables of the environment. */
  readonly source?: string;
  readonly target?: string;
}

/** Runs the check and writes one line a table; resolves with the exit code. */
export async function verify(
  path: string,
  options: VerifyOptions,
  env: NodeJS.ProcessEnv,
  write: (line: string) => void,
): Promise<number> {
  try {
    const certificate = await readCertificate(path);
    const { spec, secrets } = parseRequest({
      sourceDb: urlOf('source', options.source, env),
      targetDb: urlOf('target', options.target, env),
    });
    const endpoints = { source: spec.sourceDb, target: spec.targetDb };
    const id = `verify_${randomUUID().slice(0, 8)}`;
    const connections = new TaskConnections(id, endpoints, (role) => {
      const password = secrets[role].password ?? env[`DTS_${role.toUpperCase()}_PASSWORD`];
      return Promise.resolve({ ...secrets[role], ...(password === undefined ? {} : { password }) });
    });
    try {
      const { source, target } = connections;
      const signal = new AbortController().signal;
      const check = await verifyCertificate({ source, target, signal }, certificate, (table) =>
        write(lineOf(table)),
      );
      if (!check.hashMatches)
        write('FAILED  the file is not the certificate that was made: its hash differs');
      for (const other of check.servers.others) write(lineOfServer(other));
      for (const change of check.structure.changes) write(lineOfStructure(change));
      for (const sequence of check.sequences.filter(({ holds }) => !holds)) write(lineOfSequence(sequence));
      if (check.largeObjects) write(lineOfLargeObjects(check.largeObjects));
      for (const note of notesOn(certificate, check)) write(`note    ${note}`);
      write(check.passed ? 'the certificate holds' : 'the certificate does not hold');
      return check.passed ? 0 : 1;
    } finally {
      await connections.closeAll();
    }
  } catch (error) {
    const { message, code, hint } = asMigrationError(error);
    write(`dts: ${message} (${code})${hint === undefined ? '' : `\n     ${hint}`}`);
    return 2;
  }
}

function lineOf(check: TableCheck): string {
  const now = check.missing ?? `differs now (${check.sourceRows} and ${check.targetRows} rows)`;
  const faults = [
    ...(check.certifiedEqual ? [] : ['differed when it was certified']),
    ...(check.equal ? [] : [now]),
    ...(check.sourceUnchanged === false ? ['the source has changed since'] : []),
  ];
  const name = check.table === check.target ? check.table : `${check.table} → ${check.target}`;
  return faults.length === 0
    ? `ok      ${name}: ${check.sourceRows} rows`
    : `FAILED  ${name}: ${faults.join('; ')}`;
}

function lineOfServer({ role, parts }: OtherServer): string {
  const what = parts.map(({ name, certified, found }) => `${name} ${found}, certified ${certified}`);
  return `FAILED  the ${role} is another one: ${what.join('; ')}`;
}

function lineOfStructure({ role, table, parts }: StructureChange): string {
  return `FAILED  structure of ${table} on the ${role}: its ${parts.join(' and ')} have changed since`;
}

function lineOfSequence({ target, certified, found }: SequenceCheck): string {
  if (!found) return `FAILED  sequence ${target}: it is gone on the target`;
  return found.lastValue === certified.lastValue
    ? `FAILED  sequence ${target}: it would hand out ${found.lastValue} once more`
    : `FAILED  sequence ${target}: ${found.lastValue} is behind ${certified.lastValue}`;
}

/** What the answer does not cover, or what was known when the certificate was made; none of it is a fault of today. */
function notesOn(
  { tables, digests, schema }: Certificate,
  { servers, structure }: CertificateCheck,
): string[] {
  const partial = tables.filter(({ method }) => method === 'changes').length;
  const why = digests?.reason ? ` (${digests.reason})` : '';
  const differences = schema?.differences.join(', ') ?? '';
  return [
    ...servers.unknown.map((reason) => `whether these are the certified servers is not known: ${reason}`),
    ...(partial === 0
      ? []
      : [
          `${partial} of ${tables.length} tables were certified by the keys that had changed last${why}: whether their source has changed since is not known`,
        ]),
    ...structure.unknown.map((reason) => `structure was not looked at: ${reason}`),
    ...(schema?.error ? [`the schemas could not be compared when it was certified: ${schema.error}`] : []),
    ...(schema && schema.differencesTotal > 0
      ? [`the schemas had ${schema.differencesTotal} differences when it was certified: ${differences}`]
      : []),
  ];
}

function lineOfLargeObjects({ count, sourceUnchanged, differing }: LargeObjectsCheck): string {
  const faults = [
    ...(differing.length > 0 ? [`differ now: ${differing.join(', ')}`] : []),
    ...(sourceUnchanged ? [] : ['the source has changed since']),
  ];
  return faults.length === 0
    ? `ok      large objects: ${count}`
    : `FAILED  large objects: ${faults.join('; ')}`;
}

function urlOf(role: Role, flag: string | undefined, env: NodeJS.ProcessEnv): string {
  const variable = `DTS_${role.toUpperCase()}_URL`;
  const url = flag ?? env[variable];
  if (url !== undefined && url !== '') return url;
  throw new MigrationError('invalid_request', `the ${role} is not given`, {
    hint: `set ${variable}, or give --${role} a URL without password and set DTS_${role.toUpperCase()}_PASSWORD`,
  });
}

/** As `GET …/certificate` answers it, or the library keeps it. */
async function readCertificate(path: string): Promise<Certificate> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    throw new MigrationError('invalid_request', `cannot read ${path}`, { cause: error });
  }
  try {
    const parsed: unknown = JSON.parse(text);
    const plain = typeof parsed === 'object' && parsed !== null && 'taskId' in parsed;
    const value = (plain ? parsed : toCamel(parsed).value) as Partial<Certificate>;
    if (Array.isArray(value.tables) && Array.isArray(value.sequences) && typeof value.hash === 'string')
      return value as Certificate;
  } catch {
    // said below
  }
  throw new MigrationError('invalid_request', `${path} is not a certificate of DTS`, {
    hint: 'take it from GET /api/v1/migrations/<id>/certificate',
  });
}
