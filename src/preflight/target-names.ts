// Check of run.ts: the names that the tables will have on the target are free, and we may create them there.
import type { Finding } from '../model/finding.ts';
import { relationKey, suffixedName, type RelationName } from '../model/relation.ts';
import type { CatalogTable } from '../postgres/catalog.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import { onlyRow, type Ask } from './ask.ts';

export interface TakenName extends RelationName {
  /** As DROP names it: `table`, `view`, `index` … */
  readonly kind: string;
}

export interface TargetNames {
  /** Relations in the way, none of them made by this task. */
  readonly taken: readonly TakenName[];
  /** Existing schemas that we may not use or in which we may not create. */
  readonly denied: readonly string[];
  readonly user: string;
  /** Another migration's row under our id. */
  readonly strangerInBookkeeping: boolean;
}

export function targetNames(tables: readonly CatalogTable[], suffix: string): RelationName[] {
  return tables.map(({ relation }) => ({
    schema: relation.schema,
    name: suffixedName(relation.name, suffix),
  }));
}

export async function readTargetNames(
  ask: Ask,
  names: readonly RelationName[],
  task: { readonly id: string; readonly incarnation: string },
): Promise<TargetNames> {
  const schemas = names.map(({ schema }) => schema);
  const { bookkeeping } = onlyRow(
    await ask<{ bookkeeping: boolean }>(
      `select coalesce((select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'dts' and c.relname = 'statement'), false) as bookkeeping`,
    ),
  );
  const made = bookkeeping
    ? `and not exists (select from dts.statement s join dts.task t using (task_id)
         where s.task_id = $3 and t.incarnation = $4 and s.creates_schema = r.schema and s.creates_name = r.name)`
    : 'and $3::text is not null and $4::text is not null';
  const taken = await ask<{ schema: string; name: string; kind: string }>(
    `select r.schema, r.name, case c.relkind when 'v' then 'view' when 'm' then 'materialized view'
         when 'f' then 'foreign table' when 'S' then 'sequence' when 'c' then 'type'
         when 'i' then 'index' when 'I' then 'index' else 'table' end as kind
     from unnest($1::text[], $2::text[]) as r(schema, name)
       join pg_namespace n on n.nspname = r.schema join pg_class c on c.relnamespace = n.oid and c.relname = r.name
     where true ${made} order by 1, 2`,
    [schemas, names.map(({ name }) => name), task.id, task.incarnation],
  );
  const denied = await ask<{ schema: string }>(
    `select distinct n.nspname::text as schema from pg_namespace n
     where n.nspname = any($1::text[]) and not (has_schema_privilege(n.oid, 'usage') and has_schema_privilege(n.oid, 'create'))
     order by 1`,
    [schemas],
  );
  const strangers = bookkeeping
    ? await ask('select 1 from dts.task where task_id = $1 and incarnation <> $2', [
        task.id,
        task.incarnation,
      ])
    : [];
  const { user } = onlyRow(await ask<{ user: string }>('select current_user::text as "user"'));
  return {
    taken,
    denied: denied.map(({ schema }) => schema),
    user,
    strangerInBookkeeping: strangers.length > 0,
  };
}

export function assessTargetNames(
  facts: TargetNames,
  taskId: string,
  suffix: string,
  sameDatabase: boolean,
): Finding[] {
  const findings: Finding[] = facts.taken.map((relation) => ({
    code: 'target_name_taken',
    severity: 'blocking',
    object: relationKey(relation),
    message: `target: ${relationKey(relation)} exists already (${relation.kind})`,
    remedy:
      sameDatabase && suffix === ''
        ? 'source and target are the same database: set table_suffix'
        : `set another table_suffix, or: drop ${relation.kind} ${identRelation(relation)}`,
  }));
  for (const schema of facts.denied)
    findings.push({
      code: 'target_schema_denied',
      severity: 'blocking',
      object: schema,
      message: `target: role ${facts.user} may not create tables in schema ${schema}`,
      remedy: `grant usage, create on schema ${ident(schema)} to ${ident(facts.user)}`,
    });
  if (facts.strangerInBookkeeping)
    findings.push({
      code: 'target_id_taken',
      severity: 'blocking',
      object: taskId,
      message: `target: another migration uses the id ${taskId}`,
      remedy: `choose another id, or, if that migration is gone: delete from dts.task where task_id = ${literal(taskId)}`,
    });
  return findings;
}
