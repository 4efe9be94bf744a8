// Used by plan.ts: entries of the dump that are migrated → statements with their phase and new names. Pure. Two kinds:
// what is part of a selected table runs when phases.ts says and must be new on the target; what tables share, and what a
// whole database has besides, is left alone where the target has it.
import { relationKey, type RelationName } from '../model/relation.ts';
import type { ObjectAddress, PlannedStatement, StatementPhase } from '../model/schema-plan.ts';
import type { TaskOptions } from '../model/task-options.ts';
import type { CatalogTable, TableSelection } from '../postgres/catalog.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import type { Dependencies } from './dependencies.ts';
import { catalogs, objectKey } from './dependency-graph.ts';
import type { DroppedColumns } from './limited-tables.ts';
import { keyIndexesOf, phaseOf, phaseOrder, phaseOfShared, rankOf } from './phases.ts';
import { describeEntry } from './plan-findings.ts';
import { typeOfShell } from './plan-input.ts';
import type { Renaming } from './rename.ts';
import type { DumpEntry } from './split.ts';
import type { DumpStatement } from './statement.ts';
import { takeApart } from './unique-index.ts';

/** A statement without its place: `sql` of a shared object grows by its comments. */
interface Draft extends Omit<PlannedStatement, 'n'> {
  sql: string;
  readonly rank: number;
}

/** Beside the other indexes of a smaller table, the index of a constraint would not be worth a statement of its own. */
const APART_FROM_BYTES = 1024 * 1024;

export interface DraftInput {
  readonly selection: TableSelection;
  readonly dependencies: Dependencies;
  /** server_version_num of the target. */
  readonly targetVersion: number;
  readonly options: TaskOptions;
  /** OIDs of materialized views that have rows on the source. */
  readonly populated: ReadonlySet<number>;
}

export function draftStatements(
  kept: readonly DumpEntry[],
  { selection, dependencies, targetVersion, populated, options }: DraftInput,
  renaming: Renaming,
): { drafts: Draft[]; unsupported: DumpEntry[] } {
  const tables = new Map(selection.tables.map((table) => [relationKey(table.relation), table]));
  const keyIndexes = keyIndexesOf(kept);
  const isApart = buildsApart(kept, tables);
  const drafts: Draft[] = [];
  const unsupported: DumpEntry[] = [];
  const ownerOf = tableOwners(selection, dependencies);
  const shared = new Map<number, Draft>();
  for (const entry of kept) {
    const owner = ownerOf(entry);
    const table = owner === null ? undefined : tables.get(owner);
    if (table === undefined) {
      const texts = entry.statements.map((statement) => renaming.text(statement));
      const sql = placed(entry, options, versioned(entry, options, texts.join(';\n')));
      const row = entry.kind === 'SHELL TYPE' ? (typeOfShell(entry, kept) ?? entry) : entry;
      const host = row.classId === 0 ? shared.get(entry.dependencies[0] ?? -1) : undefined;
      if (host) {
        host.sql += `;\n${sql}`;
        continue;
      }
      const isCore = dependencies.core.has(objectKey(row.classId, row.objectId));
      const address = addressOf(row, dependencies, renaming, selection);
      const phase = phaseOfShared(entry, isCore);
      const draft =
        entry.statements[0]?.deed === 'replace view'
          ? viewQueryDraft(entry, phase, sql)
          : sharedDraft(
              entry,
              phase,
              sql,
              address && isShell(entry) ? { ...address, shellCounts: true } : address,
            );
      shared.set(entry.dumpId, draft);
      drafts.push(draft);
      if (populated.has(entry.objectId)) drafts.push(refreshDraft(entry));
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
      const apart = isApart(statement) ? takeApart(draft.sql) : null;
      if (apart !== null) {
        drafts.push({
          ...draft,
          sql: placed(entry, options, apart.index),
          object: draft.object.replace('CONSTRAINT', 'INDEX'),
        });
        const { takes: _takes, ...rest } = draft; // its index has the name
        drafts.push({ ...rest, sql: apart.constraint });
        continue;
      }
      if (statement === entry.statements[0]) draft.sql = placed(entry, options, draft.sql);
      const addsValid = phase === 'foreign-key' && !statement.notValid;
      if (addsValid) draft.sql += ' NOT VALID';
      drafts.push(draft);
      if (addsValid && statement.constraint !== null)
        drafts.push(validateDraft(draft, statement.constraint, table.relation, renaming));
    }
  }
  return { drafts, unsupported };
}

