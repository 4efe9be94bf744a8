// Used by createTables and preflight: from a request to a SchemaPlan. The catalog says what belongs to the selected
// tables (dependencies.ts), pg_dump says how it is written (dump.ts), phases.ts when each statement runs, rename.ts
// under which name. No statement is generated here but VALIDATE CONSTRAINT. Nothing is left out without a finding.
import { MigrationError } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName, type TableMapping } from '../model/relation.ts';
import type { ObjectAddress, PlannedStatement, PlannedTable, SchemaPlan } from '../model/schema-plan.ts';
import { readSelection, type CatalogTable, type TableSelection } from '../postgres/catalog.ts';
import { DTS_SCHEMA, ident, identRelation } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { catalogs, objectKey, readDependencies, type Dependencies } from './dependencies.ts';
import { chooseDumper, dumpSchema } from './dump.ts';
import { keyIndexesOf, phaseOf, phaseOrder, rankOf } from './phases.ts';
import { describeEntry, notMigratedFindings, selectionFindings, textFindings } from './plan-findings.ts';
import { Renaming } from './rename.ts';
import type { DumpEntry } from './split.ts';
import type { DumpStatement } from './statement.ts';

/**
 * Plans the schema work of a task from the source's present schema. Writes nothing.
 * Errors: those of a query, `schema_unsupported`, `schema_failed` (pg_dump), `source_ddl`, `lock_timeout`,
 * `deadline_exceeded`.
 */
export async function planSchema(scope: TaskScope): Promise<SchemaPlan> {
  const { tables: requested, tableSuffix } = scope.spec;
  const everything = requested.length === 1 && requested[0] === '*';
  const selection = await readSelection(scope.source, requested);
  const dependencies = await readDependencies(scope.source, selection.tables);
  // pg_dump locks every table that it dumps: look only into the schemas concerned, unless what is needed lies in none
  const narrow = !everything && !dependencies.beyondSchemas && dependencies.schemas.length > 0;
  const entries = await dumpSchema(scope, await chooseDumper(scope), {
    role: 'source',
    schemas: narrow ? dependencies.schemas : null,
    extensions: dependencies.extensions,
  });
  const { rows } = await scope.target.query<{ version: number }>(
    `select current_setting('server_version_num')::int as version`,
  );
  const targetVersion = rows[0]?.version ?? 0;
  return buildPlan({ selection, dependencies, entries, suffix: tableSuffix, everything, targetVersion });
}

export interface PlanInput {
  readonly selection: TableSelection;
  readonly dependencies: Dependencies;
  readonly entries: readonly DumpEntry[];
  readonly suffix: string;
  /** The request was `*`: whatever of the database is not migrated is reported. */
  readonly everything: boolean;
  /** server_version_num of the target. */
  readonly targetVersion: number;
}

/** A statement without its place: `sql` of a shared object grows by its comments. */
interface Draft extends Omit<PlannedStatement, 'n'> {
  sql: string;
  readonly rank: number;
}

/** The pure half of planSchema. */
function buildPlan(input: PlanInput): SchemaPlan {
  const { selection, dependencies, entries, everything } = input;
  const members = [...dependencies.members.values()];
  const relationsOf = (kind: 'index' | 'statistics'): RelationName[] =>
    members.filter((member) => member.kind === kind).map((member) => member.relation);
  const tables = selection.tables.map((table) => table.relation);
  const renamed = [...tables, ...dependencies.sequences, ...relationsOf('index')];
  const renaming = new Renaming(input.suffix, renamed, relationsOf('statistics'));
  const present = new Set(renamed.map(relationKey));
  const kept = keptEntries(entries, dependencies, present);
  requireTables(kept, tables);

  const { drafts, unsupported } = draftStatements(kept, input, renaming);
  const keptSet = new Set(kept);
  const known = new Set([
    ...dependencies.leftOut.map(({ member }) => member.key),
    ...members.filter(({ isOurs }) => isOurs).map(({ key }) => key),
  ]);
  const notMigrated = entries.filter(
    (entry) =>
      entry.classId !== 0 &&
      entry.schema !== DTS_SCHEMA &&
      !(entry.kind === 'SCHEMA' && entry.tag === DTS_SCHEMA) &&
      !keptSet.has(entry) &&
      !known.has(objectKey(entry.classId, entry.objectId)),
  );
  const findings: Finding[] = [
    ...selectionFindings(selection, dependencies),
    ...textFindings(kept, renaming, [...tables, ...dependencies.sequences], present),
    ...notMigratedFindings([...unsupported, ...(everything ? notMigrated : [])]),
  ];
  const mapping = (source: RelationName): TableMapping => ({ source, target: renaming.relation(source) });
  return {
    tables: selection.tables
      .filter(({ kind }) => kind !== 'partitioned')
      .map((table) => plannedTable(table, mapping(table.relation))),
    roots: selection.tables
      .filter(({ kind }) => kind === 'partitioned')
      .map(({ relation }) => mapping(relation)),
    sequences: dependencies.sequences.map(mapping),
    statements: numbered(drafts),
    findings,
  };
}

