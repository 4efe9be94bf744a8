// Used by plan.ts: roles that statements name (owners, grantees, whom policies are for) and that the target lacks.
import type { Finding } from '../model/finding.ts';
import type { PlannedStatement } from '../model/schema-plan.ts';
import type { Side } from '../postgres/connections.ts';
import { ident } from '../postgres/sql.ts';
import type { Renaming } from './rename.ts';
import type { DumpEntry } from './split.ts';

export async function missingRoles(
  target: Side,
  kept: readonly DumpEntry[],
  renaming: Renaming,
  besides: readonly string[],
): Promise<string[]> {
  const named = kept.flatMap(({ statements }) =>
    statements.flatMap((statement) =>
      statement.names.filter(({ kind }) => kind === 'role').map(({ name }) => name),
    ),
  );
  const names = [...named, ...besides].map((name) => renaming.role(name));
  const { rows } = await target.query<{ name: string }>(
    `select name from unnest($1::text[]) as r(name) where not exists (select from pg_roles where rolname = name)
     order by name collate "C"`,
    [[...new Set(names)]],
  );
  return rows.map(({ name }) => name);
}

/** Without login and password: those are the operator's to give. */
export function createRole(name: string): Omit<PlannedStatement, 'n'> {
  return {
    phase: 'pre-data',
    sql: `create role ${ident(name)} nologin`,
    object: `ROLE ${name}`,
    table: null,
    creates: null,
    unlessExists: { type: 'role', names: [name], args: [] },
  };
}

export function roleFindings(names: readonly string[], roles: 'existing' | 'create'): Finding[] {
  return names.map((name) =>
    roles === 'create'
      ? {
          code: 'role_created',
          severity: 'info',
          object: name,
          message: `target: role ${name} is created without login and without its memberships`,
          remedy: `alter role ${ident(name)} login password '…'`,
        }
      : {
          code: 'role_missing',
          severity: 'blocking',
          object: name,
          message: `target: there is no role ${name}, which owners, grants or policies name`,
          remedy: `create role ${ident(name)}; or set options.roles to create, or map it in options.owners`,
        },
  );
}
