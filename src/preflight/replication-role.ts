// Check of run.ts: the role may replicate. On Amazon RDS nobody gets the attribute: membership in rds_replication does.
import type { Finding } from '../model/finding.ts';
import type { Role } from '../model/endpoint.ts';
import { ident } from '../postgres/sql.ts';
import { onlyRow, type Ask } from './ask.ts';

export interface RoleFacts {
  readonly name: string;
  readonly isSuperuser: boolean;
  readonly hasReplication: boolean;
  /** Null where the server has no such role. */
  readonly inRdsReplication: boolean | null;
}

export async function readRole(ask: Ask): Promise<RoleFacts> {
  return onlyRow(
    await ask<{
      name: string;
      isSuperuser: boolean;
      hasReplication: boolean;
      inRdsReplication: boolean | null;
    }>(
      `select r.rolname::text as name, r.rolsuper as "isSuperuser", r.rolreplication as "hasReplication",
         (select pg_has_role(m.oid, 'member') from pg_roles m where m.rolname = 'rds_replication')
           as "inRdsReplication"
       from pg_roles r where r.rolname = current_user`,
    ),
  );
}

export function mayReplicate(role: RoleFacts): boolean {
  return role.isSuperuser || role.hasReplication || role.inRdsReplication === true;
}

export function assessReplicationRole(role: RoleFacts, side: Role = 'source'): Finding[] {
  if (mayReplicate(role)) return [];
  return [
    {
      code: 'role_lacks_replication',
      severity: 'blocking',
      object: role.name,
      message: `${side}: role ${role.name} may not replicate`,
      remedy:
        role.inRdsReplication === null
          ? `alter role ${ident(role.name)} replication`
          : `grant rds_replication to ${ident(role.name)}`,
    },
  ];
}
