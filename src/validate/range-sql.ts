// The statements that compare a table by ranges of its key and by single keys. Pure; ranges.ts and keys.ts run them.
//
// A range is (after, upTo] in the order of the key's index, whatever its types. Servers whose collations sort texts
// differently do not agree on what lies in it; every row still lies in one of the ranges on either server, since the last
// one is open, so that only costs comparisons key by key.
import type { PlannedColumn, PlannedTable } from '../model/schema-plan.ts';
import type { KeyRange } from '../model/validation.ts';
import type { RelationName } from '../model/relation.ts';
import { ident, outputText } from '../postgres/sql.ts';
import { fromRows, rowHash, rowText, type RowForm } from './digest.ts';

/** Parts of a range by the hash of the key: what differs is narrowed down to some of them. A power of two. */
const BUCKETS = 256;

/** Key as texts, in the order of the key. */
export type KeyTexts = readonly string[];

export interface RangeStatement {
  readonly text: string;
  readonly values: readonly unknown[];
}

/** What the statements need to know of one side of a table. */
export interface ComparedTable {
  readonly relation: RelationName;
  readonly columns: readonly PlannedColumn[];
  readonly key: readonly PlannedColumn[];
  readonly form: RowForm;
  /** Only these rows; null: all. The source's alone: rows that the target has beyond them are surplus. */
  readonly where: string | null;
}

/** The columns of the table's key; empty where it has none. */
export function keyOf(table: PlannedTable): PlannedColumn[] {
  return table.keyColumns.flatMap((name) => table.columns.filter((column) => column.name === name));
}

/** The filter's columns are bare names: inside, no other relation is in sight. */
function rowsOf({ relation, where }: ComparedTable): string {
  return fromRows(relation, where ?? undefined);
}

function keyList(table: ComparedTable): string {
  return table.key.map((column) => `t.${ident(column.name)}`).join(', ');
}

/** Spelled as the stream does, whose notes of changed keys are compared with them. */
function keyTexts(table: ComparedTable): string {
  return table.key.map((column) => outputText(`t.${ident(column.name)}`)).join(', ');
}

/** The row comparison of a composite key is what its index is ordered by. */
function inRange(table: ComparedTable, range: KeyRange): RangeStatement {
  const values: string[] = [];
  const bound = (key: KeyTexts): string =>
    `(${key.map((value, n) => `$${values.push(value)}::${table.key[n]?.type ?? 'text'}`).join(', ')})`;
  const conditions = [
    ...(range.after === null ? [] : [`(${keyList(table)}) > ${bound(range.after)}`]),
    ...(range.upTo === null ? [] : [`(${keyList(table)}) <= ${bound(range.upTo)}`]),
  ];
  return { text: conditions.length === 0 ? '' : `where ${conditions.join(' and ')}`, values };
}

/** The key that is `rows` keys behind `after`, as texts; no row when the table ends before. */
export function boundarySql(table: ComparedTable, after: KeyTexts | null, rows: number): RangeStatement {
  const { text, values } = inRange(table, { after, upTo: null });
  return {
    // outside: the texts of the one key alone, not of all that it skips
    text: `select ${table.key.map((_, n) => outputText(`b.k${n}`)).join(', ')} from (
        select ${table.key.map((column, n) => `t.${ident(column.name)} as k${n}`).join(', ')} from ${rowsOf(table)} ${text}
        order by ${keyList(table)} offset ${rows - 1} limit 1) b`,
    values,
  };
}

/** `key` (text[]) of every row of the range, `limit` at most. */
export function keysSql(table: ComparedTable, range: KeyRange, limit: number): RangeStatement {
  const { text, values } = inRange(table, range);
  return {
    text: `select array[${keyTexts(table)}] as key from ${rowsOf(table)} ${text} limit ${limit}`,
    values,
  };
}

/** Rows of a key stay in their part, and a part is chosen before the whole row is made a text. */
function bucket(table: ComparedTable): string {
  const [only] = table.key;
  const isInteger =
    table.key.length === 1 && only !== undefined && /^(smallint|integer|bigint)$/.test(only.type);
  const hash = isInteger
    ? `hashint8extended(t.${ident(only.name)}::bigint, 0)`
    : `hashtextextended(${rowText(table.key, table.form === 'recoded')}, 0)`;
  return `(${hash} & ${BUCKETS - 1})::int`;
}

/** `rows`, `sum` of the whole range. */
export function rangeSql(table: ComparedTable, range: KeyRange): RangeStatement {
  const { text, values } = inRange(table, range);
  return {
    text: `select count(*)::text as rows, sum(${rowHash(table.columns, table.form)})::text as sum
      from ${rowsOf(table)} ${text}`,
    values,
  };
}

/** `bucket`, `rows`, `sum` of each part of the range. */
export function bucketsSql(table: ComparedTable, range: KeyRange): RangeStatement {
  const { text, values } = inRange(table, range);
  return {
    text: `select ${bucket(table)} as bucket, count(*)::text as rows, sum(${rowHash(table.columns, table.form)})::text as sum
      from ${rowsOf(table)} ${text} group by 1`,
    values,
  };
}

/** Key texts and hash of the rows in the buckets of a range: `key` (text[]), `hash`. */
export function bucketRowsSql(
  table: ComparedTable,
  range: KeyRange,
  buckets: readonly number[],
): RangeStatement {
  const { text, values } = inRange(table, range);
  return {
    text: `select array[${keyTexts(table)}] as key, ${rowHash(table.columns, table.form)}::text as hash
      from ${rowsOf(table)}
      ${text === '' ? 'where' : `${text} and`} ${bucket(table)} = any ($${values.length + 1}::int[])`,
    values: [...values, buckets],
  };
}

/** `key` (text[]) of every given key, spelled as the stream and `keysSql` do: a person may write 017 for 17. */
export function spelledSql(table: ComparedTable, keys: readonly KeyTexts[]): RangeStatement {
  const lists = table.key.map((_, n) => keys.map((key) => key[n]));
  return {
    text: `select array[${table.key.map((column, n) => outputText(`w.k${n}::${column.type}`)).join(', ')}] as key
      from unnest(${lists.map((_, n) => `$${n + 1}::text[]`).join(', ')}) as w(${lists.map((_, n) => `k${n}`).join(', ')})`,
    values: lists,
  };
}

/** `n` (position in `keys`, from 1) and `select`'s columns for each key that is there. */
function lookupSql(table: ComparedTable, keys: readonly KeyTexts[], select: string): RangeStatement {
  const lists = table.key.map((_, n) => keys.map((key) => key[n]));
  return {
    text: `select w.n::int as n, ${select}
      from unnest(${lists.map((_, n) => `$${n + 1}::text[]`).join(', ')}) with ordinality
        as w(${lists.map((_, n) => `k${n}`).join(', ')}, n)
      join ${rowsOf(table)}
        on ${table.key.map((column, n) => `t.${ident(column.name)} = w.k${n}::${column.type}`).join(' and ')}`,
    values: lists,
  };
}

export function hashesSql(table: ComparedTable, keys: readonly KeyTexts[]): RangeStatement {
  return lookupSql(table, keys, `${rowHash(table.columns, table.form)}::text as hash`);
}

/** The values of every column as texts: `row` (text[]). */
export function rowsSql(table: ComparedTable, keys: readonly KeyTexts[]): RangeStatement {
  const texts = table.columns.map((column) => outputText(`t.${ident(column.name)}`)).join(', ');
  return lookupSql(table, keys, `array[${texts}]::text[] as row`);
}
