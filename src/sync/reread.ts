// A row that no copy has and whose insert the message does not describe in full (unchanged TOAST values of a key move
// between two parts): it is read again on the source and becomes a part of its own, with a marker, because the row that
// is read now has seen more than the change that asked for it. Called by replay.ts.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import { formatRange, type RowRange } from '../model/part-range.ts';
import { parsePgSnapshot } from '../model/pg-snapshot.ts';
import { waitForFlush } from '../postgres/copy-flush.ts';
import { rangeCondition } from '../postgres/copy-range.ts';
import { slotOf } from '../postgres/slot-record.ts';
import type { Tuple } from '../postgres/pgoutput-messages.ts';
import { ident, identRelation, outputText } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { keyOf, type CopiedPart } from './filter.ts';
import type { StreamedTable } from './relations.ts';
import type { Statement } from './statements.ts';

export interface ReadAgain {
  readonly part: CopiedPart;
  /** Null: the row is gone on the source, there is nothing to insert. */
  readonly row: Tuple | null;
  /** Writes the marker; belongs into the target transaction of the row. */
  readonly marker: Statement;
}

/** Reads the row whose identity `row` has. Errors: those of a query, `deadline_exceeded` when the source does not flush. */
export async function readAgain(
  scope: TaskScope,
  table: StreamedTable,
  row: Tuple,
  signal: AbortSignal,
): Promise<ReadAgain> {
  const range: RowRange = { kind: 'row', key: keyOf(table, row) };
  if (Object.keys(range.key).length !== table.keyPositions.length || table.keyPositions.length === 0)
    throw new MigrationError('internal', `${table.key}: a change does not tell the key of its row`);
  const types = new Map(table.columns.map((column) => [column.name, column.type]));
  const filter = table.plan.where === undefined ? '' : ` and (${table.plan.where})`;
  const columns = table.columns.map((column) => outputText(ident(column.name))).join(', ');
  const read = await scope.source.transaction(async (client) => {
    await client.query(`set local lock_timeout = '30s'`);
    // before the snapshot: a rewriting ALTER or a TRUNCATE in between would show an empty table
    await client.query(`lock table only ${identRelation(table.plan.source)} in access share mode`);
    const { rows: seen } = await client.query<{ seen: string; horizon: Lsn }>(
      `select pg_current_snapshot()::text as seen, pg_current_wal_insert_lsn()::text as horizon`,
    );
    const { rows } = await client.query<(string | null)[]>({
      text: `select ${columns} from only ${identRelation(table.plan.source)} where ${rangeCondition(range, types)}${filter}`,
      rowMode: 'array',
    });
    return { snapshot: seen[0], row: rows[0] ?? null };
  }, 'begin isolation level repeatable read read only');
  if (!read.snapshot) throw new MigrationError('internal', 'source: it does not tell its snapshot');
  await waitForFlush(scope, read.snapshot.horizon, (reason) => scope.progress.setWaitingFor(reason), signal);
  return {
    row: read.row,
    part: {
      relation: table.key,
      part: -1,
      range,
      pgSnapshot: parsePgSnapshot(read.snapshot.seen),
      horizonLsn: read.snapshot.horizon,
    },
    marker: {
      // numbered below zero, so that it never meets a part of the plan; a row that is read twice keeps the later marker
      text: `with gone as (delete from dts.part where task_id = $1 and slot_incarnation = $2 and relation = $3 and range = $4 returning part)
             insert into dts.part (task_id, slot_incarnation, relation, part, range, pg_snapshot, horizon_lsn, rows, bytes, epoch)
             select $1, $2, $3, least(0, min(part)) - 1, $4, $5, $6::pg_lsn, $7::int, 0, 0
               from dts.part where task_id = $1 and slot_incarnation = $2 and relation = $3`,
      values: [
        scope.taskId,
        slotOf(scope).incarnation,
        table.key,
        formatRange(range),
        read.snapshot.seen,
        read.snapshot.horizon,
        read.row === null ? '0' : '1',
      ],
    },
  };
}
