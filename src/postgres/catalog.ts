// What the source's catalog says about tables: the selection of a request resolved to relations, with columns, keys and
// sizes. Preflight and schema planning both start here, so that they can never disagree. A handful of set-wise queries
// whatever the number of tables, under a lock timeout: reading the catalog must never hang behind somebody's DDL.
import type { PoolClient } from 'pg';
import type { PlannedColumn } from '../model/schema-plan.ts';
import { MigrationError } from '../model/errors.ts';
import { parseRelationName, relationKey, type RelationName } from '../model/relation.ts';
import type { Side } from './connections.ts';

export interface CatalogTable {
  readonly relation: RelationName;
  readonly oid: number;
  /** `partitioned` holds no rows; its leaves are listed as tables of their own. */
  readonly kind: 'table' | 'partitioned' | 'leaf';
  /** Direct parent partition, for leaves and sub-partitioned tables. */
  readonly parent: RelationName | null;
  readonly persistence: 'permanent' | 'unlogged';
  readonly owner: string;
  readonly columns: readonly PlannedColumn[];
  /** Columns of the replica identity in index order; empty for `full` and `nothing`. */
  readonly keyColumns: readonly string[];
  readonly hasPrimaryKey: boolean;
  /** As relreplident: `default` without a primary key identifies nothing. */
  readonly replicaIdentity: 'default' | 'index' | 'full' | 'nothing';
  readonly rowsEstimated: number;
  readonly bytesEstimated: number;
}

export interface TableSelection {
  /** Every selected table with all its partitions, parents before children, then by name. */
  readonly tables: readonly CatalogTable[];
  /** Names of the request that are no user table, with the reason in words (`does not exist`, `is a view` …). */
  readonly unusable: readonly { readonly requested: string; readonly reason: string }[];
}

type Unusable = TableSelection['unusable'][number];

const CATALOG_LOCK_TIMEOUT = '10s';
const SIZE_LOCK_TIMEOUT = '2s';

/**
 * Resolves the names of a request (`['*']`: every user table, but none that an extension owns, that lies in a system
 * schema or in `dts`, or that a running migration is making here). A partitioned table brings all its partitions; a
 * partition whose parent is not selected is listed and reported, and so is a parent whose children by inheritance are
 * not all selected: queries of it read their rows. Rows are PostgreSQL's own estimates, bytes are heap
 * and TOAST. Errors: those of a query, `lock_timeout` when DDL keeps the catalog locked.
 */
export async function readSelection(side: Side, tables: readonly string[]): Promise<TableSelection> {
  const read = await side.transaction(async (client) => {
    await client.query(`select set_config('lock_timeout', $1, true)`, [CATALOG_LOCK_TIMEOUT]);
    const { relations, unusable } = await selectRelations(client, tables);
    const selected = relations.map((row) => row.oid);
    return {
      relations,
      unusable,
      strayChildren: await readStrayChildren(client, selected),
      columns: await readColumns(client, selected),
      keys: await readKeys(client, selected),
    };
  }, 'begin isolation level repeatable read read only');
  const sizes = await readSizes(
    side,
    read.relations.map((row) => row.oid),
  );
  const unusable: Unusable[] = [...read.unusable, ...read.strayChildren];
  const found: CatalogTable[] = [];
  const present = new Set(read.relations.map((row) => row.oid));
  for (const row of read.relations) {
    const relation = { schema: row.schema, name: row.name };
    const parent =
      row.parent_schema === null || row.parent_name === null
        ? null
        : { schema: row.parent_schema, name: row.parent_name };
    const refuse = (reason: string): void => void unusable.push({ requested: relationKey(relation), reason });
    if (row.kind === 'f') {
      refuse(`is a foreign table${parent ? `, a partition of ${relationKey(parent)}` : ''}`);
      continue;
    }
    if (row.is_partition && (parent === null || row.parent_oid === null || !present.has(row.parent_oid)))
      refuse(
        parent === null
          ? 'is a partition that is being detached from its parent'
          : `is a partition without its parent: select ${relationKey(parent)}`,
      );
    const key = read.keys.get(row.oid);
    const size = sizes.get(row.oid);
    found.push({
      relation,
      oid: row.oid,
      kind: row.kind === 'p' ? 'partitioned' : row.is_partition ? 'leaf' : 'table',
      parent,
      persistence: row.persistence === 'u' ? 'unlogged' : 'permanent',
      owner: row.owner,
      columns: read.columns.get(row.oid) ?? [],
      keyColumns: identityColumns(row.identity, key),
      hasPrimaryKey: key?.some((index) => index.is_primary) ?? false,
      replicaIdentity: replicaIdentities[row.identity] ?? 'nothing',
      rowsEstimated: size?.rows ?? Math.max(0, row.tuples),
      bytesEstimated: size?.bytes ?? row.pages * 8192,
    });
  }
  return { tables: parentsFirst(found), unusable };
}

