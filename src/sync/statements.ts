// The SQL text and parameters for one change on the target. Pure. Values travel as text parameters whose type is given
// by a cast to the planned column's type, so that the type's own input function reads what its output function wrote.
// ONLY everywhere: a planned table holds its rows itself; children of classic inheritance are planned on their own.
import { MigrationError } from '../model/errors.ts';
import type { PartRange } from '../model/part-range.ts';
import type { PlannedColumn } from '../model/schema-plan.ts';
import {
  UNCHANGED,
  type ColumnValue,
  type Tuple,
  type UpdateMessage,
} from '../postgres/pgoutput-messages.ts';
import { rangeCondition } from '../postgres/copy-range.ts';
import type { Parameter } from '../postgres/pipeline.ts';
import { ident, identRelation, outputText } from '../postgres/sql.ts';
import { textOf } from './binary-text.ts';
import type { StreamedTable } from './relations.ts';

export interface Statement {
  readonly text: string;
  readonly values: readonly Parameter[];
}

/** Collects parameters; `add` gives the placeholder. */
class Parameters {
  readonly values: Parameter[] = [];

  /** `type` is format_type's text, quoted by PostgreSQL itself. */
  add(value: ColumnValue | undefined, type: string): string {
    if (value === undefined || value === UNCHANGED)
      throw new MigrationError('internal', 'a value that the message lacks was about to be written');
    this.values.push(value);
    return `$${this.values.length}::${type}`;
  }
}

/**
 * Types whose `=` holds only for identical values; an index may serve them. For every other one (numeric scale, -0, citext,
 * nondeterministic collations; blanks of char(n); box and circle compare areas; json, xml and point have no `=`) the texts are compared.
 */
const identicalWhenEqual =
  /^(smallint|integer|bigint|boolean|uuid|date|oid|bytea|timestamp(\(\d\))? with(out)? time zone)$/;

function matchesColumn(
  parameters: Parameters,
  column: PlannedColumn,
  value: ColumnValue | undefined,
): string {
  const name = ident(column.name);
  // IS NOT DISTINCT FROM would never use an index; the value is known here, so its NULL case is decided here.
  if (value === null) return `${name} is not distinct from null`; // IS NULL holds for a row of nulls, too
  const parameter = parameters.add(value, column.type);
  if (identicalWhenEqual.test(column.type)) return `${name} = ${parameter}`;
  return `(${outputText(name)}) collate "C" = concat(${parameter}) collate "C"`;
}

/** WHERE for exactly one row: the identity's key, or under identity full the first row that is equal in every column. */
function whereRow(parameters: Parameters, table: StreamedTable, row: Tuple, full: boolean): string {
  if (!full) {
    if (table.keyPositions.length === 0)
      throw new MigrationError('internal', `${table.key}: an update or delete without a replica identity`);
    return table.keyPositions
      .map((position) => {
        const column = columnAt(table, position);
        return `${ident(column.name)} = ${parameters.add(row[position], column.type)}`;
      })
      .join(' and ');
  }
  const conditions = table.columns.map((column, position) =>
    matchesColumn(parameters, column, row[position]),
  );
  // Without a key equal rows may be many; the source changed one of them, and it does not matter which.
  const match = conditions.length === 0 ? '' : ` where ${conditions.join(' and ')}`;
  return `ctid = (select ctid from only ${identRelation(table.plan.target)}${match} limit 1)`;
}

function columnAt(table: StreamedTable, position: number): PlannedColumn {
  const column = table.columns[position];
  if (!column) throw new MigrationError('internal', `${table.key}: no column at position ${position}`);
  return column;
}

/** GENERATED ALWAYS AS IDENTITY takes a value only so. */
function overriding(table: StreamedTable): string {
  return table.columns.some((column) => column.identityAlways) ? ' overriding system value' : '';
}

export function insertRows(table: StreamedTable, rows: readonly Tuple[]): Statement {
  const target = identRelation(table.plan.target);
  if (table.columns.length === 0)
    return {
      text: `insert into ${target} select from generate_series(1, ${rows.length})`,
      values: [],
    };
  const parameters = new Parameters();
  const lists = rows.map(
    (row) =>
      `(${table.columns.map((column, position) => parameters.add(row[position], column.type)).join(', ')})`,
  );
  const names = table.columns.map((column) => ident(column.name)).join(', ');
  return {
    text: `insert into ${target} (${names})${overriding(table)} values ${lists.join(', ')}`,
    values: parameters.values,
  };
}

export function deleteRow(table: StreamedTable, old: Tuple, full: boolean): Statement {
  const parameters = new Parameters();
  const where = whereRow(parameters, table, old, full);
  return {
    text: `delete from only ${identRelation(table.plan.target)} where ${where}`,
    values: parameters.values,
  };
}

