// Rows of tasks: created once, advanced by committed transitions, read for views and the queue.
import { and, asc, count, desc, eq, inArray, max, sql } from 'drizzle-orm';
import type { ErrorReport } from '../src/model/errors.ts';
import type { TaskSpec } from '../src/model/task.ts';
import type { TaskState } from '../src/model/task-state.ts';
import { journal, task } from './schema.ts';
import type { Store } from './open.ts';

export type TaskRow = typeof task.$inferSelect;
export type JournalRow = typeof journal.$inferSelect;

export interface NewTask {
  readonly id: string;
  readonly incarnation: string;
  readonly bodyHash: string;
  readonly spec: TaskSpec;
  readonly machineVersion: number;
  readonly actorSnapshot: unknown;
}

/** One accepted transition of a task. */
export interface Transition {
  readonly taskId: string;
  readonly event: string;
  readonly state: TaskState;
  readonly machineVersion: number;
  readonly actorSnapshot: unknown;
  readonly cleanupPending: boolean;
  readonly error: ErrorReport | null;
}

export interface TaskQuery {
  readonly limit: number;
  readonly offset: number;
  readonly state?: TaskState;
}

export class TaskStore {
  readonly #store: Store;
  readonly #find: { get(values: { id: string }): TaskRow | undefined };

  constructor(store: Store) {
    this.#store = store;
    // built once: it is asked for every view
    this.#find = store.orm
      .select()
      .from(task)
      .where(eq(task.id, sql.placeholder('id')))
      .prepare();
  }

  find(id: string): TaskRow | undefined {
    return this.#find.get({ id });
  }

  /** Newest first. */
  list(query: TaskQuery): { rows: TaskRow[]; total: number } {
    const matches = query.state === undefined ? undefined : eq(task.state, query.state);
    const rows = this.#store.orm
      .select()
      .from(task)
      .where(matches)
      .orderBy(desc(task.createdAt), desc(task.id))
      .limit(query.limit)
      .offset(query.offset)
      .all();
    const total = this.#store.orm.select({ total: count() }).from(task).where(matches).get()?.total ?? 0;
    return { rows, total };
  }

  /** Ids in these states, the longest unchanged first. */
  idsIn(states: readonly TaskState[]): string[] {
    const rows = this.#store.orm
      .select({ id: task.id })
      .from(task)
      .where(inArray(task.state, [...states]))
      .orderBy(asc(task.updatedAt), asc(task.id))
      .all();
    return rows.map((row) => row.id);
  }

  idsWithPendingCleanup(states: readonly TaskState[]): string[] {
    const rows = this.#store.orm
      .select({ id: task.id })
      .from(task)
      .where(and(eq(task.cleanupPending, true), inArray(task.state, [...states])))
      .all();
    return rows.map((row) => row.id);
  }

  /** Newest seq of the journal; 0 when it is empty. */
  lastSeq(): number {
    return (
      this.#store.orm
        .select({ seq: max(journal.seq) })
        .from(journal)
        .get()?.seq ?? 0
    );
  }

  /** The task and its first journal row; returns the row's seq. */
  insert(fresh: NewTask, state: TaskState): JournalRow {
    const now = new Date().toISOString();
    this.#store.orm
      .insert(task)
      .values({ ...fresh, state, createdAt: now, updatedAt: now })
      .run();
    return this.#append(fresh.id, 'CREATED', state, null, now);
  }

  /** Snapshot and journal row in one transaction: on disk when it returns. */
  commit(transition: Transition): JournalRow {
    return this.#store.transaction(() => {
      const now = new Date().toISOString();
      this.#store.orm
        .update(task)
        .set({
          state: transition.state,
          machineVersion: transition.machineVersion,
          actorSnapshot: transition.actorSnapshot,
          cleanupPending: transition.cleanupPending,
          rev: sql`${task.rev} + 1`,
          updatedAt: now,
        })
        .where(eq(task.id, transition.taskId))
        .run();
      return this.#append(transition.taskId, transition.event, transition.state, transition.error, now);
    });
  }

  /** The actor died outside its statechart: the row ends as failed, and what it made is cleaned up later. */
  recordCrash(id: string, error: ErrorReport): JournalRow {
    return this.#store.transaction(() => {
      const now = new Date().toISOString();
      this.#store.orm
        .update(task)
        .set({
          state: 'failed',
          crash: error,
          cleanupPending: true,
          rev: sql`${task.rev} + 1`,
          updatedAt: now,
        })
        .where(eq(task.id, id))
        .run();
      return this.#append(id, 'CRASHED', 'failed', error, now);
    });
  }

  /** The periodic cleanup has removed (or could not remove) what an ended task left behind. */
  recordCleanup(id: string, event: 'CLEANED_UP' | 'UNFENCED', cleanupPending: boolean): JournalRow {
    return this.#store.transaction(() => {
      const now = new Date().toISOString();
      this.#store.orm
        .update(task)
        .set({ cleanupPending, rev: sql`${task.rev} + 1` })
        .where(eq(task.id, id))
        .run();
      const state = this.find(id)?.state ?? 'failed';
      return this.#append(id, event, state, null, now);
    });
  }

  /** Options may change while a task runs; everything else of the request stays as it was. */
  saveSpec(id: string, spec: TaskSpec): void {
    this.#store.orm.update(task).set({ spec }).where(eq(task.id, id)).run();
  }

  /** With journal, secrets, checkpoints and figures. */
  delete(id: string): void {
    this.#store.orm.delete(task).where(eq(task.id, id)).run();
  }

  #append(
    taskId: string,
    event: string,
    state: TaskState,
    error: ErrorReport | null,
    at: string,
  ): JournalRow {
    return this.#store.orm.insert(journal).values({ taskId, event, state, error, at }).returning().get();
  }
}
