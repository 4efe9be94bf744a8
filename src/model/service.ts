// The library's surface: what `createService` returns and what HTTP and the command line are made of.
import type { OptionsPatch, TablesAddition } from './request-changes.ts';
import type { TaskRequest } from './request.ts';
import type { Finding } from './finding.ts';
import type { CutoverForecast } from './forecast.ts';
import type { SchemaView } from './schema-plan.ts';
import type { ValidationView, RepairRequest, RepairView } from './validation.ts';
import type { Certificate } from './certificate.ts';
import type { TaskState } from './task-state.ts';
import type { TaskView } from './task.ts';
import type { TableProgress, TaskProgress } from './progress.ts';

/** A task with an actor, as the manager sees it. */
export interface LiveTask {
  readonly id: string;
  readonly state: TaskState;
  /** 0–100, from rows and bytes. */
  readonly progress: number;
  /** Open PostgreSQL connections, walsender and COPY included. */
  getConnectionCount(): number;
}

/** The original's task manager. Every method is safe under concurrency. */
export interface TaskManager {
  getTask(id: string): LiveTask | undefined;
  listTasks(): LiveTask[];
  getTaskCount(): number;
  /** Stops what lives of the task and closes every connection; returns what went wrong while closing. The row stays. */
  removeTask(id: string): Promise<Error[]>;
  /** Stops and closes what is left of ended tasks and retries pending cleanups; errors are logged, not thrown. */
  cleanupCompletedTasks(): Promise<void>;
}

export interface TaskPage {
  readonly tasks: readonly TaskView[];
  /** Tasks that match, on all pages. */
  readonly total: number;
}

/** `state`: a row of the journal, replayed to late clients by `seq`; `progress`: live figures, never replayed. */
export type TaskEvent =
  | {
      readonly kind: 'state';
      readonly seq: number;
      readonly taskId: string;
      readonly event: string;
      readonly state: TaskState;
      readonly at: string;
    }
  | {
      readonly kind: 'progress';
      readonly taskId: string;
      readonly state: TaskState;
      readonly progress: number;
      readonly detail: TaskProgress;
    };

export interface CommandResult {
  readonly task: TaskView;
  /** False when the result already held and nothing was done. */
  readonly changed: boolean;
}

/**
 * Errors are MigrationErrors: `invalid_request`, `task_not_found`, `task_exists`, `task_already_running`, `task_ended`,
 * `task_live`, `event_not_accepted` (details: state, allowed), `service_stopped`.
 * A command resolves after its transition is committed to SQLite.
 */
export interface Service {
  readonly taskManager: TaskManager;
  /** `created` is false when the same id with the same body existed. */
  createTask(request: TaskRequest): Promise<{ readonly task: TaskView; readonly created: boolean }>;
  /** Refuses unknown, ended and already running tasks. Aborting `signal` later pauses the task. */
  startTask(id: string, signal?: AbortSignal): Promise<CommandResult>;
  pauseTask(id: string): Promise<CommandResult>;
  resumeTask(id: string): Promise<CommandResult>;
  /** `dropTarget` also drops the target tables that this task made. */
  cancelTask(id: string, options?: { readonly dropTarget?: boolean }): Promise<CommandResult>;
  /** Gives a task up as `failed`, leaving nothing on the source. */
  abandonTask(id: string, options?: { readonly dropTarget?: boolean }): Promise<CommandResult>;
  cutover(id: string): Promise<CommandResult>;
  /**
   * Undoes the cutover of a completed task with `options.reverse`: cuts its reverse task over, and answers with that. A
   * repeated call does nothing.
   */
  rollback(id: string): Promise<CommandResult>;
  /** Ends the reverse stream that this task's cutovers and rollbacks have led to, and answers with its task. */
  finish(id: string): Promise<CommandResult>;
  /** What a cutover would meet now; of a task that syncs. Changes nothing. */
  forecastCutover(id: string): Promise<CutoverForecast>;
  /** Throws `event_not_accepted` before there is one. */
  getCertificate(id: string): Promise<Certificate>;
  /** Begins the online validation anew; of a task that syncs. */
  validateTask(id: string): Promise<CommandResult>;
  /** Changes limits of a task that has not ended; they hold at once. */
  changeOptions(id: string, patch: OptionsPatch): Promise<TaskView>;
  /**
   * Copies one table again while the task follows its source (state syncingWal): its rows on the target are replaced. The
   * stream waits meanwhile; everything else stays. `table` as in `tables` of the request.
   */
  recopyTable(id: string, table: string): Promise<CommandResult>;
  /** Copies every table again: while the task follows its source, or, when it is paused as lost, behind a new slot. */
  recopyTask(id: string): Promise<CommandResult>;
  /**
   * Adds tables to a task that follows its source (state syncingWal): creates and copies them, and follows them, too.
   * Nothing that is copied is read again; the stream waits meanwhile. Errors beside: `table_in_task`, `invalid_request`
   * (unknown tables, by `add.N`), `preflight_blocked` with `findings`; then nothing was changed.
   */
  addTables(id: string, request: TablesAddition): Promise<CommandResult>;
  /** Makes rows of the target what the source has, while the stream runs; carried out by the online validation. */
  repairTask(id: string, request: RepairRequest): Promise<RepairView>;
  /** What the online validation knows of each table. */
  getValidation(id: string): Promise<ValidationView>;
  /** Lifts the fence that an ended task left on the source; not while its reverse task writes there. */
  unfenceTask(id: string): Promise<CommandResult>;
  /** Refuses a task that is live, still fences its source or has a cleanup pending; `force` overrides the last two. */
  deleteTask(id: string, options?: { readonly force?: boolean }): Promise<void>;
  getTask(id: string): Promise<TaskView>;
  listTasks(query?: {
    readonly limit?: number;
    readonly offset?: number;
    readonly state?: TaskState;
  }): Promise<TaskPage>;
  getTables(id: string): Promise<readonly TableProgress[]>;
  /** The plan of the schema work, each statement with its state, and the comparison of both sides. */
  getSchema(id: string): Promise<SchemaView>;
  /** Runs the checks of `init` without making a task. */
  preflight(request: TaskRequest): Promise<readonly Finding[]>;
  /** Journal events after `sinceSeq`, then live ones, until `signal` aborts. `id` absent: every task. */
  events(options: {
    readonly id?: string;
    readonly sinceSeq?: number;
    readonly signal: AbortSignal;
  }): AsyncIterable<TaskEvent>;
  /** The statechart's definition as JSON. */
  machineDefinition(): unknown;
  /** Last committed actor snapshot and what live actors show; for the inspector. */
  readonly inspection: Inspection;
  /** Stops actors and connections; tasks stay resumable. */
  stop(): Promise<void>;
}

/** One message of the `@statelyai/inspect` protocol, ready to serialise; secrets are not in it. */
export interface InspectionMessage {
  readonly type: '@xstate.actor' | '@xstate.event' | '@xstate.snapshot';
  readonly [field: string]: unknown;
}

export interface Inspection {
  /** Sends every live actor with definition and snapshot, then the stream; returns the unsubscribe function. */
  subscribe(viewer: (message: InspectionMessage) => void): () => void;
}