function plannedTable(table: CatalogTable, mapping: TableMapping): PlannedTable {
  return {
    ...mapping,
    columns: table.columns,
    keyColumns: table.keyColumns,
    // `nothing` identifies as little as `default` without a primary key: no key columns
    replicaIdentity: table.replicaIdentity === 'nothing' ? 'default' : table.replicaIdentity,
    rowsEstimated: table.rowsEstimated,
    bytesEstimated: table.bytesEstimated,
  };
}

/**
 * Entries to migrate: (1) made from a catalog row: when the closure has it; (2) properties of other entries: when none
 * of those is dropped; (3) ATTACH, for which pg_dump prints neither: when both its relations are migrated.
 */
function keptEntries(
  entries: readonly DumpEntry[],
  { keep }: Dependencies,
  present: ReadonlySet<string>,
): DumpEntry[] {
  const verdicts = new Map<number, boolean>();
  return entries.filter((entry) => {
    const known = entry.dependencies.map((id) => verdicts.get(id)).filter((verdict) => verdict !== undefined);
    const names = entry.statements.flatMap((statement) => statement.names);
    const verdict =
      entry.classId !== 0
        ? keep.has(objectKey(entry.classId, entry.objectId))
        : known.length > 0
          ? known.every(Boolean)
          : names.length > 0 && names.every((name) => present.has(relationKey(name)));
    verdicts.set(entry.dumpId, verdict);
    return verdict;
  });
}

/** The catalog was read before pg_dump ran: a table dropped or renamed in between is missing. */
function requireTables(kept: readonly DumpEntry[], tables: readonly RelationName[]): void {
  const created = new Set(
    kept.flatMap(({ statements }) =>
      statements.flatMap(({ deed, subject }) =>
        deed === 'create table' && subject !== null ? [relationKey(subject)] : [],
      ),
    ),
  );
  const missing = tables.map(relationKey).filter((key) => !created.has(key));
  if (missing.length > 0)
    throw new MigrationError(
      'source_ddl',
      `the schema changed while it was read: ${missing.join(', ')} is gone`,
      {
        kind: 'transient',
        details: { missing },
      },
    );
}

function draftStatements(
  kept: readonly DumpEntry[],
  { selection, dependencies, targetVersion }: PlanInput,
  renaming: Renaming,
): { drafts: Draft[]; unsupported: DumpEntry[] } {
  const tables = new Map(selection.tables.map((table) => [relationKey(table.relation), table]));
  const keyIndexes = keyIndexesOf(kept);
  const drafts: Draft[] = [];
  const unsupported: DumpEntry[] = [];
  const ownerOf = tableOwners(selection, dependencies);
  const shared = new Map<number, Draft>();
  for (const entry of kept) {
    const owner = ownerOf(entry);
    const table = owner === null ? undefined : tables.get(owner);
    if (table === undefined) {
      const sql = entry.statements.map((statement) => renaming.text(statement)).join(';\n');
      const host = entry.classId === 0 ? shared.get(entry.dependencies[0] ?? -1) : undefined;
      if (host) {
        host.sql += `;\n${sql}`;
        continue;
      }
      const draft = sharedDraft(entry, sql, addressOf(entry, dependencies, renaming, selection));
      shared.set(entry.dumpId, draft);
      drafts.push(draft);
      continue;
    }
    for (const statement of entry.statements) {
      const isPartitioned = table.kind === 'partitioned';
      // before 18, ADD FOREIGN KEY … NOT VALID is refused on partitioned tables
      const phase = phaseOf(entry, statement, keyIndexes, targetVersion >= 180_000 || !isPartitioned);
      if (phase === null) {
        unsupported.push(entry);
        break;
      }
      const draft: Draft = {
        ...tableDraft(entry, statement, table.relation, renaming),
        phase,
        rank: rankOf(statement, isPartitioned),
      };
      const addsValid = phase === 'foreign-key' && !statement.notValid;
      if (addsValid) draft.sql += ' NOT VALID';
      drafts.push(draft);
      if (addsValid && statement.constraint !== null)
        drafts.push(validateDraft(draft, statement.constraint, table.relation, renaming));
    }
  }
  return { drafts, unsupported };
}

