// The activity `createTables`: plans the schema once and runs its pre-data statements on the target. Killed at any
// instant and run again, it goes on behind the last statement of the journal. What tables share (types, functions,
// schemas) is left alone where it exists, also when another task makes it at the same moment; a table is not.
import { MigrationError } from '../model/errors.ts';
import { isBlocked, type Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { PlannedStatement, SchemaPlan } from '../model/schema-plan.ts';
import { ensureBookkeeping } from '../postgres/bookkeeping.ts';
import type { Session, Side } from '../postgres/connections.ts';
import { findLiveCopy, markCopyIncomplete, saveLiveCopy } from '../postgres/copy-state.ts';
import {
  runStatements,
  statementError,
  statementsDone,
  tryStatements,
} from '../postgres/statement-journal.ts';
import { findSchemaPlan, inTurn, saveSchemaPlan, type TaskScope } from '../postgres/task-scope.ts';
import { planAddition, type AdditionRequest } from './addition.ts';
import { planSchema } from './plan.ts';

/** New objects wait for nobody, but a target in use may have locks on schemas and types. */
const LOCK_TIMEOUT = '60s';

/**
 * `addition`: the last request to add tables; what it adds is planned behind what the task has. `beside`: its tables are
 * copied while the stream goes on. Returns the plan's findings. Errors: `preflight_blocked` with the findings in `details`, `target_conflict`,
 * `schema_failed`, and those of `planSchema`.
 */
export async function createTables(
  scope: TaskScope,
  addition: AdditionRequest = { pass: 0, tables: [] },
  beside = false,
): Promise<{ findings: Finding[] }> {
  const plan = await inTurn(scope, () => ensurePlan(scope, addition, beside));
  await ensureBookkeeping(scope);
  const done = await statementsDone(scope);
  const taken = await conflicts(scope.target, plan, done);
  if (taken.length > 0) throw conflictError(taken);
  const session = await scope.target.session({ purpose: 'schema', signal: scope.signal });
  try {
    const wanted = plan.statements.filter(({ phase, n }) => phase === 'pre-data' && !done.has(n));
    await execute(scope, session, wanted);
    await rehearseRest(scope, session, plan);
  } finally {
    await session.close();
  }
  return { findings: [...plan.findings] };
}

/** True, or the number of the addition that was rehearsed last. */
const REHEARSED = 'schemaRehearsed';
/** Each relation takes a lock until the end of the transaction, and the server's table of locks is for all. */
const MAX_REHEARSED = 1_000;

/**
 * Keys, indexes, foreign keys, triggers, views … on the tables while they are empty, in a transaction that is rolled
 * back: what would fail after hours of copying fails now.
 */
async function rehearseRest(scope: TaskScope, session: Session, plan: SchemaPlan): Promise<void> {
  const { pass, relations } = plan.addition ?? { pass: 0, relations: [] };
  const added = new Set(relations);
  // beside added tables, those that the task had are full: what is to be done to them must wait for its time
  const rest = plan.statements.filter(
    ({ phase, table, attaches }) =>
      phase !== 'pre-data' &&
      attaches === undefined && // other partitions may still have rows of its range
      phase !== 'validate' &&
      phase !== 'refresh' &&
      (pass === 0 || (table !== null && added.has(table))),
  );
  const noted = scope.checkpoints.get<true | number>(REHEARSED) ?? -1;
  if (rest.length > MAX_REHEARSED || (noted === true ? 0 : noted) >= pass) return;
  const { client } = session;
  let running = rest[0];
  try {
    await client.query('begin');
    await client.query('select set_config($1, $2, true)', ['lock_timeout', LOCK_TIMEOUT]);
    await tryStatements(client, rest, (statement) => {
      scope.signal.throwIfAborted();
      running = statement;
      scope.progress.setWaitingFor(`rehearsal of ${statement.object} on the target`);
    });
    await client.query('rollback');
    scope.checkpoints.set(REHEARSED, pass);
  } catch (error) {
    await client.query('rollback').catch(() => undefined);
    if (running === undefined) throw error;
    throw statementError(scope, running, error);
  } finally {
    scope.progress.setWaitingFor(null);
  }
}

/**
 * What createTables would say, without writing anything: the plan's findings and names already taken on the target.
 * On a task that has begun, names that it made itself are not reported.
 */
export async function planFindings(scope: TaskScope): Promise<Finding[]> {
  const plan = findSchemaPlan(scope) ?? (await planSchema(scope));
  return [...plan.findings, ...(await conflictFindings(scope, plan))];
}

/** What createTables would say of an addition to the task's `plan`, and of nothing else. Writes nothing. */
export async function additionFindings(
  scope: TaskScope,
  plan: SchemaPlan,
  addition: AdditionRequest,
): Promise<Finding[]> {
  const next = await planAddition(scope, plan, addition);
  const known = new Set(plan.findings.map(({ message }) => message));
  return [
    ...next.findings.filter(({ message }) => !known.has(message)),
    ...(await conflictFindings(scope, next)),
  ];
}

async function conflictFindings(scope: TaskScope, plan: SchemaPlan): Promise<Finding[]> {
  const done = (await hasJournal(scope.target)) ? await statementsDone(scope) : new Set<number>();
  const taken = await conflicts(scope.target, plan, done);
  return taken.map((name) => ({
    code: 'target_conflict',
    severity: 'blocking',
    object: relationKey(name),
    message: `target: ${relationKey(name)} exists and was not made by this task`,
    remedy: 'drop or rename it, or choose another table_suffix',
  }));
}

async function hasJournal(target: Side): Promise<boolean> {
  const { rows } = await target.query<{ present: boolean }>(
    `select to_regclass('dts.statement') is not null as present`,
  );
  return rows[0]?.present ?? false;
}

async function ensurePlan(scope: TaskScope, addition: AdditionRequest, beside: boolean): Promise<SchemaPlan> {
  const known = findSchemaPlan(scope);
  if (known && addition.pass <= (known.addition?.pass ?? 0)) return known;
  const plan = known ? await planAddition(scope, known, addition) : await planSchema(scope);
  // a blocked plan is not kept: the next attempt looks at the source again
  if (isBlocked(plan.findings)) {
    const blocking = plan.findings.filter(({ severity }) => severity === 'blocking');
    throw new MigrationError('preflight_blocked', blocking.map(({ message }) => message).join('; '), {
      details: { findings: plan.findings },
    });
  }
  // before there are tables that nobody has copied
  const copy = beside ? findLiveCopy(scope) : undefined;
  if (copy) saveLiveCopy(scope, { ...copy, relations: plan.addition?.relations ?? [] });
  else if (known) markCopyIncomplete(scope);
  saveSchemaPlan(scope, plan);
  if (known) scope.failpoint('add.planned');
  return plan;
}

/**
 * Relations on the target whose name a statement still to come will need, of any phase: an index name that is taken
 * would otherwise show only after the copy.
 */
async function conflicts(target: Side, plan: SchemaPlan, done: ReadonlySet<number>): Promise<RelationName[]> {
  const coming = plan.statements.filter(({ n }) => !done.has(n));
  const wanted = coming.flatMap(({ takes }) => takes ?? []);
  // a table (unlike an index) makes a type of its name, too
  const types = coming.flatMap(({ takes, creates }) => (takes && creates ? [creates] : []));
  const { rows } = await target.query<RelationName>(
    `select w.schema, w.name from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
       join pg_namespace s on s.nspname = w.schema join pg_class c on c.relnamespace = s.oid and c.relname = w.name
     order by w.n`,
    [wanted.map(({ schema }) => schema), wanted.map(({ name }) => name)],
  );
  const { rows: taken } = await target.query<RelationName>(
    // row types are those above; array types give way by themselves (moveArrayTypeName)
    `select w.schema, w.name from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
       join pg_namespace s on s.nspname = w.schema join pg_type t on t.typnamespace = s.oid and t.typname = w.name
       left join pg_class c on c.oid = t.typrelid
     where coalesce(c.relkind, 'c') = 'c' and not exists (select from pg_type e where e.typarray = t.oid) order by w.n`,
    [types.map(({ schema }) => schema), types.map(({ name }) => name)],
  );
  return [...rows, ...taken];
}

function conflictError(taken: readonly RelationName[], cause?: unknown): MigrationError {
  const names = taken.map(relationKey);
  return new MigrationError('target_conflict', `target: ${names.slice(0, 20).join(', ')} exists already`, {
    hint: 'drop or rename it, or choose another table_suffix; only with schema: existing are tables written that DTS did not make',
    details: { relations: names },
    cause,
  });
}

async function execute(
  scope: TaskScope,
  session: Session,
  statements: readonly PlannedStatement[],
): Promise<void> {
  try {
    await runStatements(scope, session, statements, { lock_timeout: LOCK_TIMEOUT }, () =>
      scope.failpoint('creatingTables.mid-statements'),
    );
  } catch (error) {
    const { sqlstate, object } = error instanceof MigrationError ? (error.details ?? {}) : {};
    const takes = statements.find((statement) => statement.object === object)?.takes;
    if (takes !== undefined && sqlstate === '42P07') throw conflictError(takes, error); // duplicate_table
    throw error;
  }
}
