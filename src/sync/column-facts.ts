// The columns of tables as one server has them, with what tells how a column came to be as it is. Read by source-ddl.ts,
// widen-columns.ts and added-defaults.ts.
import { relationKey, type RelationName } from '../model/relation.ts';
import type { Side } from '../postgres/connections.ts';

export interface ColumnRow extends RelationName {
  readonly filenode: number;
  readonly root_schema: string;
  readonly root_name: string;
  readonly column: string;
  readonly type: string;
  readonly generated: boolean;
  readonly identity: boolean;
  readonly not_null: boolean;
  readonly has_missing: boolean;
  /** What rows from before the column have. */
  readonly missing: string | null;
  readonly expression: string | null;
  readonly collation_schema: string | null;
  readonly collation_name: string | null;
}

export async function readColumns(side: Side, tables: readonly RelationName[]): Promise<ColumnRow[]> {
  const { rows } = await side.query<ColumnRow>(
    // attmissingval is an array of one element, whatever its type
    `select n.nspname::text as schema, c.relname::text as name, pg_relation_filenode(c.oid)::int8::float8 as filenode,
       rn.nspname::text as root_schema, r.relname::text as root_name, a.attname::text as column,
       format_type(a.atttypid, a.atttypmod) as type, a.attgenerated <> '' as generated, a.attidentity <> '' as identity,
       a.attnotnull as not_null, a.atthasmissing as has_missing, (a.attmissingval::text::text[])[1] as missing,
       pg_get_expr(d.adbin, d.adrelid) as expression,
       ln.nspname::text as collation_schema, l.collname::text as collation_name
     from unnest($1::text[], $2::text[]) as w(schema, name)
       join pg_namespace n on n.nspname = w.schema
       join pg_class c on c.relnamespace = n.oid and c.relname = w.name
       join pg_class r on r.oid = coalesce(pg_partition_root(c.oid), c.oid) join pg_namespace rn on rn.oid = r.relnamespace
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
       join pg_type t on t.oid = a.atttypid
       left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
       left join pg_collation l on l.oid = a.attcollation and a.attcollation <> t.typcollation
       left join pg_namespace ln on ln.oid = l.collnamespace
     order by a.attnum`,
    [tables.map(({ schema }) => schema), tables.map(({ name }) => name)],
  );
  return rows;
}

/** `relationKey` of the table, or of the partitioned table at the top of it. */
export function rootOf(row: ColumnRow): string {
  return relationKey({ schema: row.root_schema, name: row.root_name });
}