/** The row's identity before the update. */
export function oldRowOf(message: UpdateMessage): Tuple {
  return message.old ?? message.new;
}

function isSame(one: ColumnValue | undefined, other: ColumnValue | undefined): boolean {
  return one === other || (Buffer.isBuffer(one) && Buffer.isBuffer(other) && one.equals(other));
}

/**
 * Whether the update gives an identity column GENERATED ALWAYS another value (a key move; SET column = DEFAULT on the
 * source): the server refuses to update it. Not a key and no old value known: it may have.
 */
function movesAlwaysIdentity(table: StreamedTable, message: UpdateMessage): boolean {
  return table.columns.some((column, position) => {
    if (!column.identityAlways) return false;
    const isKey = table.keyPositions.includes(position);
    const knowsOld = message.oldKind === 'full' || (message.oldKind === 'key' && isKey);
    if (knowsOld) return !isSame(message.old?.[position], message.new[position]);
    return !isKey;
  });
}

export function updateRow(table: StreamedTable, message: UpdateMessage): Statement {
  const old = oldRowOf(message);
  const full = message.oldKind === 'full';
  if (movesAlwaysIdentity(table, message)) return moveRow(table, message, old, full);
  const target = identRelation(table.plan.target);
  const parameters = new Parameters();
  const assignments: string[] = [];
  for (const [position, column] of table.columns.entries()) {
    const value = message.new[position];
    // Left out: out-of-line values that the update did not touch, and a key that is the same.
    if (value === UNCHANGED || column.identityAlways) continue;
    if (message.oldKind === 'none' && table.keyPositions.includes(position)) continue;
    assignments.push(`${ident(column.name)} = ${parameters.add(value, column.type)}`);
  }
  const where = whereRow(parameters, table, old, full);
  // An update of nothing (an identity column only) still has to find its row.
  if (assignments.length === 0)
    return { text: `select from only ${target} where ${where}`, values: parameters.values };
  return {
    text: `update only ${target} set ${assignments.join(', ')} where ${where}`,
    values: parameters.values,
  };
}

/** Delete and insert in one statement; values that the message lacks come from the deleted row. */
function moveRow(table: StreamedTable, message: UpdateMessage, old: Tuple, full: boolean): Statement {
  const target = identRelation(table.plan.target);
  const parameters = new Parameters();
  const where = whereRow(parameters, table, old, full);
  const values = table.columns.map((column, position) => {
    const value = message.new[position];
    return value === UNCHANGED ? `moved.${ident(column.name)}` : parameters.add(value, column.type);
  });
  const names = table.columns.map((column) => ident(column.name)).join(', ');
  return {
    text:
      `with moved as (delete from only ${target} where ${where} returning *) ` +
      `insert into ${target} (${names})${overriding(table)} select ${values.join(', ')} from moved`,
    values: parameters.values,
  };
}

/** All tables in one statement, as on the source: foreign keys among them would refuse one after the other. */
export function truncateTables(tables: readonly StreamedTable[], restartIdentity: boolean): Statement {
  const list = tables.map((table) => `only ${identRelation(table.plan.target)}`).join(', ');
  return { text: `truncate table ${list} ${restartIdentity ? 'restart' : 'continue'} identity`, values: [] };
}

/** Removes the rows of some parts; rows that are parts of their own (`except`) stay with their range's. */
export function deleteParts(
  table: StreamedTable,
  parts: readonly (PartRange | null)[],
  except: readonly PartRange[],
): Statement {
  const types = new Map(table.columns.map((column) => [column.name, column.type]));
  const isOneOf = (ranges: readonly (PartRange | null)[]): string =>
    ranges.map((range) => `(${rangeCondition(range, types)})`).join(' or ');
  const kept = except.length === 0 ? '' : ` and not (${isOneOf(except)})`;
  return {
    text: `delete from only ${identRelation(table.plan.target)} where (${isOneOf(parts)})${kept}`,
    values: [],
  };
}

/** The identity of a row in words, for errors: `id=5`, or the whole row under identity full; long values are cut. */
export function describeKey(table: StreamedTable, row: Tuple): Record<string, string | null> {
  const positions =
    table.keyPositions.length > 0 ? table.keyPositions : table.columns.map((_, index) => index);
  const key: Record<string, string | null> = {};
  for (const position of positions) {
    const column = table.columns[position];
    const value = textOf(column?.type ?? '', row[position] ?? null);
    const name = column?.name ?? String(position);
    if (typeof value === 'string') key[name] = value.length > 100 ? `${value.slice(0, 100)}…` : value;
    else key[name] = Buffer.isBuffer(value) ? `\\x${value.toString('hex', 0, 50)}` : null;
  }
  return key;
}
