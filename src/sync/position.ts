// Where the target notes how far a stream is applied, in the target transaction of the rows: the row is locked when a batch
// begins, and moved when it ends. Used by apply.ts.
import type { Lsn } from '../model/lsn.ts';
import type { SlotRecord } from '../postgres/slot-record.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { BatchEnd } from './apply.ts';
import type { Statement } from './statements.ts';

export interface Position {
  /**
   * Finds one row if the position is still `applied`, and locks it. It says TRACKING where changed keys are to be written
   * down. Where other tables are to be set aside than were read, it fails by HOLDS_CHANGED_STATE: as an error, because what
   * was sent behind it must not run. It might wait for the locks of a copy.
   */
  lock(applied: Lsn): Statement;
  /** The first one moves one row. */
  move(end: BatchEnd): readonly Statement[];
}

export const TRACKING = 'tracking';
/** division_by_zero: nothing else of the statement divides. */
export const HOLDS_CHANGED_STATE = '22012';

/** Of the task's stream, in dts.progress. `holds`: number of what is set aside (held-tables.ts). */
export function streamPosition({ taskId }: TaskScope, slot: SlotRecord, holds: number): Position {
  return {
    lock: (applied) => ({
      text: `select case when holds <> $4::int then (1 / (holds - holds))::text when tracking then '${TRACKING}' else '' end
               from dts.progress where task_id = $1 and slot_incarnation = $2 and applied_lsn = $3::pg_lsn for update`,
      values: [taskId, slot.incarnation, applied, String(holds)],
    }),
    move: ({ position, marker }) => [
      {
        text: `update dts.progress set applied_lsn = $3::pg_lsn, acked_lsn = $3::pg_lsn, updated_at = now(),
                 marker = coalesce($4, marker), marker_lsn = coalesce($5::pg_lsn, marker_lsn)
               where task_id = $1 and slot_incarnation = $2`,
        values: [taskId, slot.incarnation, position, marker?.id ?? null, marker?.lsn ?? null],
      },
    ],
  };
}

/** Of what is set aside of one table, which is gone where it is applied. A validation leaves the table out. */
export function heldPosition({ taskId }: TaskScope, relation: string): Position {
  return {
    lock: (applied) => ({
      text: `select '' from dts.held_table where task_id = $1 and relation = $2 and applied_lsn = $3::pg_lsn for update`,
      values: [taskId, relation, applied],
    }),
    move: ({ position }) => [
      {
        text: 'update dts.held_table set applied_lsn = $3::pg_lsn where task_id = $1 and relation = $2',
        values: [taskId, relation, position],
      },
      {
        text: 'delete from dts.held_change where task_id = $1 and relation = $2 and last_commit < $3::pg_lsn',
        values: [taskId, relation, position],
      },
    ],
  };
}
