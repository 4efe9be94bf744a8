// What activities and the progress display keep per task: checkpoints, figures per table, sealed secrets.
import { and, asc, eq, sql } from 'drizzle-orm';
import type { Role } from '../src/model/endpoint.ts';
import type { TableProgress } from '../src/model/progress.ts';
import { checkpoint, secret, tableProgress } from './schema.ts';
import type { Store } from './open.ts';

/** Built once: drizzle takes longer to write a statement than SQLite to run it, and some run for every part of a copy. */
function statementsOf({ orm }: Store) {
  const taskId = sql.placeholder('taskId');
  const key = sql.placeholder('key');
  const isCheckpoint = and(eq(checkpoint.taskId, taskId), eq(checkpoint.key, key));
  return {
    getCheckpoint: orm.select({ value: checkpoint.value }).from(checkpoint).where(isCheckpoint).prepare(),
    setCheckpoint: orm
      .insert(checkpoint)
      .values({ taskId, key, value: sql.placeholder('value') })
      .onConflictDoUpdate({
        target: [checkpoint.taskId, checkpoint.key],
        set: { value: sql`excluded.value` },
      })
      .prepare(),
    deleteCheckpoint: orm.delete(checkpoint).where(isCheckpoint).prepare(),
    insertTable: orm
      .insert(tableProgress)
      .values({
        taskId,
        position: sql.placeholder('position'),
        name: sql.placeholder('name'),
        figures: sql.placeholder('figures'),
      })
      .prepare(),
    updateTable: orm
      .update(tableProgress)
      .set({ figures: sql`${sql.placeholder('json')}` })
      .where(and(eq(tableProgress.taskId, taskId), eq(tableProgress.name, sql.placeholder('name'))))
      .prepare(),
  };
}

export class TaskNotes {
  readonly #store: Store;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(store: Store) {
    this.#store = store;
    this.#statements = statementsOf(store);
  }

  checkpoint(taskId: string, key: string): unknown {
    return this.#statements.getCheckpoint.get({ taskId, key })?.value;
  }

  setCheckpoint(taskId: string, key: string, value: unknown): void {
    this.#statements.setCheckpoint.run({ taskId, key, value });
  }

  deleteCheckpoint(taskId: string, key: string): void {
    this.#statements.deleteCheckpoint.run({ taskId, key });
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
      for (const [position, figures] of tables.entries())
        this.#statements.insertTable.run({ taskId, position, name: figures.table, figures });
    });
  }

  /** Replaces the figures of some tables that `saveTables` has written. */
  updateTables(taskId: string, tables: readonly TableProgress[]): void {
    this.#store.transaction(() => {
      for (const figures of tables)
        this.#statements.updateTable.run({ taskId, name: figures.table, json: JSON.stringify(figures) });
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
