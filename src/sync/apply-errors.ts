// What a failed or surprising statement of the replay means: which change it was, and whether source and target disagree.
// Called by apply.ts for every answer of the target.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import { fromPostgres } from '../postgres/errors.ts';
import type { Tuple } from '../postgres/pgoutput-messages.ts';
import type { StreamedTable } from './relations.ts';
import { describeKey } from './statements.ts';

/** For errors: which change a statement carries out. */
export interface ChangeContext {
  readonly operation: 'insert' | 'update' | 'delete' | 'truncate' | 'progress';
  readonly table?: StreamedTable;
  readonly row?: Tuple;
  readonly commitLsn?: Lsn;
}

function detailsOf(context: ChangeContext): Record<string, unknown> {
  const { operation, table, row, commitLsn } = context;
  return {
    operation,
    ...(table === undefined ? {} : { table: table.key }),
    ...(table === undefined || row === undefined ? {} : { key: describeKey(table, row) }),
    ...(commitLsn === undefined ? {} : { lsn: commitLsn }),
  };
}

/** The target had another number of rows than the source: `unexpected_row` with table, key and commit LSN. */
export function unexpectedRow(context: ChangeContext, found: string, cause?: MigrationError): MigrationError {
  if (context.operation === 'progress')
    return new MigrationError(
      'slot_stranger',
      `target: the task's row of dts.progress is gone or was changed`,
      {
        details: { found },
      },
    );
  const details = detailsOf(context);
  return new MigrationError(
    'unexpected_row',
    `target: ${context.operation} on ${context.table?.key ?? 'a table'} at ${context.commitLsn ?? 'unknown'}: ${found}`,
    {
      hint:
        'somebody else wrote to the target, or its rows do not come from this migration. Make the row what the source ' +
        'had before the change and resume, or cancel this migration and start a new one',
      details: { ...details, ...cause?.details },
      ...(cause === undefined ? {} : { cause }),
    },
  );
}

/** `unexpected_row` for a row that is there already, else what fromPostgres says, with the change in its details. */
export function classify(error: unknown, context: ChangeContext): MigrationError {
  const known = fromPostgres(error, { role: 'target', ...detailsOf(context) });
  const state = known.details?.['sqlstate'];
  // unique_violation, exclusion_violation: the row is there already; the detail names the key
  if (state === '23505' || state === '23P01') return unexpectedRow(context, known.message, known);
  return known;
}
