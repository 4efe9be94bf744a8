// What becomes of DDL on the source when `options.on_ddl` is not `pause`. Called by stream.ts when it begins, and when the
// catalog or a message has shown a change; the stream is disconnected then, and begins anew where the target stands.
//
//   change                                     apply-additive                        ignore
//   1 column added, nullable, no default       added on the target                   not carried from now on
//   2 column added with a constant default     added, with the value that old rows   not carried from now on
//                                              got; its real default, or none, comes at the end
//   3 column added, and the table rewritten    pause: each old row has its own       not carried from now on
//     (volatile default), generated, identity  value, and the stream has none of it
//   4 value added to an enum                   added, in its place                   pause
//   5 anything else                            pause                                 pause
//
// In case 2 the target's default is the source's attmissingval (what `default now()` was when the column was added), so
// that rows from before, whether copied, streamed or to be streamed, have it; what is inserted later brings its value.
import { cutoverNotes, type WriteStop } from '../model/cutover-notes.ts';
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import {
  isLeftOut,
  type PlannedStatement,
  type PlannedTable,
  type SchemaPlan,
} from '../model/schema-plan.ts';
import { describeColumn } from '../postgres/binary-form.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import { saveSchemaPlan, schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { readEnums } from './catalog-watch.ts';

const FILENODES = 'filenodes';
/** Columns that were about to be added on the target: one that is there after a kill is ours. */
const INTENT = 'ddlIntent';
const LOCK_TIMEOUT = '10s';

export interface FollowedDdl {
  /** Empty: there was nothing to do. */
  readonly findings: readonly Finding[];
  /** Why the task has to pause all the same, in words. */
  readonly refused: string | null;
}

const nothing: FollowedDdl = { findings: [], refused: null };

/** What tells later whether a table was rewritten; before the slot is made, and for tables that were added since. */
export async function noteFilenodes(scope: TaskScope): Promise<void> {
  const tables = tablesOf(schemaPlanOf(scope));
  const noted = scope.checkpoints.get<Readonly<Record<string, number>>>(FILENODES) ?? {};
  const fresh = tables.filter((table) => noted[relationKey(table.source)] === undefined);
  if (fresh.length === 0) return;
  const columns = await readColumns(scope, fresh);
  const found = Object.fromEntries(columns.map((row) => [relationKey(row), row.filenode]));
  scope.checkpoints.set(FILENODES, { ...found, ...noted });
}

/** Carries out what may be carried out, and changes the plan. Errors: `lock_timeout` and lost connections. */
export async function followDdl(scope: TaskScope): Promise<FollowedDdl> {
  const { onDdl } = scope.spec.options;
  if (onDdl !== 'ignore' && onDdl !== 'apply-additive') return nothing;
  const writeStop = scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop);
  if (writeStop?.liftedAt === null) return nothing; // what is being compared, or is open already, stays as it is
  const plan = schemaPlanOf(scope);
  const tables = tablesOf(plan);
  const columns = await readColumns(scope, tables);
  const byTable = grouped(columns, (row) => relationKey(row));
  const added = tables.flatMap((table) =>
    (byTable.get(relationKey(table.source)) ?? [])
      .filter(({ column }) => !isLeftOut(table, column) && table.columns.every(({ name }) => name !== column))
      .map((row) => ({ table, row })),
  );
  const missing = tables.find((table) => {
    const found = new Set(
      byTable.get(relationKey(table.source))?.map((row) => describeColumn(row.column, row)),
    );
    return found.size > 0 && table.columns.some((column) => !found.has(describeColumn(column.name, column)));
  });
  if (missing) return refusal(`${relationKey(missing.source)} has lost a column, or one has another type`);
  return onDdl === 'ignore' ? ignoreColumns(scope, plan, added) : applyAdditive(scope, plan, added);
}

function grouped<K, T>(list: readonly T[], keyOf: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>();
  for (const item of list) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return groups;
}

function refusal(refused: string): FollowedDdl {
  return { findings: [], refused };
}

