// Tables of our own SQLite file. `npm run db:generate` writes the migration after a change here.
import { blob, index, integer, primaryKey, sqliteTable, text } from 'drizzle-orm/sqlite-core';
import type { ErrorReport } from '../src/model/errors.ts';
import type { TableProgress } from '../src/model/progress.ts';
import type { TaskSpec } from '../src/model/task.ts';
import type { TaskState } from '../src/model/task-state.ts';

/** One row per task: its request without secrets and the last committed actor snapshot. */
export const task = sqliteTable(
  'task',
  {
    id: text('id').primaryKey(),
    /** Unique per created task: a deleted task's leftovers under the same id are strangers. */
    incarnation: text('incarnation').notNull(),
    /** Keyed hash of the request, secrets included: tells a repeated create from another one. */
    bodyHash: text('body_hash').notNull(),
    spec: text('spec', { mode: 'json' }).$type<TaskSpec>().notNull(),
    state: text('state').$type<TaskState>().notNull(),
    machineVersion: integer('machine_version').notNull(),
    actorSnapshot: text('actor_snapshot', { mode: 'json' }).$type<unknown>().notNull(),
    /** Counts committed transitions. */
    rev: integer('rev').notNull().default(0),
    cleanupPending: integer('cleanup_pending', { mode: 'boolean' }).notNull().default(false),
    /** Why the actor itself died, where the statechart could not say it. */
    crash: text('crash', { mode: 'json' }).$type<ErrorReport>(),
    /** ISO 8601. */
    createdAt: text('created_at').notNull(),
    updatedAt: text('updated_at').notNull(),
  },
  (table) => [
    index('task_state').on(table.state, table.updatedAt),
    index('task_created').on(table.createdAt, table.id),
  ],
);

/** Append-only: every committed transition. `seq` is the id of server-sent events. */
export const journal = sqliteTable(
  'journal',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    taskId: text('task_id')
      .notNull()
      .references(() => task.id, { onDelete: 'cascade' }),
    event: text('event').notNull(),
    state: text('state').$type<TaskState>().notNull(),
    error: text('error', { mode: 'json' }).$type<ErrorReport>(),
    at: text('at').notNull(),
  },
  (table) => [index('journal_task').on(table.taskId, table.seq)],
);

/** Database passwords and private keys, AES-256-GCM: nonce (12) | tag (16) | ciphertext. */
export const secret = sqliteTable(
  'secret',
  {
    taskId: text('task_id')
      .notNull()
      .references(() => task.id, { onDelete: 'cascade' }),
    role: text('role').$type<'source' | 'target'>().notNull(),
    sealed: blob('sealed', { mode: 'buffer' }).notNull(),
  },
  (table) => [primaryKey({ columns: [table.taskId, table.role] })],
);

/** An activity's own durable notes. */
export const checkpoint = sqliteTable(
  'checkpoint',
  {
    taskId: text('task_id')
      .notNull()
      .references(() => task.id, { onDelete: 'cascade' }),
    key: text('key').notNull(),
    value: text('value', { mode: 'json' }).$type<unknown>().notNull(),
  },
  (table) => [primaryKey({ columns: [table.taskId, table.key] })],
);

/** Figures per table as of the last finished part; what is left of them when nobody is copying. */
export const tableProgress = sqliteTable(
  'table_progress',
  {
    taskId: text('task_id')
      .notNull()
      .references(() => task.id, { onDelete: 'cascade' }),
    position: integer('position').notNull(),
    name: text('name').notNull(),
    figures: text('figures', { mode: 'json' }).$type<TableProgress>().notNull(),
  },
  (table) => [primaryKey({ columns: [table.taskId, table.name] })],
);
