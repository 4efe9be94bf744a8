// Whether every part and index of the task stands on the target. The copy says it, the stream waits for it before it
// applies its first change. A checkpoint, so that a restarted process does not ask the target again.
import type { TaskScope } from './task-scope.ts';

const COPY_COMPLETE = 'copyComplete';

export function isCopyComplete(scope: TaskScope): boolean {
  return scope.checkpoints.get<boolean>(COPY_COMPLETE) === true;
}

/** Only after the last marker, key and index have been committed on the target. */
export function markCopyComplete(scope: TaskScope): void {
  scope.checkpoints.set(COPY_COMPLETE, true);
}
