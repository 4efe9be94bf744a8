// Check of run.ts: CREATE on the database (source: publication, schema dts for the fence; target: schema dts and the
// missing schemas), and a schema dts that another role made.
import type { Finding } from '../model/finding.ts';
import type { Role } from '../model/endpoint.ts';
import { DTS_SCHEMA, ident } from '../postgres/sql.ts';
import { onlyRow, type Ask } from './ask.ts';

export interface DatabasePrivileges {
  readonly dbname: string;
  readonly user: string;
  readonly canCreate: boolean;
  /** USAGE and CREATE on schema dts; null when there is none. */
  readonly canUseOurSchema: boolean | null;
  /** Reading and writing every table in it; null when there is none. */
  readonly canWriteOurTables: boolean | null;
}

export async function readDatabasePrivileges(ask: Ask): Promise<DatabasePrivileges> {
  return onlyRow(
    await ask<{
      dbname: string;
      user: string;
      canCreate: boolean;
      canUseOurSchema: boolean | null;
      canWriteOurTables: boolean | null;
    }>(
      `select current_database()::text as dbname, current_user::text as "user",
         has_database_privilege(current_database(), 'create') as "canCreate",
         (select has_schema_privilege(oid, 'usage') and has_schema_privilege(oid, 'create')
          from pg_namespace where nspname = $1) as "canUseOurSchema",
         (select bool_and(has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
              and has_table_privilege(c.oid, 'update') and has_table_privilege(c.oid, 'delete'))
          from pg_class c join pg_namespace n on n.oid = c.relnamespace
          where n.nspname = $1 and c.relkind = 'r') as "canWriteOurTables"`,
      [DTS_SCHEMA],
    ),
  );
}

export function assessDatabasePrivileges(role: Role, facts: DatabasePrivileges): Finding[] {
  const { dbname, user } = facts;
  const findings: Finding[] = [];
  if (!facts.canCreate)
    findings.push({
      code: `${role}_create_denied`,
      severity: 'blocking',
      object: dbname,
      message:
        role === 'source'
          ? `source: role ${user} may not create the publication and schema dts in database ${dbname}`
          : `target: role ${user} may not create schemas in database ${dbname}`,
      remedy: `grant create on database ${ident(dbname)} to ${ident(user)}`,
    });
  if (facts.canUseOurSchema === false)
    findings.push({
      code: `${role}_dts_schema_denied`,
      severity: 'blocking',
      object: DTS_SCHEMA,
      message: `${role}: schema dts was made by another role, and role ${user} may not use it`,
      remedy: `grant usage, create on schema ${ident(DTS_SCHEMA)} to ${ident(user)}`,
    });
  if (role === 'target' && facts.canWriteOurTables === false)
    findings.push({
      code: 'target_dts_tables_denied',
      severity: 'blocking',
      object: DTS_SCHEMA,
      message: `target: the tables in schema dts were made by another role, and role ${user} may not write them`,
      remedy: `grant select, insert, update, delete on all tables in schema ${ident(DTS_SCHEMA)} to ${ident(user)}`,
    });
  return findings;
}
