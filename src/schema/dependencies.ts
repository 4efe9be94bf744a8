// Used by plan.ts: what the selected tables are made of and what they need, so that a subset brings its types, functions
// and sequences along and nothing else; and for a whole database what of the rest can be had without the tables that are
// left out. The walk itself is dependency-graph.ts. Only reads catalogs.
import type { RelationName } from '../model/relation.ts';
import { relationKey } from '../model/relation.ts';
import type { ObjectAddress } from '../model/schema-plan.ts';
import type { CatalogTable, TableSelection } from '../postgres/catalog.ts';
import type { Side } from '../postgres/connections.ts';
import { DTS_SCHEMA } from '../postgres/sql.ts';
import { catalogs, DependencyGraph, objectKey, type ObjectKey } from './dependency-graph.ts';

export type MemberKind =
  | 'index'
  | 'constraint'
  | 'foreign key'
  | 'default'
  | 'trigger'
  | 'policy'
  | 'rule'
  | 'statistics'
  | 'sequence';

/** A part of a selected table. */
export interface Member {
  readonly key: ObjectKey;
  readonly kind: MemberKind;
  readonly relation: RelationName;
  /** `relationKey` of the table. */
  readonly table: string;
  /** Foreign keys: the referenced table, when it is not selected. */
  readonly missing: string | null;
  /** A trigger of DTS itself: the fence that a finished migration keeps on its source. Never migrated. */
  readonly isOurs: boolean;
}

/** A member that cannot be migrated because it needs a table outside of the selection. */
export interface LeftOut {
  readonly member: Member;
  readonly needs: string;
}

export interface Dependencies {
  /** Every object to migrate: tables, their parts, what those need, and what a whole database has besides. */
  readonly keep: ReadonlySet<ObjectKey>;
  /** Those of `keep` that the tables and their parts need. */
  readonly core: ReadonlySet<ObjectKey>;
  /** Of the rest of the database: what cannot be had, with the table that it needs and that is not selected. */
  readonly lost: ReadonlyMap<ObjectKey, string>;
  /** Of a whole database: sequences that tables own which are left out. */
  readonly ownedByOthers: ReadonlySet<ObjectKey>;
  readonly members: ReadonlyMap<ObjectKey, Member>;
  readonly leftOut: readonly LeftOut[];
  /** Tables outside of the selection without which a selected one cannot be created. */
  readonly needed: readonly string[];
  /** Sequences among `keep`, owned ones and those that defaults use. */
  readonly sequences: readonly RelationName[];
  /** Addresses of the objects among `keep` that are no parts of tables. */
  readonly addresses: ReadonlyMap<ObjectKey, ObjectAddress>;
  readonly schemas: readonly string[];
  readonly extensions: readonly string[];
  /** Whether an object lies in no schema and is no extension (a cast, a language, a foreign server). */
  readonly beyondSchemas: boolean;
}

/** Whoever adds to a table can be left out of it; without a default, check or key it would not be the same table. */
const optionalKinds: ReadonlySet<MemberKind> = new Set(['trigger', 'policy', 'rule', 'statistics']);

/** `rest`: what a whole database has besides; null for a selection of tables. */
export async function readDependencies(
  side: Side,
  { tables, excluded: excludedRelations }: TableSelection,
  rest: readonly ObjectKey[] | null,
): Promise<Dependencies> {
  const members = await readMembers(side, tables);
  const graph = new DependencyGraph(side, tables, {
    wanted: rest === null ? null : new Set(rest),
    excluded: excludedRelations.map(({ oid }) => oid),
  });
  const ownedByOthers = rest === null ? new Set<ObjectKey>() : await sequencesOfOthers(side, tables);
  const leftOut: LeftOut[] = [];
  const excluded = new Set<ObjectKey>();
  for (const member of members) {
    if (member.isOurs) excluded.add(member.key);
    if (member.kind !== 'foreign key') continue;
    if (member.missing !== null) leftOut.push({ member, needs: member.missing });
    excluded.add(member.key); // its table, columns and index are there anyway, its triggers PostgreSQL makes itself
  }
  const notWanted = new Set([
    ...ownedByOthers,
    ...members.map(({ key }) => key),
    ...excludedRelations.map(({ oid }) => objectKey(catalogs.class, oid)),
  ]);
  for (;;) {
    const seeds = [
      ...tables.map((table) => objectKey(catalogs.class, table.oid)),
      ...members.map((member) => member.key).filter((key) => !excluded.has(key)),
    ];
    const { found: core, blocked } = await graph.closure(seeds);
    const optional = members.filter(
      (member) => optionalKinds.has(member.kind) && blocked.has(member.key) && !excluded.has(member.key),
    );
    for (const member of optional) {
      leftOut.push({ member, needs: blocked.get(member.key) ?? '' });
      excluded.add(member.key);
    }
    if (optional.length > 0) continue; // what only they needed must go too
    const foreignKeys = members.filter(({ kind, missing }) => kind === 'foreign key' && missing === null);
    const besides = (rest ?? []).filter((key) => !core.has(key) && !notWanted.has(key));
    const { lost, found } = await withoutBlocked(graph, besides);
    const keep = new Set([...core, ...found, ...foreignKeys.map(({ key }) => key)]);
    return {
      ...(await describe(side, keep, members)),
      keep,
      core,
      lost,
      ownedByOthers,
      leftOut,
      needed: [...new Set(blocked.values())],
    };
  }
}

