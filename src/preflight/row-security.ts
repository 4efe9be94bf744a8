// Check of run.ts: row-level security that applies to our role. COPY would silently return fewer rows; our sessions set
// row_security = off, which makes it an error instead. Better known now.
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import { ident } from '../postgres/sql.ts';
import { nameSome } from './name-list.ts';
import type { Ask } from './ask.ts';

/** The selected tables whose policies would filter what we read: not for superusers, BYPASSRLS and, unforced, owners. */
export async function readRestrictedTables(ask: Ask, oids: readonly number[]): Promise<RelationName[]> {
  return ask<{ schema: string; name: string }>(
    `select n.nspname::text as schema, c.relname::text as name
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = any($1::oid[]) and c.relrowsecurity and row_security_active(c.oid)
     order by n.nspname, c.relname`,
    [oids],
  );
}

export function assessRowSecurity(tables: readonly RelationName[], user: string): Finding[] {
  if (tables.length === 0) return [];
  const names = nameSome(tables.map((table) => relationKey(table)));
  return [
    {
      code: 'row_security_active',
      severity: 'blocking',
      object: tables.length === 1 ? names : 'source',
      message: `source: row-level security hides rows of ${names} from role ${user}`,
      remedy: `alter role ${ident(user)} bypassrls`,
    },
  ];
}
