// Check of run.ts for `schema: existing` with options.reverse: after the cutover the stream back reads the target's tables
// and writes the source's. So what those tables take must fit into the source's, and their rows be identified as there.
import type { Finding } from '../model/finding.ts';
import { exactName, relationKey } from '../model/relation.ts';
import { readSelection, type TableSelection } from '../postgres/catalog.ts';
import { becomesFull, type RowIdentity } from '../postgres/replica-identity.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import type { ColumnFacts, TableFacts } from '../postgres/table-facts.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { Ask } from './ask.ts';
import { sameColumns, type ExistingFacts } from './existing-tables.ts';
import { assessTablePrivileges, readTablePrivileges, type TablePrivileges } from './table-privileges.ts';

interface StandingPair {
  readonly table: RowIdentity;
  readonly source: TableFacts;
  readonly target: TableFacts;
  /** Null: a table that was not there when identities were read. */
  readonly identity: RowIdentity | null;
}

/** `ask`: on the target. What keeps the way there from being gone is said by existing-tables.ts. */
export async function checkExistingWayBack(
  scope: TaskScope,
  ask: Ask,
  { pairs, user, sameDatabase }: ExistingFacts,
): Promise<Finding[]> {
  if (!scope.spec.options.reverse) return [];
  const standing = pairs.flatMap(({ table, source, target }) =>
    target && ['r', 'p'].includes(target.kind) && !(sameDatabase && source.oid === target.oid)
      ? [{ table, source, target }]
      : [],
  );
  if (standing.length === 0) return [];
  const selection = await readSelection(
    scope.target,
    standing.map(({ target }) => exactName(target)),
  );
  const identities = new Map(selection.tables.map((table) => [table.oid, table]));
  const found = relatives(selection, new Set(standing.map(({ target }) => target.oid)));
  const rest = assessExistingWayBack(
    standing.map((pair) => ({ ...pair, identity: identities.get(pair.target.oid) ?? null })),
    await readTablePrivileges(
      ask,
      standing.map(({ target }) => target.oid),
    ),
    { user, options: scope.spec.options },
  );
  return [...found, ...rest];
}

function assessExistingWayBack(
  pairs: readonly StandingPair[],
  privileges: readonly TablePrivileges[],
  { user, options }: { readonly user: string; readonly options: TaskScope['spec']['options'] },
): Finding[] {
  return [
    ...assessTablePrivileges(privileges, user, 'target').map((finding) => ({
      ...finding,
      code: `target_${finding.code}`,
    })),
    ...pairs.flatMap((pair) => [
      ...assessColumnsBack(pair),
      ...assessUniquesBack(pair),
      ...assessIdentity(pair, options),
    ]),
  ];
}

function assessColumnsBack({ source, target }: StandingPair): Finding[] {
  const known = new Map(source.columns.map((column) => [column.name, column]));
  return target.columns.flatMap((column) => {
    const other = known.get(column.name);
    return other ? assessColumnBack(source, other, target, column) : [extra(source, target, column)];
  });
}

/** Also a generated one: the stream back follows a table of the columns that were planned, and stops at others. */
function extra(source: TableFacts, target: TableFacts, column: ColumnFacts): Finding {
  const generated = column.generated === null ? '' : ` generated always as (${column.generated}) stored`;
  return {
    code: 'source_column_missing',
    severity: 'blocking',
    object: `${relationKey(source)}.${column.name}`,
    message: `source: ${relationKey(source)} has no column ${column.name}, which the target has: the stream back would stop at it`,
    remedy: `alter table ${identRelation(source)} add column ${ident(column.name)} ${column.type}${generated}; or: alter table ${identRelation(target)} drop column ${ident(column.name)}; or set options.reverse to false`,
  };
}

