// The write fence on the source: installed harmless while the application writes, armed at the cutover, proved, and
// lifted again. Called by the statechart's syncingWal and stoppingWrites. After armFence no transaction commits a change
// to a table of the migration until the fence is lifted.
import { cutoverNotes, type FenceNote } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import { relationKey } from '../model/relation.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import {
  dropFenceFunction,
  ensureFenceFunction,
  fenceState,
  fenceTriggerName,
  refuseOpened,
  setFence,
  type Lifting,
} from './fence-function.ts';
import { armDatabase, isDatabaseArmed, liftDatabase, olderSessions } from './fence-database.ts';
import { installRowTriggers, refuseSubscriptions } from './fence-rows.ts';
import { dropTriggers, fencedRelations, installTriggers } from './fence-triggers.ts';
import {
  describeHolders,
  type LockHolder,
  lockHolders,
  relationOids,
  remedyFor,
  WRITING_MODES,
} from '../postgres/lock-holders.ts';
import { cutoverDeadline } from '../postgres/under-fence.ts';
import { noteArming, noteLifted } from './write-stop.ts';

const INSTALL_PATIENCE_MS = 120_000;
const REMOVE_PATIENCE_MS = 60_000;
/** Most writers end within a millisecond or two, and all others wait for them. */
const FIRST_POLL_MS = 1;
const POLL_MS = 20;
/** Transactions that end by themselves get this long before `terminate_blockers` ends them. */
const TERMINATE_AFTER_MS = 1_000;

/**
 * Puts the harmless triggers on every table and partitioned parent. Idempotent; a fence found armed is disarmed, since
 * nobody installs one under a cutover. `patienceMs`: how long it waits without getting any further table.
 * Errors: `lock_timeout` naming who is in the way, `fence_failed` for another migration's fence, `source_ddl`.
 */
export async function installFence(
  scope: TaskScope,
  patienceMs: number = INSTALL_PATIENCE_MS,
): Promise<void> {
  if (scope.spec.options.fence === 'triggers') {
    if ((await ensureFenceFunction(scope)) === 'armed') await disarmFence(scope);
    await installTriggers(scope, patienceMs);
    await installRowTriggers(scope, await fencedOids(scope), patienceMs);
  }
  scope.failpoint('fence.installed');
}

/**
 * Stops all writers and proves it (`options.fence` weakens that: see TaskOptions). Fenced writers get SQLSTATE 25006; `fenceLsn` lies behind every change that was
 * committed. Errors: `cutover_timeout` naming who still writes, `source_ddl`, `fence_failed` for a subscription that
 * writes the tables; the fence then stays armed until the caller lifts it.
 *
 * The proof. A statement locks a table before it fires the table's trigger, and keeps the lock until its transaction
 * ends. Taking the lock, it processes the invalidation messages of everything committed before; COMMIT of the new
 * function sends them before it returns to us (AtEOXact_Inval), and PL/pgSQL compares its compiled function with
 * pg_proc at each call. Hence, with pg_locks read after that COMMIT:
 *
 *   1 lock taken after we looked      → the statement calls the raising function
 *   2 lock held when we looked        → may call either; we wait until that transaction is gone
 *   3 lock released before we looked  → its transaction had ended, so its commit lies before fenceLsn
 *
 * Transaction ids would prove nothing: case 2 includes a transaction that has not written yet and has none.
 */
export async function armFence(
  scope: TaskScope,
  deadline = cutoverDeadline(scope),
): Promise<{ fenceLsn: Lsn }> {
  const { fence } = scope.spec.options;
  if (fence === 'triggers') {
    await ensureFenceFunction(scope);
    await installTriggers(scope, deadline - Date.now());
  }
  const oids = await fencedOids(scope);
  if (fence === 'triggers') await installRowTriggers(scope, oids, deadline - Date.now());
  else await refuseSubscriptions(scope, oids);
  scope.checkpoints.delete(cutoverNotes.fence);
  const armedAt = noteArming(scope);
  if (fence === 'triggers') await setFence(scope, true);
  if (fence === 'database-read-only') await armDatabase(scope);
  scope.failpoint('fence.armed');
  await waitForWriters(scope, oids, deadline);
  const [{ rows }] = await Promise.all([
    scope.source.query<{ lsn: Lsn; version: string }>(
      `select pg_current_wal_insert_lsn()::text as lsn, current_setting('server_version') as version`,
    ),
    refuseNewRelatives(scope, oids),
    refuseSubscriptions(scope, oids),
  ]);
  const row = rows[0];
  if (!row) throw new MigrationError('internal', 'source: it does not tell its position');
  const note: FenceNote = {
    armedAt,
    fenceLsn: row.lsn,
    sourceVersion: row.version,
    provedAt: new Date().toISOString(),
  };
  scope.checkpoints.set(cutoverNotes.fence, note);
  return { fenceLsn: note.fenceLsn };
}

