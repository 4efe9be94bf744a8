// The structure of tables as fingerprints: settle puts them into the certificate, `dts verify` reads them again. Each side
// is compared with itself only: source and target may differ for good reasons (`schema: existing`, columns left out, names
// under a suffix, a major that prints an expression otherwise), but neither changes by itself.
import { createHash } from 'node:crypto';
import type { TableStructure } from '../model/certificate.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { Side } from './connections.ts';
import { DTS_SCHEMA } from './sql.ts';

/** Tables looked into by one statement. */
const BATCH = 500;
/** Against chance; who can forge a structure can forge the certificate. */
const FINGERPRINT_HEX = 16;

interface Printed {
  readonly schema: string;
  readonly name: string;
  readonly columns: string;
  readonly constraints: string;
  readonly indexes: string;
  readonly triggers: string;
}

/**
 * Left out, since nobody has to change a table for them to change:
 *
 * - NOT VALID: somebody may validate what settle could not
 * - constraints that one of the same table stands above: a foreign key has one for each partition of the table that it
 *   references, and partitions come and go
 * - NOT NULL constraints (in pg_constraint from 18 on): attnotnull says the same
 * - triggers of ours: the fence, of either direction
 * - indexes that are not valid: REINDEX CONCURRENTLY has one while it runs, and leaves it behind when it fails
 *
 * Indexes of constraints are printed with these.
 */
const structureSql = `
  select n.nspname::text as schema, c.relname::text as name,
    (select coalesce(json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
        a.attgenerated, case when a.attcollation <> 0 then a.attcollation::regcollation::text end,
        pg_get_expr(d.adbin, d.adrelid)) order by a.attnum), '[]')::text
     from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
    (select coalesce(json_agg(json_build_array(k.conname, regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', ''))
        order by k.conname), '[]')::text
     from pg_constraint k where k.conrelid = c.oid and k.contype in ('p', 'u', 'x', 'c', 'f')
       and not exists (select from pg_constraint p where p.oid = k.conparentid and p.conrelid = k.conrelid)) as constraints,
    (select coalesce(json_agg(pg_get_indexdef(x.indexrelid) order by ic.relname), '[]')::text
     from pg_index x join pg_class ic on ic.oid = x.indexrelid
     where x.indrelid = c.oid and x.indisvalid
       and not exists (select from pg_constraint k where k.conindid = x.indexrelid and k.contype in ('p', 'u', 'x'))) as indexes,
    (select coalesce(json_agg(json_build_array(pg_get_triggerdef(t.oid), t.tgenabled) order by t.tgname), '[]')::text
     from pg_trigger t join pg_proc f on f.oid = t.tgfoid join pg_namespace fn on fn.oid = f.pronamespace
     where t.tgrelid = c.oid and not t.tgisinternal and fn.nspname <> '${DTS_SCHEMA}') as triggers
  from unnest($1::text[], $2::text[]) as w(schema, name)
    join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name`;

/** By `relationKey`; those without a relation are missing. Errors: those of a query. */
export async function readStructures(
  side: Side,
  tables: readonly RelationName[],
  timeoutMs?: number,
): Promise<ReadonlyMap<string, TableStructure>> {
  const found = new Map<string, TableStructure>();
  for (let from = 0; from < tables.length; from += BATCH) {
    const batch = tables.slice(from, from + BATCH);
    const names = [batch.map(({ schema }) => schema), batch.map(({ name }) => name)];
    const { rows } = await side.query<Printed>(
      structureSql,
      names,
      timeoutMs === undefined ? {} : { timeoutMs },
    );
    for (const { schema, name, columns, constraints, indexes, triggers } of rows)
      found.set(relationKey({ schema, name }), {
        columns: fingerprint(columns),
        constraints: fingerprint(constraints),
        indexes: fingerprint(indexes),
        triggers: fingerprint(triggers),
      });
  }
  return found;
}

function fingerprint(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, FINGERPRINT_HEX);
}
