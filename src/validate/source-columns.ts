// Whether the source's tables still have the columns of the plan, for compare.ts. A column added without a later write
// to the table sends nothing down the stream, and a digest of the old columns would find both sides equal.
import { MigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import { isLeftOut } from '../model/schema-plan.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';

/** Throws `source_ddl` naming each changed table with its columns. */
export async function verifySourceColumns(scope: TaskScope): Promise<void> {
  const plan = schemaPlanOf(scope);
  const tables = [...plan.tables, ...(plan.unlogged ?? [])];
  const { rows } = await scope.source.query<{ columns: string[] | null; names: string[] | null }>(
    `select (select array_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) order by a.attnum)
             from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       (select array_agg(a.attname::text order by a.attnum)
             from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as names
     from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
       left join pg_namespace s on s.nspname = w.schema
       left join pg_class c on c.relnamespace = s.oid and c.relname = w.name
     order by w.n`,
    [tables.map(({ source }) => source.schema), tables.map(({ source }) => source.name)],
  );
  const changed: { relation: string; planned: string[]; found: string[] }[] = [];
  for (const [index, table] of tables.entries()) {
    const planned = table.columns.map((column) => `${column.name} ${column.type}`);
    const names = rows[index]?.names;
    const found = (rows[index]?.columns ?? []).filter((_, at) => !isLeftOut(table, names?.[at] ?? ''));
    const same = planned.length === found.length && planned.every((column, at) => column === found[at]);
    if (!same) changed.push({ relation: relationKey(table.source), planned, found });
  }
  if (changed.length === 0) return;
  throw new MigrationError(
    'source_ddl',
    `source: columns changed during the migration: ${changed.map(({ relation }) => relation).join(', ')}`,
    {
      hint: 'undo the change, or cancel this migration and start a new one',
      details: { changed: changed.slice(0, 20) },
    },
  );
}
