// `dts verify`: what a certificate says against what both servers hold now. Changes nothing. The source is as it was
// certified while its fence stands; a target that has been written since differs, and that is said, too.
import { certificateHash } from '../model/certificate-hash.ts';
import { parseRelationName, type RelationName } from '../model/relation.ts';
import type { Certificate } from '../model/certificate.ts';
import type { Side } from '../postgres/connections.ts';
import { identRelation } from '../postgres/sql.ts';
import { compareTable } from './compare.ts';
import { checkLargeObjects, type LargeObjectsCheck } from './large-objects.ts';
import { closePair, needsRecoding, openPair } from './sessions.ts';

export interface CertificateCheck {
  /** The file is the one that was made. */
  readonly hashMatches: boolean;
  readonly tables: readonly TableCheck[];
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
  readonly sourceRows: number;
  readonly targetRows: number;
  /** Source and target hold the same rows now. */
  readonly equal: boolean;
  /** The source holds what it held when it was certified; null: the certificate has no digest of the whole table. */
  readonly sourceUnchanged: boolean | null;
}

export interface SequenceCheck {
  readonly target: string;
  readonly certified: string;
  readonly found: string | null;
  /** The target's sequence has not fallen behind what was certified. */
  readonly holds: boolean;
}

/** Compares every table of the certificate. Errors: those of the servers, `sql_failed` for a table that is gone. */
export async function verifyCertificate(
  scope: { readonly source: Side; readonly target: Side; readonly signal: AbortSignal },
  certificate: Certificate,
  onTable: (check: TableCheck) => void = () => undefined,
): Promise<CertificateCheck> {
  const recode = await needsRecoding(scope);
  const pair = await openPair(scope, scope.signal);
  const tables: TableCheck[] = [];
  let largeObjects: LargeObjectsCheck | null = null;
  try {
    for (const certified of certificate.tables) {
      const source = parseRelationName(certified.table);
      const target = parseRelationName(certified.target);
      const { where } = certified;
      const columns = certified.columns?.map((name) => ({ name })) ?? (await columnsOf(scope.source, source));
      const filter = where === undefined ? {} : { where };
      const now = await compareTable({ source, target, columns, ...filter }, pair, recode);
      const check: TableCheck = {
        table: certified.table,
        target: certified.target,
        certifiedEqual: certified.equal,
        sourceRows: now.sourceRows,
        targetRows: now.targetRows,
        equal: now.equal,
        sourceUnchanged:
          certified.method === 'full'
            ? certified.sourceDigest === now.sourceDigest && certified.sourceRows === now.sourceRows
            : null,
      };
      tables.push(check);
      onTable(check);
    }
    if (certificate.largeObjects) largeObjects = await checkLargeObjects(pair, certificate.largeObjects);
  } finally {
    await closePair(pair);
  }
  const sequences: SequenceCheck[] = [];
  for (const { target, lastValue } of certificate.sequences)
    sequences.push(await checkSequence(scope.target, target, lastValue));
  const hashMatches = certificateHash(certificate) === certificate.hash;
  const passed =
    hashMatches &&
    tables.every((table) => table.certifiedEqual && table.equal && table.sourceUnchanged !== false) &&
    sequences.every((sequence) => sequence.holds) &&
    (largeObjects === null || (largeObjects.sourceUnchanged && largeObjects.differing.length === 0));
  return { hashMatches, tables, sequences, largeObjects, passed };
}

async function columnsOf(side: Side, relation: RelationName): Promise<{ name: string }[]> {
  const { rows } = await side.query<{ name: string }>(
    `select attname::text as name from pg_attribute
     where attrelid = $1::regclass and attnum > 0 and not attisdropped order by attnum`,
    [identRelation(relation)],
  );
  return rows;
}

async function checkSequence(side: Side, name: string, certified: string): Promise<SequenceCheck> {
  const relation = identRelation(parseRelationName(name));
  const { rows } = await side.query<{ found: string; ascends: boolean; cycles: boolean }>(
    `select s.last_value::text as found, p.seqincrement > 0 as ascends, p.seqcycle as cycles
     from ${relation} s join pg_sequence p on p.seqrelid = s.tableoid`,
  );
  const row = rows[0];
  if (!row) return { target: name, certified, found: null, holds: false };
  const ahead = row.ascends ? BigInt(row.found) >= BigInt(certified) : BigInt(row.found) <= BigInt(certified);
  return { target: name, certified, found: row.found, holds: ahead || row.cycles };
}
