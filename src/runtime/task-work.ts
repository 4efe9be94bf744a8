// What activities, and whoever else works on a task, are given: its scope with connections and figures, and what the last
// command asked for. Knows rows, no actors; the supervisor owns the only instance.
import type { Store } from '../../db/open.ts';
import type { TaskRow, TaskStore } from '../../db/tasks.ts';
import type { RecopyRequest } from '../copy/recopy.ts';
import type { LiveCopyRequest } from './live-copy.ts';
import { MigrationError } from '../model/errors.ts';
import { patched, type OptionsPatch } from '../model/request-changes.ts';
import type { TaskSpec } from '../model/task.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { AdditionRequest } from '../schema/addition.ts';
import type { ActivityHost } from './activities.ts';
import { ActivityRunner } from './activity-runner.ts';
import { refuseCommands } from './findings.ts';
import { settleLegs } from './legs.ts';
import { TaskResources, type TaskResourcesOptions } from './task-resources.ts';
import type { TaskTelemetry } from './telemetry.ts';
import { restingSnapshot } from './view.ts';

/** Activities and connections have this long to end when the service stops or a task leaves; the rest is cut. */
const STOP_TIMEOUT_MS = 3_000;

export interface TaskWorkOptions extends TaskResourcesOptions {
  readonly store: Store;
  readonly tasks: TaskStore;
  /** A row was made that waits for its place. */
  readonly queued: () => void;
}

export class TaskWork implements ActivityHost {
  readonly runner: ActivityRunner;
  readonly #options: TaskWorkOptions;
  readonly #resources: TaskResources;
  readonly #stopSignals = new Set<AbortController>();
  #stopping = false;

  constructor(options: TaskWorkOptions) {
    this.#options = options;
    this.#resources = new TaskResources(options);
    this.runner = new ActivityRunner(options.log, (taskId) => this.releaseConnections(taskId));
  }

  /** Throws `task_not_found`. */
  row(id: string): TaskRow {
    const row = this.#options.tasks.find(id);
    if (!row) throw new MigrationError('task_not_found', `no task has the id ${JSON.stringify(id)}`);
    return row;
  }

  scopeOf(taskId: string, signal: AbortSignal): TaskScope {
    return this.#resources.scopeOf(this.row(taskId), signal);
  }

  dropTargetOf(taskId: string): boolean {
    const row = this.row(taskId);
    return row.crash ? false : restingSnapshot(row).context.dropTarget; // a crashed row may not be readable
  }

  validationPassOf(taskId: string): number {
    return restingSnapshot(this.row(taskId)).context.validationPass;
  }

  recopyOf(taskId: string): RecopyRequest {
    const { recopyPass, recopyTables, recopyRenewsSlot } = restingSnapshot(this.row(taskId)).context;
    return { pass: recopyPass, tables: recopyTables, renewsSlot: recopyRenewsSlot };
  }

  adoptAddition(taskId: string): AdditionRequest {
    const row = this.row(taskId);
    const { addPass, addTables } = restingSnapshot(row).context;
    const { tables } = row.spec;
    const more = addTables.filter((name) => !tables.includes(name));
    if (more.length > 0 && !tables.includes('*')) {
      const next = { ...row.spec, tables: [...tables, ...more] };
      this.#options.tasks.saveSpec(taskId, next);
      this.#resources.setSpec(taskId, next);
    }
    return { pass: addPass, tables: addTables };
  }

  liveCopyOf(taskId: string): LiveCopyRequest {
    const { copyDue, copyPass = 0, recopyTables } = restingSnapshot(this.row(taskId)).context;
    return copyDue === 'add'
      ? { pass: copyPass, addition: this.adoptAddition(taskId), tables: [] }
      : { pass: copyPass, addition: null, tables: recopyTables };
  }

  /** Takes effect at once, also in what runs. Returns the task's request as it is now. */
  setOptions(taskId: string, patch: OptionsPatch): TaskSpec {
    this.refuseWhileStopping();
    const { spec } = this.row(taskId);
    const next = { ...spec, options: patched(spec.options, patch) };
    refuseCommands(next, this.#options.hookCommands);
    this.#options.tasks.saveSpec(taskId, next);
    this.#resources.setSpec(taskId, next);
    return next;
  }

  settled(taskId: string): void {
    if (!settleLegs(this.#options, this.row(taskId))) return;
    this.#options.hub.journalGrew();
    this.#options.queued();
  }

  telemetryOf(taskId: string): TaskTelemetry {
    return this.#resources.telemetryOf(taskId);
  }

  connectionCountOf(taskId: string): number {
    return this.#resources.connectionCountOf(taskId);
  }

  get connectedTasks(): string[] {
    return this.#resources.connectedTasks;
  }

  /** Work on a task that has no actor, with connections that are closed afterwards. */
  async withScope<T>(id: string, name: string, work: (scope: TaskScope) => Promise<T>): Promise<T> {
    this.refuseWhileStopping();
    const controller = new AbortController();
    this.#stopSignals.add(controller);
    try {
      return await this.runner.run(id, name, controller.signal, () =>
        work(this.scopeOf(id, controller.signal)),
      );
    } finally {
      this.#stopSignals.delete(controller);
      if (!this.#options.isLive(id)) await this.releaseConnections(id);
    }
  }

  async releaseConnections(taskId: string): Promise<void> {
    for (const error of await this.#resources.close(taskId)) {
      this.#options.log.warn({ taskId, err: error }, 'a connection did not close cleanly');
    }
  }

  /** The task's actor is gone: once its activities have ended, so are its connections. */
  async releaseAfterRuns(taskId: string): Promise<void> {
    await this.runner.idle(taskId, STOP_TIMEOUT_MS);
    if (!this.#options.isLive(taskId)) await this.releaseConnections(taskId);
  }

  /** Closes the task's connections, whatever they are doing after a while; what went wrong. */
  async closeConnections(taskId: string): Promise<Error[]> {
    await this.runner.idle(taskId, STOP_TIMEOUT_MS);
    return this.#resources.close(taskId);
  }

  refuseWhileStopping(): void {
    if (this.#stopping) throw new MigrationError('service_stopped', 'the service is shutting down');
  }

  /** Nothing begins any more, and what has no actor is told to end. */
  beginStop(): void {
    this.#stopping = true;
    for (const controller of this.#stopSignals) controller.abort();
  }

  async stop(): Promise<void> {
    await Promise.all(this.runner.busyTasks.map((id) => this.runner.idle(id, STOP_TIMEOUT_MS)));
    await Promise.all(this.connectedTasks.map((id) => this.releaseConnections(id)));
  }
}
