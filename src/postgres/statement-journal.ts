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

/** Statements of one transaction: each table takes locks until its end, and the server's table of locks is for all. */
const MAX_TOGETHER = 100;

/**
 * Like `runStatement` for one after the other, with few transactions: a thousand tables take seconds. They grow, so that
 * a short list is not all or nothing. One that fails is done again statement by statement, which names the culprit and
 * leaves those before it done. Told of each statement that is done. `atFirst`: how many the first transaction has.
 */
export async function runStatements(
  scope: TaskScope,
  session: Session,
  statements: readonly PlannedStatement[],
  settings: Readonly<Record<string, string>>,
  afterEach: () => void,
  atFirst = 1,
): Promise<void> {
  let size = Math.min(atFirst, MAX_TOGETHER);
  for (let at = 0; at < statements.length; ) {
    scope.signal.throwIfAborted();
    const batch = plainFrom(statements, at, size);
    size = Math.min(size * 2, MAX_TOGETHER);
    if (batch.length > 1) {
      const done = await runTogether(scope, session, batch, settings).then(
        () => true,
        () => false,
      );
      if (done) {
        at += batch.length;
        afterEach();
        continue;
      }
    }
    for (const statement of batch) {
      scope.signal.throwIfAborted();
      await runStatement(scope, session, statement, settings);
      at++;
      afterEach();
    }
  }
}

/** At most `most` statements that need no look before they run; at least one, whatever it needs. */
function plainFrom(
  statements: readonly PlannedStatement[],
  from: number,
  most: number,
): readonly PlannedStatement[] {
  let to = from;
  while (to < statements.length && to - from < most) {
    const { unlessExists, completes } = statements[to] ?? {};
    if (unlessExists !== undefined || completes !== undefined) break;
    to++;
  }
  return statements.slice(from, Math.max(to, from + 1));
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
  try {
    await runTogether(scope, session, [statement], settings);
  } catch (error) {
    throw statementError(scope, statement, error);
  }
}

/**
 * Runs statements and their journal rows in one transaction and one round trip. Errors are as `pg` throws them, after a
 * rollback; which statement it was, the server does not say.
 */
async function runTogether(
  scope: TaskScope,
  { client }: Session,
  statements: readonly PlannedStatement[],
  settings: Readonly<Record<string, string>>,
): Promise<void> {
  const local = Object.entries(settings).map(
    ([name, value]) => `select set_config(${literal(name)}, ${literal(value)}, true)`,
  );
  const rows = statements.map(({ n, object, creates }) => {
    const { schema = null, name = null } = creates ?? {};
    const [ofSchema, ofName] = [schema, name].map((text) => (text === null ? 'null' : literal(text)));
    return `(${literal(scope.taskId)}, ${n}, ${literal(object)}, ${ofSchema}, ${ofName})`;
  });
  try {
    await client.query(
      [
        'begin',
        ...local,
        ...statements.map(({ sql }) => sql),
        `insert into dts.statement (task_id, n, object, creates_schema, creates_name) values ${rows.join(', ')}`,
        'commit',
        // a line of its own: a statement may end in a comment
      ].join('\n;\n'),
    );
  } catch (error) {
    await client.query('rollback').catch(() => undefined);
    throw error;
  }
  noteStatements(
    scope,
    statements.map(({ n }) => n),
    false,
  );
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
