// What the source's catalog says of the columns of a table, as one word. DDL changes rows that no stream tells of: a
// column retyped in its own type (USING), or dropped and added again, labels of an enum that change places. What was found
// equal before holds only while the word is the same; online.ts and delta.ts compare it.
//
// In it are number, name, type and xmin of every pg_attribute row, for ALTER COLUMN writes that row anew whatever it does,
// and VACUUM FULL, CLUSTER and TRUNCATE do not; and the labels of enums, by their OIDs.
import { relationKey, type RelationName } from '../model/relation.ts';
import type { Side } from '../postgres/connections.ts';

/** By `relationKey`; a relation that is gone is missing. */
export async function readForms(
  side: Side,
  relations: readonly RelationName[],
): Promise<ReadonlyMap<string, string>> {
  if (relations.length === 0) return new Map();
  const { rows } = await side.query<RelationName & { form: string }>(
    `with recursive attribute as (
       select c.oid as relation, a.attnum, a.attname, a.atttypid, a.xmin
       from unnest($1::text[], $2::text[]) as w(schema, name)
         join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
     used(relation, type) as (
       select relation, atttypid from attribute
       union
       select u.relation, i.inner_type from used u join pg_type t on t.oid = u.type,
         lateral (values (t.typelem), (t.typbasetype)) as i(inner_type) where i.inner_type <> 0),
     label as (
       select u.relation, string_agg(concat_ws(' ', e.oid, e.enumlabel), ',' order by e.oid) as labels
       from used u join pg_enum e on e.enumtypid = u.type group by u.relation)
     select n.nspname::text as schema, c.relname::text as name, md5(concat_ws(';', c.oid, l.labels,
       string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.xmin), ',' order by a.attnum))) as form
     from attribute a join pg_class c on c.oid = a.relation join pg_namespace n on n.oid = c.relnamespace
       left join label l on l.relation = c.oid
     group by n.nspname, c.relname, c.oid, l.labels`,
    [relations.map(({ schema }) => schema), relations.map(({ name }) => name)],
  );
  return new Map(rows.map((row) => [relationKey(row), row.form]));
}
