// Check of run.ts: `options.table`. A row filter is one boolean expression over columns that identify the row, which the
// source's publication takes: PostgreSQL itself turns an update that moves a row across the border into an insert or a
// delete, from 15 on. So that both the publication and the copy mean the same, nothing is taken that could see more than
// the row: no sub-select, no volatile function. The last word has the source, by making the publication and rolling back.
import type { Finding } from '../model/finding.ts';
import { relationKey } from '../model/relation.ts';
import type { CatalogTable, TableSelection } from '../postgres/catalog.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { publishedTable } from '../postgres/publication.ts';
import { becomesFull } from '../postgres/replica-identity.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { optionField } from '../postgres/table-options.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

/** Row filters and column lists of publications. */
const PUBLICATION_FILTERS_SINCE = 15;
const CHECK_LOCK_TIMEOUT_MS = 2_000;

/** Nodes of the parse tree that can stand in a filter; functions and operators are judged by the source. */
const allowedNodes: ReadonlySet<string> = new Set(
  `A_Const A_Expr BoolExpr NullTest BooleanTest ColumnRef FuncCall TypeCast TypeName List String Integer CoalesceExpr
   MinMaxExpr CaseExpr CaseWhen CollateClause A_ArrayExpr RowExpr`.split(/\s+/),
);

const reasons: Readonly<Record<string, string>> = {
  SubLink: 'has a sub-select',
  ParamRef: 'has a parameter',
  SQLValueFunction: 'depends on the session or the time',
};

type ReadFilter =
  | { readonly columns: readonly string[]; readonly fault?: undefined }
  | { readonly fault: string };

/** Columns that the expression reads, or in words why it is no filter. */
async function readRowFilter(where: string): Promise<ReadFilter> {
  const bare = await whereOf(`select from t where ${where}`);
  const wrapped = await whereOf(`select from t where (${where}) is true`);
  if ('fault' in bare) return bare;
  // what closes our parenthesis, or hides it in a comment, is not one expression
  if ('fault' in wrapped || JSON.stringify(argumentOf(wrapped.tree)) !== JSON.stringify(bare.tree))
    return { fault: 'is not one expression' };
  const columns = new Set<string>();
  const fault = walk(bare.tree, columns);
  return fault === null ? { columns: [...columns] } : { fault };
}

function argumentOf(tree: unknown): unknown {
  return (tree as { BooleanTest?: { arg?: unknown } }).BooleanTest?.arg;
}

async function whereOf(sql: string): Promise<{ readonly tree: unknown } | { readonly fault: string }> {
  const { parse } = await import('libpg-query'); // megabytes of WASM that tasks without filters do not need
  let statements: { stmt?: unknown }[];
  try {
    statements = (await parse(sql)).stmts ?? [];
  } catch (error) {
    return { fault: `is no SQL expression: ${error instanceof Error ? error.message : String(error)}` };
  }
  const select = (statements[0]?.stmt as { SelectStmt?: Record<string, unknown> } | undefined)?.SelectStmt;
  const clauses = Object.keys(select ?? {}).filter(
    (name) => !['fromClause', 'whereClause', 'limitOption', 'op'].includes(name),
  );
  if (statements.length !== 1 || !select || clauses.length > 0) return { fault: 'is not one expression' };
  return { tree: withoutPlaces(select['whereClause']) };
}

/** The parser notes where in the text each node begins. */
function withoutPlaces(tree: unknown): unknown {
  if (Array.isArray(tree)) return tree.map(withoutPlaces);
  if (typeof tree !== 'object' || tree === null) return tree;
  return Object.fromEntries(
    Object.entries(tree)
      .filter(([name]) => !/^(location|rexpr_list_(start|end)|list_(start|end))$/.test(name))
      .map(([name, inner]) => [name, withoutPlaces(inner)]),
  );
}

/** Null, or what is not allowed; collects the columns. */
function walk(tree: unknown, columns: Set<string>): string | null {
  if (Array.isArray(tree)) {
    for (const item of tree) {
      const fault = walk(item, columns);
      if (fault !== null) return fault;
    }
    return null;
  }
  if (typeof tree !== 'object' || tree === null) return null;
  for (const [name, inner] of Object.entries(tree)) {
    const isNode = /^[A-Z]/.test(name);
    if (isNode && !allowedNodes.has(name))
      return reasons[name] ?? `has something that no filter may have (${name})`;
    if (name === 'ColumnRef') {
      const fields = (inner as { fields?: { String?: { sval?: string } }[] }).fields ?? [];
      const column = fields[0]?.String?.sval;
      if (fields.length !== 1 || column === undefined)
        return 'names a column with its table, or a whole row: write the bare name of the column';
      columns.add(column);
      continue;
    }
    if (name === 'FuncCall') {
      const call = inner as Record<string, unknown>;
      if (
        ['over', 'agg_order', 'agg_filter', 'agg_distinct', 'agg_star'].some(
          (part) => call[part] !== undefined,
        )
      )
        return 'has an aggregate or a window function';
    }
    const fault = walk(inner, columns);
    if (fault !== null) return fault;
  }
  return null;
}

