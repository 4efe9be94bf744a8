// `dts verify`: what a certificate says against what both servers hold now. Changes nothing. The source is as it was
// certified while its fence stands; a target that has been written since differs, and that is said, too. What is gone, or
// can no longer be read as it was certified, is a check that fails; only what cannot be asked is an error.
import { certificateHash } from '../model/certificate-hash.ts';
import { parseRelationName, type RelationName } from '../model/relation.ts';
import type { Certificate, CertifiedTable, SequenceVerdict } from '../model/certificate.ts';
import type { Session, Side } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { identRelation } from '../postgres/sql.ts';
import { compareTable } from './compare.ts';
import { digestSql } from './digest.ts';
import { checkLargeObjects, type LargeObjectsCheck } from './large-objects.ts';
import { closePair, needsRecoding, openPair, type SidePair } from './sessions.ts';
import { checkServers, type ServerCheck } from './verify-servers.ts';
import { checkStructure, type StructureCheck } from './verify-structure.ts';

export interface CertificateCheck {
  /** The file is the one that was made. */
  readonly hashMatches: boolean;
  readonly servers: ServerCheck;
  readonly tables: readonly TableCheck[];
  readonly structure: StructureCheck;
  readonly sequences: readonly SequenceCheck[];
  /** Null where the certificate has none. */
  readonly largeObjects: LargeObjectsCheck | null;
  /** Everything above holds, and what was certified was equal. */
  readonly passed: boolean;
}

export interface TableCheck {
  readonly table: string;
  readonly target: string;
  readonly certifiedEqual: boolean;
  /** Why it cannot be compared any more: it, or a column of it, is gone on a side. Null when it was compared. */
  readonly missing: string | null;
  readonly sourceRows: number;
  readonly targetRows: number;
  /** Source and target hold the same rows now. */
  readonly equal: boolean;
  /** The source holds what it held when it was certified; null: the certificate has no digest of the whole table. */
  readonly sourceUnchanged: boolean | null;
}

type Position = Pick<SequenceVerdict, 'lastValue' | 'isCalled'>;

export interface SequenceCheck {
  readonly target: string;
  readonly certified: Position;
  /** Null: it is gone. */
  readonly found: Position | null;
  /** The target's sequence has not fallen behind what was certified. */
  readonly holds: boolean;
}

/**
 * SQLSTATEs of a statement that names what is not there any more: undefined_table, undefined_column, invalid_schema_name,
 * wrong_object_type (an index of that name, say), and, where a `where` meets a column of another type, undefined_function (operators,
 * too) and datatype_mismatch.
 */
const gone: ReadonlySet<unknown> = new Set(['42P01', '42703', '3F000', '42809', '42883', '42804']);

/**
 * Compares every table of the certificate. Errors: `invalid_request` when both sides are one database and were not, those of
 * the servers.
 */
export async function verifyCertificate(
  scope: { readonly source: Side; readonly target: Side; readonly signal: AbortSignal },
  certificate: Certificate,
  onTable: (check: TableCheck) => void = () => undefined,
): Promise<CertificateCheck> {
  const servers = await checkServers(scope, certificate);
  const recode = await needsRecoding(scope);
  const pair = await openPair(scope, scope.signal);
  const tables: TableCheck[] = [];
  let largeObjects: LargeObjectsCheck | null = null;
  try {
    for (const certified of certificate.tables) {
      const check = await checkTable(pair, certified, recode);
      tables.push(check);
      onTable(check);
    }
    if (certificate.largeObjects) largeObjects = await checkLargeObjects(pair, certificate.largeObjects);
  } finally {
    await closePair(pair);
  }
  const structure = await checkStructure(scope, certificate);
  const sequences: SequenceCheck[] = [];
  for (const certified of certificate.sequences) sequences.push(await checkSequence(scope.target, certified));
  const hashMatches = certificateHash(certificate) === certificate.hash;
  const passed =
    hashMatches &&
    servers.others.length === 0 &&
    tables.every((table) => table.certifiedEqual && table.equal && table.sourceUnchanged !== false) &&
    structure.changes.length === 0 &&
    sequences.every((sequence) => sequence.holds) &&
    (largeObjects === null || (largeObjects.sourceUnchanged && largeObjects.differing.length === 0));
  return { hashMatches, servers, tables, structure, sequences, largeObjects, passed };
}

