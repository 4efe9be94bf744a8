// Used by plan-input.ts: what `options.table` leaves of a schema. A column that is left out is dropped on the target as soon
// as its table is made, before anything is copied; its indexes, constraints and sequences are not made, and what else
// needs it is a blocking finding. Foreign keys to a table of which only some rows come are not made either: VALIDATE
// would fail when the target is open already. Only reads.
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { TableSelection } from '../postgres/catalog.ts';
import type { Side } from '../postgres/connections.ts';
import type { Dependencies } from './dependencies.ts';
import { catalogs, objectKey, type ObjectKey } from './dependency-graph.ts';
import type { DumpEntry } from './split.ts';

export interface DroppedColumns {
  readonly table: RelationName;
  readonly columns: readonly string[];
}

export interface SchemaLimits {
  /** Tables and roots whose columns are dropped on the target; partitions follow their root. */
  readonly drops: readonly DroppedColumns[];
  readonly findings: readonly Finding[];
}

interface DependentRow {
  readonly table_oid: number;
  readonly column: string;
  readonly class_id: number;
  readonly object_id: number;
  /** Of the view, for a view's query. */
  readonly view_oid: number | null;
  readonly what: string;
  readonly effect: 'default' | 'goes' | 'sequence' | 'needs';
}

/** Everything but other columns that are left out. */
const dependentsSql = `
  with gone(table_oid, attnum, name) as (
    select a.attrelid, a.attnum, a.attname from unnest($1::oid[], $2::text[]) as w(oid, name)
      join pg_attribute a on a.attrelid = w.oid and a.attname = w.name and not a.attisdropped),
  dependent as (
    select g.table_oid, g.name, d.classid, d.objid, d.objsubid from gone g join pg_depend d
      on d.refclassid = 'pg_class'::regclass and d.refobjid = g.table_oid and d.refobjsubid = g.attnum
    union
    select g.table_oid, g.name, 'pg_class'::regclass, k.conindid, 0 from gone g join pg_constraint k
      on k.conrelid = g.table_oid and g.attnum = any (k.conkey) and k.contype in ('p', 'u', 'x'))
  select d.table_oid, d.name::text as column, d.classid::oid as class_id, d.objid as object_id, r.ev_class as view_oid,
    pg_describe_object(d.classid, d.objid, d.objsubid) as what,
    case when (f.adrelid, f.adnum) in (select table_oid, attnum from gone) then 'default'
      when c.relkind = 'S' then 'sequence'
      when c.relkind in ('i', 'I') or d.classid in ('pg_constraint'::regclass, 'pg_statistic_ext'::regclass) then 'goes'
      else 'needs' end as effect
  from dependent d left join pg_class c on d.classid = 'pg_class'::regclass and c.oid = d.objid
    left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
    left join pg_attrdef f on d.classid = 'pg_attrdef'::regclass and f.oid = d.objid
  where d.classid <> 'pg_class'::regclass
    or not exists (select from gone g where (g.table_oid, g.attnum) = (d.objid, d.objsubid))
  order by d.table_oid, d.name, what`;

