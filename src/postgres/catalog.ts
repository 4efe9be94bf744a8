// What the source's catalog says about tables: the selection of a request resolved to relations, with columns, keys and
// sizes. Preflight and schema planning both start here, so that they can never disagree. A handful of set-wise queries
// whatever the number of tables, under a lock timeout: reading the catalog must never hang behind somebody's DDL.
import type { PoolClient } from 'pg';
import type { PlannedColumn } from '../model/schema-plan.ts';
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { TaskOptions } from '../model/task-options.ts';
import type { Side } from './connections.ts';
import {
  selectRelations,
  readStrayChildren,
  type ExcludedRelation,
  type Unusable,
} from './selected-relations.ts';
import { applyTableOptions, type OptionFault } from './table-options.ts';
import { ONE_SNAPSHOT, READ_ONLY } from './transaction-options.ts';

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
  /** `options.table`: only these rows. Absent: all. */
  readonly where?: string;
  /** `options.table`: columns that are not migrated; not among `columns`. Absent: none. */
  readonly leftOut?: readonly string[];
  readonly rowsEstimated: number;
  readonly bytesEstimated: number;
}

export interface TableSelection {
  /** Every selected table with all its partitions, parents before children, then by name. */
  readonly tables: readonly CatalogTable[];
  /** Names of the request that are no user table, with the reason in words (`does not exist`, `is a view` …). */
  readonly unusable: readonly Unusable[];
  /** Relations of any kind that the request leaves out, partitions of such tables included. */
  readonly excluded: readonly ExcludedRelation[];
  /** What the request leaves out and no relation matches. */
  readonly excludedNothing: readonly string[];
  /** What of `options.table` cannot be done. Absent: nothing. */
  readonly optionFaults?: readonly OptionFault[];
}

const CATALOG_LOCK_TIMEOUT = '10s';
const SIZE_LOCK_TIMEOUT = '2s';

/**
 * Resolves the names and globs of a request (`['*']`: every user table, but none that an extension owns, that lies in a system
 * schema or in `dts`, or that a running migration is making here). A partitioned table brings all its partitions; a
 * partition whose parent is not selected is listed and reported, and so is a parent whose children by inheritance are
 * not all selected: queries of it read their rows. Rows are PostgreSQL's own estimates, bytes are heap
 * and TOAST. Errors: those of a query, `lock_timeout` when DDL keeps the catalog locked.
 */
export async function readSelection(
  side: Side,
  tables: readonly string[],
  { exclude, table }: Pick<TaskOptions, 'exclude' | 'table'> = { exclude: [], table: {} },
): Promise<TableSelection> {
  const read = await side.transaction(async (client) => {
    await client.query(`select set_config('lock_timeout', $1, true)`, [CATALOG_LOCK_TIMEOUT]);
    const { relations, ...rest } = await selectRelations(client, tables, exclude);
    const selected = relations.map((row) => row.oid);
    return {
      relations,
      ...rest,
      strayChildren: await readStrayChildren(client, selected),
      columns: await readColumns(client, selected),
      keys: await readKeys(client, selected),
    };
  }, ONE_SNAPSHOT);
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
  const { excluded, excludedNothing } = read;
  const applied = applyTableOptions(parentsFirst(found), { table });
  return {
    tables: applied.tables,
    unusable,
    excluded,
    excludedNothing,
    ...(applied.faults.length === 0 ? {} : { optionFaults: applied.faults }),
  };
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
export async function readSizes(
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
    }, READ_ONLY);
  } catch (error) {
    if (error instanceof MigrationError && error.code === 'lock_timeout') return new Map();
    throw error;
  }
}