async function withoutBlocked(
  graph: DependencyGraph,
  seeds: readonly ObjectKey[],
): Promise<{ found: ReadonlySet<ObjectKey>; lost: ReadonlyMap<ObjectKey, string> }> {
  const { blocked } = await graph.closure(seeds);
  const wanted = new Set(seeds);
  const lost = new Map([...blocked].filter(([key]) => wanted.has(key)));
  const { found } = await graph.closure(seeds.filter((key) => !blocked.has(key)));
  return { found, lost };
}

/** Sequences that a table owns which is not selected: they go with it, unless somebody else uses them. */
async function sequencesOfOthers(side: Side, tables: readonly CatalogTable[]): Promise<Set<ObjectKey>> {
  const { rows } = await side.query<{ oid: number }>(
    `select d.objid as oid from pg_depend d join pg_class q on q.oid = d.objid
     where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
       and q.relkind = 'S' and d.refobjid <> all($1::oid[])`,
    [tables.map(({ oid }) => oid)],
  );
  return new Set(rows.map(({ oid }) => objectKey(catalogs.class, oid)));
}

interface MemberRow {
  readonly class_id: number;
  readonly object_id: number;
  readonly kind: MemberKind;
  readonly schema: string;
  readonly name: string;
  readonly table_oid: number;
  readonly missing_schema: string | null;
  readonly missing_name: string | null;
  readonly is_ours: boolean;
}

async function readMembers(side: Side, tables: readonly CatalogTable[]): Promise<Member[]> {
  const byOid = new Map(tables.map((table) => [table.oid, relationKey(table.relation)]));
  const { rows } = await side.query<MemberRow>(
    `with selected as (select unnest($1::oid[]) as oid),
     member(class_id, object_id, kind, name, table_oid, missing, namespace, is_ours) as (
       select 'pg_class'::regclass, i.indexrelid, 'index', c.relname, i.indrelid, null::oid, null::oid, false
         from pg_index i join selected s on s.oid = i.indrelid join pg_class c on c.oid = i.indexrelid
       union all
       select 'pg_constraint'::regclass, c.oid, case c.contype when 'f' then 'foreign key' else 'constraint' end,
           c.conname, c.conrelid,
           case when c.contype = 'f' and c.confrelid not in (select oid from selected) then c.confrelid end, null, false
         from pg_constraint c join selected s on s.oid = c.conrelid
         where c.contype <> 't' and (c.contype <> 'f' or c.conparentid = 0)
       union all
       select 'pg_attrdef'::regclass, d.oid, 'default', '', d.adrelid, null, null, false
         from pg_attrdef d join selected s on s.oid = d.adrelid
       union all
       select 'pg_trigger'::regclass, t.oid, 'trigger', t.tgname, t.tgrelid, null, null, pn.nspname = '${DTS_SCHEMA}'
         from pg_trigger t join selected s on s.oid = t.tgrelid join pg_proc p on p.oid = t.tgfoid
           join pg_namespace pn on pn.oid = p.pronamespace
         where not t.tgisinternal
       union all
       select 'pg_policy'::regclass, p.oid, 'policy', p.polname, p.polrelid, null, null, false
         from pg_policy p join selected s on s.oid = p.polrelid
       union all
       select 'pg_rewrite'::regclass, r.oid, 'rule', r.rulename, r.ev_class, null, null, false
         from pg_rewrite r join selected s on s.oid = r.ev_class
       union all
       select 'pg_statistic_ext'::regclass, e.oid, 'statistics', e.stxname, e.stxrelid, null, e.stxnamespace, false
         from pg_statistic_ext e join selected s on s.oid = e.stxrelid
       union all
       select 'pg_class'::regclass, q.oid, 'sequence', q.relname, d.refobjid, null, q.relnamespace, false
         from pg_depend d join selected s on s.oid = d.refobjid join pg_class q on q.oid = d.objid
         where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass
           and d.deptype in ('a', 'i') and q.relkind = 'S')
     select m.class_id::oid, m.object_id, m.kind, m.name::text, m.table_oid, m.is_ours, n.nspname::text as schema,
       mn.nspname::text as missing_schema, mc.relname::text as missing_name
     from member m join pg_class t on t.oid = m.table_oid
       join pg_namespace n on n.oid = coalesce(m.namespace, t.relnamespace)
       left join pg_class mc on mc.oid = m.missing left join pg_namespace mn on mn.oid = mc.relnamespace
     order by 1, 2`,
    [[...byOid.keys()]],
  );
  return rows.map((row) => ({
    key: objectKey(row.class_id, row.object_id),
    kind: row.kind,
    relation: { schema: row.schema, name: row.name },
    table: byOid.get(row.table_oid) ?? '',
    isOurs: row.is_ours,
    missing:
      row.missing_schema === null || row.missing_name === null
        ? null
        : relationKey({ schema: row.missing_schema, name: row.missing_name }),
  }));
}