const replicaIdentities: Readonly<Record<string, CatalogTable['replicaIdentity']>> = {
  d: 'default',
  i: 'index',
  f: 'full',
  n: 'nothing',
};

function identityColumns(identity: string, indexes: readonly KeyRow[] | undefined): readonly string[] {
  const index = indexes?.find(
    (candidate) =>
      candidate.is_usable &&
      (identity === 'd' ? candidate.is_primary : identity === 'i' && candidate.is_identity),
  );
  return index?.columns ?? [];
}

function parentsFirst(tables: readonly CatalogTable[]): CatalogTable[] {
  const byKey = new Map(tables.map((table) => [relationKey(table.relation), table]));
  const depth = (table: CatalogTable): number => {
    const parent = table.parent && byKey.get(relationKey(table.parent));
    return parent ? depth(parent) + 1 : 0;
  };
  const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
  return tables
    .map((table) => ({ table, depth: depth(table), ...table.relation }))
    .sort((a, b) => a.depth - b.depth || order(a.schema, b.schema) || order(a.name, b.name))
    .map(({ table }) => table);
}

/** The relations that a request selects, foreign partitions included, as the transaction sees them. */
async function selectRelations(
  client: PoolClient,
  tables: readonly string[],
): Promise<{ relations: RelationRow[]; unusable: Unusable[] }> {
  const everything = tables.length === 1 && tables[0] === '*';
  const { oids, unusable } = everything
    ? { oids: await everyUserTable(client), unusable: [] }
    : await resolveNames(client, tables);
  return { relations: await readRelations(client, oids), unusable };
}

