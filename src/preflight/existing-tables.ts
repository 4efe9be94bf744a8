// Check of run.ts for `schema: existing`: the tables stand on the target, take every row of the source, and nothing on
// them writes on its own. What the stream or COPY would be refused after hours is said here.
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { CatalogTable } from '../postgres/catalog.ts';
import type { RowIdentity } from '../postgres/replica-identity.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import {
  databaseIdentity,
  maySilenceTriggers,
  readTableFacts,
  tablesWithRows,
  type ForeignKeyFacts,
  type TableFacts,
} from '../postgres/table-facts.ts';
import { findSchemaPlan, type TaskScope } from '../postgres/task-scope.ts';
import { assessColumns } from './existing-columns.ts';

export interface ExistingPair {
  readonly table: RowIdentity;
  readonly source: TableFacts;
  readonly name: RelationName;
  /** Null: nothing has this name. */
  readonly target: TableFacts | null;
  readonly hasRows: boolean;
}

export interface ExistingFacts {
  readonly pairs: readonly ExistingPair[];
  readonly user: string;
  readonly targetMajor: number;
  /** Triggers and foreign keys can be kept from firing. */
  readonly silenced: boolean;
  /** Both sides are one database. */
  readonly sameDatabase: boolean;
}

export async function readExisting(
  scope: TaskScope,
  tables: readonly CatalogTable[],
  names: readonly RelationName[],
  { user, targetMajor }: Pick<ExistingFacts, 'user' | 'targetMajor'>,
): Promise<ExistingFacts> {
  const [source, target, silenced, from, to] = await Promise.all([
    readTableFacts(
      scope.source,
      tables.map(({ relation }) => relation),
    ),
    readTableFacts(scope.target, names),
    maySilenceTriggers(scope.target),
    databaseIdentity(scope.source),
    databaseIdentity(scope.target),
  ]);
  // from the plan on they are ours to fill; the copy itself refuses rows that it did not write
  const planned = new Set(findSchemaPlan(scope)?.tables.map((table) => relationKey(table.target)));
  const readable = target.filter(
    (facts) =>
      !planned.has(relationKey(facts)) &&
      facts.kind === 'r' &&
      facts.mayUseSchema &&
      !facts.rowSecurity &&
      !facts.lacks.includes('select'),
  );
  const filled = new Set((await tablesWithRows(scope.target, readable)).map(relationKey));
  const sources = new Map(source.map((facts) => [relationKey(facts), facts]));
  const targets = new Map(target.map((facts) => [relationKey(facts), facts]));
  return {
    pairs: tables.flatMap((table, at) => {
      const facts = sources.get(relationKey(table.relation));
      const name = names[at];
      if (!facts || !name) return []; // dropped since the selection was read: planning says so
      const key = relationKey(name);
      const leftOut = new Set(table.leftOut);
      const columns = facts.columns.filter((column) => !leftOut.has(column.name));
      return [
        {
          table,
          source: { ...facts, columns },
          name,
          target: targets.get(key) ?? null,
          hasRows: filled.has(key),
        },
      ];
    }),
    user,
    targetMajor,
    silenced,
    sameDatabase: from === to,
  };
}

const kinds: Readonly<Record<string, string>> = {
  r: 'a table',
  p: 'a partitioned table',
  v: 'a view',
  m: 'a materialized view',
  f: 'a foreign table',
  S: 'a sequence',
  c: 'a type',
  i: 'an index',
  I: 'an index',
};

export function assessExisting(facts: ExistingFacts): Finding[] {
  const targetOf = new Map(facts.pairs.map(({ source, name }) => [relationKey(source), relationKey(name)]));
  // foreign keys of the source as they read on the target: rows that satisfy these there satisfy them here
  const kept = new Set(
    facts.pairs.flatMap(({ source }) =>
      source.foreignKeys
        .filter(({ validated }) => validated)
        .map((key) => linkOf(key, (relation) => targetOf.get(relationKey(relation)) ?? null)),
    ),
  );
  return facts.pairs.flatMap((pair) => assessPair(pair, facts, targetOf, kept));
}

