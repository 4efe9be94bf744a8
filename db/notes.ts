// What activities and the progress display keep per task: checkpoints, figures per table, sealed secrets.
import { and, asc, eq } from 'drizzle-orm';
import type { Role } from '../src/model/endpoint.ts';
import type { TableProgress } from '../src/model/progress.ts';
import { checkpoint, secret, tableProgress } from './schema.ts';
import type { Store } from './open.ts';

export class TaskNotes {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  checkpoint(taskId: string, key: string): unknown {
    return this.#store.orm
      .select({ value: checkpoint.value })
      .from(checkpoint)
      .where(and(eq(checkpoint.taskId, taskId), eq(checkpoint.key, key)))
      .get()?.value;
  }

  setCheckpoint(taskId: string, key: string, value: unknown): void {
    this.#store.orm
      .insert(checkpoint)
      .values({ taskId, key, value })
      .onConflictDoUpdate({ target: [checkpoint.taskId, checkpoint.key], set: { value } })
      .run();
  }

  deleteCheckpoint(taskId: string, key: string): void {
    this.#store.orm
      .delete(checkpoint)
      .where(and(eq(checkpoint.taskId, taskId), eq(checkpoint.key, key)))
      .run();
  }

  tables(taskId: string): TableProgress[] {
    const rows = this.#store.orm
      .select()
      .from(tableProgress)
      .where(eq(tableProgress.taskId, taskId))
      .orderBy(asc(tableProgress.position))
      .all();
    return rows.map((row) => row.figures);
  }

  saveTables(taskId: string, tables: readonly TableProgress[]): void {
    this.#store.transaction(() => {
      this.#store.orm.delete(tableProgress).where(eq(tableProgress.taskId, taskId)).run();
      for (const [position, figures] of tables.entries()) {
        this.#store.orm
          .insert(tableProgress)
          .values({ taskId, position, name: figures.table, figures })
          .run();
      }
    });
  }

  /** Replaces the figures of some tables that `saveTables` has written. */
  updateTables(taskId: string, tables: readonly TableProgress[]): void {
    this.#store.transaction(() => {
      for (const figures of tables)
        this.#store.orm
          .update(tableProgress)
          .set({ figures })
          .where(and(eq(tableProgress.taskId, taskId), eq(tableProgress.name, figures.table)))
          .run();
    });
  }

  sealedSecret(taskId: string, role: Role): Buffer | undefined {
    return this.#store.orm
      .select({ sealed: secret.sealed })
      .from(secret)
      .where(and(eq(secret.taskId, taskId), eq(secret.role, role)))
      .get()?.sealed;
  }

  saveSecret(taskId: string, role: Role, sealed: Buffer): void {
    this.#store.orm.insert(secret).values({ taskId, role, sealed }).run();
  }
}