/** Of a statement: its table has several indexes, and is large enough for them to be built at the same time. */
function buildsApart(
  kept: readonly DumpEntry[],
  tables: ReadonlyMap<string, CatalogTable>,
): (statement: DumpStatement) => boolean {
  const indexes = new Map<string, number>();
  const heirs = new Set<string>();
  for (const { kind, statements } of kept) {
    const [first] = statements;
    if (!first?.subject || first.takes.length === 0) continue;
    const key = relationKey(first.subject);
    if (kind === 'TABLE' && /\nINHERITS \(/.test(first.text)) heirs.add(key);
    if (kind === 'CONSTRAINT' || kind === 'INDEX') indexes.set(key, (indexes.get(key) ?? 0) + 1);
  }
  return ({ subject, deed }) => {
    const table = subject === null ? undefined : tables.get(relationKey(subject));
    // a partitioned table takes no index for a constraint
    if (table === undefined || table.kind === 'partitioned') return false;
    const key = relationKey(table.relation);
    // from 18 on PRIMARY KEY USING INDEX would make a NOT NULL that was only inherited the table's own
    if (deed === 'add primary key' && (table.kind === 'leaf' || heirs.has(key))) return false;
    return (indexes.get(key) ?? 0) > 1 && table.bytesEstimated >= APART_FROM_BYTES;
  };
}

/** Of a base type, or of a type that never got its definition. */
function isShell({ kind, statements }: DumpEntry): boolean {
  return kind === 'SHELL TYPE' || (kind === 'TYPE' && !/ (?:AS|\()/.test(statements[0]?.text ?? ''));
}

/** With its tablespace; the setting ends with the transaction, and is made anew for each that has one. */
function placed({ kind, tablespace }: DumpEntry, { tablespaces }: TaskOptions, sql: string): string {
  if (tablespaces === 'none' || !/^(TABLE|INDEX|CONSTRAINT|MATERIALIZED VIEW)$/.test(kind)) return sql;
  const name = (typeof tablespaces === 'string' ? undefined : tablespaces[tablespace]) ?? tablespace;
  return `set local default_tablespace = ${name === '' ? "''" : ident(name)};\n${sql}`;
}

function versioned({ kind, tag }: DumpEntry, { extensions }: TaskOptions, sql: string): string {
  const version = typeof extensions === 'string' ? undefined : extensions[tag];
  return kind === 'EXTENSION' && version !== undefined ? `${sql} VERSION ${literal(version)}` : sql;
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

function sharedDraft(
  entry: DumpEntry,
  phase: StatementPhase,
  sql: string,
  address: ObjectAddress | undefined,
): Draft {
  return {
    phase,
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
    ...referencesOf(entry, statement, table),
    ...(entry.kind === 'TABLE ATTACH' && statement.attached
      ? { attaches: relationKey(statement.attached) }
      : {}),
    ...(takes.length === 0 ? {} : { takes }),
  };
}

function referencesOf(
  { kind }: DumpEntry,
  { names }: DumpStatement,
  table: RelationName,
): Pick<Draft, 'references'> {
  if (kind !== 'FK CONSTRAINT') return {};
  const other = names.find((name) => name.kind === 'relation' && relationKey(name) !== relationKey(table));
  return other ? { references: relationKey(other) } : {};
}

function validateDraft(added: Draft, constraint: string, table: RelationName, renaming: Renaming): Draft {
  const name = renaming.constraint(constraint, table);
  return {
    phase: 'validate',
    sql: `alter table ${identRelation(renaming.relation(table))} validate constraint ${ident(name)}`,
    object: `VALIDATE ${added.object}`,
    table: added.table,
    creates: null,
    ...(added.references === undefined ? {} : { references: added.references }),
    rank: 0,
  };
}

/** After the tables, with all that belongs to them, are made. */
export function dropDraft({ table, columns }: DroppedColumns, renaming: Renaming): Draft {
  const target = renaming.relation(table);
  return {
    phase: 'pre-data',
    sql: `alter table ${identRelation(target)} ${columns.map((name) => `drop column ${ident(name)}`).join(', ')}`,
    object: `COLUMNS ${columns.join(', ')} of ${relationKey(target)}`,
    table: relationKey(table),
    creates: null,
    rank: 0,
  };
}

/** In pg_dump's order of the views, which is that of their dependencies. One that was left alone is left alone here, too. */
function refreshDraft(entry: DumpEntry): Draft {
  return {
    phase: 'refresh',
    sql: `refresh materialized view ${identRelation({ schema: entry.schema ?? '', name: entry.tag })}`,
    object: `REFRESH ${describeEntry(entry)}`,
    table: null,
    creates: null,
    completes: describeEntry(entry),
    rank: 0,
  };
}

/**
 * pg_dump breaks a ring that a view is in: the view comes first without its query, which follows as a rule. That the
 * view exists then says nothing.
 */
function viewQueryDraft(entry: DumpEntry, phase: StatementPhase, sql: string): Draft {
  const view = entry.tag.replace(/ _RETURN$/, '');
  return {
    phase,
    sql,
    object: `VIEW ${relationKey({ schema: entry.schema ?? '', name: view })} (its query)`,
    table: null,
    creates: null,
    completes: describeEntry({ ...entry, kind: 'VIEW', tag: view }),
    rank: 0,
  };
}

/** In order of phase; within it pg_dump's order, which respects dependencies, with partitions before their parents. */
export function numbered(drafts: readonly Draft[]): PlannedStatement[] {
  const place = (draft: Draft): number => phaseOrder.indexOf(draft.phase) * 10;
  const rank = (draft: Draft): number => (draft.phase === 'key' || draft.phase === 'index' ? draft.rank : 0);
  return drafts
    .map((draft, order) => ({ draft, order, place: place(draft) + rank(draft) }))
    .sort((a, b) => a.place - b.place || a.order - b.order)
    .map(({ draft: { rank: _rank, ...statement } }, n) => ({ n, ...statement }));
}
