// The schema statements that belong to the end of a migration, in plan order: prepareTarget rehearses them, settle runs
// each once.
import { MigrationError } from '../model/errors.ts';
import type { PlannedStatement, StatementPhase } from '../model/schema-plan.ts';
import {
  runStatement,
  runStatements,
  statementError,
  statementsDone,
  tryStatements,
} from '../postgres/statement-journal.ts';
import type { Session } from '../postgres/connections.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import {
  CREATE_TRIGGER_CONFLICTS,
  describeHolders,
  ALL_MODES,
  lockHolders,
  relationOids,
  remedyFor,
} from '../postgres/lock-holders.ts';

export interface PhaseOptions {
  readonly phases: readonly StatementPhase[];
  /** Bounds the wait for readers of a target table, as PostgreSQL writes a duration. */
  readonly lockTimeout: string;
  /** Few transactions, and so few round trips: a rehearsal has shown that they pass. */
  readonly together?: boolean;
  /** Told of a statement that failed; what it does not throw again is skipped and left undone. */
  readonly onError?: (statement: PlannedStatement, error: unknown) => void;
}

async function statementsLeft(
  scope: TaskScope,
  phases: readonly StatementPhase[],
): Promise<PlannedStatement[]> {
  const done = await statementsDone(scope);
  return schemaPlanOf(scope)
    .statements.filter((statement) => phases.includes(statement.phase) && !done.has(statement.n))
    .toSorted((a, b) => a.n - b.n);
}

/** What the operator does about a failed statement, which depends on the side of the point of no return. */
interface Remedy {
  /** Where rows are corrected that a constraint refuses. */
  readonly rowsOn: 'source' | 'target';
  /** How the migration goes on afterwards. */
  readonly goOn: string;
}

/** The source has its writes back; rows corrected on the target alone would be a difference at the next cutover. */
const beforeOpening: Remedy = { rowsOn: 'source', goOn: 'then resume and request the cutover again' };
const afterOpening: Remedy = { rowsOn: 'target', goOn: 'the statement is tried again by itself' };

/** The error of a failed statement with its object, who is in the way, and what to do. */
async function explained(
  scope: TaskScope,
  statement: PlannedStatement,
  error: unknown,
  remedy: Remedy,
): Promise<MigrationError> {
  const known = statementError(scope, statement, error);
  const { details = {} } = known;
  if (known.code === 'lock_timeout') {
    const blockers = await holdersOf(scope, statement).catch(() => []);
    return new MigrationError(
      'lock_timeout',
      `${statement.object}: a lock on the target is held by ${describeHolders(blockers)}`,
      {
        // not paused by this: the stream goes on
        hint: `${remedyFor(blockers, 'target')}; ${remedy.goOn.replace('resume and ', '')}`,
        details: { ...details, blockers },
        cause: error,
      },
    );
  }
  if (known.code !== 'schema_failed') return known;
  const refusesRows = String(details['sqlstate']).startsWith('23'); // integrity_constraint_violation
  const what = refusesRows
    ? `correct on the ${remedy.rowsOn} the rows that violate the constraint`
    : 'remove the cause on the target';
  return new MigrationError('schema_failed', known.message, {
    hint: `${what}, ${remedy.goOn}`,
    details,
    cause: error,
  });
}

/** Only after our own transaction has ended, or it would be among them. */
async function holdersOf(scope: TaskScope, statement: PlannedStatement) {
  const { tables, roots } = schemaPlanOf(scope);
  const oids = await relationOids(
    scope.target,
    [...roots, ...tables].map((mapping) => mapping.target),
  );
  // FOREIGN KEY takes SHARE ROW EXCLUSIVE on both tables, as CREATE TRIGGER does; other final statements may take more.
  return lockHolders(
    scope.target,
    oids.filter((oid) => oid !== undefined),
    statement.phase === 'foreign-key' ? CREATE_TRIGGER_CONFLICTS : ALL_MODES,
  );
}

/**
 * Runs the statements in one transaction and rolls it back: DDL is transactional, so what fails later fails here.
 * Errors: `schema_failed` with the object named, `lock_timeout` naming who is in the way, those of a connection.
 */
export async function rehearsePhases(
  scope: TaskScope,
  options: Omit<PhaseOptions, 'onError'>,
): Promise<void> {
  const left = await statementsLeft(scope, options.phases);
  if (left.length === 0) return;
  const session = await scope.target.session({ purpose: 'rehearse', signal: scope.signal });
  try {
    await session.client.query('begin');
    await session.client.query(`select set_config('lock_timeout', $1, true)`, [options.lockTimeout]);
    let running: PlannedStatement | undefined;
    try {
      await tryStatements(session.client, left, (statement) => {
        running = statement;
        scope.progress.setWaitingFor(`rehearsal of ${statement.object} on the target`);
      });
    } catch (error) {
      await session.client.query('rollback').catch(() => undefined);
      throw running ? await explained(scope, running, error, beforeOpening) : error;
    }
    await session.client.query('rollback');
  } finally {
    scope.progress.setWaitingFor(null);
    await session.close(); // after an error this is the rollback
  }
}

/** Errors: as of the rehearsal. */
export async function runPhases(scope: TaskScope, options: PhaseOptions): Promise<void> {
  const left = await statementsLeft(scope, options.phases);
  if (left.length === 0) return;
  const session = await scope.target.session({ purpose: 'finalize', signal: scope.signal });
  const settings = { lock_timeout: options.lockTimeout };
  try {
    if (options.together) {
      scope.progress.setWaitingFor(`${left.length} statements on the target`);
      await runTogether(scope, session, left, settings);
      return;
    }
    for (const statement of left) {
      scope.progress.setWaitingFor(`${statement.object} on the target`);
      try {
        await runStatement(scope, session, statement, settings);
        if (statement.phase === 'refresh') scope.failpoint('finalize.mid-refresh');
      } catch (error) {
        if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
        const known = await explained(scope, statement, error, afterOpening);
        if (!options.onError) throw known;
        options.onError(statement, known);
      }
    }
  } finally {
    scope.progress.setWaitingFor(null);
    await session.close();
  }
}

async function runTogether(
  scope: TaskScope,
  session: Session,
  statements: readonly PlannedStatement[],
  settings: Readonly<Record<string, string>>,
): Promise<void> {
  try {
    await runStatements(scope, session, statements, settings, () => undefined, statements.length);
  } catch (error) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    const object = error instanceof MigrationError ? error.details?.['object'] : undefined;
    const statement = statements.find((each) => each.object === object);
    throw statement ? await explained(scope, statement, error, afterOpening) : error;
  }
}
