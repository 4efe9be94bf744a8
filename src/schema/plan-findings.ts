// Used by plan.ts: what planning has to tell, in words. Whatever of the source is not migrated appears here. Pure.
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { TableSelection } from '../postgres/catalog.ts';
import type { Dependencies, LeftOut } from './dependencies.ts';
import type { Renaming } from './rename.ts';
import type { DumpEntry } from './split.ts';

const SHOWN = 20;

export function describeEntry({ kind, schema, tag }: DumpEntry): string {
  return `${kind} ${schema === null ? '' : `${schema}.`}${tag}`;
}

export function selectionFindings(selection: TableSelection, dependencies: Dependencies): Finding[] {
  return [
    ...selection.unusable.map(
      ({ requested, reason }): Finding => ({
        code: 'table_unusable',
        severity: 'blocking',
        object: requested,
        message: `${requested} ${reason}`,
        remedy: 'take it off the list of tables',
      }),
    ),
    ...dependencies.needed.map(
      (table): Finding => ({
        code: 'table_needed',
        severity: 'blocking',
        object: table,
        message: `a selected table is made from ${table} (inheritance, row type or function), which is not selected`,
        remedy: `add ${table} to the list of tables`,
      }),
    ),
    ...dependencies.leftOut.map(leftOutFinding),
  ];
}

function leftOutFinding({ member, needs }: LeftOut): Finding {
  return {
    code: `${member.kind.replace(' ', '_')}_left_out`,
    severity: 'warning',
    object: member.table,
    message: `${member.kind} ${member.relation.name} of ${member.table} is left out: it needs ${needs}, which is not selected`,
    remedy: `add ${needs} to the list of tables`,
  };
}

/** Kinds whose absence changes no row and no behaviour: nothing that is migrated uses them. */
const harmlessKinds: ReadonlySet<string> = new Set(['SCHEMA', 'TYPE', 'DOMAIN', 'COLLATION', 'EXTENSION']);

/** One finding a kind for entries of the whole database that are not migrated. */
export function notMigratedFindings(entries: readonly DumpEntry[]): Finding[] {
  const byKind = new Map<string, string[]>();
  for (const entry of entries)
    byKind.set(entry.kind, [...(byKind.get(entry.kind) ?? []), describeEntry(entry)]);
  return [...byKind].map(([kind, names]) => ({
    code: 'not_migrated',
    severity: harmlessKinds.has(kind) ? 'info' : 'warning',
    object: 'source',
    message: `not migrated yet: ${names.slice(0, SHOWN).join(', ')}${names.length > SHOWN ? ` and ${names.length - SHOWN} more` : ''}`,
    remedy: null,
  }));
}

/** Names inside strings are beyond the parser: function bodies, and constants that name what is not migrated. */
export function textFindings(
  entries: readonly DumpEntry[],
  renaming: Renaming,
  renamed: readonly RelationName[],
  present: ReadonlySet<string>,
): Finding[] {
  const findings: Finding[] = [];
  for (const entry of entries) {
    for (const { stringBody, names } of entry.statements) {
      const mentioned = stringBody === null ? [] : renaming.mentionedIn(stringBody, renamed);
      if (mentioned.length > 0)
        findings.push({
          code: 'function_mentions_renamed_table',
          severity: 'warning',
          object: describeEntry(entry),
          message: `${describeEntry(entry)} mentions ${mentioned.map(relationKey).join(', ')} by the old name in its body`,
          remedy: 'change the function on the target if it should use the renamed tables',
        });
      for (const { kind, ...name } of names)
        if (kind === 'literal' && !present.has(relationKey(name)))
          findings.push({
            code: 'late_bound_reference',
            severity: 'warning',
            object: describeEntry(entry),
            message: `${describeEntry(entry)} refers to ${relationKey(name)} by text; PostgreSQL does not know that it is needed, so it is not migrated`,
            remedy: `create ${relationKey(name)} on the target`,
          });
    }
    if (entry.accessMethod !== null)
      findings.push({
        code: 'access_method_not_migrated',
        severity: 'warning',
        object: describeEntry(entry),
        message: `${describeEntry(entry)} uses the table access method ${entry.accessMethod}; the target's table gets the target's default`,
        remedy: null,
      });
  }
  return findings;
}
