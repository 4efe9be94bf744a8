// The note of how long the source refused writes. The API shows it, so it is written at the moment of each fact and
// survives a kill between them.
import { cutoverNotes, type WriteStop } from '../model/cutover-notes.ts';
import type { Certificate } from '../model/certificate.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

const now = (): string => new Date().toISOString();

function lastStop(scope: TaskScope): WriteStop | undefined {
  return scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop);
}

/** Before arming: a kill right after it must not leave a fence that nobody knows of. Arming again keeps the time. */
export function noteArming(scope: TaskScope): string {
  const stop = lastStop(scope);
  if (stop && stop.liftedAt === null) return stop.armedAt;
  const armedAt = now();
  scope.checkpoints.set(cutoverNotes.writeStop, {
    armedAt,
    liftedAt: null,
    openedAt: null,
  } satisfies WriteStop);
  return armedAt;
}

/** Writes to the source are allowed. A cutover that was given up never opened the target. */
export function noteLifted(scope: TaskScope): void {
  const stop = lastStop(scope);
  if (!stop || stop.liftedAt !== null) return;
  const completed = scope.checkpoints.get<Certificate>(cutoverNotes.certificate) !== undefined;
  scope.checkpoints.set(cutoverNotes.writeStop, {
    armedAt: stop.armedAt,
    liftedAt: now(),
    openedAt: completed ? stop.openedAt : null,
  } satisfies WriteStop);
}

/** Whether the target may have taken writes already. */
export function isOpened(scope: TaskScope): boolean {
  return (lastStop(scope)?.openedAt ?? null) !== null;
}

/** The target has all that it needs to take writes. Noting it again keeps the time. */
export function noteOpened(scope: TaskScope): void {
  const stop = lastStop(scope);
  if (stop && stop.openedAt === null)
    scope.checkpoints.set(cutoverNotes.writeStop, { ...stop, openedAt: now() } satisfies WriteStop);
}