/**
 * Who would hold the fence up now. Errors: what would make it fail: `fence_failed` for a subscription, `source_ddl`.
 */
export async function forecastFence(scope: TaskScope): Promise<readonly LockHolder[]> {
  const oids = await fencedOids(scope);
  if (scope.spec.options.fence !== 'triggers') await refuseSubscriptions(scope, oids);
  await refuseNewRelatives(scope, oids);
  return [...(await writersOf(scope, oids)), ...(await sessionsBefore(scope, await armingTime(scope)))];
}

/**
 * A last look before the point of no return. Errors: `fence_failed` when the fence does not stand as it was armed (lifted
 * or dropped by somebody, a trigger disabled, another server behind the source's address), `source_ddl`.
 */
export async function confirmFence(scope: TaskScope): Promise<void> {
  const { fence } = scope.spec.options;
  if (fence === 'database-read-only' && !(await isDatabaseArmed(scope)))
    throw new MigrationError('fence_failed', 'source: the database is not read-only any more', {
      hint: 'find out who resets default_transaction_read_only; then resume and request the cutover again',
      details: { role: 'source' },
    });
  if (fence !== 'triggers') return;
  const relations = fencedRelations(scope);
  const { rows } = await scope.source.query<{ schema: string; name: string; oid: number | null }>(
    `select w.schema, w.name, t.tgrelid as oid
     from unnest($1::text[], $2::text[]) as w(schema, name)
       left join pg_namespace s on s.nspname = w.schema
       left join pg_class c on c.relnamespace = s.oid and c.relname = w.name
       left join pg_trigger t on t.tgrelid = c.oid and t.tgname = $3 and t.tgenabled = 'A'`,
    [
      relations.map(({ schema }) => schema),
      relations.map(({ name }) => name),
      fenceTriggerName(scope.taskId),
    ],
  );
  const bare = rows.filter(({ oid }) => oid === null).map((row) => relationKey(row));
  if (bare.length > 0 || (await fenceState(scope)) !== 'armed') {
    const what = bare.length > 0 ? `is gone from ${bare.join(', ')}` : 'is not armed any more';
    throw new MigrationError('fence_failed', `source: the write fence ${what}`, {
      hint: 'find out who changes triggers, functions or tables of the source; then resume and request the cutover again',
      details: { role: 'source', relations: bare },
    });
  }
  const oids = rows.flatMap(({ oid }) => oid ?? []);
  await Promise.all([refuseSubscriptions(scope, oids), refuseNewRelatives(scope, oids)]);
}

async function fencedOids(scope: TaskScope): Promise<number[]> {
  return (await relationOids(scope.source, fencedRelations(scope))).filter((oid) => oid !== undefined);
}

/** Whether the source keeps refusing writes after completion. */
export function keepsFence(scope: TaskScope): boolean {
  return scope.spec.options.keepFence && scope.spec.options.fence !== 'none';
}

/** Lifts whatever this task has armed. Errors: `already_opened`. */
export async function allowWrites(scope: TaskScope, lifting: Lifting = {}): Promise<void> {
  await setFence(scope, false, lifting);
  await liftDatabase(scope);
}

/** Allows writes again, at once and on all tables; the triggers stay. Also right when there is no fence. */
export async function disarmFence(scope: TaskScope, lifting: Lifting = {}): Promise<void> {
  scope.failpoint('fence.lifting');
  await allowWrites(scope, lifting);
  scope.failpoint('fence.lifted');
  scope.checkpoints.delete(cutoverNotes.fence);
  noteLifted(scope);
}

/**
 * Removes triggers, function and, when empty, schema `dts` from the source. Idempotent. Disarm first: a table gets its
 * writes back only when its trigger is gone. Errors: `lock_timeout` naming who is in the way.
 */
export async function removeFence(scope: TaskScope, patienceMs: number = REMOVE_PATIENCE_MS): Promise<void> {
  if ((await fenceState(scope)) === 'none') return;
  await refuseOpened(scope);
  await dropTriggers(scope, patienceMs);
  await dropFenceFunction(scope);
}

