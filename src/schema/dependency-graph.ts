// Used by dependencies.ts: pg_depend of the source as a graph that is read level by level, a query for each, whatever the
// number of objects.
import { relationKey } from '../model/relation.ts';
import type { CatalogTable } from '../postgres/catalog.ts';
import type { Side } from '../postgres/connections.ts';

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
  readonly to_extension: boolean;
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
export class DependencyGraph {
  readonly #side: Side;
  readonly #selected: ReadonlySet<number>;
  readonly #wanted: ReadonlySet<ObjectKey> | null;
  readonly #excluded: ReadonlySet<ObjectKey>;
  readonly #edges = new Map<ObjectKey, readonly Edge[]>();

  /** `wanted`: of a whole database, whose materialized views and foreign tables may be migrated as well. */
  constructor(
    side: Side,
    tables: readonly CatalogTable[],
    besides: { readonly wanted: ReadonlySet<ObjectKey> | null; readonly excluded: readonly number[] },
  ) {
    this.#side = side;
    this.#selected = new Set(tables.map((table) => table.oid));
    this.#wanted = besides.wanted;
    this.#excluded = new Set(besides.excluded.map((oid) => objectKey(catalogs.class, oid)));
  }

  /**
   * `found`: all that is reached. `blocked`: those of it that cannot be had, with a table outside of the selection that
   * they need, themselves or through others.
   */
  async closure(
    seeds: readonly ObjectKey[],
  ): Promise<{ found: ReadonlySet<ObjectKey>; blocked: ReadonlyMap<ObjectKey, string> }> {
    const found = new Set<ObjectKey>(seeds);
    const neededBy = new Map<ObjectKey, ObjectKey[]>();
    const blocked = new Map<ObjectKey, string>();
    let level: readonly ObjectKey[] = [...found];
    while (level.length > 0) {
      await this.#load(level.filter((key) => !this.#edges.has(key)));
      const next: ObjectKey[] = [];
      for (const key of level) {
        for (const { to, missing } of this.#edges.get(key) ?? []) {
          if (missing !== null) {
            blocked.set(key, missing);
            continue;
          }
          const needers = neededBy.get(to);
          if (needers) needers.push(key);
          else neededBy.set(to, [key]);
          if (found.has(to)) continue;
          found.add(to);
          next.push(to);
        }
      }
      level = next;
    }
    const queue = [...blocked];
    for (let item = queue.pop(); item !== undefined; item = queue.pop()) {
      for (const needer of neededBy.get(item[0]) ?? []) {
        if (blocked.has(needer)) continue;
        blocked.set(needer, item[1]);
        queue.push([needer, item[1]]);
      }
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
         f.relkind::text as from_kind, t.relkind::text as to_kind, n.nspname::text as to_schema, t.relname::text as to_name,
         t.oid is not null and exists (select from pg_depend m where m.classid = e.to_class and m.objid = e.to_object
           and m.deptype = 'e') as to_extension
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
      const to = objectKey(row.to_class, row.to_object);
      const isMissing =
        this.#excluded.has(to) ||
        (row.to_kind !== null &&
          'rpfm'.includes(row.to_kind) &&
          !row.to_extension && // its extension makes it
          !this.#selected.has(row.to_object) &&
          !('fm'.includes(row.to_kind) && this.#wanted?.has(to) === true));
      edges.get(objectKey(row.from_class, row.from_object))?.push({
        to,
        missing: isMissing ? relationKey({ schema: row.to_schema ?? '', name: row.to_name ?? '' }) : null,
      });
    }
    for (const [key, list] of edges) this.#edges.set(key, list);
  }
}
