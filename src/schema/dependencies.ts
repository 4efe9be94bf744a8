// Used by plan.ts: what the selected tables are made of and what they need, by pg_depend of the source, so that a subset
// brings its types, functions and sequences along and nothing else. Only reads catalogs; a few queries per level of
// dependency, whatever the number of tables.
import type { RelationName } from '../model/relation.ts';
import { relationKey } from '../model/relation.ts';
import type { ObjectAddress } from '../model/schema-plan.ts';
import type { CatalogTable } from '../postgres/catalog.ts';
import type { Side } from '../postgres/connections.ts';
import { DTS_SCHEMA } from '../postgres/sql.ts';

/** OIDs of system catalogs, the same in every version (include/catalog/*.h). */
export const catalogs = {
  class: 1259,
  type: 1247,
  constraint: 2606,
  namespace: 2615,
  extension: 3079,
} as const;

/** First OID that initdb does not give (transam.h, FirstNormalObjectId); below, every server has the object. */
const FIRST_NORMAL_OID = 16_384;

export type ObjectKey = `${number}/${number}`;

export function objectKey(classId: number, objectId: number): ObjectKey {
  return `${classId}/${objectId}`;
}

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
  /** Every object to migrate: tables, their parts, and what those need. */
  readonly keep: ReadonlySet<ObjectKey>;
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

