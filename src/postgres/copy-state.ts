// Whether every part of the task stands on the target, with its indexes. The copy says it, the stream waits for it before it
// applies its first change. Unique constraints of tables of several snapshots may come later: they need the stream. A checkpoint, so that a restarted process does not ask the target again.
import type { TaskScope } from './task-scope.ts';

const COPY_COMPLETE = 'copyComplete';
const UNIQUE_LATER = 'uniqueLater';

export function isCopyComplete(scope: TaskScope): boolean {
  return scope.checkpoints.get<boolean>(COPY_COMPLETE) === true;
}

/** Checkpoints of a task that has nothing to copy. */
export const copyCompleteNotes = { [COPY_COMPLETE]: true } as const;

/** Only after the last marker, key and index have been committed on the target; `uniqueLater`: but for those. */
export function markCopyComplete(scope: TaskScope, { uniqueLater = false } = {}): void {
  scope.checkpoints.set(UNIQUE_LATER, uniqueLater);
  scope.checkpoints.set(COPY_COMPLETE, true);
}

/** Tables are copied again: the stream waits for `markCopyComplete` before it applies anything. */
export function markCopyIncomplete(scope: TaskScope): void {
  scope.checkpoints.set(COPY_COMPLETE, false);
}

/** Whether unique constraints are built while the stream runs: it then waits for their locks as long as it takes. */
export function isUniqueLater(scope: TaskScope): boolean {
  return scope.checkpoints.get<boolean>(UNIQUE_LATER) === true;
}