function tablesOf(plan: SchemaPlan): readonly PlannedTable[] {
  return [...plan.tables, ...(plan.unlogged ?? [])];
}

interface AddedColumn {
  readonly table: PlannedTable;
  readonly row: ColumnRow;
}

interface ColumnRow extends RelationName {
  readonly filenode: number;
  readonly root_schema: string;
  readonly root_name: string;
  readonly column: string;
  readonly type: string;
  readonly generated: boolean;
  readonly identity: boolean;
  readonly not_null: boolean;
  readonly has_missing: boolean;
  /** What rows from before the column have. */
  readonly missing: string | null;
  readonly expression: string | null;
  readonly collation_schema: string | null;
  readonly collation_name: string | null;
}

async function readColumns(scope: TaskScope, tables: readonly PlannedTable[]): Promise<ColumnRow[]> {
  const { rows } = await scope.source.query<ColumnRow>(
    // attmissingval is an array of one element, whatever its type
    `select n.nspname::text as schema, c.relname::text as name, pg_relation_filenode(c.oid)::int8::float8 as filenode,
       rn.nspname::text as root_schema, r.relname::text as root_name, a.attname::text as column,
       format_type(a.atttypid, a.atttypmod) as type, a.attgenerated <> '' as generated, a.attidentity <> '' as identity,
       a.attnotnull as not_null, a.atthasmissing as has_missing, (a.attmissingval::text::text[])[1] as missing,
       pg_get_expr(d.adbin, d.adrelid) as expression,
       ln.nspname::text as collation_schema, l.collname::text as collation_name
     from unnest($1::text[], $2::text[]) as w(schema, name)
       join pg_namespace n on n.nspname = w.schema
       join pg_class c on c.relnamespace = n.oid and c.relname = w.name
       join pg_class r on r.oid = coalesce(pg_partition_root(c.oid), c.oid) join pg_namespace rn on rn.oid = r.relnamespace
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
       join pg_type t on t.oid = a.atttypid
       left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
       left join pg_collation l on l.oid = a.attcollation and a.attcollation <> t.typcollation
       left join pg_namespace ln on ln.oid = l.collnamespace
     order by a.attnum`,
    [tables.map(({ source }) => source.schema), tables.map(({ source }) => source.name)],
  );
  return rows;
}

function ignoreColumns(scope: TaskScope, plan: SchemaPlan, added: readonly AddedColumn[]): FollowedDdl {
  if (added.length === 0) return nothing;
  const byTable = grouped(added, ({ table }) => table);
  const changed = (table: PlannedTable): PlannedTable => {
    const names = byTable.get(table)?.map(({ row }) => row.column);
    return names ? { ...table, ignored: [...(table.ignored ?? []), ...names] } : table;
  };
  const findings = [...byTable].map(([table, columns]): Finding => {
    const names = columns.map(({ row }) => row.column).join(', ');
    return {
      code: 'column_ignored',
      severity: 'warning',
      object: relationKey(table.source),
      message: `source: ${relationKey(table.source)} got the column ${names} during the migration: it is not carried (on_ddl: ignore)`,
      remedy: null,
    };
  });
  savePlan(scope, plan, { changed, findings, statements: [] });
  return { findings, refused: null };
}

function savePlan(
  scope: TaskScope,
  plan: SchemaPlan,
  change: {
    readonly changed: (table: PlannedTable) => PlannedTable;
    readonly findings: readonly Finding[];
    readonly statements: readonly Omit<PlannedStatement, 'n'>[];
  },
): void {
  const first = 1 + Math.max(-1, ...plan.statements.map(({ n }) => n));
  saveSchemaPlan(scope, {
    ...plan,
    tables: plan.tables.map(change.changed),
    ...(plan.unlogged === undefined ? {} : { unlogged: plan.unlogged.map(change.changed) }),
    statements: [
      ...plan.statements,
      ...change.statements.map((statement, at) => ({ ...statement, n: first + at })),
    ],
    findings: [...plan.findings, ...change.findings],
  });
  for (const { message } of change.findings) scope.log.warn({}, message);
}

