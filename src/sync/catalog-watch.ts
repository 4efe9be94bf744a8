// DDL that the stream does not show: what a Relation message cannot tell, or has not told yet because nobody has written to
// the table since. The source's catalog is compared with the plan and with the target: by the sampler now and then, once the
// stream has caught up, and by the runtime under the fence, when nobody can write any more.
//
//   1 a column added, dropped, renamed, retyped     the source's columns are not the plan's
//   2 a value added to an enum                      the target's type lacks it: rows with it could not be applied
//   3 a partition created or attached               it is not in the publication: its rows would never arrive
//   4 a partition detached or dropped               its rows are no longer the table's, and the stream says nothing
import { MigrationError } from '../model/errors.ts';
import { exactName, relationKey, type RelationName } from '../model/relation.ts';
import { isLeftOut } from '../model/schema-plan.ts';
import { describeColumn, readTypes } from '../postgres/binary-form.ts';
import type { Side } from '../postgres/connections.ts';
import { isCopiedBeside, unfinishedTables } from '../postgres/copy-state.ts';
import { undoDdl } from '../postgres/publication.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';

/** In the details of `source_ddl`: partitions that the plan does not have, as `tables` of a request names them. */
const NEW_PARTITIONS = 'partitions';

export function newPartitionsOf({ details }: MigrationError): readonly string[] {
  const found = details?.[NEW_PARTITIONS];
  return Array.isArray(found) ? found.filter((name): name is string => typeof name === 'string') : [];
}

/** Throws `source_ddl` with what changed and what to do. Tables that are being copied are their copy's to look at. */
export async function checkCatalog(scope: TaskScope): Promise<void> {
  const unfinished = new Set(unfinishedTables(scope));
  await Promise.all([
    checkColumns(scope, (table) => !unfinished.has(table)),
    checkEnums(scope),
    // those that are missing may just be added
    isCopiedBeside(scope) ? undefined : checkPartitions(scope),
  ]);
}

function sourceDdl(object: string, change: string, hint: string): MigrationError {
  return new MigrationError('source_ddl', `source: ${object}: ${change}`, {
    hint,
    details: { object, change },
  });
}

/** Throws `source_ddl` when a table of the plan has other columns now. */
export async function checkColumns(scope: TaskScope, concerns: (table: string) => boolean): Promise<void> {
  const plan = schemaPlanOf(scope);
  const tables = [...plan.tables, ...(plan.unlogged ?? [])].filter(({ source }) =>
    concerns(relationKey(source)),
  );
  const { described } = await readTypes(
    scope.source,
    tables.map((table) => table.source),
  );
  for (const table of tables) {
    const key = relationKey(table.source);
    // A table that is gone is the publication's to report.
    const found = described
      .get(key)
      ?.filter(([name]) => !isLeftOut(table, name))
      .map(([, column]) => column);
    const planned = table.columns.map((column) => describeColumn(column.name, column));
    if (!found || (found.length === planned.length && found.every((column) => planned.includes(column))))
      continue;
    const added = found.filter((column) => !planned.includes(column));
    const missing = planned.filter((column) => !found.includes(column));
    const change = [
      ...added.map((column) => `column ${column} was not planned`),
      ...missing.map((column) => `column ${column} is gone`),
    ].join(', ');
    throw sourceDdl(key, change, undoDdl);
  }
}

interface EnumType {
  readonly schema: string;
  readonly name: string;
  readonly labels: readonly string[];
}

/** Enums of the relations' columns, also within arrays and domains. */
export async function readEnums(
  side: Side,
  relations: readonly RelationName[],
): Promise<readonly EnumType[]> {
  const { rows } = await side.query<EnumType>(
    `with recursive used(type) as (
       select a.atttypid from unnest($1::text[], $2::text[]) as w(schema, name)
         join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
       union
       select inner_type from used join pg_type t on t.oid = used.type,
         lateral (values (t.typelem), (t.typbasetype)) as i(inner_type) where inner_type <> 0)
     select n.nspname::text as schema, t.typname::text as name,
       array(select enumlabel::text from pg_enum where enumtypid = t.oid order by enumsortorder) as labels
     from used join pg_type t on t.oid = used.type join pg_namespace n on n.oid = t.typnamespace
     where t.typtype = 'e'`,
    [relations.map(({ schema }) => schema), relations.map(({ name }) => name)],
  );
  return rows;
}

