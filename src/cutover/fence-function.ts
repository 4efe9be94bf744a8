// The function behind the fence's triggers, on the source: replacing it is what arms and disarms all tables at once.
// fence.ts and clean-up.ts use it. It carries the task's incarnation as its comment, so that a fence that a deleted task
// of the same id left behind is never taken for ours.
import { createHash } from 'node:crypto';
import type { ClientBase } from 'pg';
import type { RelationName } from '../model/relation.ts';
import { MigrationError } from '../model/errors.ts';
import { reverseNotes, type ReverseNote } from '../model/reverse.ts';
import { dropSchemaIfEmpty, lockBookkeeping } from '../postgres/bookkeeping.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { DTS_SCHEMA, ident, identRelation, literal } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

export type FenceState = 'none' | 'disarmed' | 'armed';

/** SQLSTATE that a fenced writer gets: read_only_sql_transaction, which pools and drivers already treat as "go elsewhere". */
export const FENCED_SQLSTATE = '25006';

/** Bounds the waits for the advisory locks and for a function that somebody else is changing. */
const LOCK_TIMEOUT = '10s';
const UNFENCE_ATTEMPTS = 3;
/** A connect timeout and a lock timeout, and a little more. */
const UNFENCE_TIMEOUT_MS = 30_000;
/** First key of the advisory lock of one task's fence; the second is made of the task id. */
const FENCE_LOCK = 0x66656e63; // 'fenc'

/** Name of the triggers, on every table. */
export function fenceTriggerName(taskId: string): string {
  return `dts_fence_${taskId}`;
}

export function fenceFunction(taskId: string): RelationName {
  return { schema: DTS_SCHEMA, name: `fence_${taskId}` };
}

/** Name of the row triggers, on tables that a subscription writes. */
export function rowFenceTriggerName(taskId: string): string {
  return `dts_rowfence_${taskId}`;
}

export function rowFenceFunction(taskId: string): RelationName {
  return { schema: DTS_SCHEMA, name: `rowfence_${taskId}` };
}

/** Both are replaced in one transaction; the row triggers' is there only where a table has such a trigger. */
const kinds = ['statement', 'row'] as const;
type FenceKind = (typeof kinds)[number];

function functionOf(taskId: string, kind: FenceKind): RelationName {
  return kind === 'row' ? rowFenceFunction(taskId) : fenceFunction(taskId);
}

/** What the sessions of the reverse task are known by; custom parameters are not shown to other sessions. */
export const FENCE_PASS_SETTING = 'dts.fence_pass';

/**
 * PL/pgSQL body. Every name in it is qualified and nothing needs a right, so neither a search_path nor the caller's
 * privileges can change what it does; a SET clause would only add its cost to every statement of the application.
 * `pass`: of the reverse task's sessions; anybody may read the body, so that it has the word's hash alone.
 */
function fenceBody(taskId: string, kind: FenceKind, armed: boolean, pass?: string): string {
  // null from a row trigger would drop the row
  const accept = kind === 'row' ? `if tg_op = 'DELETE' then return old; end if; return new;` : 'return null;';
  if (!armed) return `begin ${accept} end`;
  const message = literal(`DTS: table %.% is fenced for the cutover of migration ${taskId}`);
  const hint = literal(
    'Write to the new database, or try again: if the cutover is given up, writes are allowed again.',
  );
  const passing = pass === undefined ? '' : passCheck(pass, accept);
  return `begin${passing}
  raise exception ${message}, tg_table_schema, tg_table_name
    using errcode = ${literal(FENCED_SQLSTATE)}, hint = ${hint};
end`;
}

function passCheck(pass: string, accept: string): string {
  const hash = createHash('sha256').update(pass).digest('hex');
  return `
  if pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
       coalesce(pg_catalog.current_setting(${literal(FENCE_PASS_SETTING)}, true), ''), 'UTF8')), 'hex')
     operator(pg_catalog.=) ${literal(hash)} then
    ${accept}
  end if;`;
}

function replaceSql(scope: TaskScope, kind: FenceKind, armed: boolean): string {
  const { taskId } = scope;
  const pass = scope.checkpoints.get<ReverseNote>(reverseNotes.reverse)?.pass;
  return `create or replace function ${identRelation(functionOf(taskId, kind))}() returns trigger
    language plpgsql security invoker as ${literal(fenceBody(taskId, kind, armed, pass))}`;
}

function signature(scope: TaskScope): string {
  return `fence of migration ${scope.taskId}, ${scope.incarnation}`;
}

