// What the copy needs before it runs, made by hand: the schema plan read from the source's catalog, our bookkeeping on
// the target and the record of a slot. No slot is made: the copy never touches it.
import { onTestFinished } from 'vitest';
import type { RelationName } from '../../src/model/relation.ts';
import type {
  PlannedColumn,
  PlannedStatement,
  PlannedTable,
  SchemaPlan,
} from '../../src/model/schema-plan.ts';
import { ensureBookkeeping, removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { saveSchemaPlan } from '../../src/postgres/task-scope.ts';
import type { DatabasePair, TestDatabase } from './databases.ts';
import type { TestScope } from './scope.ts';

/** A table of the plan as the source's catalog has it, copied into a relation of the same name. */
async function plannedTable(
  source: TestDatabase,
  relation: RelationName,
  target: RelationName = relation,
): Promise<PlannedTable> {
  const oid = `(select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2)`;
  // types are spelled with their schemas in a plan: our sessions have no search_path
  const { rows: columns } = await source.query<PlannedColumn & { [field: string]: unknown }>(
    `with path as materialized (select set_config('search_path', '', true))
     select attname::text as name, format_type(atttypid, atttypmod) as type, attgenerated <> '' as generated,
            attidentity = 'a' as "identityAlways", attnotnull as "notNull"
       from path, pg_attribute where attrelid = ${oid} and attnum > 0 and not attisdropped order by attnum`,
    [relation.schema, relation.name],
  );
  const { rows: sizes } = await source.query<{ rows: number; bytes: string }>(
    `select greatest(reltuples, 0)::float8 as rows, pg_table_size(oid)::text as bytes from pg_class where oid = ${oid}`,
    [relation.schema, relation.name],
  );
  return {
    source: relation,
    target,
    columns,
    keyColumns: [],
    replicaIdentity: 'full',
    rowsEstimated: sizes[0]?.rows ?? 0,
    bytesEstimated: Number(sizes[0]?.bytes ?? 0),
  };
}

export type StatementSketch = Pick<PlannedStatement, 'phase' | 'sql' | 'table'>;

export async function makePlan(
  source: TestDatabase,
  names: readonly (string | RelationName)[],
  statements: readonly StatementSketch[] = [],
): Promise<SchemaPlan> {
  const tables = [];
  for (const name of names)
    tables.push(await plannedTable(source, typeof name === 'string' ? { schema: 'public', name } : name));
  return {
    tables,
    roots: [],
    sequences: [],
    statements: statements.map((statement, n) => ({ ...statement, n, object: statement.sql, creates: null })),
    findings: [],
  };
}

/** Makes `scope` ready for copyTables; what it leaves on the target goes with the test. */
export async function prepareCopy(scope: TestScope, plan: SchemaPlan, incarnation = 'slot 1'): Promise<void> {
  saveSchemaPlan(scope, plan);
  await ensureBookkeeping(scope);
  scope.checkpoints.set('slot', { name: `dts_${scope.taskId}`, incarnation, consistentLsn: '0/0' });
  onTestFinished(() => removeBookkeeping(scope));
}

/** The same statements on both sides. */
export async function onBoth(pair: DatabasePair, sql: string): Promise<void> {
  await pair.source.query(sql);
  await pair.target.query(sql);
}

/** Count and digest of a table's rows as text, independent of their order. */
export async function contentOf(
  database: TestDatabase,
  table: string,
): Promise<{ count: string; digest: string | null }> {
  const { rows } = await database.query<{ count: string; digest: string | null }>(
    `select count(*)::text as count, md5(string_agg(r, e'\\n' order by r collate "C")) as digest
       from (select t::text as r from ${table} t) as rows`,
  );
  return rows[0] ?? { count: '?', digest: null };
}