/** What does not need the source. */
function assessTableOptions({ optionFaults = [] }: TableSelection): Finding[] {
  return optionFaults.map(({ field, message, remedy }) => ({
    code: 'table_option_invalid',
    severity: 'blocking',
    object: field,
    message: `${field}: ${message}`,
    remedy,
  }));
}

/** Every filter and column list, parsed, then tried on the source in a transaction that is rolled back. */
export async function checkTableOptions(
  scope: TaskScope,
  selection: TableSelection,
  sourceMajor: number,
): Promise<Finding[]> {
  const findings = assessTableOptions(selection);
  const limited = selection.tables.filter(
    (table) => table.kind !== 'partitioned' && (table.where !== undefined || table.leftOut !== undefined),
  );
  if (limited.length > 0 && sourceMajor < PUBLICATION_FILTERS_SINCE)
    return [
      ...findings,
      {
        code: 'table_option_needs_15',
        severity: 'blocking',
        object: 'options.table',
        message: `source: PostgreSQL ${sourceMajor} cannot publish some of a table's rows or columns; 15 and newer can`,
        remedy: 'migrate whole tables: take options.table out, and delete or drop on the target afterwards',
      },
    ];
  const read = new Map<string, ReadFilter>();
  for (const table of limited) {
    const { where } = table;
    if (where !== undefined && !read.has(where)) read.set(where, await readRowFilter(where));
    const filter = where === undefined ? undefined : read.get(where);
    const field = fieldOf(scope, selection, table, where === undefined ? 'columns' : 'where');
    const fault = filter && filterFault(table, filter, scope);
    const faults = fault ?? (findings.length > 0 ? null : await tryPublication(scope, table));
    if (faults === null) continue;
    findings.push({
      code: 'table_option_invalid',
      severity: 'blocking',
      object: field,
      message: `${field}: ${faults.message}`,
      remedy: faults.remedy,
    });
  }
  return findings;
}

interface Fault {
  readonly message: string;
  readonly remedy: string;
}

function filterFault(table: CatalogTable, filter: ReadFilter, scope: TaskScope): Fault | null {
  const remedy =
    'write one boolean expression over columns of the table, such as: tenant = 7 and kind is not null';
  if (filter.fault !== undefined) return { message: filter.fault, remedy };
  const names = new Set([...table.columns.map(({ name }) => name), ...(table.leftOut ?? [])]);
  const unknown = filter.columns.filter((name) => !names.has(name));
  const key = relationKey(table.relation);
  if (unknown.length > 0) return { message: `${key} has no column ${unknown.join(', ')}`, remedy };
  const isWhole =
    table.persistence === 'unlogged' ||
    table.replicaIdentity === 'full' ||
    becomesFull(table, scope.spec.options);
  const untold = isWhole ? [] : filter.columns.filter((name) => !table.keyColumns.includes(name));
  if (untold.length === 0) return null;
  return {
    message: `${untold.join(', ')} does not belong to the replica identity of ${key}: PostgreSQL would refuse its updates`,
    remedy: `alter table ${identRelation(table.relation)} replica identity full; or one using a unique index with ${untold.join(', ')}`,
  };
}

/** By the name that the request has for the table or for the root of its partition. */
function fieldOf(
  scope: TaskScope,
  { tables }: TableSelection,
  table: CatalogTable,
  part: 'where' | 'columns',
): string {
  const byKey = new Map(tables.map((each) => [relationKey(each.relation), each]));
  let root = table;
  for (let parent = root.parent; parent; parent = root.parent) {
    const next = byKey.get(relationKey(parent));
    if (!next) break;
    root = next;
  }
  const key = relationKey(root.relation);
  const name = Object.keys(scope.spec.options.table).find(
    (given) => given === key || `public.${given}` === key,
  );
  return optionField(name ?? key, part);
}

/** An unlogged table is not published, only copied: an index takes no volatile function either. */
function trialOf(scope: TaskScope, table: CatalogTable): string {
  const name = ident(`dts_check_${scope.taskId}`);
  if (table.persistence === 'permanent')
    return `create publication ${name} for table ${publishedTable({ ...table, source: table.relation })}`;
  return `create temporary table ${name} (like ${identRelation(table.relation)});
    create index on pg_temp.${name} ((1)) where (${table.where ?? 'true'})`;
}

/** The source's own words, or null: also when a lock or a right is missing, of which other findings tell. */
async function tryPublication(scope: TaskScope, table: CatalogTable): Promise<Fault | null> {
  try {
    await scope.source.withClient(async (client) => {
      await client.query(`begin; set local lock_timeout = ${CHECK_LOCK_TIMEOUT_MS}`);
      await client.query(trialOf(scope, table));
      await client.query('rollback');
    });
    return null;
  } catch (error) {
    scope.signal.throwIfAborted();
    const failure = fromPostgres(error, { role: 'source' });
    if (failure.code === 'lock_timeout' || failure.code === 'insufficient_privilege') return null;
    if (failure.kind === 'transient') throw failure;
    const detail = failure.details?.['detail'];
    const message = typeof detail === 'string' ? `${failure.message}: ${detail}` : failure.message;
    return { message, remedy: 'change it so that the source can publish it' };
  }
}