/** Behind the signature, once the target may have been opened: then the source must not take writes again by itself. */
const OPENED = ', the target is open';

interface FunctionRow {
  readonly name: string;
  readonly body: string;
  readonly comment: string | null;
}

/** `evenIfOpened`: by somebody who knows that the target is open: a completed task, a rollback, a person. */
export interface Lifting {
  readonly evenIfOpened?: boolean;
}

interface FoundFunction {
  readonly state: FenceState;
  readonly isOurs: boolean;
  readonly isOpened: boolean;
}

async function findFunctions(
  scope: TaskScope,
  client?: ClientBase,
): Promise<Record<FenceKind, FoundFunction>> {
  const sql = `select p.proname::text as name, p.prosrc as body, obj_description(p.oid, 'pg_proc') as comment
     from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname = $1 and p.proname = any ($2::name[]) and p.pronargs = 0`;
  const params = [DTS_SCHEMA, kinds.map((kind) => functionOf(scope.taskId, kind).name)];
  const { rows } = client
    ? await client.query<FunctionRow>(sql, params)
    : await scope.source.query<FunctionRow>(sql, params);
  const found = (kind: FenceKind): FoundFunction => {
    const row = rows.find(({ name }) => name === functionOf(scope.taskId, kind).name);
    if (!row) return { state: 'none', isOurs: true, isOpened: false };
    // Anything but our harmless body counts as armed: in doubt it is lifted.
    const armed = row.body !== fenceBody(scope.taskId, kind, false);
    const isOpened = row.comment === signature(scope) + OPENED;
    return {
      state: armed ? 'armed' : 'disarmed',
      isOurs: isOpened || row.comment === signature(scope),
      isOpened,
    };
  };
  return { statement: found('statement'), row: found('row') };
}

/** What the source says about this task's fence; a stranger's fence of the same name is none of ours. */
export async function fenceState(scope: TaskScope): Promise<FenceState> {
  const { statement: found } = await findFunctions(scope);
  return found.isOurs ? found.state : 'none';
}

/**
 * Writes on the source, beside the fence, that the target opens: our own store may be put back to a backup from before, and
 * would then give the source its writes back. Errors: those of a statement.
 */
export async function markOpened(scope: TaskScope, timeoutMs: number): Promise<void> {
  if ((await findFunctions(scope)).statement.state === 'none') return;
  await scope.source.query(
    `comment on function ${identRelation(fenceFunction(scope.taskId))}() is ${literal(signature(scope) + OPENED)}`,
    [],
    { timeoutMs },
  );
}

/** Throws `already_opened` when the fence stands because the target is open. */
export async function refuseOpened(scope: TaskScope): Promise<void> {
  const { statement } = await findFunctions(scope);
  if (statement.isOurs && statement.isOpened && statement.state === 'armed') throw alreadyOpened(scope);
}

function alreadyOpened({ taskId }: TaskScope): MigrationError {
  return new MigrationError(
    'already_opened',
    'source: its fence says that the target of this migration was opened; this store does not know of it, and may be an old copy',
    {
      hint: `use the store that completed the migration, or cancel this task; if the source is to take writes again all the same: drop function ${identRelation(fenceFunction(taskId))}() cascade`,
      details: { role: 'source' },
    },
  );
}

/** Makes schema `dts` and the harmless function where they are missing. Throws `fence_failed` for a stranger's fence. */
export async function ensureFenceFunction(
  scope: TaskScope,
  kind: FenceKind = 'statement',
): Promise<FenceState> {
  const found = (await findFunctions(scope))[kind];
  const { taskId } = scope;
  if (!found.isOurs) {
    throw new MigrationError(
      'fence_failed',
      `source: a fence of another migration with the id ${taskId} exists`,
      {
        hint: `choose another id, or, if that migration is gone: drop function ${identRelation(functionOf(taskId, kind))}() cascade`,
      },
    );
  }
  if (found.state !== 'none') return found.state;
  await scope.source.transaction(async (client) => {
    await client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
    await lockBookkeeping(client);
    // IF NOT EXISTS asks for CREATE on the database even when the schema exists
    const { rows } = await client.query<{ present: boolean }>(
      'select to_regnamespace($1) is not null as present',
      [DTS_SCHEMA],
    );
    if (!rows[0]?.present) await client.query(`create schema ${ident(DTS_SCHEMA)}`);
    await client.query(replaceSql(scope, kind, false));
    await client.query(
      `comment on function ${identRelation(functionOf(taskId, kind))}() is ${literal(signature(scope))}`,
    );
  });
  return 'disarmed';
}

