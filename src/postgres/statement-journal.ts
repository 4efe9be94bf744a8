// Runs planned schema statements on the target exactly once: the statement and its journal row commit together, so a
// killed creatingTables, index build or finalizing goes on behind the last statement done.
import type { PlannedStatement } from '../model/schema-plan.ts';
import { MigrationError } from '../model/errors.ts';
import { fromPostgres } from './errors.ts';
import type { Session } from './connections.ts';
import type { TaskScope } from './task-scope.ts';

/** Numbers of the statements that are done. */
export async function statementsDone(scope: TaskScope): Promise<Set<number>> {
  const { rows } = await scope.target.query<{ n: number }>('select n from dts.statement where task_id = $1', [
    scope.taskId,
  ]);
  return new Set(rows.map((row) => row.n));
}

/**
 * Runs one statement with its journal row in one transaction on `session`. `settings` are SET LOCAL for it, as
 * name → value. Errors: what `fromPostgres` says, or `schema_failed` with the object named.
 */
export async function runStatement(
  scope: TaskScope,
  session: Session,
  statement: PlannedStatement,
  settings: Readonly<Record<string, string>> = {},
): Promise<void> {
  const { client } = session;
  try {
    await client.query('begin');
    for (const [name, value] of Object.entries(settings))
      await client.query('select set_config($1, $2, true)', [name, value]);
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
