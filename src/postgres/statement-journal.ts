// Runs planned schema statements on the target exactly once: the statement and its journal row commit together, so a
// killed creatingTables, index build or finalizing goes on behind the last statement done.
import { DatabaseError, type ClientBase } from 'pg';
import type { ObjectAddress, PlannedStatement } from '../model/schema-plan.ts';
import { MigrationError } from '../model/errors.ts';
import { fromPostgres } from './errors.ts';
import type { Session } from './connections.ts';
import { literal } from './sql.ts';
import { noteStatements, type TaskScope } from './task-scope.ts';

/** Numbers of the statements that are done. */
export async function statementsDone(scope: TaskScope): Promise<Set<number>> {
  const { rows } = await scope.target.query<{ n: number }>('select n from dts.statement where task_id = $1', [
    scope.taskId,
  ]);
  const numbers = rows.map((row) => row.n);
  noteStatements(scope, numbers, true);
  return new Set(numbers);
}

/**
 * Runs one statement with its journal row in one transaction on `session`. What tables share is left alone where the
 * target has it, also when another task makes it at the same moment. `settings` are SET LOCAL for it, as name → value.
 * Errors: what `fromPostgres` says, or `schema_failed` with the object named.
 */
export async function runStatement(
  scope: TaskScope,
  session: Session,
  statement: PlannedStatement,
  settings: Readonly<Record<string, string>> = {},
): Promise<void> {
  const { unlessExists } = statement;
  const isThere = async (): Promise<boolean> =>
    unlessExists !== undefined && (await exists(session.client, unlessExists));
  // journalled as done, so that a resumed task does not look again
  const found: PlannedStatement = { ...statement, sql: 'select', object: leftAlone(statement.object) };
  if ((await isThere()) || (await completesOther(scope, session.client, statement)))
    return runOnce(scope, session, found, settings);
  try {
    await runOnce(scope, session, statement, settings);
  } catch (error) {
    const state = error instanceof MigrationError ? error.details?.['sqlstate'] : undefined;
    if (typeof state !== 'string' || !duplicateStates.has(state) || !(await isThere())) throw error;
    await runOnce(scope, session, found, settings); // another task was faster: one is enough
  }
}

function leftAlone(object: string): string {
  return `${object} (existed)`;
}

async function completesOther(
  scope: TaskScope,
  client: ClientBase,
  { completes }: PlannedStatement,
): Promise<boolean> {
  if (completes === undefined) return false;
  const { rowCount } = await client.query('select 1 from dts.statement where task_id = $1 and object = $2', [
    scope.taskId,
    leftAlone(completes),
  ]);
  return rowCount !== 0;
}

/**
 * Runs statements within the caller's transaction, which is rolled back in the end. Told of each before it runs. Errors:
 * those of a statement, as `pg` throws them.
 */
export async function tryStatements(
  client: ClientBase,
  statements: readonly PlannedStatement[],
  beforeEach: (statement: PlannedStatement) => void,
): Promise<void> {
  const left = new Set<string>();
  for (const statement of statements) {
    beforeEach(statement);
    const { unlessExists, completes, object } = statement;
    if (completes !== undefined && left.has(completes)) continue;
    if (unlessExists) {
      await client.query('savepoint before_look');
      const isThere = await exists(client, unlessExists);
      await client.query('rollback to savepoint before_look'); // a look that finds nothing is an error
      if (isThere) {
        left.add(object);
        continue;
      }
    }
    await client.query(statement.sql);
  }
}

/** duplicate_object, _schema, _function, _table; unique_violation when two transactions create at once. */
const duplicateStates: ReadonlySet<string> = new Set(['42710', '42P06', '42723', '42P07', '23505']);

/** undefined_object, _function, _table, _column; invalid_schema_name. */
const undefinedStates: ReadonlySet<string> = new Set(['42704', '42883', '42P01', '42703', '3F000']);

async function exists(client: ClientBase, address: ObjectAddress): Promise<boolean> {
  const { type, names, args, shellCounts = false } = address;
  try {
    const { rowCount } = await client.query(
      `select 1 from pg_get_object_address($1, $2::text[], $3::text[]) a
       where $4 or a.classid <> 'pg_catalog.pg_type'::regclass
         or (select typisdefined from pg_catalog.pg_type where oid = a.objid)`,
      [type, names, args, shellCounts],
    );
    return rowCount === 1;
  } catch (error) {
    if (error instanceof DatabaseError && undefinedStates.has(error.code ?? '')) return false;
    throw fromPostgres(error, { role: 'target', object: `${type} ${names.join('.')}` });
  }
}

async function runOnce(
  scope: TaskScope,
  session: Session,
  statement: PlannedStatement,
  settings: Readonly<Record<string, string>>,
): Promise<void> {
  const { client } = session;
  try {
    const local = Object.entries(settings).map(
      ([name, value]) => `select set_config(${literal(name)}, ${literal(value)}, true)`,
    );
    await client.query(['begin', ...local].join('; ')); // thousands of statements: one round trip
    await client.query(statement.sql);
    await client.query(
      `insert into dts.statement (task_id, n, object, creates_schema, creates_name) values ($1, $2, $3, $4, $5)`,
      [
        scope.taskId,
        statement.n,
        statement.object,
        statement.creates?.schema ?? null,
        statement.creates?.name ?? null,
      ],
    );
    await client.query('commit');
    noteStatements(scope, [statement.n], false);
  } catch (error) {
    await client.query('rollback').catch(() => undefined);
    throw statementError(scope, statement, error);
  }
}

/** What a failed planned statement means: `aborted`, `schema_failed` with the object named, or what the connection says. */
export function statementError(
  scope: TaskScope,
  statement: PlannedStatement,
  error: unknown,
): MigrationError {
  if (scope.signal.aborted) return new MigrationError('aborted', 'stopped on request', { cause: error });
  const known = fromPostgres(error, {
    role: 'target',
    object: statement.object,
    statement: statement.sql.slice(0, 500),
  });
  if (known.code !== 'sql_failed') return known;
  return new MigrationError('schema_failed', `${statement.object}: ${known.message}`, {
    hint:
      known.hint ?? 'remove the cause on the target, then resume; statements already done are not run again',
    ...(known.details === undefined ? {} : { details: known.details }),
    cause: error,
  });
}