interface DescribedRow {
  readonly class_id: number;
  readonly object_id: number;
  readonly type: string;
  readonly object_names: string[];
  readonly object_args: string[];
  readonly relkind: string | null;
  readonly of_extension: boolean;
}

async function describe(
  side: Side,
  found: ReadonlySet<ObjectKey>,
  members: readonly Member[],
): Promise<
  Pick<Dependencies, 'members' | 'sequences' | 'addresses' | 'schemas' | 'extensions' | 'beyondSchemas'>
> {
  const byKey = new Map(members.map((member) => [member.key, member]));
  const pairs = [...found].map((key) => key.split('/').map(Number));
  const { rows } = await side.query<DescribedRow>(
    `select v.class_id, v.object_id, i.type, a.object_names, a.object_args, c.relkind::text as relkind,
       exists (select from pg_depend e where e.classid = v.class_id and e.objid = v.object_id
         and e.deptype = 'e') as of_extension
     from unnest($1::oid[], $2::oid[]) as v(class_id, object_id)
       left join pg_class c on v.class_id = 'pg_class'::regclass and c.oid = v.object_id,
       pg_identify_object(v.class_id, v.object_id, 0) as i,
       pg_identify_object_as_address(v.class_id, v.object_id, 0) as a
     where i.type is not null`,
    [pairs.map(([classId]) => classId), pairs.map(([, objectId]) => objectId)],
  );
  const schemas = new Set<string>();
  const extensions = new Set<string>();
  const sequences: RelationName[] = [];
  const addresses = new Map<ObjectKey, ObjectAddress>();
  let beyondSchemas = false;
  for (const row of rows) {
    const key = objectKey(row.class_id, row.object_id);
    const [first = '', second = ''] = row.object_names;
    if (row.class_id === catalogs.extension) extensions.add(first);
    else if (row.class_id === catalogs.namespace) schemas.add(first);
    else if (row.of_extension) continue;
    else if (row.relkind === 'S') sequences.push({ schema: first, name: second });
    if (byKey.has(key)) continue;
    addresses.set(key, { type: row.type, names: row.object_names, args: row.object_args });
    beyondSchemas ||= objectsWithoutSchema.has(row.type);
  }
  return {
    members: byKey,
    sequences,
    addresses,
    schemas: [...schemas],
    extensions: [...extensions],
    beyondSchemas,
  };
}

const objectsWithoutSchema: ReadonlySet<string> = new Set([
  'cast',
  'language',
  'access method',
  'foreign-data wrapper',
  'server',
  'transform',
  'event trigger',
]);
