// Used by catalog.ts: which relations of the source a request means: names, globs, everything, less what it leaves out.
// All partitions below a partitioned table come along.
import type { PoolClient } from 'pg';
import { MigrationError } from '../model/errors.ts';
import { isGlob, matcherOf, parseRelationName, relationKey, type RelationName } from '../model/relation.ts';

/** A name of the request that is no user table, with the reason in words (`does not exist`, `is a view` …). */
export interface Unusable {
  readonly requested: string;
  readonly reason: string;
}

/** A relation that the request leaves out, with its relkind. */
export interface ExcludedRelation extends RelationName {
  readonly oid: number;
  readonly kind: string;
}

interface Selected {
  /** Foreign partitions included, as the transaction sees them. */
  readonly relations: RelationRow[];
  readonly unusable: Unusable[];
  readonly excluded: ExcludedRelation[];
  readonly excludedNothing: string[];
}

export async function selectRelations(
  client: PoolClient,
  tables: readonly string[],
  exclude: readonly string[],
): Promise<Selected> {
  const everything = tables.length === 1 && tables[0] === '*';
  const globs = everything ? [] : tables.filter((requested) => isGlob(requested));
  const users = everything || globs.length > 0 || exclude.length > 0 ? await userRelations(client) : [];
  const userTables = users.filter(({ kind, made }) => (kind === 'r' || kind === 'p') && !made);
  const named = everything
    ? { oids: userTables.map(({ oid }) => oid), unusable: [] }
    : await resolveNames(client, tables);
  const { unusable } = named;
  const oids = new Set(named.oids);
  for (const glob of globs) {
    const matches = matcherOf(glob);
    const matched = userTables.filter((table) => matches(table));
    if (matched.length === 0) unusable.push({ requested: glob, reason: 'matches no table' });
    for (const { oid } of matched) oids.add(oid);
  }
  const matchers = exclude.map((pattern) => ({ pattern, matches: matcherOf(pattern) }));
  const excluded = new Map(
    users
      .filter((relation) => matchers.some(({ matches }) => matches(relation)))
      .map(({ oid, schema, name, kind }): [number, ExcludedRelation] => [oid, { oid, schema, name, kind }]),
  );
  const relations: RelationRow[] = [];
  for (const row of parentsFirstRows(await readRelations(client, [...oids]))) {
    const parentIsOut = row.parent_oid !== null && excluded.has(row.parent_oid);
    if (parentIsOut && row.is_partition)
      excluded.set(row.oid, { oid: row.oid, schema: row.schema, name: row.name, kind: row.kind });
    if (!excluded.has(row.oid)) relations.push(row);
    else if (row.is_partition && relations.some(({ oid }) => oid === row.parent_oid))
      unusable.push({
        requested: relationKey(row),
        reason: `is a partition that options.exclude leaves out without its parent: its rows would have no place; exclude ${relationKey({ schema: row.parent_schema ?? '', name: row.parent_name ?? '' })}`,
      });
  }
  return {
    relations,
    unusable,
    excluded: [...excluded.values()],
    excludedNothing: matchers
      .filter(({ matches }) => !users.some((relation) => matches(relation)))
      .map(({ pattern }) => pattern),
  };
}

/** Partitions behind their parents, whatever order the query gave. */
function parentsFirstRows(rows: readonly RelationRow[]): RelationRow[] {
  const byOid = new Map(rows.map((row) => [row.oid, row]));
  const depth = (row: RelationRow): number => {
    const parent = row.parent_oid === null ? undefined : byOid.get(row.parent_oid);
    return parent ? depth(parent) + 1 : 0;
  };
  return rows
    .map((row) => ({ row, depth: depth(row) }))
    .sort((a, b) => a.depth - b.depth)
    .map(({ row }) => row);
}

interface UserRelation extends ExcludedRelation {
  /** A table that a running migration makes here: source and target are one database. */
  readonly made: boolean;
}

/** Relations that are neither the system's nor an extension's, an index's or ours. */
async function userRelations(client: PoolClient): Promise<UserRelation[]> {
  // When source and target are one database, tables that a migration is making here are not its sources.
  const journal = await client.query<{ readable: boolean | null }>(
    `select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as readable
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = 'dts' and c.relname = 'statement' and c.relkind = 'r'`,
  );
  const made = journal.rows[0]?.readable
    ? `exists (select from dts.statement s where s.creates_schema = n.nspname and s.creates_name = c.relname)`
    : 'false';
  const { rows } = await client.query<UserRelation>(
    `select c.oid, n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind, ${made} as made
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relpersistence <> 't'
       and n.nspname not in ('pg_catalog', 'information_schema', 'dts') and n.nspname !~ '^pg_(toast|temp)'
       and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
         and d.deptype = 'e')`,
  );
  return rows;
}

interface ResolvedRow {
  readonly n: number;
  readonly oid: number | null;
  readonly kind: string | null;
  readonly persistence: string | null;
  readonly schema_exists: boolean;
  readonly extension: string | null;
  readonly other_case: string | null;
}

