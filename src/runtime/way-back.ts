// The tasks that cutovers with `options.reverse` have led to, one after the other: which is the last, and what may not be
// done to the others while the way back is open.
import type { TaskNotes } from '../../db/notes.ts';
import type { TaskRow, TaskStore } from '../../db/tasks.ts';
import { MigrationError } from '../model/errors.ts';
import { firstIdOf, nextLegId } from '../model/reverse.ts';
import { isEnded } from '../model/task-state.ts';
import type { TaskSpec } from '../model/task.ts';
import { reverseTaskOf } from './view.ts';

interface Rows {
  readonly tasks: TaskStore;
  readonly notes: TaskNotes;
}

/** The task itself, or the last of those that its cutover led to. */
export function lastLegOf(rows: Rows, row: TaskRow): TaskRow {
  const id = reverseTaskOf(rows.notes, row.id);
  const next = id === null ? undefined : rows.tasks.find(id);
  return next ? lastLegOf(rows, next) : row;
}

/** Throws `task_live` while the way back is open: it needs the row, and the fence. */
export function refuseWhileReversed(rows: Rows, row: TaskRow): void {
  const last = lastLegOf(rows, row);
  if (last.id === row.id || isEnded(last.state)) return;
  throw new MigrationError(
    'task_live',
    `the reverse task ${last.id} of ${row.id} has not ended (${last.state})`,
    {
      hint: `finish it first: POST …/${row.id}/finish`,
      details: { state: last.state, reverseTask: last.id },
    },
  );
}

/** Throws `task_exists` for the id of a reverse task to come, and for a task whose reverse task's id is taken. */
export function refuseReservedId({ tasks }: Rows, id: string, spec: TaskSpec): void {
  const refuse = (message: string): never => {
    throw new MigrationError('task_exists', message, { hint: 'choose another id', details: { id } });
  };
  const first = firstIdOf(id);
  if (first !== null && tasks.find(first)?.spec.options.reverse === true)
    refuse(`the id ${id} is kept for reverse tasks of ${first}`);
  const leg = nextLegId(id, spec);
  if (spec.options.reverse && tasks.find(leg))
    refuse(`a task ${leg} exists, which the reverse task would be called`);
}
