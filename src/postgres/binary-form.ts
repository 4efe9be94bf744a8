// Binary or text, per table, from both catalogs: for the copy and for the stream. Binary is faster but carries a type's
// inner form: it is taken only where that form is the same on every major from 13 on and names no OID of a user's type.
import type { RelationName } from '../model/relation.ts';
import { relationKey } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import type { Side } from './connections.ts';

/** A row of pg_type, as far as the choice needs it; OIDs as numbers. */
export interface CatalogType {
  readonly oid: number;
  readonly name: string;
  readonly schema: string;
  /** b base, c composite, d domain, e enum, m multirange, p pseudo, r range. */
  readonly kind: string;
  /** A domain's type, else 0. */
  readonly baseOid: number;
  /** A true array's element type (int2vector and oidvector are none), else 0. */
  readonly elementOid: number;
}

// Built-in types whose send and receive functions have not changed from 13 to 18. Left out on purpose: reg* types (bare
// OIDs), xml (its declaration is rewritten), tsvector and tsquery (sorted by the sender's rules), jsonpath, snapshots,
// ranges. "char" must be binary-safe: its text form changed in 16, its byte did not.
const stableTypes = new Set(
  `bool bytea char name int8 int2 int4 text oid json point lseg path box polygon line circle float4 float8 money macaddr
   macaddr8 inet cidr bpchar varchar date time timestamp timestamptz interval timetz bit varbit numeric uuid pg_lsn
   jsonb`.split(/\s+/),
);

/** The binary form of a type as a word, equal for equal forms; null where there is no stable one. */
export function binaryForm(oid: number, types: ReadonlyMap<number, CatalogType>): string | null {
  const type = types.get(oid);
  if (!type) return null;
  if (type.kind === 'd') return binaryForm(type.baseOid, types); // a domain is sent as its base type
  if (type.kind === 'e') return 'enum'; // sent as its label
  if (type.kind !== 'b' || type.schema !== 'pg_catalog') return null;
  if (type.elementOid !== 0) {
    // array_send writes the element's OID, array_recv checks it: only built-in elements have the same on both sides
    const element = types.get(type.elementOid);
    return element?.kind === 'b' && element.elementOid === 0 && stableTypes.has(element.name)
      ? `${element.name}[]`
      : null;
  }
  return stableTypes.has(type.name) ? type.name : null;
}

export interface CopyFormat {
  readonly format: 'binary' | 'text';
  readonly reason: string;
}

/** Columns of one relation, name → type OID. */
export type ColumnTypes = ReadonlyMap<string, number>;

export interface SideTypes {
  readonly types: ReadonlyMap<number, CatalogType>;
  /** By `relationKey`. */
  readonly tables: ReadonlyMap<string, ColumnTypes>;
}

/** Pure: the format of one table. A column that a side lacks decides for text; COPY itself then says what is wrong. */
export function chooseFormat(table: PlannedTable, source: SideTypes, target: SideTypes): CopyFormat {
  const left = source.tables.get(relationKey(table.source));
  const right = target.tables.get(relationKey(table.target));
  for (const column of table.columns) {
    if (column.generated) continue;
    const sent = binaryForm(left?.get(column.name) ?? 0, source.types);
    if (sent === null)
      return {
        format: 'text',
        reason: `column ${column.name}: ${column.type} has no binary form that all majors share`,
      };
    if (sent !== binaryForm(right?.get(column.name) ?? 0, target.types))
      return {
        format: 'text',
        reason: `column ${column.name}: ${column.type} has another type on the target`,
      };
  }
  return { format: 'binary', reason: 'every column has the same binary form on both servers' };
}

export interface ReadTypes extends SideTypes {
  /** By `relationKey`: every column's name and `describeColumn`, in order. */
  readonly described: ReadonlyMap<string, readonly (readonly [name: string, described: string])[]>;
}

/** The columns of relations as a server has them, and the types that they may have. */
export async function readTypes(side: Side, relations: readonly RelationName[]): Promise<ReadTypes> {
  const { rows: typeRows } = await side.query<CatalogType>(
    `select t.oid::int8::int as oid, t.typname::text as name, n.nspname::text as schema, t.typtype::text as kind,
            t.typbasetype::int8::int as "baseOid",
            case when t.typcategory = 'A' and e.typarray = t.oid then t.typelem::int8::int else 0 end as "elementOid"
       from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_type e on e.oid = t.typelem
      where t.typtype in ('b', 'd', 'e') and t.oid < 2147483648`,
  );
  const { rows: columnRows } = await side.query<{
    schema: string;
    name: string;
    column: string;
    oid: number;
    type: string;
    generated: boolean;
  }>(
    `select w.schema, w.name, a.attname::text as column, format_type(a.atttypid, a.atttypmod) as type,
            a.attgenerated <> '' as generated,
            case when a.atttypid < 2147483648 then a.atttypid::int8::int else 0 end as oid
       from unnest($1::text[], $2::text[]) as w(schema, name)
       join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      order by a.attnum`,
    [relations.map(({ schema }) => schema), relations.map(({ name }) => name)],
  );
  const tables = new Map<string, Map<string, number>>();
  const described = new Map<string, (readonly [string, string])[]>();
  for (const row of columnRows) {
    const key = relationKey(row);
    const columns = tables.get(key) ?? new Map<string, number>();
    tables.set(key, columns.set(row.column, row.oid));
    described.set(key, [...(described.get(key) ?? []), [row.column, describeColumn(row.column, row)]]);
  }
  return { types: new Map(typeRows.map((type) => [type.oid, type])), tables, described };
}

/** `name type`, and whether it is generated. */
export function describeColumn(
  name: string,
  { type, generated }: { readonly type: string; readonly generated: boolean },
): string {
  return `${name} ${type}${generated ? ' generated' : ''}`;
}
