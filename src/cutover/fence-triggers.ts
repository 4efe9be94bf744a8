// Puts the fence's triggers on the source's tables and takes them away again, one table a transaction, while the
// application writes.
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import { ALL_MODES, CREATE_TRIGGER_CONFLICTS } from '../postgres/lock-holders.ts';
import { onePerTransaction, type TableWork } from '../postgres/one-per-transaction.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { fenceFunction, fenceTriggerName, rowFenceTriggerName } from './fence-function.ts';

/** Every relation that the fence guards: tables, leaves and partitioned parents. */
export function fencedRelations(scope: TaskScope): RelationName[] {
  const { tables, unlogged = [], roots } = schemaPlanOf(scope);
  return [...roots, ...tables, ...unlogged].map((mapping) => mapping.source);
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
  const pending: TableWork[] = [];
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
  const names = [fenceTriggerName(scope.taskId), rowFenceTriggerName(scope.taskId)];
  const { rows } = await scope.source.query<RelationName & { triggers: string[] }>(
    `select n.nspname::text as schema, c.relname::text as name, array_agg(t.tgname::text) as triggers
     from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
     where t.tgname = any ($1) and not t.tgisinternal group by 1, 2 order by 1, 2`,
    [names],
  );
  const pending = rows.map(({ triggers, ...relation }) => ({
    relation,
    sql: triggers
      .map((name) => `drop trigger if exists ${ident(name)} on ${identRelation(relation)};`)
      .join(' '),
  }));
  await onePerTransaction(scope, pending, 'removing the fence', ALL_MODES, giveUpAfterMs);
}
