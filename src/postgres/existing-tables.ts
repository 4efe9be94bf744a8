// Writing into tables that may have triggers and foreign keys: those of the application must not fire for rows that are
// copied, streamed or repaired, because their effects come from the source as well.
import type { ClientBase } from 'pg';
import { fromPostgres } from './errors.ts';
import { identRelation } from './sql.ts';
import type { RelationName } from '../model/relation.ts';
import type { TaskScope } from './task-scope.ts';

/**
 * From here on triggers, rules and foreign keys do not fire in the session (in a transaction, with `local`: in that).
 * Where the role may not set it, nothing changes: tables that we made have none before finalizing, and of those that
 * stood before preflight has said so.
 */
export async function silenceTriggers(client: ClientBase, { local = false } = {}): Promise<void> {
  try {
    if (local) await client.query('savepoint role');
    await client.query(`set ${local ? 'local ' : ''}session_replication_role = replica`);
  } catch (error) {
    if (fromPostgres(error).code !== 'insufficient_privilege') throw error;
    if (local) await client.query('rollback to role');
  }
}

/** Whether tables that we did not make are written. */
export function writesExisting(scope: Pick<TaskScope, 'spec'>): boolean {
  return scope.spec.options.schema === 'existing';
}

/** TRUNCATE refuses a table that a foreign key of another one names, whatever the session sets. */
export function deleteAllSql(relation: RelationName): string {
  return `delete from only ${identRelation(relation)}`;
}

/** In the caller's transaction: waits until whoever writes into the table has ended, and removes all of its rows. */
export async function emptyTable(
  scope: Pick<TaskScope, 'spec'>,
  client: ClientBase,
  relation: RelationName,
): Promise<void> {
  const name = identRelation(relation);
  if (!writesExisting(scope)) {
    await client.query(`truncate only ${name}`);
    return;
  }
  await client.query(`lock table only ${name} in share row exclusive mode`);
  await silenceTriggers(client, { local: true });
  await client.query(deleteAllSql(relation));
}
