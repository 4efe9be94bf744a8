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
//   5 type widened (widen-columns.ts)          widened on the target                 pause
//   6 anything else                            pause                                 pause
//
// In case 2 the target's default is the source's attmissingval (what `default now()` was when the column was added), so
// that rows from before, whether copied, streamed or to be streamed, have it; what is inserted later brings its value.
import { cutoverNotes, type WriteStop } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import {
  isLeftOut,
  type PlannedColumn,
  type PlannedStatement,
  type PlannedTable,
  type SchemaPlan,
} from '../model/schema-plan.ts';
import { describeColumn } from '../postgres/binary-form.ts';
import { findLiveCopy } from '../postgres/copy-state.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import { inTurn, saveSchemaPlan, schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { PATIENT } from '../postgres/transaction-options.ts';
import { readEnums } from './catalog-watch.ts';
import { defaultStatement, setDefault, targetOf } from './added-defaults.ts';
import { readColumns, rootOf, type ColumnRow } from './column-facts.ts';
import { widenColumn, wideningFinding, widens, type Widening } from './widen-columns.ts';

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
  const columns = await readColumns(
    scope.source,
    fresh.map(({ source }) => source),
  );
  const found = Object.fromEntries(columns.map((row) => [relationKey(row), row.filenode]));
  scope.checkpoints.set(FILENODES, { ...found, ...noted });
}

/** Carries out what may be carried out, and changes the plan. Errors: `lock_timeout` and lost connections. */
export async function followDdl(scope: TaskScope): Promise<FollowedDdl> {
  const { onDdl } = scope.spec.options;
  if (onDdl !== 'ignore' && onDdl !== 'apply-additive') return nothing;
  const writeStop = scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop);
  if (writeStop?.liftedAt === null) return nothing; // what is being compared, or is open already, stays as it is
  return inTurn(scope, () => follow(scope, onDdl));
}

async function follow(scope: TaskScope, onDdl: 'ignore' | 'apply-additive'): Promise<FollowedDdl> {
  const plan = schemaPlanOf(scope);
  // of a table that is being copied, rows under both structures would come together: its copy begins again
  const live = findLiveCopy(scope);
  const isCopied = new Set(live?.state === 'copying' ? live.relations : []);
  const tables = tablesOf(plan).filter(({ source }) => !isCopied.has(relationKey(source)));
  const columns = await readColumns(
    scope.source,
    tables.map(({ source }) => source),
  );
  const byTable = grouped(columns, (row) => relationKey(row));
  const added = tables.flatMap((table) =>
    (byTable.get(relationKey(table.source)) ?? [])
      .filter(({ column }) => !isLeftOut(table, column) && table.columns.every(({ name }) => name !== column))
      .map((row) => ({ table, row })),
  );
  const changed: ChangedColumn[] = [];
  for (const table of tables) {
    const found = byTable.get(relationKey(table.source));
    if (!found) continue; // a table that is gone is the publication's to report
    const byName = new Map(found.map((row) => [row.column, row]));
    for (const column of table.columns) {
      const row = byName.get(column.name);
      if (row && describeColumn(row.column, row) === describeColumn(column.name, column)) continue;
      if (!row) return refusal(`${relationKey(table.source)} has lost the column ${column.name}`);
      const what = `column ${column.name} of ${relationKey(table.source)} has another type`;
      if (onDdl === 'ignore') return refusal(what);
      if (row.generated || column.generated || !widens(column.type, row.type))
        return refusal(`${what}, which is not known to have all values of ${column.type}`);
      changed.push({ table, row, from: column.type });
    }
  }
  return onDdl === 'ignore' ? ignoreColumns(scope, plan, added) : applyAdditive(scope, plan, added, changed);
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

interface ChangedColumn extends AddedColumn {
  /** As the plan has it. */
  readonly from: string;
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
  changed: readonly ChangedColumn[],
): Promise<FollowedDdl> {
  const noted = scope.checkpoints.get<Readonly<Record<string, number>>>(FILENODES) ?? {};
  const additions: Addition[] = [];
  for (const group of byRootColumn(added)) {
    const [{ row, table }] = group;
    const what = `column ${row.column} of ${rootOf(row)}`;
    const reason = group.map((each) => whyNotAdditive(each, noted)).find((each) => each !== null);
    if (reason) return refusal(`${what} ${reason}`);
    if (group.some((each) => factsOf(each.row) !== factsOf(row)))
      return refusal(`${what} is not the same in all partitions`);
    additions.push({
      target: targetOf(plan, table, row),
      source: rootOf(row),
      row,
      tables: group.map((each) => each.table),
    });
  }
  const widenings = byRootColumn(changed).map((group): Widening => {
    const [{ row, table, from }] = group;
    const rewritten = group.some((each) => noted[relationKey(each.row)] !== each.row.filenode);
    return {
      target: targetOf(plan, table, row),
      row,
      from,
      tables: group.map((each) => each.table),
      rewritten,
    };
  });
  const enums = await addEnumValues(scope, plan);
  if (enums.refused !== null) return enums;
  for (const addition of additions) {
    const refused = await addColumn(scope, addition);
    if (refused !== null) return refusal(refused);
  }
  for (const widening of widenings) {
    const refused = await widenColumn(scope, widening);
    if (refused !== null) return refusal(refused);
  }
  const findings = [...enums.findings, ...additions.map(additionFinding), ...widenings.map(wideningFinding)];
  if (findings.length === 0) return nothing;
  const { rows } = await scope.source.query<{ lsn: string }>(
    'select pg_current_wal_insert_lsn()::text as lsn',
  );
  const until = rows[0]?.lsn;
  if (until === undefined) throw new MigrationError('internal', 'source: it does not tell its position');
  savePlan(scope, plan, {
    changed: (table) => {
      const mine = widenings.filter(({ tables }) => tables.includes(table));
      const columns = table.columns.map((column) => {
        const widening = mine.find(({ row }) => row.column === column.name);
        return widening ? { ...column, type: widening.row.type, widenedUntil: until } : column;
      });
      const more = additions
        .filter(({ tables }) => tables.includes(table))
        .map(({ row }) => addedColumn(row));
      return { ...table, columns: [...columns, ...more] };
    },
    findings,
    statements: additions
      .filter(({ row }) => row.expression !== null || row.missing !== null)
      .map(({ target, source, row }) => defaultStatement(target, source, row)),
  });
  scope.checkpoints.delete(INTENT);
  return { findings, refused: null };
}

/** The same column of all partitions of a table. */
function byRootColumn<T extends AddedColumn>(columns: readonly T[]): [T, ...T[]][] {
  const groups = grouped(columns, ({ row }) => JSON.stringify([rootOf(row), row.column]));
  return [...groups.values()].flatMap(([first, ...rest]): [T, ...T[]][] => (first ? [[first, ...rest]] : []));
}

function factsOf(row: ColumnRow): string {
  return JSON.stringify([row.type, row.missing, row.expression, row.not_null, row.collation_name]);
}

function addedColumn(row: ColumnRow): PlannedColumn {
  return {
    name: row.column,
    type: row.type,
    generated: false,
    identityAlways: false,
    notNull: row.not_null,
    added: true,
  };
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
    }, PATIENT); // a domain with a check rewrites the table
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
