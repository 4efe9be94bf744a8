// The set-wise statements of one table: COPY for inserts, and for updates and deletes one statement, which takes its rows
// from a list of parameters while they are not many, and else from a temporary table that COPY has filled. Not from `unnest`
// of arrays: it flattens columns that are arrays themselves. Pure; set-writer.ts runs them.
import { ident, identRelation } from '../postgres/sql.ts';
import type { StreamedTable } from './relations.ts';

export interface SetStatements {
  readonly insert: string;
  /** Makes the table that gets the new tuples of updates; `on commit delete rows`. */
  readonly createUpdates: string;
  readonly copyUpdates: string;
  readonly clearUpdates: string;
  /** `sent`: positions of the values that there are, key included; the others stay. `rows`: of the list; null: from the table. */
  update(sent: readonly number[], rows: number | null): string;
  readonly createDeletes: string;
  readonly copyDeletes: string;
  readonly clearDeletes: string;
  /** `rows`: of the list, of the key's columns in the order of the tuple; null: from the table. */
  delete(rows: number | null): string;
}

/**
 * How many rows a list has, ascending: few sizes, few plans. It is filled up with its last row again, which changes nothing that
 * it has not changed. Not with NULLs: there are domains that refuse them.
 */
export const LIST_SIZES = [16, 64, 256] as const;

/** `number` tells the session's temporary tables apart. */
export function setStatements(table: StreamedTable, number: number, binary: boolean): SetStatements {
  const target = identRelation(table.plan.target);
  const format = binary ? 'binary' : 'text';
  const names = table.columns.map((column) => ident(column.name));
  const updates = `pg_temp.dts_u${number}`;
  const deletes = `pg_temp.dts_d${number}`;
  // In the order of the tuple, as the arena holds them.
  const keys = [...table.keyPositions].sort((a, b) => a - b);
  const matches = keys.map((position) => `t.${names[position] ?? ''} = s.c${position}`).join(' and ');
  const make = (name: string, positions: readonly number[]): string =>
    `create temp table if not exists ${name.slice('pg_temp.'.length)} on commit delete rows as select ${positions
      .map((position) => `${names[position] ?? ''} as c${position}`)
      .join(', ')} from only ${target} with no data`;
  const all = names.map((_, position) => position);
  const list = (rows: number, positions: readonly number[]): string => {
    const tuple = (row: number): string =>
      `(${positions.map((position, n) => `$${row * positions.length + n + 1}::${table.columns[position]?.type ?? ''}`).join(', ')})`;
    const tuples = Array.from({ length: rows }, (_, row) => tuple(row));
    return `(values ${tuples.join(', ')}) s(${positions.map((position) => `c${position}`).join(', ')})`;
  };
  return {
    insert: `copy ${target} (${names.join(', ')}) from stdin (format ${format})`,
    createUpdates: make(updates, all),
    copyUpdates: `copy ${updates} from stdin (format ${format})`,
    clearUpdates: `truncate ${updates}`,
    update(sent, rows) {
      const sets = sent
        .filter((position) => !keys.includes(position) && table.columns[position]?.identityAlways !== true)
        .map((position) => `${names[position] ?? ''} = s.c${position}`);
      const from = rows === null ? `${updates} s` : list(rows, sent);
      // What sets nothing has to find its rows all the same.
      if (sets.length === 0)
        return `select from only ${target} t where exists (select from ${from} where ${matches})`;
      return `update only ${target} t set ${sets.join(', ')} from ${from} where ${matches}`;
    },
    createDeletes: make(deletes, keys),
    copyDeletes: `copy ${deletes} from stdin (format ${format})`,
    clearDeletes: `truncate ${deletes}`,
    delete: (rows) =>
      `delete from only ${target} t using ${rows === null ? `${deletes} s` : list(rows, keys)} where ${matches}`,
  };
}
