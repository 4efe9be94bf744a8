// Binary or text, per table, decided before the copy from both catalogs.
import { MigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import { isLeftOut, type PlannedTable } from '../model/schema-plan.ts';
import { chooseFormat, describeColumn, readTypes, type CopyFormat } from '../postgres/binary-form.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

/**
 * The format of every table, by `relationKey` of the source. Called while the tables are locked against DDL: a type
 * changed after the choice would travel as bytes of the old one, a column added since the plan would be left behind.
 * Errors: `source_ddl` when a table has not the columns of the plan.
 */
export async function chooseFormats(
  scope: TaskScope,
  tables: readonly PlannedTable[],
): Promise<Map<string, CopyFormat>> {
  const sources = tables.map((table) => table.source);
  const targets = tables.map((table) => table.target);
  const [source, target] = await Promise.all([
    readTypes(scope.source, sources),
    readTypes(scope.target, targets),
  ]);
  const formats = new Map<string, CopyFormat>();
  for (const table of tables) {
    const relation = relationKey(table.source);
    const planned = table.columns.map((column) => describeColumn(column.name, column));
    const found = (source.described.get(relation) ?? [])
      .filter(([name]) => !isLeftOut(table, name))
      .map(([, column]) => column);
    if (planned.length !== found.length || planned.some((column, at) => column !== found[at]))
      throw new MigrationError('source_ddl', `source: the columns of ${relation} are not those of the plan`, {
        hint:
          scope.spec.options.onDdl === 'pause'
            ? 'undo the change and resume (rows that were written under it may still stop the stream), or cancel this migration and start a new one'
            : 'resume: what on_ddl follows is carried then; if it pauses here again, undo the change first',
        details: { role: 'source', relation, planned, found },
      });
    formats.set(relation, chooseFormat(table, source, target));
  }
  return formats;
}