async function waitForWriters(scope: TaskScope, oids: readonly number[], deadline: number): Promise<void> {
  const { terminateBlockers } = scope.spec.options;
  const armedAt = await armingTime(scope);
  const writers = (): Promise<readonly LockHolder[]> => writersOf(scope, oids);
  const sessions = (): Promise<readonly LockHolder[]> => sessionsBefore(scope, armedAt);
  const startedMs = Date.now();
  try {
    let left = (await Promise.all([writers(), sessions()])).flat();
    const held = new Set(left.map((writer) => writer.virtualTransaction));
    for (let pollMs = FIRST_POLL_MS; left.length > 0; pollMs = Math.min(POLL_MS, pollMs * 2)) {
      const reason = `the fence waits for ${describeHolders(left)}`;
      scope.progress.setWaitingFor(reason);
      if (Date.now() > deadline) {
        throw new MigrationError(
          'cutover_timeout',
          `source: writers did not end within the cutover timeout: ${reason}`,
          {
            hint: `${remedyFor(left)}; or raise cutover_timeout_ms, or set terminate_blockers: PATCH …/options`,
            details: { blockers: left },
          },
        );
      }
      if (terminateBlockers && Date.now() - startedMs >= TERMINATE_AFTER_MS) await terminate(scope, left);
      await sleep(pollMs, scope.signal);
      // A new virtual transaction met the armed function. A prepared one may be one of the old, under a new name:
      // PREPARE TRANSACTION hands the locks over and the session is free.
      const holders = (await writers()).filter(
        (writer) => writer.pid === null || held.has(writer.virtualTransaction),
      );
      left = [...holders, ...(await sessions())];
    }
  } catch (error) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    throw fromPostgres(error, { role: 'source' });
  } finally {
    scope.progress.setWaitingFor(null);
  }
}

async function writersOf(scope: TaskScope, oids: readonly number[]): Promise<readonly LockHolder[]> {
  const holders = await lockHolders(scope.source, oids, WRITING_MODES);
  // its ACCESS EXCLUSIVE, for the empty end of a table, writes no rows
  return holders.filter((holder) => holder.backendType !== 'autovacuum worker');
}

async function sessionsBefore(scope: TaskScope, armedAt: string | null): Promise<readonly LockHolder[]> {
  return armedAt === null ? [] : olderSessions(scope, armedAt);
}

/** Now, by the source, where the fence binds only sessions that begin later; null where it binds all. */
async function armingTime(scope: TaskScope): Promise<string | null> {
  if (scope.spec.options.fence !== 'database-read-only') return null;
  const { rows } = await scope.source.query<{ now: string }>('select clock_timestamp()::text as now');
  return rows[0]?.now ?? '';
}

/** Prepared transactions stay: whether they are to be committed is for their coordinator to say. */
async function terminate(scope: TaskScope, blockers: readonly LockHolder[]): Promise<void> {
  const pids = blockers.flatMap(({ pid }) => pid ?? []);
  if (pids.length === 0) return;
  scope.log.warn({ blockers }, 'sessions that hold the fence up are ended');
  // one by one: a role that may not end somebody's session may still end others
  for (const pid of pids)
    await scope.source.query('select pg_terminate_backend($1)', [pid]).catch((error: unknown) => {
      if (fromPostgres(error).code !== 'insufficient_privilege') throw error;
    });
}

/**
 * Neither ATTACH PARTITION nor INHERIT sends anything down the stream. Rows of a child that we do not know would be left
 * behind; and a statement on a parent that we do not know writes our table, but fires only the parent's triggers.
 */
async function refuseNewRelatives(scope: TaskScope, oids: readonly number[]): Promise<void> {
  const { rows } = await scope.source.query<{
    ours: number;
    schema: string;
    name: string;
    is_child: boolean;
  }>(
    `select r.ours, n.nspname::text as schema, c.relname::text as name, r.is_child
     from (select inhparent as ours, inhrelid as other, true as is_child from pg_inherits
             where inhparent = any ($1::oid[]) and inhrelid <> all ($1::oid[])
           union all
           select inhrelid, inhparent, false from pg_inherits
             where inhrelid = any ($1::oid[]) and inhparent <> all ($1::oid[])) r
       join pg_class c on c.oid = r.other join pg_namespace n on n.oid = c.relnamespace
     where c.relpersistence <> 't' order by 2, 3`,
    [oids],
  );
  if (rows.length === 0) return;
  const children = rows.filter((row) => row.is_child).map((row) => relationKey(row));
  const parents = rows.filter((row) => !row.is_child).map((row) => relationKey(row));
  const what = [
    ...(children.length === 0 ? [] : [`partitions or children were added: ${children.join(', ')}`]),
    ...(parents.length === 0 ? [] : [`tables were put under ${parents.join(', ')}`]),
  ];
  throw new MigrationError('source_ddl', `source: ${what.join('; ')}`, {
    hint: 'they are not part of this migration: detach them (or NO INHERIT), or cancel this migration and start a new one',
    details: { relations: [...children, ...parents] },
  });
}
