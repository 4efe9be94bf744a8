// Defaults of the columns that on_ddl has carried over. Until the target opens, such a column has there the value that rows from
// before it got; its real default, or none, is a planned statement of the end. source-ddl.ts plans it when the column comes, and
// the runtime has it looked at once more under the fence: the source may have changed the default since, without a trace
// in the stream.
import { relationKey, type RelationName } from '../model/relation.ts';
import type { PlannedStatement, PlannedTable, SchemaPlan } from '../model/schema-plan.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { inTurn, saveSchemaPlan, schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { readColumns, rootOf, type ColumnRow } from './column-facts.ts';

/** Where the target has the column: in the table, or in the partitioned table with all its partitions. */
export function targetOf(plan: SchemaPlan, table: PlannedTable, row: ColumnRow): RelationName {
  return plan.roots.find(({ source }) => relationKey(source) === rootOf(row))?.target ?? table.target;
}

export function setDefault(target: RelationName, row: ColumnRow): string {
  return `alter table ${identRelation(target)} alter column ${ident(row.column)} set default ${row.expression ?? 'null'}`;
}

/** The real default, or none, when the target opens. `source`: `relationKey` of the table or root. */
export function defaultStatement(
  target: RelationName,
  source: string,
  row: ColumnRow,
): Omit<PlannedStatement, 'n'> {
  return {
    phase: 'final',
    sql: setDefault(target, row),
    object: `DEFAULT ${row.column} on ${relationKey(target)}`,
    table: source,
    creates: null,
  };
}

/** Plans the defaults as the source has them now. Idempotent. Errors: those of a query. */
export function refreshDefaults(scope: TaskScope): Promise<void> {
  return inTurn(scope, async () => {
    const plan = schemaPlanOf(scope);
    const tables = [...plan.tables, ...(plan.unlogged ?? [])].filter(({ columns }) =>
      columns.some(({ added }) => added),
    );
    if (tables.length === 0) return;
    const rows = await readColumns(
      scope.source,
      [...plan.roots, ...tables].map(({ source }) => source),
    );
    const byColumn = new Map(rows.map((row) => [columnKey(relationKey(row), row.column), row]));
    const statements = [...plan.statements];
    const known = new Map(statements.map(({ object, phase }, at) => [phase === 'final' ? object : '', at]));
    let changed = false;
    for (const table of tables)
      for (const { name, added } of table.columns) {
        const leaf = byColumn.get(columnKey(relationKey(table.source), name));
        if (!added || !leaf) continue;
        // what is inserted into a partitioned table gets its default, not that of the partition
        const row = byColumn.get(columnKey(rootOf(leaf), name)) ?? leaf;
        const wanted = defaultStatement(targetOf(plan, table, leaf), rootOf(leaf), row);
        const at = known.get(wanted.object) ?? statements.length;
        const before = statements[at];
        if (before ? before.sql === wanted.sql : row.expression === null) continue;
        const n = before?.n ?? 1 + Math.max(-1, ...statements.map((statement) => statement.n));
        statements[at] = { ...wanted, n };
        known.set(wanted.object, at);
        changed = true;
        scope.log.info({ sql: wanted.sql }, `the source has changed the ${wanted.object}`);
      }
    if (changed) saveSchemaPlan(scope, { ...plan, statements });
  });
}

function columnKey(relation: string, column: string): string {
  return JSON.stringify([relation, column]);
}