/** Entry → `relationKey` of the selected table that it is part of; null for what tables share. */
function tableOwners(
  selection: TableSelection,
  { members }: Dependencies,
): (entry: DumpEntry) => string | null {
  const byKey = new Map(
    selection.tables.map((table) => [objectKey(catalogs.class, table.oid), relationKey(table.relation)]),
  );
  const byIndex = new Map<string, string>();
  for (const member of members.values()) {
    byKey.set(member.key, member.table);
    if (member.kind === 'index') byIndex.set(relationKey(member.relation), member.table);
  }
  const byDumpId = new Map<number, string | null>();
  return (entry) => {
    const subject = entry.statements[0]?.subject;
    const name = subject ? relationKey(subject) : '';
    const owner =
      entry.classId !== 0
        ? byKey.get(objectKey(entry.classId, entry.objectId))
        : entry.dependencies.length > 0
          ? byDumpId.get(entry.dependencies[0] ?? -1)
          : (byIndex.get(name) ?? name);
    byDumpId.set(entry.dumpId, owner ?? null);
    return owner ?? null;
  };
}

function sharedDraft(entry: DumpEntry, sql: string, address: ObjectAddress | undefined): Draft {
  return {
    phase: 'pre-data',
    sql,
    object: describeEntry(entry),
    table: null,
    creates: null,
    ...(address === undefined ? {} : { unlessExists: address }),
    rank: 0,
  };
}

/** Address on the target: sequences have a new name, and signatures may have the row type of a renamed table. */
function addressOf(
  entry: DumpEntry,
  { addresses }: Dependencies,
  renaming: Renaming,
  selection: TableSelection,
): ObjectAddress | undefined {
  const address = addresses.get(objectKey(entry.classId, entry.objectId));
  if (address === undefined) return undefined;
  if (address.type === 'sequence') {
    const [schema = '', name = ''] = address.names;
    return { ...address, names: [schema, renaming.relation({ schema, name }).name] };
  }
  const rowTypes = new Map(
    selection.tables.flatMap(({ relation }) => {
      const plain = (part: string): string => (/^[a-z_][a-z0-9_]*$/.test(part) ? part : ident(part));
      const target = identRelation(renaming.relation(relation));
      return [`${plain(relation.schema)}.${plain(relation.name)}`, identRelation(relation)].map(
        (text): [string, string] => [text, target],
      );
    }),
  );
  const args = address.args.map((type) => {
    const [, base = type, dimensions = ''] = /^(.*?)((?:\[\])*)$/.exec(type) ?? [];
    return (rowTypes.get(base) ?? base) + dimensions;
  });
  return { ...address, args };
}

function tableDraft(
  entry: DumpEntry,
  statement: DumpStatement,
  table: RelationName,
  renaming: Renaming,
): Omit<Draft, 'phase' | 'rank'> {
  const target = renaming.relation(table);
  const takes = statement.takes.map((name) => renaming.relation(name));
  const [first] = takes;
  const tag = entry.tag.startsWith(`${table.name} `) ? entry.tag.slice(table.name.length + 1) : entry.tag;
  return {
    sql: renaming.text(statement),
    object: first ? `${entry.kind} ${relationKey(first)}` : `${entry.kind} ${tag} on ${relationKey(target)}`,
    table: relationKey(table),
    creates: statement.deed === 'create table' ? target : null,
    ...(takes.length === 0 ? {} : { takes }),
  };
}

function validateDraft(added: Draft, constraint: string, table: RelationName, renaming: Renaming): Draft {
  const name = renaming.constraint(constraint, table);
  return {
    phase: 'validate',
    sql: `alter table ${identRelation(renaming.relation(table))} validate constraint ${ident(name)}`,
    object: `VALIDATE ${added.object}`,
    table: added.table,
    creates: null,
    rank: 0,
  };
}

/** In order of phase; within it pg_dump's order, which respects dependencies, with partitions before their parents. */
function numbered(drafts: readonly Draft[]): PlannedStatement[] {
  const place = (draft: Draft): number => phaseOrder.indexOf(draft.phase) * 10;
  const rank = (draft: Draft): number => (draft.phase === 'key' || draft.phase === 'index' ? draft.rank : 0);
  return drafts
    .map((draft, order) => ({ draft, order, place: place(draft) + rank(draft) }))
    .sort((a, b) => a.place - b.place || a.order - b.order)
    .map(({ draft: { rank: _rank, ...statement } }, n) => ({ n, ...statement }));
}
