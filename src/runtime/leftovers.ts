// What ended or crashed tasks have left: connections, and objects on servers that could not be removed then. Tried again
// periodically, and at once when an actor dies.
import type { TaskRow, TaskStore } from '../../db/tasks.ts';
import { cleanUp } from '../cutover/clean-up.ts';
import { settle } from '../cutover/settle.ts';
import { isEnded, taskStates, type TaskState } from '../model/task-state.ts';
import type { Log } from '../postgres/task-scope.ts';
import { foldersOf } from './activities.ts';
import type { EventHub } from './event-hub.ts';
import type { TaskWork } from './task-work.ts';

const ENDED: readonly TaskState[] = taskStates.filter(isEnded);

export interface LeftoversOptions {
  readonly tasks: TaskStore;
  readonly work: TaskWork;
  readonly hub: EventHub;
  readonly log: Log;
  readonly liveIds: () => readonly string[];
  /** Stops the task's actor, if any, and closes its connections. */
  readonly removeTask: (taskId: string) => Promise<Error[]>;
}

export class Leftovers {
  readonly #options: LeftoversOptions;
  readonly #cleaning = new Set<string>();

  constructor(options: LeftoversOptions) {
    this.#options = options;
  }

  /** All of them, one after the other. Never throws. */
  async cleanUpAll(): Promise<void> {
    const { tasks, work, log, liveIds, removeTask } = this.#options;
    try {
      for (const id of [...work.connectedTasks, ...liveIds()]) {
        const row = tasks.find(id);
        if (row && !isEnded(row.state)) continue;
        if (this.#cleaning.has(id)) continue;
        for (const error of await removeTask(id)) log.warn({ taskId: id, err: error }, 'leftover connection');
      }
      for (const id of tasks.idsWithPendingCleanup(ENDED)) await this.cleanUpTask(id);
    } catch (error) {
      log.error({ err: error }, 'periodic cleanup failed');
    }
  }

  /** Of one task that has ended or crashed: backwards, or, past its point of no return, to the end. Never throws. */
  async cleanUpTask(id: string): Promise<void> {
    const { tasks, work, hub, log } = this.#options;
    if (this.#cleaning.has(id)) return;
    this.#cleaning.add(id);
    try {
      const row = work.row(id);
      const pending = await work.withScope(id, 'periodicCleanup', async (scope) => {
        if (!goesForward(row))
          return (await cleanUp(scope, { dropTarget: work.dropTargetOf(id) })).cleanupPending;
        const settled = await settle(scope, foldersOf(scope));
        work.settled(id);
        return settled.cleanupPending;
      });
      if (pending) return;
      tasks.recordCleanup(id, 'CLEANED_UP', false);
      hub.journalGrew();
    } catch (error) {
      log.warn({ taskId: id, err: error }, 'cleanup is still pending');
    } finally {
      this.#cleaning.delete(id);
    }
  }
}

/** The target is open, or may be: whatever happened to the actor, the source must not take writes again. */
export function goesForward(row: TaskRow): boolean {
  const snapshot = row.actorSnapshot as { context?: { pastPointOfNoReturn?: unknown } } | null;
  return snapshot?.context?.pastPointOfNoReturn === true;
}