async function everyUserTable(client: PoolClient): Promise<number[]> {
  // When source and target are one database, tables that a migration is making here are not its sources.
  const journal = await client.query<{ readable: boolean | null }>(
    `select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as readable
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = 'dts' and c.relname = 'statement' and c.relkind = 'r'`,
  );
  const made = journal.rows[0]?.readable
    ? `and not exists (select from dts.statement s where s.creates_schema = n.nspname and s.creates_name = c.relname)`
    : '';
  const { rows } = await client.query<{ oid: number }>(
    `select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p') and c.relpersistence <> 't'
       and n.nspname not in ('pg_catalog', 'information_schema', 'dts') and n.nspname !~ '^pg_(toast|temp)'
       and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
         and d.deptype = 'e')
       ${made}`,
  );
  return rows.map((row) => row.oid);
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
async function readStrayChildren(client: PoolClient, oids: readonly number[]): Promise<Unusable[]> {
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

async function readColumns(
  client: PoolClient,
  oids: readonly number[],
): Promise<Map<number, PlannedColumn[]>> {
  const { rows } = await client.query<{
    table_oid: number;
    name: string;
    type: string;
    generated: boolean;
    identity_always: boolean;
    not_null: boolean;
  }>(
    `select attrelid as table_oid, attname::text as name, format_type(atttypid, atttypmod) as type,
       attgenerated <> '' as generated, attnotnull as not_null,
       -- up to 16 only the partitioned table itself has the identity; its leaves on a target from 17 on have it, too
       attidentity = 'a' or exists (select from pg_attribute root where root.attrelid = pg_partition_root(a.attrelid)
         and root.attname = a.attname and root.attidentity = 'a') as identity_always
     from pg_attribute a where attrelid = any($1::oid[]) and attnum > 0 and not attisdropped
     order by attrelid, attnum`,
    [oids],
  );
  const columns = new Map<number, PlannedColumn[]>();
  for (const row of rows) {
    const list = columns.get(row.table_oid) ?? [];
    list.push({
      name: row.name,
      type: row.type,
      generated: row.generated,
      identityAlways: row.identity_always,
      notNull: row.not_null,
    });
    columns.set(row.table_oid, list);
  }
  return columns;
}

interface KeyRow {
  readonly table_oid: number;
  readonly is_primary: boolean;
  readonly is_identity: boolean;
  /** An invalid or deferrable index identifies nothing (RelationGetIndexList in relcache.c). */
  readonly is_usable: boolean;
  readonly columns: readonly string[];
}

async function readKeys(client: PoolClient, oids: readonly number[]): Promise<Map<number, KeyRow[]>> {
  const { rows } = await client.query<KeyRow>(
    `select i.indrelid as table_oid, i.indisprimary as is_primary, i.indisreplident as is_identity,
       i.indisvalid and i.indimmediate as is_usable,
       array_agg(a.attname::text order by k.n) as columns
     from pg_index i, unnest(i.indkey::int2[]) with ordinality as k(attnum, n), pg_attribute a
     where i.indrelid = any($1::oid[]) and (i.indisprimary or i.indisreplident)
       and k.n <= i.indnkeyatts and a.attrelid = i.indrelid and a.attnum = k.attnum
     group by i.indexrelid, i.indrelid, i.indisprimary, i.indisreplident, i.indisvalid, i.indimmediate`,
    [oids],
  );
  const keys = new Map<number, KeyRow[]>();
  for (const row of rows) keys.set(row.table_oid, [...(keys.get(row.table_oid) ?? []), row]);
  return keys;
}

/**
 * Sizes as they are now. Rows as the planner estimates them: the density of the last ANALYZE over today's pages, or,
 * never analyzed (reltuples −1, before 14: 0), the heap over the width of a row. The size functions lock the relation,
 * so behind an ACCESS EXCLUSIVE lock the caller falls back to pg_class.
 */
async function readSizes(
  side: Side,
  oids: readonly number[],
): Promise<Map<number, { rows: number; bytes: number }>> {
  try {
    return await side.transaction(async (client) => {
      await client.query(`select set_config('lock_timeout', $1, true)`, [SIZE_LOCK_TIMEOUT]);
      const { rows } = await client.query<{ oid: number; rows: number; bytes: number }>(
        `select s.oid, s.bytes, case
           when s.relpages > 0 and s.reltuples >= 0 then s.reltuples * s.heap / s.block / s.relpages
           else s.heap / (select 28 + coalesce(sum(case when attlen > 0 then attlen else 32 end), 0)
             from pg_attribute where attrelid = s.oid and attnum > 0 and not attisdropped) end::float8 as rows
         from (select c.oid, c.relpages, c.reltuples, current_setting('block_size')::float8 as block,
             pg_relation_size(c.oid)::float8 as heap, pg_table_size(c.oid)::float8 as bytes
           from pg_class c where c.oid = any($1::oid[]) and c.relkind = 'r' offset 0) as s
         where s.bytes is not null`,
        [oids],
      );
      return new Map(rows.map((row) => [row.oid, { rows: Math.round(row.rows), bytes: row.bytes }]));
    }, 'begin read only');
  } catch (error) {
    if (error instanceof MigrationError && error.code === 'lock_timeout') return new Map();
    throw error;
  }
}