/** Partitions and children of the target's tables that the source lacks: their rows would not come back. */
function relatives(selection: TableSelection, known: ReadonlySet<number>): Finding[] {
  const say = (object: string, what: string): Finding => ({
    code: 'target_relative_extra',
    severity: 'blocking',
    object,
    message: `target: ${object} ${what}: its rows would not come back with the others`,
    remedy: 'make it on the source, too, or detach it on the target; or set options.reverse to false',
  });
  return [
    ...selection.tables
      .filter(({ oid }) => !known.has(oid))
      .map(({ relation, parent }) =>
        say(
          relationKey(relation),
          `is a partition of ${parent ? relationKey(parent) : 'a table'} that the source lacks`,
        ),
      ),
    ...selection.unusable.map(({ requested, reason }) => say(requested, reason)),
  ];
}

function assessColumnBack(
  source: TableFacts,
  column: ColumnFacts,
  target: TableFacts,
  other: ColumnFacts,
): Finding[] {
  const faults: Finding[] = [];
  const alter = (table: TableFacts): string =>
    `alter table ${identRelation(table)} alter column ${ident(column.name)}`;
  const block = (code: string, message: string, remedy: string): void =>
    void faults.push({
      code,
      severity: 'blocking',
      object: `${relationKey(source)}.${column.name}`,
      message: `source: column ${column.name} of ${relationKey(source)} ${message}`,
      remedy,
    });
  const lacking = (other.labels ?? []).filter((label) => column.labels?.includes(label) !== true);
  if (column.type === other.type && lacking.length > 0)
    block(
      'source_enum_lacks_values',
      `has a type without the values ${lacking.join(', ')} of the target’s, which the stream back would bring`,
      lacking.map((label) => `alter type ${column.type} add value ${literal(label)}`).join('; '),
    );
  if (column.notNull && !other.notNull)
    block(
      'source_column_not_null',
      'allows no null, on the target it does: the stream back would be refused',
      `${alter(target)} set not null; or: ${alter(source)} drop not null`,
    );
  if (column.identityAlways && !other.identityAlways)
    block(
      'source_identity_always',
      'is generated always as identity, on the target it is not: the stream back would be refused',
      `${alter(source)} set generated by default`,
    );
  return faults;
}

function assessUniquesBack({ source, target }: StandingPair): Finding[] {
  return source.uniques
    .filter(
      ({ columns }) =>
        columns === null || !target.uniques.some((unique) => sameColumns(unique.columns, columns)),
    )
    .map(({ name }) => ({
      code: 'source_unique_extra',
      severity: 'warning',
      object: `${relationKey(source)}.${name}`,
      message: `source: the unique or exclusion index ${name} of ${relationKey(source)} is not known to hold on the target: a row that it refuses stops the stream back`,
      remedy: null,
    }));
}

/** The stream back finds rows by the columns that the target's table sends, which must be those of the plan. */
function assessIdentity(
  { table, source, target, identity }: StandingPair,
  options: TaskScope['spec']['options'],
): Finding[] {
  if (identity === null || table.kind === 'partitioned' || source.unlogged) return []; // not published
  const isFull = (each: RowIdentity): boolean =>
    each.replicaIdentity === 'full' || becomesFull(each, options);
  const keyOf = (each: RowIdentity): readonly string[] | null => (isFull(each) ? null : each.keyColumns);
  const wanted = keyOf(table);
  const found = keyOf(identity);
  if (wanted === null ? found === null : sameColumns([...wanted].sort(), found)) return [];
  const alter = `alter table ${identRelation(target)}`;
  const unique = target.uniques.find(({ usable, columns }) => usable && sameColumns(columns, wanted));
  const inWords = (key: readonly string[] | null): string =>
    key === null ? 'all columns' : key.length === 0 ? 'nothing' : `(${key.join(', ')})`;
  return [
    {
      code: 'target_identity_differs',
      severity: 'blocking',
      object: relationKey(target),
      message: `target: rows of ${relationKey(target)} are identified by ${inWords(found)}, on the source by ${inWords(wanted)}, as the stream back needs it`,
      remedy:
        wanted === null
          ? `${alter} replica identity full`
          : wanted.length === 0
            ? `${alter} replica identity nothing`
            : unique
              ? `${alter} replica identity using index ${ident(unique.name)}`
              : `${alter} add primary key (${wanted.map(ident).join(', ')})`,
    },
  ];
}
