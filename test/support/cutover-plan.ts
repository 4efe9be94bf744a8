// A schema plan as schema/ would make it, from the source's catalog, for tests of cutover and validation.
import type { PlannedStatement } from '../../src/model/schema-plan.ts';
import { readSelection } from '../../src/postgres/catalog.ts';
import { saveSchemaPlan, type TaskScope } from '../../src/postgres/task-scope.ts';
import { suffixedName } from '../../src/model/relation.ts';

export async function planFromCatalog(
  scope: TaskScope,
  over: { tables?: readonly string[]; suffix?: string; statements?: readonly PlannedStatement[] } = {},
): Promise<void> {
  const { tables } = await readSelection(scope.source, over.tables ?? ['*']);
  const renamed = (relation: { schema: string; name: string }) => ({
    schema: relation.schema,
    name: suffixedName(relation.name, over.suffix ?? ''),
  });
  const sequences = await scope.source.query<{ schema: string; name: string }>(
    `select n.nspname::text as schema, c.relname::text as name from pg_class c
     join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'S' order by 1, 2`,
  );
  saveSchemaPlan(scope, {
    tables: tables
      .filter((table) => table.kind !== 'partitioned')
      .map((table) => ({
        source: table.relation,
        target: renamed(table.relation),
        columns: table.columns,
        keyColumns: table.keyColumns,
        replicaIdentity: 'default' as const,
        rowsEstimated: table.rowsEstimated,
        bytesEstimated: table.bytesEstimated,
      })),
    roots: tables
      .filter((table) => table.kind === 'partitioned')
      .map((table) => ({ source: table.relation, target: renamed(table.relation) })),
    sequences: sequences.rows.map((source) => ({ source, target: renamed(source) })),
    statements: over.statements ?? [],
    findings: [],
  });
}
