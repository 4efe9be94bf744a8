// The fence for logical subscriptions that write the source: an apply worker fires no statement triggers
// (ExecSimpleRelationInsert in execReplication.c), but row triggers, where they are ENABLE ALWAYS. They cost the
// application a call for every row, so only tables have them that a subscription writes.
import type { QueryResultRow } from 'pg';
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import { CREATE_TRIGGER_CONFLICTS } from '../postgres/lock-holders.ts';
import { onePerTransaction } from '../postgres/one-per-transaction.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { subscriptionsWriting, tablesOfSubscriptions } from '../postgres/subscriptions.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { ensureFenceFunction, rowFenceFunction, rowFenceTriggerName } from './fence-function.ts';

const asking =
  (scope: TaskScope) =>
  async <R extends QueryResultRow>(sql: string, params: readonly unknown[]): Promise<readonly R[]> =>
    (await scope.source.query<R>(sql, params)).rows;

interface Unguarded {
  readonly relation: RelationName;
  /** The trigger is there, but somebody has disabled it. */
  readonly isThere: boolean;
}

/** Tables that a subscription writes and that have no row trigger of ours. */
async function findUnguarded(scope: TaskScope, oids: readonly number[]): Promise<Unguarded[]> {
  const written = await tablesOfSubscriptions(asking(scope), oids);
  if (written.length === 0) return [];
  const { rows } = await scope.source.query<RelationName & { enabled: string | null }>(
    `select w.schema, w.name, t.tgenabled::text as enabled
     from unnest($1::text[], $2::text[]) as w(schema, name)
       join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name
       left join pg_trigger t on t.tgrelid = c.oid and t.tgname = $3`,
    [written.map(({ schema }) => schema), written.map(({ name }) => name), rowFenceTriggerName(scope.taskId)],
  );
  return rows
    .filter(({ enabled }) => enabled !== 'A')
    .map(({ schema, name, enabled }) => ({ relation: { schema, name }, isThere: enabled !== null }));
}

/** Makes those that are missing, one table a transaction. Errors: as of `installTriggers`. */
export async function installRowTriggers(
  scope: TaskScope,
  oids: readonly number[],
  giveUpAfterMs: number,
): Promise<void> {
  const unguarded = await findUnguarded(scope, oids);
  if (unguarded.length === 0) return;
  await ensureFenceFunction(scope, 'row');
  const trigger = ident(rowFenceTriggerName(scope.taskId));
  const work = unguarded.map(({ relation, isThere }) => {
    const table = identRelation(relation);
    const create = `create trigger ${trigger} before insert or update or delete on ${table}
      for each row execute function ${identRelation(rowFenceFunction(scope.taskId))}();`;
    return {
      relation,
      sql: `${isThere ? '' : create} alter table only ${table} enable always trigger ${trigger};`,
    };
  });
  await onePerTransaction(scope, work, 'the fence', CREATE_TRIGGER_CONFLICTS, giveUpAfterMs);
}

/** Throws `fence_failed` for subscriptions that the fence does not stop: of other strategies, or begun under it. */
export async function refuseSubscriptions(scope: TaskScope, oids: readonly number[]): Promise<void> {
  const stopped = scope.spec.options.fence === 'triggers';
  const unguarded = stopped ? await findUnguarded(scope, oids) : [];
  if (stopped && unguarded.length === 0) return;
  const names = await subscriptionsWriting(asking(scope), oids);
  if (names.length === 0) return;
  throw new MigrationError(
    'fence_failed',
    `source: subscriptions write tables of the migration, past the fence: ${names.join(', ')}`,
    {
      hint: stopped
        ? 'request the cutover again: their tables get row triggers then'
        : `${names.map((name) => `drop subscription ${ident(name)}`).join('; ')}; then request the cutover again`,
      details: {
        role: 'source',
        subscriptions: names,
        relations: unguarded.map(({ relation }) => relationKey(relation)),
      },
    },
  );
}