async function checkEnums(scope: TaskScope): Promise<void> {
  const { tables } = schemaPlanOf(scope);
  const source = await readEnums(
    scope.source,
    tables.map((table) => table.source),
  );
  if (source.length === 0) return;
  const target = await readEnums(
    scope.target,
    tables.map((table) => table.target),
  );
  const known = new Map(target.map((type) => [relationKey(type), new Set(type.labels)]));
  for (const type of source) {
    const labels = known.get(relationKey(type));
    const missing = type.labels.filter((label) => labels && !labels.has(label));
    const [first] = missing;
    if (first === undefined) continue;
    const before = type.labels[type.labels.indexOf(first) - 1];
    const place = before === undefined ? '' : ` after ${literal(before)}`;
    throw sourceDdl(
      `type ${relationKey(type)}`,
      `it has the new value ${missing.join(', ')}`,
      `on the target: alter type ${ident(type.schema)}.${ident(type.name)} add value ${literal(first)}${place}; then resume`,
    );
  }
}

async function checkPartitions(scope: TaskScope): Promise<void> {
  const { tables, roots, addition } = schemaPlanOf(scope);
  if (roots.length === 0) return;
  const { rows } = await scope.source.query<RelationName & { root_schema: string; root_name: string }>(
    `select distinct on (c.oid) n.nspname::text as schema, c.relname::text as name, w.schema as root_schema, w.name as root_name
     from unnest($1::text[], $2::text[]) as w(schema, name)
       join pg_namespace m on m.nspname = w.schema join pg_class r on r.relnamespace = m.oid and r.relname = w.name
       cross join lateral pg_partition_tree(r.oid) p join pg_class c on c.oid = p.relid
       join pg_namespace n on n.oid = c.relnamespace
     where p.isleaf and c.relkind <> 'p'`,
    [roots.map(({ source }) => source.schema), roots.map(({ source }) => source.name)],
  );
  const found = rows.map((row) => ({
    key: relationKey(row),
    name: row,
    root: relationKey({ schema: row.root_schema, name: row.root_name }),
  }));
  const planned = new Set(tables.map((table) => relationKey(table.source)));
  const surplus = found.filter(({ key }) => !planned.has(key));
  const known = scope.checkpoints.get<PartitionsNote>(PARTITIONS);
  const pass = addition?.pass ?? 0;
  let note = known;
  if (!known || known.addition < pass) {
    // Of roots that are looked at for the first time, all is as it should be.
    const added = new Set(addition?.relations);
    const isFirst = ({ root, key }: { readonly root: string; readonly key: string }): boolean =>
      !known || added.has(root) || added.has(key);
    const leftOut = scope.spec.options.exclude.length === 0 ? [] : surplus.filter(isFirst);
    note = {
      leftOut: [...(known?.leftOut ?? []), ...leftOut.map(({ key }) => key)],
      planned: [
        ...(known?.planned ?? []),
        ...found.filter((each) => planned.has(each.key) && isFirst(each)).map(({ key }) => key),
      ],
      addition: pass,
    };
  }
  const unexpected = surplus.filter(({ key }) => note?.leftOut.includes(key) !== true);
  const [first] = unexpected;
  if (first)
    throw new MigrationError('source_ddl', `source: ${first.key}: it became a partition of ${first.root}`, {
      hint: `its rows are not streamed: let it be added (on_ddl: apply-additive) and resume, or move them and detach it (alter table ${first.root} detach partition ${identRelation(first.name)}) and resume`,
      details: {
        object: first.key,
        change: `it became a partition of ${first.root}`,
        [NEW_PARTITIONS]: unexpected.map(({ name }) => exactName(name)),
      },
    });
  const present = new Set(found.map(({ key }) => key));
  const gone = note?.planned.find((key) => !present.has(key));
  if (gone !== undefined) throw sourceDdl(gone, 'it was detached from its table, or dropped', undoDdl);
  if (note !== known) scope.checkpoints.set(PARTITIONS, note);
}

/** Checkpoint: the partitions of the task's tables when these were first looked at. */
const PARTITIONS = 'partitions';
interface PartitionsNote {
  /** Those that the task leaves out on purpose (`exclude`). */
  readonly leftOut: readonly string[];
  readonly planned: readonly string[];
  /** Number of the last addition whose tables were looked at. */
  readonly addition: number;
}
