// Check of run.ts: ownership of the selected tables (CREATE PUBLICATION FOR TABLE demands it, DROP TRIGGER too), SELECT,
// and USAGE on their schemas. One finding for each statement that helps, however many tables it is about.
import type { Role } from '../model/endpoint.ts';
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { nameSome } from './name-list.ts';
import type { Ask } from './ask.ts';

export interface TablePrivileges extends RelationName {
  readonly owner: string;
  /** Is the owner, or has its rights by membership. */
  readonly owns: boolean;
  readonly canSelect: boolean;
  readonly canUseSchema: boolean;
}

export async function readTablePrivileges(ask: Ask, oids: readonly number[]): Promise<TablePrivileges[]> {
  return ask<{
    schema: string;
    name: string;
    owner: string;
    owns: boolean;
    canSelect: boolean;
    canUseSchema: boolean;
  }>(
    `select n.nspname::text as schema, c.relname::text as name, pg_get_userbyid(c.relowner)::text as owner,
       pg_has_role(c.relowner, 'usage') as owns, has_table_privilege(c.oid, 'select') as "canSelect",
       has_schema_privilege(n.oid, 'usage') as "canUseSchema"
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = any($1::oid[]) order by n.nspname, c.relname`,
    [oids],
  );
}

export function assessTablePrivileges(
  tables: readonly TablePrivileges[],
  user: string,
  side: Role = 'source',
): Finding[] {
  const findings: Finding[] = [];
  const keys = (list: readonly RelationName[]): string => nameSome(list.map((table) => relationKey(table)));
  for (const [owner, list] of grouped(
    tables.filter((table) => !table.owns),
    (table) => table.owner,
  ))
    findings.push({
      code: 'table_not_owned',
      severity: 'blocking',
      object: list.length === 1 ? keys(list) : owner,
      message: `${side}: role ${user} must own the tables, or be a member of their owner ${owner}, to publish them: ${keys(list)}`,
      remedy: `grant ${ident(owner)} to ${ident(user)}`,
    });
  for (const [schema] of grouped(
    tables.filter((table) => !table.canUseSchema),
    (table) => table.schema,
  ))
    findings.push({
      code: 'schema_usage_denied',
      severity: 'blocking',
      object: schema,
      message: `${side}: role ${user} may not use schema ${schema}`,
      remedy: `grant usage on schema ${ident(schema)} to ${ident(user)}`,
    });
  // membership in the owner brings SELECT along
  const unreadable = tables.filter((table) => table.owns && !table.canSelect);
  if (unreadable.length > 0)
    findings.push({
      code: 'table_select_denied',
      severity: 'blocking',
      object: unreadable.length === 1 ? keys(unreadable) : side,
      message: `${side}: role ${user} may not read ${keys(unreadable)}`,
      remedy: `grant select on ${unreadable.map((table) => identRelation(table)).join(', ')} to ${ident(user)}`,
    });
  return findings;
}

function grouped<T>(list: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of list) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return groups;
}