async function resolveNames(
  client: PoolClient,
  tables: readonly string[],
): Promise<{ oids: number[]; unusable: Unusable[] }> {
  const unusable: Unusable[] = [];
  const asked: { requested: string; relation: RelationName }[] = [];
  for (const requested of new Set(tables)) {
    try {
      if (isGlob(requested)) continue;
      asked.push({ requested, relation: parseRelationName(requested) });
    } catch (error) {
      if (!(error instanceof MigrationError)) throw error;
      unusable.push({ requested, reason: error.message });
    }
  }
  const { rows } = await client.query<ResolvedRow>(
    `select r.n::int, c.oid, c.relkind::text as kind, c.relpersistence::text as persistence,
       s.oid is not null as schema_exists,
       (select e.extname::text from pg_depend d join pg_extension e on e.oid = d.refobjid
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.refclassid = 'pg_extension'::regclass
          and d.deptype = 'e' limit 1) as extension,
       case when c.oid is null then
         (select min(o.relname::text) from pg_class o where o.relnamespace = s.oid and o.relkind in ('r', 'p')
            and lower(o.relname) = lower(r.name)) end as other_case
     from unnest($1::text[], $2::text[]) with ordinality as r(schema, name, n)
       left join pg_namespace s on s.nspname = r.schema
       left join pg_class c on c.relnamespace = s.oid and c.relname = r.name
     order by r.n`,
    [asked.map(({ relation }) => relation.schema), asked.map(({ relation }) => relation.name)],
  );
  const oids = new Set<number>();
  for (const row of rows) {
    const name = asked[row.n - 1];
    if (name === undefined) continue;
    const reason = unusableReason(name.relation, row);
    if (reason !== null) unusable.push({ requested: name.requested, reason });
    else if (row.oid !== null) oids.add(row.oid);
  }
  return { oids: [...oids], unusable };
}

const otherKinds: Readonly<Record<string, string>> = {
  v: 'is a view',
  m: 'is a materialized view',
  f: 'is a foreign table',
  S: 'is a sequence',
  i: 'is an index',
  I: 'is an index',
  c: 'is a composite type',
  t: 'is a TOAST table',
};

function unusableReason(relation: RelationName, row: ResolvedRow): string | null {
  if (row.oid === null) {
    if (!row.schema_exists) return `does not exist: there is no schema ${relation.schema}`;
    return row.other_case === null
      ? 'does not exist'
      : `does not exist; names are taken literally, and ${relationKey({ schema: relation.schema, name: row.other_case })} does`;
  }
  if (row.kind !== 'r' && row.kind !== 'p') return otherKinds[row.kind ?? ''] ?? 'is not a table';
  if (row.persistence === 't') return 'is a temporary table';
  if (/^(pg_catalog|information_schema|pg_toast)/.test(relation.schema)) return 'is a system table';
  if (relation.schema === 'dts') return 'belongs to DTS itself';
  if (row.extension !== null) return `belongs to the extension ${row.extension}`;
  return null;
}

export interface RelationRow {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  readonly kind: string;
  readonly persistence: string;
  readonly owner: string;
  readonly identity: string;
  readonly is_partition: boolean;
  readonly parent_oid: number | null;
  readonly parent_schema: string | null;
  readonly parent_name: string | null;
  readonly tuples: number;
  readonly pages: number;
}

/** The relations and all partitions below them. A partition that is being detached no longer belongs to its parent. */
async function readRelations(client: PoolClient, oids: readonly number[]): Promise<RelationRow[]> {
  const { rows } = await client.query<RelationRow>(
    `with recursive link as materialized (
       select i.inhrelid, i.inhparent from pg_inherits i join pg_class c on c.oid = i.inhrelid
       where c.relispartition
         and not coalesce((to_jsonb(i) ->> 'inhdetachpending')::boolean, false) -- column exists from 14 on
     ), tree(oid) as (
       select unnest($1::oid[])
       union
       select link.inhrelid from tree join link on link.inhparent = tree.oid
     )
     select c.oid, n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind,
       c.relpersistence::text as persistence, pg_get_userbyid(c.relowner)::text as owner,
       c.relreplident::text as identity, c.relispartition as is_partition,
       p.oid as parent_oid, pn.nspname::text as parent_schema, p.relname::text as parent_name,
       c.reltuples::float8 as tuples, c.relpages as pages
     from tree join pg_class c on c.oid = tree.oid join pg_namespace n on n.oid = c.relnamespace
       left join link on link.inhrelid = c.oid
       left join pg_class p on p.oid = link.inhparent left join pg_namespace pn on pn.oid = p.relnamespace
     where c.relkind in ('r', 'p', 'f')`,
    [oids],
  );
  return rows;
}

/** Children by inheritance outside of the selection; partitions are always in it. */
export async function readStrayChildren(client: PoolClient, oids: readonly number[]): Promise<Unusable[]> {
  const { rows } = await client.query<RelationName & { child_schema: string; child_name: string }>(
    `select n.nspname::text as schema, p.relname::text as name,
       cn.nspname::text as child_schema, c.relname::text as child_name
     from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace cn on cn.oid = c.relnamespace
       join pg_class p on p.oid = i.inhparent join pg_namespace n on n.oid = p.relnamespace
     where i.inhparent = any($1::oid[]) and i.inhrelid <> all($1::oid[]) and c.relpersistence <> 't'
       and not c.relispartition
     order by 1, 2, 3, 4`,
    [oids],
  );
  return rows.map((row) => {
    const child = relationKey({ schema: row.child_schema, name: row.child_name });
    return {
      requested: relationKey(row),
      reason: `has the child ${child} by inheritance, which is not selected: select ${child}, too`,
    };
  });
}