export async function readDependencies(side: Side, tables: readonly CatalogTable[]): Promise<Dependencies> {
  const members = await readMembers(side, tables);
  const graph = new DependencyGraph(side, tables);
  const leftOut: LeftOut[] = [];
  const excluded = new Set<ObjectKey>();
  for (const member of members) {
    if (member.isOurs) excluded.add(member.key);
    if (member.kind !== 'foreign key') continue;
    if (member.missing !== null) leftOut.push({ member, needs: member.missing });
    excluded.add(member.key); // its table, columns and index are there anyway, its triggers PostgreSQL makes itself
  }
  for (;;) {
    const seeds = [
      ...tables.map((table) => objectKey(catalogs.class, table.oid)),
      ...members.map((member) => member.key).filter((key) => !excluded.has(key)),
    ];
    const { found, blocked } = await graph.closure(seeds);
    const optional = members.filter(
      (member) => optionalKinds.has(member.kind) && blocked.has(member.key) && !excluded.has(member.key),
    );
    for (const member of optional) {
      leftOut.push({ member, needs: blocked.get(member.key) ?? '' });
      excluded.add(member.key);
    }
    if (optional.length > 0) continue; // what only they needed must go too
    const keep = new Set(found.keys());
    for (const member of members)
      if (member.kind === 'foreign key' && member.missing === null) keep.add(member.key);
    return {
      ...(await describe(side, found, members)),
      keep,
      leftOut,
      needed: [...new Set(blocked.values())],
    };
  }
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

interface EdgeRow {
  readonly from_class: number;
  readonly from_object: number;
  readonly to_class: number;
  readonly to_object: number;
  readonly is_extension: boolean;
  readonly from_kind: string | null;
  readonly to_kind: string | null;
  readonly to_schema: string | null;
  readonly to_name: string | null;
}

interface Edge {
  readonly to: ObjectKey;
  /** Set when it leads to a table outside of the selection, which is not followed. */
  readonly missing: string | null;
}

/**
 * Walks from objects to what they need. From an object follow:
 * 1. everything it depends on (pg_depend, any type); but of an extension's member only the extension, and from a
 *    sequence never the table that owns it;
 * 2. backwards, what is an internal part of it ('i': a composite type's attributes, a view's query);
 * 3. a domain's check constraints, which depend on the domain and not the other way round.
 * Objects that initdb makes are on the target already; schema public may be gone there.
 */
class DependencyGraph {
  readonly #side: Side;
  readonly #selected: ReadonlySet<number>;
  readonly #edges = new Map<ObjectKey, readonly Edge[]>();

  constructor(side: Side, tables: readonly CatalogTable[]) {
    this.#side = side;
    this.#selected = new Set(tables.map((table) => table.oid));
  }

  /** `found`: all that is reached. `blocked`: seed → a table outside of the selection that it cannot do without. */
  async closure(
    seeds: readonly ObjectKey[],
  ): Promise<{ found: ReadonlyMap<ObjectKey, ObjectKey>; blocked: ReadonlyMap<ObjectKey, string> }> {
    const found = new Map<ObjectKey, ObjectKey>(seeds.map((seed) => [seed, seed]));
    const blocked = new Map<ObjectKey, string>();
    let level: readonly ObjectKey[] = [...found.keys()];
    while (level.length > 0) {
      await this.#load(level.filter((key) => !this.#edges.has(key)));
      const next: ObjectKey[] = [];
      for (const key of level) {
        const seed = found.get(key) ?? key;
        for (const edge of this.#edges.get(key) ?? []) {
          if (edge.missing !== null) blocked.set(seed, edge.missing);
          else if (!found.has(edge.to)) {
            found.set(edge.to, seed);
            next.push(edge.to);
          }
        }
      }
      level = next;
    }
    return { found, blocked };
  }

  async #load(keys: readonly ObjectKey[]): Promise<void> {
    if (keys.length === 0) return;
    const edges = new Map<ObjectKey, Edge[]>(keys.map((key) => [key, []]));
    const pairs = keys.map((key) => key.split('/').map(Number));
    const { rows } = await this.#side.query<EdgeRow>(
      `with visited(class_id, object_id) as (select * from unnest($1::oid[], $2::oid[])),
       member as (
         select v.class_id, v.object_id, exists (select from pg_depend e where e.classid = v.class_id
           and e.objid = v.object_id and e.deptype = 'e') as of_extension from visited v),
       edge(from_class, from_object, to_class, to_object, is_extension) as (
         select v.class_id, v.object_id, d.refclassid, d.refobjid, d.deptype = 'e'
           from member v join pg_depend d on d.classid = v.class_id and d.objid = v.object_id
           where d.deptype <> 'p' and (d.deptype = 'e' or not v.of_extension)
         union
         select v.class_id, v.object_id, d.classid, d.objid, false
           from member v join pg_depend d on d.refclassid = v.class_id and d.refobjid = v.object_id
           where d.deptype = 'i' and not v.of_extension
         union
         select v.class_id, v.object_id, 'pg_constraint'::regclass, c.oid, false
           from member v join pg_constraint c on c.contypid = v.object_id
           where v.class_id = 'pg_type'::regclass and not v.of_extension)
       select e.from_class, e.from_object, e.to_class, e.to_object, e.is_extension,
         f.relkind::text as from_kind, t.relkind::text as to_kind, n.nspname::text as to_schema, t.relname::text as to_name
       from edge e
         left join pg_class f on e.from_class = 'pg_class'::regclass and f.oid = e.from_object
         left join pg_class t on e.to_class = 'pg_class'::regclass and t.oid = e.to_object
         left join pg_namespace n on n.oid = t.relnamespace
       where e.to_object >= ${FIRST_NORMAL_OID}
         or (e.to_class = 'pg_namespace'::regclass and e.to_object = (select oid from pg_namespace where nspname = 'public'))`,
      [pairs.map(([classId]) => classId), pairs.map(([, objectId]) => objectId)],
    );
    for (const row of rows) {
      if (row.from_kind === 'S' && row.to_class === catalogs.class) continue;
      const isTable = row.to_kind !== null && 'rpfm'.includes(row.to_kind);
      edges.get(objectKey(row.from_class, row.from_object))?.push({
        to: objectKey(row.to_class, row.to_object),
        missing:
          isTable && !this.#selected.has(row.to_object)
            ? relationKey({ schema: row.to_schema ?? '', name: row.to_name ?? '' })
            : null,
      });
    }
    for (const [key, list] of edges) this.#edges.set(key, list);
  }
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
  found: ReadonlyMap<ObjectKey, ObjectKey>,
  members: readonly Member[],
): Promise<Omit<Dependencies, 'keep' | 'leftOut' | 'needed'>> {
  const byKey = new Map(members.map((member) => [member.key, member]));
  const pairs = [...found.keys()].map((key) => key.split('/').map(Number));
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
