// DDL on the source's tables while the application writes, one table a transaction. A lock request that waits makes
// everybody behind it wait too, so no request waits long, and since no transaction of ours holds one table's lock while it
// asks for another's, it can be part of no deadlock. Used for the fence's triggers, replica identities and a publication that grows.
import { DatabaseError } from 'pg';
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { Session } from './connections.ts';
import { fromPostgres } from './errors.ts';
import { describeHolders, type LockHolder, lockHolders, relationOids, remedyFor } from './lock-holders.ts';
import { sleep, type TaskScope } from './task-scope.ts';

const FIRST_LOCK_TIMEOUT_MS = 200;
const LAST_LOCK_TIMEOUT_MS = 1_500;

/** `sql` ends with a semicolon. */
export interface TableWork {
  readonly relation: RelationName;
  readonly sql: string;
}

/**
 * Gives up `giveUpAfterMs` after the last table that it got. Errors: `lock_timeout` naming who is in the way; `what` says
 * in its message who waits. `onDone` is called after each.
 */
export async function onePerTransaction(
  scope: TaskScope,
  work: readonly TableWork[],
  what: string,
  conflicts: readonly string[],
  giveUpAfterMs: number,
  onDone: () => void = () => undefined,
): Promise<void> {
  if (work.length === 0) return;
  const session = await scope.source.session({ purpose: 'ddl', signal: scope.signal });
  try {
    let pending = work;
    let lastProgress = Date.now();
    let lockTimeoutMs = FIRST_LOCK_TIMEOUT_MS;
    const expired = (): boolean => Date.now() - lastProgress > giveUpAfterMs;
    for (;;) {
      const refused: TableWork[] = [];
      for (const item of pending) {
        if (!expired() && (await tryWithin(session, item, lockTimeoutMs))) {
          lastProgress = Date.now();
          onDone();
        } else refused.push(item);
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
async function tryWithin(session: Session, { sql }: TableWork, lockTimeoutMs: number): Promise<boolean> {
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
  pending: readonly TableWork[],
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
