// Columns whose type the source has widened (`on_ddl: apply-additive`), widened on the target. Called by source-ddl.ts while
// nothing is applied.
//
//   1 a type widens another when it has all of its values, with the same text, order and equality (`widens`)
//   2 the target may be wider than a change that is still to come: old values fit. So it is widened before the first change
//     under the new type. Changes under narrower ones (several, where it was widened step by step) are taken until the
//     stream has passed the position where the catalog was read, but not in binary: an int4 has half the bytes of an int8
//   3 ALTER … TYPE … USING changes values in a rewrite that no message tells of, and the catalog keeps no trace of it. Where
//     the table's file is the one of before, nothing was rewritten; else only a comparison tells. The statechart
//     begins one anew after any DDL that was followed, and none opens the target before everything was found equal
import type { Finding } from '../model/finding.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { readColumns, type ColumnRow } from './column-facts.ts';

const LOCK_TIMEOUT = '10s';

/** A column of one table, or of a partitioned table with all its partitions, that is to be widened on the target. */
export interface Widening {
  readonly target: RelationName;
  /** As the source has it now. */
  readonly row: ColumnRow;
  /** As the plan has it. */
  readonly from: string;
  readonly tables: readonly PlannedTable[];
  /** Some table has another file than when the migration began: its rows may have been rewritten. */
  readonly rewritten: boolean;
}

const integers = ['smallint', 'integer', 'bigint'];

/** Whether every value of type `from` is one of `to`, and looks and compares the same there (texts of format_type). Pure. */
export function widens(from: string, to: string): boolean {
  if (integers.includes(from)) return integers.indexOf(to) > integers.indexOf(from);
  const [, name = '', limits = ''] =
    /^(character varying|bit varying|numeric)(?:\(([\d,-]+)\))?$/.exec(from) ?? [];
  if (name === '') return false;
  if (name === 'character varying' && to === 'text') return true;
  if (limits === '') return false;
  if (to === name) return true;
  const [, wider = ''] = new RegExp(`^${name}\\(([\\d,-]+)\\)$`).exec(to) ?? [];
  const [size = 0, scale] = limits.split(',').map(Number);
  const [widerSize = 0, widerScale] = wider.split(',').map(Number);
  return widerSize > size && scale === widerScale;
}

/** Whether binary messages that the plan's types do not fit may still come behind `position`. */
export function wasWidenedBehind(tables: readonly PlannedTable[], position: Lsn): boolean {
  return tables.some(({ columns }) =>
    columns.some(
      ({ widenedUntil, type }) =>
        widenedUntil !== undefined && integers.includes(type) && compareLsn(widenedUntil, position) > 0,
    ),
  );
}

/** The tables without what only changes before `position` need. */
export function widenedBehind(tables: readonly PlannedTable[], position: Lsn): readonly PlannedTable[] {
  return tables.map((table) => ({
    ...table,
    columns: table.columns.map(({ widenedUntil, ...column }) =>
      widenedUntil !== undefined && compareLsn(widenedUntil, position) > 0
        ? { ...column, widenedUntil }
        : column,
    ),
  }));
}

/** Null when the target's column is as wide as the source's, else why it cannot be, in words. */
export async function widenColumn(
  scope: TaskScope,
  { target, row, from, tables }: Widening,
): Promise<string | null> {
  const what = `column ${row.column} of ${relationKey(target)}`;
  const found = await readColumns(
    scope.target,
    [target, ...tables.map((table) => table.target)].filter(
      (name, at, all) => all.findIndex((other) => relationKey(other) === relationKey(name)) === at,
    ),
  );
  const columns = found.filter(({ column }) => column === row.column);
  const odd = columns.find(({ type }) => type !== from && type !== row.type);
  if (odd) return `${what} has the type ${odd.type} on the target`;
  const collation = (each: ColumnRow): string => `${each.collation_schema}.${each.collation_name}`;
  if (columns.some((each) => collation(each) !== collation(row)))
    return `${what} has got another collation, too`;
  if (columns.every(({ type }) => type === row.type)) return null;
  const collate =
    row.collation_schema === null || row.collation_name === null
      ? ''
      : ` collate ${identRelation({ schema: row.collation_schema, name: row.collation_name })}`;
  scope.progress.setWaitingFor(`the target widens ${what} to ${row.type}, which may rewrite the table`);
  // a session: a rewrite takes its time, and a pooled statement has a deadline
  const session = await scope.target.session({ purpose: 'ddl', signal: scope.signal });
  try {
    await session.client.query(`begin; set local lock_timeout = '${LOCK_TIMEOUT}'`);
    await session.client.query(
      `alter table ${identRelation(target)} alter column ${ident(row.column)} type ${row.type}${collate}`,
    );
    await session.client.query('commit');
    scope.failpoint('ddl.column-widened');
    return null;
  } catch (error) {
    scope.signal.throwIfAborted();
    const failure = fromPostgres(error, { role: 'target' });
    if (failure.kind === 'transient') throw failure;
    return `${what} cannot be widened: ${failure.message}`;
  } finally {
    await session.close();
    scope.progress.setWaitingFor(null);
  }
}

export function wideningFinding({ target, row, from, rewritten }: Widening): Finding {
  return {
    code: 'column_widened',
    severity: rewritten ? 'warning' : 'info',
    object: relationKey(target),
    message: `target: column ${row.column} of ${relationKey(target)} was widened from ${from} to ${row.type}, as on the source (on_ddl: apply-additive)${
      rewritten
        ? '; the source rewrote the table, and what it gave the rows is compared before the target opens'
        : ''
    }`,
    remedy: rewritten ? `if the validation finds differences: recopy ${relationKey(row)}` : null,
  };
}
