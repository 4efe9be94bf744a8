// Used by plan.ts for `*`: what of a whole database's dump is migrated besides the tables and what those need, and what is
// left out because an option says so, because it holds a secret, or because it needs a table that is left out. Pure.
import { relationKey } from '../model/relation.ts';
import { DTS_SCHEMA } from '../postgres/sql.ts';
import { objectKey, type ObjectKey } from './dependency-graph.ts';
import type { DumpEntry } from './split.ts';

/** Things that act beyond the database or on their own: migrated only when the option says so. */
const optIns: ReadonlyMap<string, OptIn> = new Map([
  ['FOREIGN DATA WRAPPER', 'foreignTables'],
  ['SERVER', 'foreignTables'],
  ['FOREIGN TABLE', 'foreignTables'],
  ['EVENT TRIGGER', 'eventTriggers'],
  ['PUBLICATION', 'publications'],
  ['PUBLICATION TABLE', 'publications'],
  ['PUBLICATION TABLES IN SCHEMA', 'publications'],
  ['SUBSCRIPTION', 'subscriptions'],
  ['SUBSCRIPTION TABLE', 'subscriptions'],
]);

export type OptIn = 'foreignTables' | 'eventTriggers' | 'publications' | 'subscriptions';

/** Of the option that an entry of this kind needs; null: none. */
export function optInOf(kind: string): OptIn | null {
  return optIns.get(kind) ?? null;
}

/** Their options hold passwords, which no plan may show. */
export function holdsSecret({ kind }: DumpEntry): boolean {
  return kind === 'USER MAPPING';
}

export function isOurs(entry: DumpEntry): boolean {
  return (
    entry.schema === DTS_SCHEMA ||
    (entry.kind === 'SCHEMA' && entry.tag === DTS_SCHEMA) ||
    // made by migrations and by their fences; nobody else's begin so
    (entry.kind.startsWith('PUBLICATION') && /^dts_[a-z0-9_]+(?: |$)/.test(entry.tag))
  );
}

/** Catalog rows that the plan should have, if their dependencies allow. `opted`: options that are on. */
export function wantedObjects(entries: readonly DumpEntry[], opted: ReadonlySet<OptIn>): ObjectKey[] {
  return entries
    .filter((entry) => {
      const optIn = optInOf(entry.kind);
      return (
        entry.classId !== 0 && !isOurs(entry) && !holdsSecret(entry) && (optIn === null || opted.has(optIn))
      );
    })
    .map((entry) => objectKey(entry.classId, entry.objectId));
}

/** Kinds of entries that make a relation. */
const relationKinds: ReadonlySet<string> = new Set([
  'TABLE',
  'VIEW',
  'MATERIALIZED VIEW',
  'FOREIGN TABLE',
  'SEQUENCE',
]);

/** Of entries that are not migrated those that are more than a part of a relation that is not migrated either. */
export function withoutParts(entries: readonly DumpEntry[]): DumpEntry[] {
  const gone = new Set(
    entries
      .filter(({ kind }) => relationKinds.has(kind))
      .map(({ schema, tag }) => relationKey({ schema: schema ?? '', name: tag })),
  );
  return entries.filter(({ kind, statements }) => {
    const subject = statements[0]?.subject;
    return relationKinds.has(kind) || !subject || !gone.has(relationKey(subject));
  });
}
