// The digest of a table or of a range of its keys: one pass, computed by the server, independent of the order of rows,
// equal on both sides and across majors when the rows are equal. Pure; compare.ts and ranges.ts run it.
import type { PlannedColumn, PlannedTable } from '../model/schema-plan.ts';
import type { TableVerdict } from '../model/certificate.ts';
import type { RelationName } from '../model/relation.ts';
import { ident, identRelation } from '../postgres/sql.ts';

/** One row as PostgreSQL returns it: bigint and numeric as text; the sums of an empty table are null. */
export interface DigestRow {
  readonly rows: string;
  readonly first: string | null;
  readonly second: string | null;
}

/** Beyond the settings of every session of ours: money prints by lc_monetary. */
export const DIGEST_SETTINGS: Readonly<Record<string, string>> = { lc_monetary: 'C' };

/**
 * The text of a row of `t` that is hashed.
 *
 * - A row is the text of a composite value of the named columns in their order: quoted so that NULL, '' and moved
 *   borders between columns differ; by the types' output functions, so that numeric scale, −0 and jsonb spelling count.
 *   Generated columns belong to it: the target computed them itself, and whoever reads them expects the same.
 * - "C": the hash of a text under a nondeterministic collation ignores what that collation ignores.
 * - `recode`: servers of different encodings hash different bytes, so both hash an ASCII spelling of the UTF-8 text.
 */
export function rowText(columns: readonly Pick<PlannedColumn, 'name'>[], recode: boolean): string {
  const row = `row(${columns.map((column) => `t.${ident(column.name)}`).join(', ')})::text`;
  return `${recode ? `encode(convert_to(${row}, 'UTF8'), 'escape')` : row} collate "C"`;
}

/** The relation as `t` in a FROM clause. */
export function fromRows(relation: RelationName, where?: string): string {
  const only = `only ${identRelation(relation)}`;
  return where === undefined ? `${only} as t` : `(select * from ${only} where (${where})) as t`;
}

/**
 * `count(*)` and two sums of a 64-bit hash of every row's text.
 *
 * - The sum, not xor: two equal extra rows do not cancel out. Two seeds make 128 bits.
 * - OFFSET 0 keeps the text from being computed once per seed. ONLY: rows of inheritance children are theirs.
 */
export function digestSql(
  relation: RelationName,
  columns: readonly Pick<PlannedColumn, 'name'>[],
  recode: boolean,
  where?: string,
): string {
  return `select count(*)::text as rows, sum(hashtextextended(r.text, 1))::text as first,
    sum(hashtextextended(r.text, 2))::text as second
    from (select ${rowText(columns, recode)} as text from ${fromRows(relation, where)} offset 0) as r`;
}

/** What the certificate says of rows and columns that were not migrated. */
export function limitsOf({
  where,
  leftOut,
  ignored,
  columns,
}: Pick<PlannedTable, 'where' | 'leftOut' | 'ignored'> & {
  readonly columns: readonly { readonly name: string }[];
}): Pick<TableVerdict, 'where' | 'columns'> {
  return {
    ...(where === undefined ? {} : { where }),
    ...(leftOut === undefined && ignored === undefined ? {} : { columns: columns.map(({ name }) => name) }),
  };
}

/** Both sums modulo 2^64 as one 128-bit number, decimal. */
export function combineDigest(first: string | null, second: string | null): string {
  const high = BigInt.asUintN(64, BigInt(first ?? '0'));
  const low = BigInt.asUintN(64, BigInt(second ?? '0'));
  return ((high << 64n) | low).toString();
}