/** Also returns the dependencies without what is not made. */
export async function limitTables(
  side: Side,
  { tables }: TableSelection,
  dependencies: Dependencies,
): Promise<SchemaLimits & { readonly dependencies: Dependencies }> {
  const limited = tables.filter(({ leftOut }) => leftOut !== undefined);
  const filtered = tables.filter(({ where }) => where !== undefined);
  if (limited.length === 0 && filtered.length === 0) return { dependencies, drops: [], findings: [] };
  const names = new Map(tables.map(({ oid, relation }) => [oid, relationKey(relation)]));
  const gone = new Set<ObjectKey>();
  const sequences = new Set<number>();
  const findings: Finding[] = [];
  const pairs = limited.flatMap(({ oid, leftOut = [] }) => leftOut.map((column) => ({ oid, column })));
  const { rows } = await side.query<DependentRow>(dependentsSql, [
    pairs.map(({ oid }) => oid),
    pairs.map(({ column }) => column),
  ]);
  for (const row of rows) {
    const key = objectKey(row.class_id, row.object_id);
    const owner = row.view_oid === null ? key : objectKey(catalogs.class, row.view_oid);
    const table = names.get(row.table_oid) ?? '';
    const subject = `source: column ${row.column} of ${table} is left out`;
    if (row.effect === 'sequence') sequences.add(row.object_id);
    if (row.effect !== 'needs') gone.add(key);
    if (row.effect === 'goes' && dependencies.keep.has(key))
      findings.push({
        code: 'column_left_out',
        severity: 'warning',
        object: table,
        message: `${subject}: so is ${row.what}`,
        remedy: null,
      });
    const isKept =
      dependencies.keep.has(owner) || dependencies.keep.has(key) || row.class_id === catalogs.class;
    if (row.effect === 'needs' && isKept)
      findings.push({
        code: 'left_out_column_needed',
        severity: 'blocking',
        object: table,
        message: `${subject}, but ${row.what} needs it`,
        remedy: `add ${row.column} to options.table["${table}"].columns, or leave out what needs it (options.exclude)`,
      });
  }
  const related = await relatives(
    side,
    [...limited, ...filtered].map(({ oid }) => oid),
    filtered.map(({ oid }) => oid),
  );
  for (const { object_id, what, table_oid, inherits } of related) {
    const table = names.get(table_oid) ?? '';
    if (inherits && limited.some(({ oid }) => oid === table_oid))
      findings.push({
        code: 'left_out_column_needed',
        severity: 'blocking',
        object: table,
        message: `source: ${table} has columns left out, but ${what} shares them by inheritance`,
        remedy: 'migrate all of its columns',
      });
    const key = objectKey(catalogs.constraint, object_id);
    if (inherits || !dependencies.keep.has(key)) continue;
    gone.add(key);
    findings.push({
      code: 'foreign_key_left_out',
      severity: 'warning',
      object: table,
      message: `source: only some rows of ${table} are migrated: ${what} is not made`,
      remedy: 'make it on the target when the rows that it needs are there',
    });
  }
  const sequenceNames = new Set(
    sequences.size === 0
      ? []
      : (
          await side.query<RelationName>(
            `select n.nspname::text as schema, c.relname::text as name from pg_class c
               join pg_namespace n on n.oid = c.relnamespace where c.oid = any ($1::oid[])`,
            [[...sequences]],
          )
        ).rows.map((row) => relationKey(row)),
  );
  return {
    findings,
    drops: limited
      .filter(({ parent }) => parent === null)
      .map(({ relation, leftOut = [] }) => ({ table: relation, columns: leftOut })),
    dependencies: {
      ...dependencies,
      keep: new Set([...dependencies.keep].filter((key) => !gone.has(key))),
      members: new Map([...dependencies.members].filter(([key]) => !gone.has(key))),
      sequences: dependencies.sequences.filter((name) => !sequenceNames.has(relationKey(name))),
    },
  };
}

/** Foreign keys to filtered tables, and relatives by classic inheritance. */
async function relatives(
  side: Side,
  all: readonly number[],
  filtered: readonly number[],
): Promise<{ object_id: number; what: string; table_oid: number; inherits: boolean }[]> {
  const { rows } = await side.query<{
    object_id: number;
    what: string;
    table_oid: number;
    inherits: boolean;
  }>(
    `select k.oid as object_id, pg_describe_object('pg_constraint'::regclass, k.oid, 0) as what, k.confrelid as table_oid,
       false as inherits
     from pg_constraint k where k.contype = 'f' and k.conparentid = 0 and k.confrelid = any ($2::oid[])
     union all
     select 0, pg_describe_object('pg_class'::regclass, r.other, 0), r.ours, true
     from (select inhparent as ours, inhrelid as other from pg_inherits
           union all select inhrelid, inhparent from pg_inherits) r join pg_class c on c.oid = r.ours
       join pg_class o on o.oid = r.other
     where r.ours = any ($1::oid[]) and c.relkind = 'r' and o.relkind = 'r' and not c.relispartition order by 2`,
    [all, filtered],
  );
  return rows;
}

/** Comments and grants of a column that is left out: pg_dump names both `COLUMN table.column`. */
export function concernsLeftOut({ tables }: TableSelection): (entry: DumpEntry) => boolean {
  const tags = new Set(
    tables.flatMap(({ relation, leftOut = [] }) =>
      leftOut.map((column) => JSON.stringify([relation.schema, `COLUMN ${relation.name}.${column}`])),
    ),
  );
  return ({ schema, tag }) => tags.size > 0 && tags.has(JSON.stringify([schema, tag.replaceAll('"', '')]));
}
