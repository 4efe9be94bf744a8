// Check of run.ts: standbys and read-only targets. On a standby a source's snapshots lack the running transactions
// (pg_current_snapshot has an empty xip), so the copy would not meet the stream.
import type { Finding } from '../model/finding.ts';
import type { Role } from '../model/endpoint.ts';
import { ident } from '../postgres/sql.ts';
import { onlyRow, type Ask } from './ask.ts';

export interface ReadOnlyFacts {
  readonly inRecovery: boolean;
  /** default_transaction_read_only as server, database and role configure it. */
  readonly defaultReadOnly: boolean;
  /** That is set for our role, which wins over the database's and the server's. */
  readonly setForRole: boolean;
  readonly dbname: string;
  readonly user: string;
}

export async function readReadOnly(ask: Ask): Promise<ReadOnlyFacts> {
  // reset_val: our own sessions switch the setting off
  return onlyRow(
    await ask<{
      inRecovery: boolean;
      defaultReadOnly: boolean;
      setForRole: boolean;
      dbname: string;
      user: string;
    }>(
      `select pg_is_in_recovery() as "inRecovery", current_database()::text as dbname, current_user::text as "user",
         exists (select from pg_db_role_setting s join pg_roles r on r.oid = s.setrole, unnest(s.setconfig) as c(entry)
           where r.rolname = current_user and starts_with(c.entry, 'default_transaction_read_only=')
             and s.setdatabase in (0, (select oid from pg_database where datname = current_database())))
           as "setForRole",
         (select reset_val = 'on' from pg_settings where name = 'default_transaction_read_only') as "defaultReadOnly"`,
    ),
  );
}

export function assessReadOnly(role: Role, facts: ReadOnlyFacts): Finding[] {
  if (facts.inRecovery)
    return [
      {
        code: `${role}_is_standby`,
        severity: 'blocking',
        object: role,
        message: `${role}: the server is a standby (in recovery)`,
        remedy: `give the address of the primary server as the ${role}`,
      },
    ];
  if (role === 'target' && facts.defaultReadOnly)
    return [
      {
        code: 'target_read_only',
        severity: 'blocking',
        object: role,
        message: 'target: default_transaction_read_only is on for this database, role or server',
        // an ordinary transaction of this database would itself be read-only
        remedy: `begin read write; alter ${
          facts.setForRole
            ? `role ${ident(facts.user)} in database ${ident(facts.dbname)}`
            : `database ${ident(facts.dbname)}`
        } set default_transaction_read_only = off; commit`,
      },
    ];
  return [];
}

/** Of a source with `fence: database-read-only`: roles whose own setting wins over the database's write on under it. */
export function assessRolesPast(roles: readonly string[]): Finding[] {
  return roles.map((name) => ({
    code: 'role_passes_fence',
    severity: 'warning',
    object: name,
    message: `source: role ${name} has default_transaction_read_only = off of its own: fence database-read-only does not stop it`,
    remedy: `alter role ${ident(name)} reset default_transaction_read_only (or the same with: in database …); or options.fence: triggers`,
  }));
}