/** A column of one table, or of a partitioned table with all its partitions, as the target is to get it. */
interface Addition {
  readonly target: RelationName;
  /** `relationKey` of the source's table or root. */
  readonly source: string;
  readonly row: ColumnRow;
  readonly tables: readonly PlannedTable[];
}

async function applyAdditive(
  scope: TaskScope,
  plan: SchemaPlan,
  added: readonly AddedColumn[],
): Promise<FollowedDdl> {
  const noted = scope.checkpoints.get<Readonly<Record<string, number>>>(FILENODES) ?? {};
  const rootOf = (row: ColumnRow): string => relationKey({ schema: row.root_schema, name: row.root_name });
  const additions: Addition[] = [];
  for (const [, group] of grouped(added, ({ row }) => JSON.stringify([rootOf(row), row.column]))) {
    const [first] = group;
    if (!first) continue;
    const { row, table } = first;
    const what = `column ${row.column} of ${rootOf(row)}`;
    const reason = group.map((each) => whyNotAdditive(each, noted)).find((each) => each !== null);
    if (reason) return refusal(`${what} ${reason}`);
    const facts = (each: ColumnRow): string =>
      JSON.stringify([each.type, each.missing, each.expression, each.not_null, each.collation_name]);
    if (group.some((each) => facts(each.row) !== facts(row)))
      return refusal(`${what} is not the same in all partitions`);
    const root = plan.roots.find(({ source }) => relationKey(source) === rootOf(row));
    const target = root?.target ?? table.target;
    additions.push({ target, source: rootOf(row), row, tables: group.map((each) => each.table) });
  }
  const enums = await addEnumValues(scope, plan);
  if (enums.refused !== null) return enums;
  for (const addition of additions) {
    const refused = await addColumn(scope, addition);
    if (refused !== null) return refusal(refused);
  }
  if (additions.length === 0) {
    if (enums.findings.length > 0)
      savePlan(scope, plan, { changed: (table) => table, findings: enums.findings, statements: [] });
    return enums;
  }
  const findings = [...enums.findings, ...additions.map(additionFinding)];
  const changed = (table: PlannedTable): PlannedTable => {
    const rows = additions.filter(({ tables }) => tables.includes(table)).map(({ row }) => row);
    const columns = rows.map((row) => ({
      name: row.column,
      type: row.type,
      generated: false,
      identityAlways: false,
      notNull: row.not_null,
      added: true as const,
    }));
    return rows.length === 0 ? table : { ...table, columns: [...table.columns, ...columns] };
  };
  const statements = additions.flatMap(({ target, source, row }): Omit<PlannedStatement, 'n'>[] =>
    row.expression === null && row.missing === null
      ? []
      : [
          {
            phase: 'final',
            sql: setDefault(target, row),
            object: `DEFAULT ${row.column} on ${relationKey(target)}`,
            table: source,
            creates: null,
          },
        ],
  );
  savePlan(scope, plan, { changed, findings, statements });
  scope.checkpoints.delete(INTENT);
  return { findings, refused: null };
}

function additionFinding({ target, row }: Addition): Finding {
  return {
    code: 'column_added',
    severity: 'info',
    object: relationKey(target),
    message: `target: column ${row.column} ${row.type} was added to ${relationKey(target)}, as on the source (on_ddl: apply-additive); indexes and constraints that the source got are not made`,
    remedy: null,
  };
}

function whyNotAdditive({ row }: AddedColumn, filenodes: Readonly<Record<string, number>>): string | null {
  if (row.generated) return 'is generated';
  if (row.identity) return 'is an identity';
  if (row.has_missing && row.missing !== null) return null;
  if (row.expression !== null)
    return 'has a default that is not one value for all rows from before (a volatile one, or it was set later)';
  if (row.not_null) return 'allows no null and has no default';
  // The default may have been dropped again after it had filled the rows.
  if (filenodes[relationKey(row)] !== row.filenode)
    return 'came to a table that was rewritten or truncated since the migration began: what its rows have cannot be told';
  return null;
}

