// The set-wise statements of one table: COPY for inserts, and for updates and deletes COPY into a temporary table from
// which one statement takes them. Not `unnest` of arrays: it flattens columns that are arrays themselves, and a cast from
// text is not the type's input function. Pure; apply.ts runs them.
import { ident, identRelation } from '../postgres/sql.ts';
import type { StreamedTable } from './relations.ts';

export interface SetStatements {
  readonly insert: string;
  /** Makes the table that gets the new tuples of updates; `on commit delete rows`. */
  readonly createUpdates: string;
  readonly copyUpdates: string;
  readonly clearUpdates: string;
  /** `unchanged`: positions that keep their value. */
  update(unchanged: ReadonlySet<number>): string;
  readonly createDeletes: string;
  readonly copyDeletes: string;
  readonly clearDeletes: string;
  readonly delete: string;
}

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
  return {
    insert: `copy ${target} (${names.join(', ')}) from stdin (format ${format})`,
    createUpdates: make(updates, all),
    copyUpdates: `copy ${updates} from stdin (format ${format})`,
    clearUpdates: `truncate ${updates}`,
    update(unchanged) {
      const sets = table.columns
        .map((column, position) =>
          keys.includes(position) || unchanged.has(position) || column.identityAlways
            ? null
            : `${names[position] ?? ''} = s.c${position}`,
        )
        .filter((set) => set !== null);
      const rest = `from ${updates} s where ${matches}`;
      // What sets nothing has to find its rows all the same.
      if (sets.length === 0) return `select from only ${target} t, ${updates} s where ${matches}`;
      return `update only ${target} t set ${sets.join(', ')} ${rest}`;
    },
    createDeletes: make(deletes, keys),
    copyDeletes: `copy ${deletes} from stdin (format ${format})`,
    clearDeletes: `truncate ${deletes}`,
    delete: `delete from only ${target} t using ${deletes} s where ${matches}`,
  };
}
