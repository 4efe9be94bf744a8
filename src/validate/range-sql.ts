// The statements that compare a table by ranges of its key and by single keys. Pure; ranges.ts and keys.ts run them.
//
// A range is (after, upTo] in the order of the key's index, whatever its types. Servers whose collations sort texts
// differently do not agree on what lies in it; every row still lies in one of the ranges on either server, since the last
// one is open, so that only costs comparisons key by key.
import type { PlannedColumn, PlannedTable } from '../model/schema-plan.ts';
import type { KeyRange } from '../model/validation.ts';
import type { RelationName } from '../model/relation.ts';
import { ident, outputText } from '../postgres/sql.ts';
import { fromRows } from './digest.ts';
import { rowHash, type RowForm } from './row-hash.ts';

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
function inRange(table: ComparedTable, range: KeyRange, values: unknown[] = []): RangeStatement {
  const bound = (key: KeyTexts): string =>
    `(${key.map((value, n) => `$${values.push(value)}::${table.key[n]?.type ?? 'text'}`).join(', ')})`;
  const conditions = [
    ...(range.after === null ? [] : [`(${keyList(table)}) > ${bound(range.after)}`]),
    ...(range.upTo === null ? [] : [`(${keyList(table)}) <= ${bound(range.upTo)}`]),
  ];
  return { text: conditions.length === 0 ? '' : `where ${conditions.join(' and ')}`, values };
}

/** Of pg_catalog: others are written with their schema, under our search_path. */
function isBuiltIn(type: string): boolean {
  return !type.includes('.');
}

/**
 * `using`: by the operator that belongs to the `>` of the conditions, where a type of a user may have an order of its own
 * (citext under our search_path); whoever walks the key would leave rows out between one page and the next.
 */
function keyOrder(table: ComparedTable): string {
  const [only, ...others] = table.key;
  return only !== undefined && others.length === 0 && !isBuiltIn(only.type)
    ? `t.${ident(only.name)} using <`
    : keyList(table);
}

/** max() is cheaper than to collect the strip's keys, where there is one that follows the order of the index. */
const hasMax =
  /^(smallint|integer|bigint|oid|date|numeric(\(\d+,-?\d+\))?|timestamp(\(\d\))? with(out)? time zone)$/;

/**
 * The first `strips` strips behind `after`, each of `stripRows` rows: `rows`, `sum`, `key` (text[], the last row's) of
 * each in their order, and `lsn`, the position behind the read. A strip of fewer rows is the table's last.
 */
export function stripsSql(
  table: ComparedTable,
  after: KeyTexts | null,
  { strips, stripRows }: { readonly strips: number; readonly stripRows: number },
): RangeStatement {
  const { text, values } = inRange(table, { after, upTo: null });
  const last = table.key.map((column, n) => {
    const value = `t.${ident(column.name)}`;
    // of the last row, which need not have the greatest value of each column; texts, because of arrays no array can be made
    const taken =
      table.key.length === 1 && hasMax.test(column.type)
        ? `max(${value})`
        : `(array_agg(${outputText(value)}))[count(*)::int]`;
    return `${taken} as k${n}`;
  });
  const strip = (condition: string): string =>
    `select count(*) as rows, sum(${rowHash(table.columns, table.form)}) as sum, ${last.join(', ')}
     from (select t.* from ${rowsOf(table)} ${condition} order by ${keyOrder(table)} limit ${stripRows}) as t`;
  const behind = `where (${keyList(table)}) > (${table.key.map(({ type }, n) => `s.k${n}::${type}`).join(', ')})`;
  return {
    text: `with recursive strip as (
        select 1 as n, r.* from (${strip(text)}) as r
        union all
        select s.n + 1, r.* from strip as s cross join lateral (${strip(behind)}) as r
        where s.n < ${strips} and s.rows = ${stripRows})
      select rows::text, sum::text, array[${table.key.map((_, n) => outputText(`k${n}`)).join(', ')}]::text[] as key,
        pg_current_wal_insert_lsn()::text as lsn
      from strip order by n`,
    values,
  };
}

/** `n` (position in `ranges`) and `select`'s columns for each range. */
function overRanges(table: ComparedTable, ranges: readonly KeyRange[], select: string): RangeStatement {
  const values: unknown[] = [];
  const from = (condition: string): string => `(select ${select} from ${rowsOf(table)} ${condition}) as r`;
  const parts: string[] = [];
  const numbered = ranges.map((range, n) => ({ ...range, n }));
  // open ones at the ends of the table; of the others there may be hundreds
  for (const range of numbered.filter(({ after, upTo }) => after === null || upTo === null))
    parts.push(`select ${range.n} as n, r.* from ${from(inRange(table, range, values).text)}`);
  const closed = numbered.filter(({ after, upTo }) => after !== null && upTo !== null);
  if (closed.length > 0) {
    values.push(closed.map(({ n }) => n));
    const lists = [`$${values.length}::int[]`];
    for (const end of ['after', 'upTo'] as const)
      for (const at of table.key.keys()) {
        values.push(closed.map((range) => range[end]?.[at]));
        lists.push(`$${values.length}::text[]`);
      }
    const names = (prefix: string): string[] => table.key.map((_, at) => `${prefix}${at}`);
    const bound = (prefix: string): string =>
      table.key.map((column, at) => `b.${prefix}${at}::${column.type}`).join(', ');
    parts.push(
      `select b.n, r.* from unnest(${lists.join(', ')}) as b(${['n', ...names('a'), ...names('u')].join(', ')})
         cross join lateral ${from(`where (${keyList(table)}) > (${bound('a')}) and (${keyList(table)}) <= (${bound('u')})`)}`,
    );
  }
  return { text: parts.join('\nunion all\n'), values };
}

/** `n`, `rows`, `sum` of each range. */
export function sumsSql(table: ComparedTable, ranges: readonly KeyRange[]): RangeStatement {
  return overRanges(
    table,
    ranges,
    `count(*)::text as rows, sum(${rowHash(table.columns, table.form)})::text as sum`,
  );
}

/** `n`, `key` (text[]) and `hash` of every row of the ranges. */
export function rowHashesSql(table: ComparedTable, ranges: readonly KeyRange[]): RangeStatement {
  return overRanges(
    table,
    ranges,
    `array[${keyTexts(table)}] as key, ${rowHash(table.columns, table.form)}::text as hash`,
  );
}

/** `key` (text[]) of the first `limit` rows of the range, in the order of the key. */
export function keysSql(table: ComparedTable, range: KeyRange, limit: number): RangeStatement {
  const { text, values } = inRange(table, range);
  return {
    text: `select array[${keyTexts(table)}] as key from ${rowsOf(table)} ${text}
      order by ${keyOrder(table)} limit ${limit}`,
    values,
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