function assessPair(
  pair: ExistingPair,
  facts: ExistingFacts,
  targetOf: ReadonlyMap<string, string>,
  kept: ReadonlySet<string | null>,
): Finding[] {
  const { source, target, name, table } = pair;
  const object = relationKey(name);
  const findings: Finding[] = [];
  const say = (
    code: string,
    message: string,
    remedy: string | null,
    severity: Finding['severity'] = 'blocking',
  ): void => void findings.push({ code, severity, object, message: `target: ${object} ${message}`, remedy });

  if (!target) {
    say('target_table_missing', 'does not exist', `create it, or set options.schema to create`);
    return findings;
  }
  if (facts.sameDatabase && source.oid === target.oid) {
    say('target_is_source', 'is the source table itself', 'set table_suffix, or another target_db');
    return findings;
  }
  if (target.kind !== 'r' && target.kind !== 'p') {
    say(
      'target_not_a_table',
      `is ${kinds[target.kind] ?? 'no table'}`,
      'rename it and create the table, or set another table_suffix',
    );
    return findings;
  }
  const parent = source.parent && (targetOf.get(relationKey(source.parent)) ?? relationKey(source.parent));
  const found = target.parent && relationKey(target.parent);
  if (target.kind !== source.kind || found !== parent || target.partitionKey !== source.partitionKey)
    say(
      'target_partitioning_differs',
      `is ${partitioning(target, found)}, on the source ${partitioning(source, parent)}`,
      'create it again as on the source',
    );
  else if (target.bounds !== source.bounds)
    say(
      'target_partitioning_differs',
      `is a partition ${target.bounds}, on the source ${source.bounds}`,
      target.parent &&
        `alter table ${identRelation(target.parent)} detach partition ${identRelation(target)}; alter table ${identRelation(target.parent)} attach partition ${identRelation(target)} ${source.bounds}`,
    );
  findings.push(...assessColumns(source, target));
  if (!facts.silenced && target.foreignKeys.length > 0)
    say(
      'target_foreign_keys_fire',
      `has foreign keys that would be checked row by row, before the rows that they need are there: ${target.foreignKeys.map((foreign) => foreign.name).join(', ')}`,
      `${silence(facts)}; or: ${target.foreignKeys.map((foreign) => `alter table ${identRelation(foreign.from)} drop constraint ${ident(foreign.name)}`).join('; ')}`,
    );
  if (target.kind === 'r') findings.push(...assessWrites(pair, target, facts));
  if (table.kind !== 'partitioned' && target.unlogged && !source.unlogged)
    say(
      'target_unlogged',
      'is unlogged: a crash would empty it',
      `alter table ${identRelation(target)} set logged`,
    );
  for (const unique of target.uniques) {
    const wanted = source.uniques.some(({ columns }) => sameColumns(columns, unique.columns));
    if (!wanted || unique.columns === null)
      findings.push({
        code: 'target_unique_extra',
        severity: 'warning',
        object: `${object}.${unique.name}`,
        message: `target: the unique or exclusion index ${unique.name} of ${object} is not known to hold on the source: a row that it refuses stops the migration`,
        remedy: null,
      });
  }
  for (const key of target.foreignKeys) {
    if (kept.has(linkOf(key, relationKey))) continue;
    if (relationKey(key.from) !== object && new Set(targetOf.values()).has(relationKey(key.from))) continue; // said there
    const alter = `alter table ${identRelation(key.from)}`;
    findings.push({
      code: 'target_foreign_key_unchecked',
      severity: 'warning',
      object: `${relationKey(key.from)}.${key.name}`,
      message: `target: the foreign key ${key.name} of ${relationKey(key.from)} does not follow from the source's: rows are written without checking it`,
      remedy: `after the cutover: ${alter} drop constraint ${ident(key.name)}, add constraint ${ident(key.name)} ${key.definition}`,
    });
  }
  return findings;
}

/** What writing rows into it meets. */
function assessWrites({ table, hasRows }: ExistingPair, target: TableFacts, facts: ExistingFacts): Finding[] {
  const object = relationKey(target);
  const name = identRelation(target);
  const findings: Finding[] = [];
  const block = (code: string, message: string, remedy: string): void =>
    void findings.push({ code, severity: 'blocking', object, message: `target: ${message}`, remedy });

  const lacks = [...(target.mayUseSchema ? [] : ['usage of its schema']), ...target.lacks];
  if (lacks.length > 0)
    block(
      'target_table_denied',
      `role ${facts.user} lacks ${lacks.join(', ')} on ${object}`,
      [
        ...(target.mayUseSchema
          ? []
          : [`grant usage on schema ${ident(target.schema)} to ${ident(facts.user)}`]),
        ...(target.lacks.length > 0
          ? [`grant ${target.lacks.join(', ')} on ${name} to ${ident(facts.user)}`]
          : []),
      ].join('; '),
    );
  if (hasRows) block('target_not_empty', `${object} has rows`, `truncate ${name}`);
  if (target.rowSecurity)
    block(
      'target_row_security',
      `row-level security of ${object} applies to role ${facts.user}`,
      `alter role ${ident(facts.user)} bypassrls`,
    );
  const key = [...table.keyColumns].sort();
  if (key.length > 0 && !target.uniques.some(({ usable, columns }) => usable && sameColumns(columns, key)))
    block(
      'target_key_missing',
      `${object} has no primary key or valid unique index on (${table.keyColumns.join(', ')}), by which changes find their rows`,
      `alter table ${name} add primary key (${table.keyColumns.map(ident).join(', ')})`,
    );
  for (const { what, name: firing, enabled } of target.firing) {
    const isHeld = facts.silenced && enabled === 'O';
    const isIdle = !facts.silenced && enabled === 'R';
    if (isHeld || isIdle) continue;
    const alter = `alter table ${name}`;
    findings.push({
      code: 'target_trigger_fires',
      severity: 'blocking',
      object: `${object}.${firing}`,
      message: `target: the ${what} ${firing} of ${object} would fire for every row that is copied or streamed`,
      remedy: facts.silenced
        ? `${alter} enable ${what} ${ident(firing)}` // as by default: not for replicated rows
        : `${enabled === 'O' ? `${silence(facts)}; or: ` : ''}${alter} disable ${what} ${ident(firing)}`,
    });
  }
  return findings;
}

/** Before 15 only a superuser may set it. */
function silence({ user, targetMajor }: ExistingFacts): string {
  return targetMajor >= 15
    ? `grant set on parameter session_replication_role to ${ident(user)}`
    : `alter role ${ident(user)} superuser`;
}

export function sameColumns(a: readonly string[] | null, b: readonly string[] | null): boolean {
  return a !== null && b !== null && a.length === b.length && a.every((name) => b.includes(name));
}

function partitioning({ kind, partitionKey }: TableFacts, parent: string | null): string {
  const itself = kind === 'p' ? `partitioned by ${partitionKey}` : 'a plain table';
  return parent === null ? itself : `${itself}, a partition of ${parent}`;
}

/** What a foreign key says, without its name; null when a table of it is not migrated. */
function linkOf(key: ForeignKeyFacts, nameOf: (relation: RelationName) => string | null): string | null {
  const [from, to] = [nameOf(key.from), nameOf(key.to)];
  if (from === null || to === null) return null;
  const pairs = key.columns.map((column, at) => `${column} ${key.references[at] ?? ''}`).sort();
  return JSON.stringify([from, to, pairs]);
}
