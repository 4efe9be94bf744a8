// The round over the slots of tasks whose stream does not run (slot-watch.ts looks at one). Called by the manager's timer.
import type { TaskNotes } from '../../db/notes.ts';
import type { TaskStore } from '../../db/tasks.ts';
import { asMigrationError, type ErrorReport } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import type { Log } from '../postgres/task-scope.ts';
import { lookAtSlot, needsWatch, watchedStates } from './slot-watch.ts';
import type { TaskWork } from './task-work.ts';
import { restingSnapshot } from './view.ts';

/** Slots of tasks at rest that are looked at at the same time. */
const WATCHED_AT_ONCE = 4;

export interface SlotWatcherOptions {
  readonly tasks: TaskStore;
  readonly notes: TaskNotes;
  readonly work: TaskWork;
  readonly log: Log;
  readonly isStopping: () => boolean;
  readonly slotLost: (taskId: string, error: ErrorReport) => void;
  /** The danger that a slot is in; null: none any more. */
  readonly slotEndangered: (taskId: string, finding: Finding | null) => void;
}

export class SlotWatcher {
  readonly #options: SlotWatcherOptions;
  #watching = false;

  constructor(options: SlotWatcherOptions) {
    this.#options = options;
  }

  /** A few at once: a source that does not answer holds up nobody else's. Never throws. */
  async round(): Promise<void> {
    const { tasks, log, isStopping } = this.#options;
    if (this.#watching || isStopping()) return;
    this.#watching = true;
    try {
      const waiting = tasks.idsIn(watchedStates);
      const watch = async (): Promise<void> => {
        for (let id = waiting.pop(); id !== undefined && !isStopping(); id = waiting.pop())
          await this.#watch(id);
      };
      await Promise.all(Array.from({ length: WATCHED_AT_ONCE }, watch));
    } catch (error) {
      log.error({ err: error }, 'the slots could not be looked at');
    } finally {
      this.#watching = false;
    }
  }

  async #watch(id: string): Promise<void> {
    const { notes, work, log, isStopping, slotLost, slotEndangered } = this.#options;
    try {
      const row = work.row(id);
      const sampledAt = work.telemetryOf(id).snapshot().sync?.sampledAt ?? null;
      const { error } = restingSnapshot(row).context;
      if (row.crash || !needsWatch(notes, { id, state: row.state, error }, sampledAt)) return;
      const finding = await work.withScope(id, 'watchSlot', (scope) => lookAtSlot(scope));
      if (finding !== undefined && !isStopping()) slotEndangered(id, finding);
    } catch (error) {
      const failure = asMigrationError(error);
      log.warn({ taskId: id, err: failure }, 'the slot of a task that does not stream');
      if (failure.kind === 'lost' && !isStopping()) slotLost(id, failure.toReport());
    }
  }
}
