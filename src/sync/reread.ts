// A row that no copy has and whose insert the message does not describe in full (unchanged TOAST values of a key move
// between two parts): it is read again on the source and becomes a part of its own, with a marker, because the row that
// is read now has seen more than the change that asked for it. Called by replay.ts.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import { formatRange, type RowRange } from '../model/part-range.ts';
import { isVisible, parsePgSnapshot, widenXid } from '../model/pg-snapshot.ts';
import { waitForFlush } from '../postgres/copy-flush.ts';
import { rangeCondition } from '../postgres/copy-range.ts';
import { slotOf } from '../postgres/slot-record.ts';
import type { Tuple } from '../postgres/pgoutput-messages.ts';
import { ident, identRelation, outputText } from '../postgres/sql.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { keyOf, type CopiedPart, type SourceTransaction } from './filter.ts';
import type { StreamedTable } from './relations.ts';
import type { Statement } from './statements.ts';
import { ONE_SNAPSHOT } from '../postgres/transaction-options.ts';

const VISIBLE_POLL_MS = 20;
const VISIBLE_DEADLINE_MS = 60_000;

export interface ReadAgain {
  readonly part: CopiedPart;
  /** Null: the row is gone on the source, there is nothing to insert. */
  readonly row: Tuple | null;
  /** Writes the marker; belongs into the target transaction of the row. */
  readonly marker: Statement;
}

/**
 * Reads the row whose identity `row` has, as it is behind the transaction that asks for it. Errors: those of a query,
 * `deadline_exceeded` when the source does not flush or the transaction stays invisible.
 */
export async function readAgain(
  scope: TaskScope,
  table: StreamedTable,
  row: Tuple,
  asking: SourceTransaction,
  signal: AbortSignal,
): Promise<ReadAgain> {
  const range: RowRange = { kind: 'row', key: keyOf(table, row) };
  if (Object.keys(range.key).length !== table.keyPositions.length || table.keyPositions.length === 0)
    throw new MigrationError('internal', `${table.key}: a change does not tell the key of its row`);
  let read = await readRow(scope, table, range);
  // A commit is streamed as soon as it is in the WAL; its transaction becomes visible after that, and where it waits for a
  // synchronous standby much later. Read before, the row would lack the very change that asks for it.
  for (const deadline = Date.now() + VISIBLE_DEADLINE_MS; !hasSeen(read, asking); ) {
    if (Date.now() > deadline)
      throw new MigrationError(
        'deadline_exceeded',
        `source: transaction ${asking.xid} is committed in the WAL and stays invisible`,
        {
          hint: 'its commit waits for a synchronous standby (wait_event SyncRep): look at synchronous_standby_names',
          details: { relation: table.key, lsn: asking.commitLsn },
        },
      );
    scope.progress.setWaitingFor(`the source's transaction ${asking.xid} to become visible`);
    await sleep(VISIBLE_POLL_MS, signal);
    read = await readRow(scope, table, range);
  }
  scope.progress.setWaitingFor(null);
  await waitForFlush(scope, read.horizonLsn, (reason) => scope.progress.setWaitingFor(reason), signal);
  return {
    row: read.row,
    part: {
      relation: table.key,
      part: -1,
      range,
      pgSnapshot: parsePgSnapshot(read.seen),
      horizonLsn: read.horizonLsn,
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
        read.seen,
        read.horizonLsn,
        read.row === null ? '0' : '1',
      ],
    },
  };
}

interface RowRead {
  readonly row: Tuple | null;
  /** pg_current_snapshot(). */
  readonly seen: string;
  readonly horizonLsn: Lsn;
}

function hasSeen({ seen }: RowRead, { xid }: SourceTransaction): boolean {
  const pgSnapshot = parsePgSnapshot(seen);
  return isVisible(pgSnapshot, widenXid(xid, pgSnapshot.xmax));
}

async function readRow(scope: TaskScope, table: StreamedTable, range: RowRange): Promise<RowRead> {
  const types = new Map(table.columns.map((column) => [column.name, column.type]));
  const filter = table.plan.where === undefined ? '' : ` and (${table.plan.where})`;
  const columns = table.columns.map((column) => outputText(ident(column.name))).join(', ');
  return scope.source.transaction(async (client) => {
    await client.query(`set local lock_timeout = '30s'`);
    // before the snapshot: a rewriting ALTER or a TRUNCATE in between would show an empty table
    await client.query(`lock table only ${identRelation(table.plan.source)} in access share mode`);
    const { rows: seen } = await client.query<{ seen: string; horizonLsn: Lsn }>(
      `select pg_current_snapshot()::text as seen, pg_current_wal_insert_lsn()::text as "horizonLsn"`,
    );
    const { rows } = await client.query<(string | null)[]>({
      text: `select ${columns} from only ${identRelation(table.plan.source)} where ${rangeCondition(range, types)}${filter}`,
      rowMode: 'array',
    });
    const [snapshot] = seen;
    if (!snapshot) throw new MigrationError('internal', 'source: it does not tell its snapshot');
    return { ...snapshot, row: rows[0] ?? null };
  }, ONE_SNAPSHOT);
}
