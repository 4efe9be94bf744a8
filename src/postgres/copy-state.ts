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

const LIVE_COPY = 'liveCopy';

/** Checkpoint: tables that are added, or copied again, while the stream goes on. */
export interface LiveCopy {
  /** Number of the request. */
  readonly pass: number;
  /** `relationKey`s of source tables; of an addition empty until it is planned. */
  readonly relations: readonly string[];
  /**
   * `broken`: their columns have changed on the source, and what is copied is worth nothing; `released`: everything is
   * copied, the stream takes over.
   */
  readonly state: 'copying' | 'broken' | 'released' | 'done';
}

export function findLiveCopy({ checkpoints }: Pick<TaskScope, 'checkpoints'>): LiveCopy | undefined {
  return checkpoints.get<LiveCopy>(LIVE_COPY);
}

export function saveLiveCopy({ checkpoints }: Pick<TaskScope, 'checkpoints'>, copy: LiveCopy): void {
  checkpoints.set(LIVE_COPY, copy);
}

export function isCopiedBeside(scope: Pick<TaskScope, 'checkpoints'>): boolean {
  const copy = findLiveCopy(scope);
  return copy !== undefined && copy.state !== 'done';
}

/** The tables that are being copied while the stream runs: not to be compared with the source, nor with its catalog. */
export function unfinishedTables(scope: Pick<TaskScope, 'checkpoints'>): readonly string[] {
  const copy = findLiveCopy(scope);
  return copy === undefined || copy.state === 'done' ? [] : copy.relations;
}

/** Whether unique constraints are built while the stream runs: it then waits for their locks as long as it takes. */
export function isUniqueLater(scope: TaskScope): boolean {
  return scope.checkpoints.get<boolean>(UNIQUE_LATER) === true;
}
