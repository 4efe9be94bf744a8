// Used by plan.ts: what planning has to tell, in words. Whatever of the source is not migrated appears here. Pure.
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { TableSelection } from '../postgres/catalog.ts';
import { ident } from '../postgres/sql.ts';
import type { Dependencies, LeftOut } from './dependencies.ts';
import { catalogs, objectKey, type ObjectKey } from './dependency-graph.ts';
import type { Renaming } from './rename.ts';
import type { DumpEntry } from './split.ts';
import { holdsSecret, isOurs, optInOf, withoutParts, type OptIn } from './whole-database.ts';

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
    ...selection.excludedNothing.map(
      (pattern): Finding => ({
        code: 'exclude_without_match',
        severity: 'warning',
        object: pattern,
        message: `options.exclude: ${pattern} matches no relation`,
        remedy: 'correct options.exclude in the request',
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

/**
 * Of a whole database, what is not migrated: because of `options.exclude`, because an option must ask for it, because it
 * holds a password. What is ours, and parts of what is left out, need no mention.
 */
export function restFindings(
  entries: readonly DumpEntry[],
  { leftOut, lost, members, ownedByOthers }: Dependencies,
  { excluded }: TableSelection,
): Finding[] {
  const known = new Set<ObjectKey>([
    ...ownedByOthers,
    ...leftOut.map(({ member }) => member.key),
    ...[...members.values()].filter((member) => member.isOurs).map(({ key }) => key),
    ...excluded.map(({ oid }) => objectKey(catalogs.class, oid)),
  ]);
  const keyOf = (entry: DumpEntry): ObjectKey => objectKey(entry.classId, entry.objectId);
  const findings: Finding[] = excluded.length === 0 ? [] : [excludedFinding(excluded)];
  const unexplained: DumpEntry[] = [];
  const byOption = new Map<OptIn, DumpEntry[]>();
  for (const entry of withoutParts(entries)) {
    const optIn = optInOf(entry.kind);
    const needs = lost.get(keyOf(entry));
    if (holdsSecret(entry)) findings.push(secretFinding(entry));
    else if (isOurs(entry) || known.has(keyOf(entry))) continue;
    else if (needs !== undefined) findings.push(lostFinding(entry, needs));
    else if (optIn !== null) byOption.set(optIn, [...(byOption.get(optIn) ?? []), entry]);
    else unexplained.push(entry);
  }
  for (const [optIn, list] of byOption) findings.push(optInFinding(optIn, list));
  return [...findings, ...notMigratedFindings(unexplained)];
}

export function skippedFindings(entries: readonly DumpEntry[]): Finding[] {
  return entries
    .filter(({ kind }) => kind === 'EXTENSION')
    .map(({ tag }) => ({
      code: 'extension_skipped',
      severity: 'info',
      object: tag,
      message: `options.extensions leaves the extension ${tag} to the target`,
      remedy: `create extension ${ident(tag)}`,
    }));
}

/** A plain role's dump has no subscriptions; that the source has some is told all the same. */
export function hiddenSubscriptionsFindings(
  names: readonly string[],
  entries: readonly DumpEntry[],
): Finding[] {
  const shown = new Set(entries.filter(({ kind }) => kind === 'SUBSCRIPTION').map(({ tag }) => tag));
  const hidden = names.filter((name) => !shown.has(name));
  if (hidden.length === 0) return [];
  return [
    {
      code: 'subscriptions_hidden',
      severity: 'warning',
      object: 'source',
      message: `not migrated: the subscriptions ${namesOf(hidden)}; pg_dump shows subscriptions to superusers only`,
      remedy:
        'migrate as superuser with options.subscriptions, or create them on the target yourself: create subscription …',
    },
  ];
}

function namesOf(names: readonly string[]): string {
  return `${names.slice(0, SHOWN).join(', ')}${names.length > SHOWN ? ` and ${names.length - SHOWN} more` : ''}`;
}

function excludedFinding(excluded: TableSelection['excluded']): Finding {
  return {
    code: 'excluded',
    severity: 'info',
    object: 'options.exclude',
    message: `left out by options.exclude: ${namesOf(excluded.map((relation) => relationKey(relation)))}`,
    remedy: null,
  };
}

function lostFinding(entry: DumpEntry, needs: string): Finding {
  return {
    code: 'object_left_out',
    severity: 'warning',
    object: describeEntry(entry),
    message: `${describeEntry(entry)} is left out: it needs ${needs}, which is not migrated`,
    remedy: `take ${needs} off options.exclude, or name the object there as well`,
  };
}

const optionNames: Readonly<Record<OptIn, string>> = {
  foreignTables: 'foreign_tables',
  eventTriggers: 'event_triggers',
  publications: 'publications',
  subscriptions: 'subscriptions',
};

function optInFinding(optIn: OptIn, entries: readonly DumpEntry[]): Finding {
  return {
    code: 'needs_option',
    severity: 'warning',
    object: `options.${optionNames[optIn]}`,
    message: `left out unless options.${optionNames[optIn]} is true: ${namesOf(entries.map(describeEntry))}`,
    remedy: `set options.${optionNames[optIn]}, or create them on the target yourself`,
  };
}

function secretFinding(entry: DumpEntry): Finding {
  return {
    code: 'holds_secret',
    severity: 'warning',
    object: describeEntry(entry),
    message: `${describeEntry(entry)} is left out: it may hold a password`,
    remedy: 'create it on the target yourself: create user mapping for …',
  };
}

/** One finding a kind for entries of the whole database that are not migrated. */
export function notMigratedFindings(entries: readonly DumpEntry[]): Finding[] {
  const byKind = new Map<string, string[]>();
  for (const entry of entries)
    byKind.set(entry.kind, [...(byKind.get(entry.kind) ?? []), describeEntry(entry)]);
  return [...byKind].map(([kind, names]) => ({
    code: 'not_migrated',
    severity: harmlessKinds.has(kind) ? 'info' : 'warning',
    object: 'source',
    message: `not migrated: ${namesOf(names)}`,
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
    if (entry.kind === 'SUBSCRIPTION')
      findings.push({
        code: 'subscription_without_connection',
        severity: 'warning',
        object: describeEntry(entry),
        message: `${describeEntry(entry)} is made disabled and without its connection, which may hold a password`,
        remedy: `alter subscription ${ident(entry.tag)} connection '…'`,
      });
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
