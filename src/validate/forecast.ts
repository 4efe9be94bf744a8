// How much the comparison under the fence would have to read now; for a cutover's dry run.
import type { ComparisonForecast } from '../model/forecast.ts';
import { relationKey } from '../model/relation.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { verifiedTables } from './delta.ts';

/** Errors: those of the target. */
export async function forecastComparison(scope: TaskScope): Promise<ComparisonForecast> {
  const verified = await verifiedTables(scope);
  const { rows } = await scope.target.query<{ relation: string; keys: string; whole: boolean }>(
    `select relation, coalesce(sum(json_array_length(keys::json)), 0)::text as keys, bool_or(keys is null) as whole
     from dts.changed where task_id = $1 group by 1`,
    [scope.taskId],
  );
  const changed = new Map(rows.map((row) => [row.relation, row]));
  const forecast = { keys: 0, wholeTables: 0, wholeRows: 0 };
  for (const table of schemaPlanOf(scope).tables) {
    const name = relationKey(table.source);
    const row = changed.get(name);
    if (verified.has(name) && row?.whole !== true) forecast.keys += Number(row?.keys ?? 0);
    else {
      forecast.wholeTables++;
      forecast.wholeRows += Math.max(0, Math.round(table.rowsEstimated));
    }
  }
  return forecast;
}