async function checkTable(pair: SidePair, certified: CertifiedTable, recode: boolean): Promise<TableCheck> {
  const source = parseRelationName(certified.table);
  const target = parseRelationName(certified.target);
  const { where } = certified;
  const names = { table: certified.table, target: certified.target, certifiedEqual: certified.equal };
  const known = certified.columns?.map((name) => ({ name }));
  const columns = known ?? (await columnsOf(pair.source, source));
  const missing = (
    await Promise.all([
      whatIsGone(
        pair.source,
        'source',
        digestSql(source, columns, recode, where === undefined ? 'false' : `(${where}) and false`),
      ),
      whatIsGone(pair.target, 'target', digestSql(target, columns, recode, 'false')),
    ])
  ).filter((reason) => reason !== null);
  if (missing.length > 0)
    return {
      ...names,
      missing: missing.join('; '),
      sourceRows: 0,
      targetRows: 0,
      equal: false,
      sourceUnchanged: null,
    };
  const now = await compareTable(
    { source, target, columns, ...(where === undefined ? {} : { where }) },
    pair,
    recode,
  );
  return {
    ...names,
    missing: null,
    sourceRows: now.sourceRows,
    targetRows: now.targetRows,
    equal: now.equal,
    sourceUnchanged:
      certified.method === 'full'
        ? certified.sourceDigest === now.sourceDigest && certified.sourceRows === now.sourceRows
        : null,
  };
}

/** Null when `sql`, which reads no row, names only what is there. Errors: those of the server. */
async function whatIsGone(
  { client }: Session,
  role: 'source' | 'target',
  sql: string,
): Promise<string | null> {
  try {
    await client.query(sql);
    return null;
  } catch (error) {
    const known = fromPostgres(error, { role });
    if (!gone.has(known.details?.['sqlstate'])) throw known;
    return known.message;
  }
}

/** None when the relation is gone. */
async function columnsOf({ client }: Session, relation: RelationName): Promise<{ name: string }[]> {
  try {
    const { rows } = await client.query<{ name: string }>(
      `select attname::text as name from pg_attribute
       where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attnum`,
      [identRelation(relation)],
    );
    return rows;
  } catch (error) {
    throw fromPostgres(error, { role: 'source' });
  }
}

async function checkSequence(
  side: Side,
  { target, lastValue, isCalled }: SequenceVerdict,
): Promise<SequenceCheck> {
  const certified = { lastValue, isCalled };
  const found = await positionOf(side, parseRelationName(target));
  if (!found) return { target, certified, found, holds: false };
  const distance = BigInt(found.lastValue) - BigInt(lastValue);
  // nextval leaves is_called true, also where a sequence cycles: that value would be handed out once more
  const holds =
    distance === 0n
      ? found.isCalled || !isCalled
      : found.cycles || (found.ascends ? distance > 0n : distance < 0n);
  return { target, certified, found: { lastValue: found.lastValue, isCalled: found.isCalled }, holds };
}

/** Null when there is no sequence of that name. */
async function positionOf(
  side: Side,
  relation: RelationName,
): Promise<(Position & { readonly ascends: boolean; readonly cycles: boolean }) | null> {
  try {
    const { rows } = await side.query<Position & { ascends: boolean; cycles: boolean }>(
      `select s.last_value::text as "lastValue", s.is_called as "isCalled", p.seqincrement > 0 as ascends, p.seqcycle as cycles
       from ${identRelation(relation)} s join pg_sequence p on p.seqrelid = s.tableoid`,
    );
    return rows[0] ?? null;
  } catch (error) {
    const known = fromPostgres(error);
    if (gone.has(known.details?.['sqlstate'])) return null;
    throw known;
  }
}
