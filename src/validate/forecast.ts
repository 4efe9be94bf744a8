// How much the comparison under the fence would have to read now, and how much is copied there before it; for a cutover's
// dry run.
import type { ComparisonForecast } from '../model/forecast.ts';
import { relationKey } from '../model/relation.ts';
import { readSizes } from '../postgres/catalog.ts';
import { identRelation } from '../postgres/sql.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { verifiedTables } from './delta.ts';
import { tableNote } from './notes.ts';

/** Errors: those of the servers. */
export async function forecastComparison(scope: TaskScope): Promise<ComparisonForecast> {
  const verified = await verifiedTables(scope);
  const { rows } = await scope.target.query<{ relation: string; keys: string; whole: boolean }>(
    `select relation, coalesce(sum(json_array_length(keys::json)), 0)::text as keys, bool_or(keys is null) as whole
     from dts.changed where task_id = $1 group by 1`,
    [scope.taskId],
  );
  const changed = new Map(rows.map((row) => [row.relation, row]));
  const forecast = { keys: 0, wholeTables: 0, wholeRows: 0 };
  const differing: string[] = [];
  for (const table of schemaPlanOf(scope).tables) {
    const name = relationKey(table.source);
    const { state, differences } = tableNote(scope.checkpoints, name);
    if (state === 'differs' || differences.length > 0) differing.push(name);
    const row = changed.get(name);
    if (verified.has(name) && row?.whole !== true) forecast.keys += Number(row?.keys ?? 0);
    else {
      forecast.wholeTables++;
      forecast.wholeRows += Math.max(0, Math.round(table.rowsEstimated));
    }
  }
  const [unlogged, largeObjects] = await Promise.all([unloggedNow(scope), largeObjectsNow(scope)]);
  return { ...forecast, unlogged, largeObjects, differing };
}

/** What was planned says little of them: they are often emptied and filled. */
async function unloggedNow(scope: TaskScope): Promise<ComparisonForecast['unlogged']> {
  const { unlogged: tables = [] } = schemaPlanOf(scope);
  const total = { tables: tables.length, rows: 0, bytes: 0 };
  if (tables.length === 0) return total;
  const { rows: oids } = await scope.source.query<{ oid: number | null }>(
    'select to_regclass(w.name)::oid as oid from unnest($1::text[]) with ordinality as w(name, n) order by w.n',
    [tables.map(({ source }) => identRelation(source))],
  );
  const sizes = await readSizes(
    scope.source,
    oids.flatMap(({ oid }) => (oid === null ? [] : [oid])),
  );
  for (const [at, table] of tables.entries()) {
    const size = sizes.get(oids[at]?.oid ?? 0);
    total.rows += size?.rows ?? Math.max(0, Math.round(table.rowsEstimated));
    total.bytes += size?.bytes ?? table.bytesEstimated;
  }
  return total;
}

/** All of the source's; their rows may be read by superusers only, but anybody may ask for the size. */
async function largeObjectsNow(scope: TaskScope): Promise<ComparisonForecast['largeObjects']> {
  const none = { objects: 0, bytes: 0 };
  if (schemaPlanOf(scope).largeObjects !== true) return none;
  const { rows } = await scope.source.query<{ objects: number; bytes: number }>(
    `select count(*)::float8 as objects, pg_table_size('pg_catalog.pg_largeobject')::float8 as bytes
     from pg_largeobject_metadata`,
  );
  const [found = none] = rows;
  return found.objects === 0 ? none : found; // what they have left behind is not read
}
