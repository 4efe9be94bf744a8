// Puts the fence's triggers on the source's tables and takes them away again, one table a transaction, while the
// application writes. A lock request that waits makes everybody behind it wait too, so no request waits long, and
// since no transaction of ours holds one table's lock while it asks for another's, it can be part of no deadlock.
import { DatabaseError } from 'pg';
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { schemaPlanOf, sleep, type TaskScope } from '../postgres/task-scope.ts';
import { fenceFunction, fenceTriggerName } from './fence-function.ts';
import {
  CREATE_TRIGGER_CONFLICTS,
  describeHolders,
  DROP_TRIGGER_CONFLICTS,
  type LockHolder,
  lockHolders,
  relationOids,
  remedyFor,
} from './lock-holders.ts';

const FIRST_LOCK_TIMEOUT_MS = 200;
const LAST_LOCK_TIMEOUT_MS = 1_500;

/** Every relation that the fence guards: tables, leaves and partitioned parents. */
export function fencedRelations(scope: TaskScope): RelationName[] {
  const { tables, unlogged = [], roots } = schemaPlanOf(scope);
  return [...roots, ...tables, ...unlogged].map((mapping) => mapping.source);
}

interface Pending {
  readonly relation: RelationName;
  readonly sql: string;
}

/**
 * Makes the triggers that are missing. Gives up `giveUpAfterMs` after the last table that got its trigger.
 * Errors: `lock_timeout` naming who is in the way, `source_ddl` when a table is gone, `insufficient_privilege`.
 */
export async function installTriggers(scope: TaskScope, giveUpAfterMs: number): Promise<void> {
  const trigger = fenceTriggerName(scope.taskId);
  const relations = fencedRelations(scope);
  const { rows } = await scope.source.query<{ oid: number | null; enabled: string | null }>(
    `select c.oid, t.tgenabled::text as enabled
     from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
       left join pg_namespace s on s.nspname = w.schema
       left join pg_class c on c.relnamespace = s.oid and c.relname = w.name and c.relkind in ('r', 'p')
       left join pg_trigger t on t.tgrelid = c.oid and t.tgname = $3
     order by w.n`,
    [relations.map(({ schema }) => schema), relations.map(({ name }) => name), trigger],
  );
  const pending: Pending[] = [];
  for (const [index, relation] of relations.entries()) {
    const row = rows[index];
    if (!row || row.oid === null) {
      throw new MigrationError('source_ddl', `source: table ${relationKey(relation)} is gone`, {
        hint: 'it was dropped or renamed during the migration: cancel this migration and start a new one',
        details: { relation: relationKey(relation) },
      });
    }
    if (row.enabled === 'A') continue;
    const create = `create trigger ${ident(trigger)} before insert or update or delete or truncate
      on ${identRelation(relation)} for each statement execute function ${identRelation(fenceFunction(scope.taskId))}();`;
    // ALWAYS: it fires under session_replication_role = replica too. ONLY: of a partitioned table nothing but itself,
    // its leaves have triggers of their own.
    const enable = `alter table only ${identRelation(relation)} enable always trigger ${ident(trigger)};`;
    pending.push({ relation, sql: row.enabled === null ? create + enable : enable });
  }
  await onePerTransaction(scope, pending, 'the fence', CREATE_TRIGGER_CONFLICTS, giveUpAfterMs);
}

/** Drops every trigger of the task's fence, wherever the catalog finds one. Errors: `lock_timeout` as above. */
export async function dropTriggers(scope: TaskScope, giveUpAfterMs: number): Promise<void> {
  const trigger = fenceTriggerName(scope.taskId);
  const { rows } = await scope.source.query<RelationName>(
    `select n.nspname::text as schema, c.relname::text as name
     from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
     where t.tgname = $1 and not t.tgisinternal order by 1, 2`,
    [trigger],
  );
  const pending = rows.map((relation) => ({
    relation,
    sql: `drop trigger if exists ${ident(trigger)} on ${identRelation(relation)};`,
  }));
  await onePerTransaction(scope, pending, 'removing the fence', DROP_TRIGGER_CONFLICTS, giveUpAfterMs);
}

async function onePerTransaction(
  scope: TaskScope,
  work: readonly Pending[],
  what: string,
  conflicts: readonly string[],
  giveUpAfterMs: number,
): Promise<void> {
  if (work.length === 0) return;
  const session = await scope.source.session({ purpose: 'fence', signal: scope.signal });
  try {
    let pending = work;
    let lastProgress = Date.now();
    let lockTimeoutMs = FIRST_LOCK_TIMEOUT_MS;
    const expired = (): boolean => Date.now() - lastProgress > giveUpAfterMs;
    for (;;) {
      const refused: Pending[] = [];
      for (const item of pending) {
        if (!expired() && (await tryWithin(session, item, lockTimeoutMs))) lastProgress = Date.now();
        else refused.push(item);
      }
      if (refused.length === 0) return;
      pending = refused;
      const holders = await holdersInTheWay(scope, pending, conflicts);
      const reason = `${what} waits for ${describeHolders(holders)}`;
      scope.progress.setWaitingFor(reason);
      if (expired()) {
        throw new MigrationError('lock_timeout', `source: ${reason}`, {
          hint: remedyFor(holders),
          details: {
            role: 'source',
            relations: pending.map(({ relation }) => relationKey(relation)),
            blockers: holders,
          },
        });
      }
      // Twice as long as writers may have stood still behind us.
      await sleep(Math.min(2 * lockTimeoutMs, giveUpAfterMs), scope.signal);
      lockTimeoutMs = Math.min(2 * lockTimeoutMs, LAST_LOCK_TIMEOUT_MS);
      if (holders.some((holder) => holder.backendType === 'autovacuum worker'))
        lockTimeoutMs = await beyondDeadlockTimeoutMs(scope);
    }
  } catch (error) {
    if (scope.signal.aborted)
      throw new MigrationError('aborted', `${what}: stopped on request`, { cause: error });
    throw fromPostgres(error, { role: 'source' });
  } finally {
    scope.progress.setWaitingFor(null);
    await session.close();
  }
}

/** False when the lock was not to be had: 55P03, or 40P01 where somebody else's cycle took us as its victim. */
async function tryWithin(session: Session, { sql }: Pending, lockTimeoutMs: number): Promise<boolean> {
  try {
    await session.client.query(`begin; set local lock_timeout = ${lockTimeoutMs}; ${sql} commit`);
    return true;
  } catch (error) {
    if (!(error instanceof DatabaseError) || (error.code !== '55P03' && error.code !== '40P01')) throw error;
    await session.client.query('rollback');
    return false;
  }
}

async function holdersInTheWay(
  scope: TaskScope,
  pending: readonly Pending[],
  conflicts: readonly string[],
): Promise<readonly LockHolder[]> {
  const oids = await relationOids(
    scope.source,
    pending.map(({ relation }) => relation),
  );
  return lockHolders(
    scope.source,
    oids.filter((oid) => oid !== undefined),
    conflicts,
  );
}

/** An autovacuum gives way to a lock request that has waited for deadlock_timeout, and not before. */
async function beyondDeadlockTimeoutMs(scope: TaskScope): Promise<number> {
  const { rows } = await scope.source.query<{ ms: number }>(
    `select setting::int as ms from pg_settings where name = 'deadlock_timeout'`,
  );
  return (rows[0]?.ms ?? 1_000) + 500;
}
