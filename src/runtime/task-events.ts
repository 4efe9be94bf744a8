// Events of one task or of all, as HTTP and the library hand them out: what the journal has, and the newest figures.
import { readJournal } from '../../db/journal.ts';
import type { Store } from '../../db/open.ts';
import type { TaskRow, TaskStore } from '../../db/tasks.ts';
import type { TaskEvent } from '../model/service.ts';
import type { TaskView } from '../model/task.ts';
import type { EventHub } from './event-hub.ts';

/** How often a reader of events looks for new figures. */
const PROGRESS_INTERVAL_MS = 500;

export interface EventSources {
  readonly store: Store;
  readonly tasks: TaskStore;
  readonly hub: EventHub;
  readonly view: (row: TaskRow) => TaskView;
}

/** Ends when `signal` aborts, or when the task `id` is deleted. */
export async function* taskEvents(
  { store, tasks, hub, view }: EventSources,
  options: { readonly id?: string; readonly sinceSeq?: number; readonly signal: AbortSignal },
): AsyncIterable<TaskEvent> {
  const { id, signal } = options;
  const reader = hub.subscribe();
  const close = (): void => reader.close();
  signal.addEventListener('abort', close, { once: true });
  // A client of one task that names no position gets its whole history; a client of all gets what happens from now on.
  let seq = options.sinceSeq ?? (id === undefined ? tasks.lastSeq() : 0);
  try {
    for (let first = true; !signal.aborted; first = false) {
      for (;;) {
        const rows = readJournal(store, seq, id);
        for (const row of rows) {
          seq = row.seq;
          yield { kind: 'state', seq, taskId: row.taskId, event: row.event, state: row.state, at: row.at };
        }
        if (rows.length === 0) break;
      }
      const dirty = first && id !== undefined ? [id] : reader.takeDirty();
      for (const taskId of dirty) {
        if (id !== undefined && taskId !== id) continue;
        const row = tasks.find(taskId);
        if (!row) continue;
        const { state, progress, detail } = view(row);
        yield { kind: 'progress', taskId, state, progress, detail };
      }
      if (id !== undefined && !tasks.find(id)) return; // deleted
      await reader.wait(PROGRESS_INTERVAL_MS);
    }
  } finally {
    signal.removeEventListener('abort', close);
    close();
  }
}
