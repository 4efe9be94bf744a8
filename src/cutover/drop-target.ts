// Drops the target tables and large objects that a cancelled task made, for cleanUp with drop_target: exactly those of its
// journals, with their indexes and owned sequences, and nothing that somebody else has built on them since.
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import { unlinkLargeObjects } from '../postgres/large-objects.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

const LOCK_TIMEOUT = '10s';
/** Tables of one transaction; each takes a handful of the server's locks. */
const BATCH = 100;

/**
 * Errors: `target_conflict` when a partition or another object of somebody else depends on a table of ours; that table
 * and those not yet reached stay, and the journal still has them.
 */
export async function dropTargetTables(scope: TaskScope): Promise<void> {
  await unlinkLargeObjects(scope);
  const tables = await tablesMade(scope);
  if (tables.length === 0) return;
  await refuseForeignPartitions(scope, tables);
  await dropForeignKeysAmong(scope, tables);
  for (let from = 0; from < tables.length; from += BATCH) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request');
    const batch = tables.slice(from, from + BATCH);
    try {
      await scope.target.transaction(async (client) => {
        await client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
        await client.query(`drop table if exists ${batch.map((table) => identRelation(table)).join(', ')}`);
        // with the tables, so that a table of the same name that somebody makes later is not ours
        await client.query(
          `delete from dts.statement s using unnest($2::text[], $3::text[]) as d(schema, name)
           where s.task_id = $1 and s.creates_schema = d.schema and s.creates_name = d.name`,
          [scope.taskId, batch.map(({ schema }) => schema), batch.map(({ name }) => name)],
        );
      });
    } catch (error) {
      if (!(error instanceof MigrationError) || error.details?.['sqlstate'] !== '2BP01') throw error;
      throw new MigrationError('target_conflict', `target: other objects depend on a table of this task`, {
        hint: 'drop the objects named in the detail; the clean-up is tried again',
        details: { ...error.details, relations: batch.map((table) => relationKey(table)) },
        cause: error,
      });
    }
  }
}

/** Newest first: partitions and inheritance children before their parents. */
async function tablesMade(scope: TaskScope): Promise<RelationName[]> {
  const { rows: present } = await scope.target.query<{ present: boolean }>(
    `select to_regclass('dts.statement') is not null as present`,
  );
  if (!present[0]?.present) return [];
  const { rows } = await scope.target.query<RelationName>(
    `select s.creates_schema as schema, s.creates_name as name
     from dts.statement s join dts.task t using (task_id)
     where s.task_id = $1 and t.incarnation = $2 and s.creates_name is not null order by s.n desc`,
    [scope.taskId, scope.incarnation],
  );
  return rows;
}

/** DROP TABLE of a partitioned table takes its partitions along without CASCADE, ours or not. */
async function refuseForeignPartitions(scope: TaskScope, tables: readonly RelationName[]): Promise<void> {
  const { rows } = await scope.target.query<RelationName>(
    `with ours as (
       select c.oid, c.relkind from unnest($1::text[], $2::text[]) as o(schema, name)
         join pg_namespace n on n.nspname = o.schema join pg_class c on c.relnamespace = n.oid and c.relname = o.name)
     select n.nspname::text as schema, c.relname::text as name
     from pg_inherits i join ours p on p.oid = i.inhparent and p.relkind = 'p'
       join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
     where i.inhrelid not in (select oid from ours) order by 1, 2`,
    [tables.map(({ schema }) => schema), tables.map(({ name }) => name)],
  );
  if (rows.length === 0) return;
  const keys = rows.map((row) => relationKey(row)).join(', ');
  throw new MigrationError(
    'target_conflict',
    `target: partitions of somebody else hang on a table of this task: ${keys}`,
    {
      hint: 'detach or drop them; the clean-up is tried again',
      details: { role: 'target', relations: rows.map((row) => relationKey(row)) },
    },
  );
}

/** Foreign keys between our tables may form a ring; one on our table from elsewhere is not ours to drop. */
async function dropForeignKeysAmong(scope: TaskScope, tables: readonly RelationName[]): Promise<void> {
  const { rows } = await scope.target.query<{ schema: string; name: string; constraint: string }>(
    `with ours as (
       select c.oid from unnest($1::text[], $2::text[]) as o(schema, name)
         join pg_namespace n on n.nspname = o.schema join pg_class c on c.relnamespace = n.oid and c.relname = o.name)
     select n.nspname::text as schema, c.relname::text as name, k.conname::text as constraint
     from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
     where k.contype = 'f' and k.conparentid = 0 and k.conrelid in (select oid from ours)
       and k.confrelid in (select oid from ours) and k.conrelid <> k.confrelid
     order by 1, 2, 3`,
    [tables.map(({ schema }) => schema), tables.map(({ name }) => name)],
  );
  for (const row of rows) {
    await scope.target.transaction(async (client) => {
      await client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
      await client.query(
        `alter table ${identRelation(row)} drop constraint if exists ${ident(row.constraint)}`,
      );
    });
  }
}