/**
 * Replaces the function, where it is ours; takes no lock on any table. Un-fencing does nothing where there is no function.
 *
 * A process that was killed may have a COMMIT on the way (it may wait for a synchronous standby), and what it does to the
 * function is not to be seen yet. So the state is read under a lock that is kept until that COMMIT has taken effect.
 * Errors: `fence_failed` when there is no function of ours to arm, `already_opened`, `lock_timeout`.
 */
export async function setFence(
  scope: TaskScope,
  armed: boolean,
  { evenIfOpened = false }: Lifting = {},
): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      const replace = async (client: ClientBase): Promise<void> => {
        await client.query(`set local lock_timeout = ${literal(LOCK_TIMEOUT)};
          select pg_advisory_xact_lock(${FENCE_LOCK}, hashtext(${literal(scope.taskId)}))`);
        const found = await findFunctions(scope, client);
        if (found.statement.state === 'none' || !found.statement.isOurs) {
          if (armed) throw new MigrationError('fence_failed', 'source: there is no fence to arm');
          return;
        }
        if (!armed && !evenIfOpened && found.statement.isOpened && found.statement.state === 'armed')
          throw alreadyOpened(scope);
        // Un-fencing always replaces them: somebody without the lock may be changing them, too.
        const replaced = kinds.filter(
          (kind) =>
            found[kind].state !== 'none' && found[kind].isOurs && (!armed || found[kind].state !== 'armed'),
        );
        if (replaced.length > 0)
          await client.query(replaced.map((kind) => replaceSql(scope, kind, armed)).join(';\n'));
      };
      if (armed) await scope.source.transaction(replace);
      else await onNewConnection(scope, (client) => inTransaction(client, replace));
      return;
    } catch (error) {
      const failure = fromPostgres(error, { role: 'source' });
      if (armed || attempt === UNFENCE_ATTEMPTS) throw failure;
      // XX000: "tuple concurrently updated", by somebody without the lock who has committed now
      if (failure.code === 'lock_timeout') await endHolders(scope);
      else if (failure.details?.['sqlstate'] !== 'XX000') throw failure;
    }
  }
}

/**
 * On a connection that was open before the network broke, a statement may wait until TCP gives up, a quarter of an hour
 * in which the source refuses writes; a new one works as soon as the network does. Bounded, and not stopped by the
 * task's signal: an un-fencing that has begun is better done.
 */
export async function onNewConnection(
  scope: TaskScope,
  work: (client: ClientBase) => Promise<unknown>,
): Promise<void> {
  const giveUp = AbortSignal.timeout(UNFENCE_TIMEOUT_MS);
  try {
    const session = await scope.source.session({ purpose: 'unfence', signal: giveUp });
    try {
      await work(session.client);
    } finally {
      await session.close();
    }
  } catch (error) {
    if (!giveUp.aborted) throw error;
    throw new MigrationError('deadline_exceeded', 'source: no answer to the lifting of the fence', {
      details: { role: 'source' },
      cause: error,
    });
  }
}

async function inTransaction(client: ClientBase, work: (client: ClientBase) => Promise<void>): Promise<void> {
  await client.query('begin');
  await work(client); // after a throw the connection is closed, which rolls back
  await client.query('commit');
}

/** Ends the sessions that hold the fence's lock: ours, of a process whose machine is gone, which would stay for hours. */
async function endHolders(scope: TaskScope): Promise<void> {
  await onNewConnection(scope, (client) =>
    client.query(
      `select pg_terminate_backend(l.pid) from pg_locks l
       join pg_database d on d.oid = l.database and d.datname = current_database()
       join pg_stat_activity a on a.pid = l.pid and starts_with(a.application_name, $3)
     where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.pid <> pg_backend_pid()
       and l.classid = $1::bigint::oid and l.objid = (hashtext($2)::bigint & 4294967295)::oid`,
      [FENCE_LOCK, scope.taskId, `dts/${scope.taskId}/source`],
    ),
  );
}

/** Drops the function, once no trigger uses it, and schema `dts` when that leaves it empty. */
export async function dropFenceFunction(scope: TaskScope): Promise<void> {
  await scope.source.transaction(async (client) => {
    await client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
    await lockBookkeeping(client);
    const { rows } = await client.query<{ present: boolean }>(
      'select to_regnamespace($1) is not null as present',
      [DTS_SCHEMA],
    );
    if (!rows[0]?.present) return;
    for (const kind of kinds)
      await client.query(`drop function if exists ${identRelation(functionOf(scope.taskId, kind))}()`);
    await dropSchemaIfEmpty(client);
  });
}