function setDefault(target: RelationName, row: ColumnRow): string {
  return `alter table ${identRelation(target)} alter column ${ident(row.column)} set default ${row.expression ?? 'null'}`;
}

/** Null when the target has the column, else why it cannot get it. */
async function addColumn(scope: TaskScope, { target, row }: Addition): Promise<string | null> {
  const name = JSON.stringify([relationKey(target), row.column]);
  const intended = scope.checkpoints.get<readonly string[]>(INTENT) ?? [];
  const { rowCount } = await scope.target.query(
    `select from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = $1 and c.relname = $2 and a.attname = $3 and not a.attisdropped`,
    [target.schema, target.name, row.column],
  );
  if (rowCount !== 0 && !intended.includes(name))
    return `the target's ${relationKey(target)} has a column ${row.column} of its own`;
  scope.checkpoints.set(INTENT, [...intended, name]);
  const collation =
    row.collation_schema === null || row.collation_name === null
      ? ''
      : ` collate ${identRelation({ schema: row.collation_schema, name: row.collation_name })}`;
  const filled = row.missing === null ? '' : ` default ${literal(row.missing)}::${row.type}`;
  const notNull = row.not_null ? ' not null' : '';
  try {
    await scope.target.transaction(async (client) => {
      await client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
      await client.query(
        `alter table ${identRelation(target)} add column if not exists ${ident(row.column)} ${row.type}${collation}${filled}${notNull}`,
      );
      if (row.expression === null) return;
      // it comes when the target opens: what would fail then fails now
      await client.query(`savepoint trial; ${setDefault(target, row)}; rollback to trial`);
    });
    scope.failpoint('ddl.column-added');
    return null;
  } catch (error) {
    scope.signal.throwIfAborted();
    const failure = fromPostgres(error, { role: 'target' });
    if (failure.kind === 'transient') throw failure;
    return `column ${row.column} cannot be added: ${failure.message}`;
  }
}

/** A label that only the target has may be one that the source has renamed: then nothing is certain. */
async function addEnumValues(scope: TaskScope, plan: SchemaPlan): Promise<FollowedDdl> {
  const tables = tablesOf(plan);
  const source = await readEnums(
    scope.source,
    tables.map((table) => table.source),
  );
  const target = await readEnums(
    scope.target,
    tables.map((table) => table.target),
  );
  const known = new Map(target.map((type) => [relationKey(type), type.labels]));
  const findings: Finding[] = [];
  for (const type of source) {
    const labels = known.get(relationKey(type));
    if (!labels) continue;
    const missing = type.labels.filter((label) => !labels.includes(label));
    if (missing.length === 0) continue;
    if (labels.some((label) => !type.labels.includes(label)))
      return refusal(`type ${relationKey(type)} has a value on the target alone: one may have been renamed`);
    for (const label of missing) {
      const at = type.labels.indexOf(label);
      const before = type.labels[at - 1];
      const first = labels[0];
      const place =
        before !== undefined
          ? ` after ${literal(before)}`
          : first === undefined
            ? ''
            : ` before ${literal(first)}`;
      try {
        await scope.target.query(
          `alter type ${identRelation(type)} add value if not exists ${literal(label)}${place}`,
        );
      } catch (error) {
        const failure = fromPostgres(error, { role: 'target' });
        if (failure.kind === 'transient') throw failure;
        return refusal(`type ${relationKey(type)} cannot get the value ${label}: ${failure.message}`);
      }
    }
    findings.push({
      code: 'enum_value_added',
      severity: 'info',
      object: relationKey(type),
      message: `target: type ${relationKey(type)} got the value ${missing.join(', ')}, as on the source (on_ddl: apply-additive)`,
      remedy: null,
    });
  }
  return { findings, refused: null };
}
