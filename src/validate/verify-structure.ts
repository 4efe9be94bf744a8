// Of `dts verify`: whether the tables of a certificate have the structure, on each side, that they had when it was made.
// A side is compared with itself: where both had the same and neither has changed, both have the same.
import type { Certificate, TableStructure } from '../model/certificate.ts';
import { parseRelationName } from '../model/relation.ts';
import type { Side } from '../postgres/connections.ts';
import { readStructures } from '../postgres/table-structure.ts';

const parts = [
  'columns',
  'constraints',
  'indexes',
  'triggers',
] as const satisfies readonly (keyof TableStructure)[];

export interface StructureChange {
  readonly role: 'source' | 'target';
  readonly table: string;
  readonly parts: readonly (keyof TableStructure)[];
}

export interface StructureCheck {
  readonly changes: readonly StructureChange[];
  /** Why a side was not looked at, one reason a side. */
  readonly unknown: readonly string[];
}

/** A table that is gone is no change: its rows cannot be compared, which is said already. Errors: those of the servers. */
export async function checkStructure(
  scope: { readonly source: Side; readonly target: Side },
  certificate: Certificate,
): Promise<StructureCheck> {
  const changes: StructureChange[] = [];
  const unknown: string[] = [];
  for (const role of ['source', 'target'] as const) {
    const certified = new Map(
      certificate.tables.flatMap(({ table, target, structure }) => {
        const had = structure?.[role] ?? null;
        return had === null ? [] : [[role === 'source' ? table : target, had] as const];
      }),
    );
    if (certified.size === 0) {
      if (certificate.tables.length > 0)
        unknown.push(`the certificate has no structure of the ${role}'s tables`);
      continue;
    }
    // another major may print the same otherwise
    const majors = [majorIn(certificate[`${role}Version`]), await majorOf(scope[role])];
    if (majors[0] !== majors[1]) {
      unknown.push(`the ${role} was PostgreSQL ${majors[0]} and is ${majors[1]}`);
      continue;
    }
    const found = await readStructures(scope[role], [...certified.keys()].map(parseRelationName));
    for (const [table, had] of certified) {
      const has = found.get(table);
      if (!has) continue;
      const changed = parts.filter((part) => has[part] !== had[part]);
      if (changed.length > 0) changes.push({ role, table, parts: changed });
    }
  }
  return { changes, unknown };
}

async function majorOf(side: Side): Promise<number> {
  const { rows } = await side.query<{ version: string }>(
    `select current_setting('server_version') as version`,
  );
  return majorIn(rows[0]?.version ?? '');
}

/** Of `server_version`: `16.4 (Debian …)`, `18beta1`. */
function majorIn(version: string): number {
  return Number.parseInt(version, 10);
}
