// The states of a task and the commands that it takes: words of the statechart, the API and the docs alike.

/** State keys of the statechart, the `state` in the API and the words of the docs. */
export const taskStates = [
  'created',
  'queued',
  'init',
  'creatingTables',
  'migratingData',
  'syncingWal',
  'stoppingWrites',
  'validating',
  'finalizing',
  'paused',
  'retrying',
  'cancelling',
  'failing',
  'finishing',
  'completed',
  'cancelled',
  'failed',
] as const;
export type TaskState = (typeof taskStates)[number];

const endedStates: ReadonlySet<TaskState> = new Set(['completed', 'cancelled', 'failed']);

/** Ended tasks are rows only: no actor, no connection, nothing left to do but DELETE (and unfence). */
export function isEnded(state: TaskState): boolean {
  return endedStates.has(state);
}

export const taskCommands = [
  'START',
  'PAUSE',
  'RESUME',
  'CANCEL',
  'ABANDON',
  'CUTOVER',
  'VALIDATE',
  'FINISH',
  'RECOPY',
] as const;
export type TaskCommandType = (typeof taskCommands)[number];
