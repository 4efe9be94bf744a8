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

/**
 * What of a row is hashed when both sides are compared there and then; certificates have the text, which anybody can
 * compute again. `sent`: the bytes of the types' send functions, at half the cost. `recoded`: see rowText.
 */
export type RowForm = 'sent' | 'text' | 'recoded';

/**
 * Built-in types, as format_type writes them, whose bytes are the same on 13 to 18 and equal exactly when their texts are.
 * Not among them: floats and what is made of them (a NaN has many bit patterns and one text), arrays (array_send tells
 * whether there is room for a NULL), and whatever sends the OID of a user's type: domains, enums, composites, ranges.
 */
const sentTypes = new RegExp(
  `^(${[
    'smallint|integer|bigint|boolean|uuid|bytea|date|text|name|"char"|oid|pg_lsn|money|jsonb?|inet|cidr|macaddr8?|bpchar',
    String.raw`numeric(\(\d+,-?\d+\))?`,
    String.raw`(character|bit)( varying)?(\(\d+\))?`,
    String.raw`time(stamp)?(\(\d\))? with(out)? time zone`,
    String.raw`interval( [a-z ]+)?(\(\d\))?`,
  ].join('|')})$`,
);

/**
 * 64 bits of a row of `t`. One hash over all of it: hash_record_extended adds up the hashes of the columns, so that the sum
 * over many rows would not see values that changed places between two of them; and the hashes of 8-byte integers and
 * timestamps fold their halves, so that −1 is 4294967295. Hashing bytea has neither fault; array: there is no function for
 * bytea alone before 18.
 */
export function rowHash(columns: readonly Pick<PlannedColumn, 'name' | 'type'>[], form: RowForm): string {
  if (form !== 'sent') return `hashtextextended(${rowText(columns, form === 'recoded')}, 1)`;
  const sent = columns.filter(({ type }) => sentTypes.test(type)).map(({ name }) => `t.${ident(name)}`);
  const others = columns.filter(({ type }) => !sentTypes.test(type));
  const values = others.length === 0 ? sent : [...sent, rowText(others, false)];
  return `hash_array_extended(array[record_send(row(${values.join(', ')}))], 1)`;
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
