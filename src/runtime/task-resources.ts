// What every task holds while somebody works on it: its connections, its live figures, and the scope through which the
// domain folders reach both. The supervisor owns the only instance, and closes a task's when it rests or ends.
import type { TaskNotes } from '../../db/notes.ts';
import type { TaskRow } from '../../db/tasks.ts';
import { FENCE_PASS_SETTING } from '../cutover/fence-function.ts';
import type { Failpoint } from '../model/failpoints.ts';
import { legNotes } from '../model/reverse.ts';
import type { TaskSpec } from '../model/task.ts';
import { TaskConnections } from '../postgres/task-connections.ts';
import type { HookCommands, Log, TaskScope } from '../postgres/task-scope.ts';
import type { EventHub } from './event-hub.ts';
import type { SecretVault } from './secrets.ts';
import { TaskTelemetry } from './telemetry.ts';

export interface TaskResourcesOptions {
  readonly notes: TaskNotes;
  readonly vault: SecretVault;
  readonly hub: EventHub;
  readonly hookCommands: HookCommands;
  readonly spillFolder: string;
  readonly log: Log;
  readonly failpoint: (name: Failpoint) => void;
  readonly isLive: (taskId: string) => boolean;
  readonly partDone: (taskId: string) => void;
  readonly validated: (taskId: string, clean: boolean) => void;
}

export class TaskResources {
  readonly #options: TaskResourcesOptions;
  readonly #connections = new Map<string, TaskConnections>();
  readonly #telemetry = new Map<string, TaskTelemetry>();
  readonly #specs = new Map<string, TaskSpec>();

  constructor(options: TaskResourcesOptions) {
    this.#options = options;
  }

  scopeOf(row: TaskRow, signal: AbortSignal): TaskScope {
    const { notes, log, failpoint } = this.#options;
    const { source, target } = this.#connectionsOf(row);
    const specs = this.#specs;
    specs.set(row.id, row.spec);
    return {
      taskId: row.id,
      incarnation: row.incarnation,
      // options that may change while somebody works with the scope
      get spec() {
        return specs.get(row.id) ?? row.spec;
      },
      source,
      target,
      checkpoints: {
        get: <T>(key: string) => notes.checkpoint(row.id, key) as T | undefined,
        set: (key, value) => notes.setCheckpoint(row.id, key, value),
        delete: (key) => notes.deleteCheckpoint(row.id, key),
      },
      progress: this.telemetryOf(row.id),
      hookCommands: this.#options.hookCommands,
      spillFolder: this.#options.spillFolder,
      log: scopedLog(log, row.id),
      signal,
      failpoint,
    };
  }

  /** What the scopes of the task say from now on. */
  setSpec(taskId: string, spec: TaskSpec): void {
    if (this.#specs.has(taskId)) this.#specs.set(taskId, spec);
  }

  telemetryOf(taskId: string): TaskTelemetry {
    const known = this.#telemetry.get(taskId);
    if (known) return known;
    const fresh = new TaskTelemetry(taskId, this.#options.notes, {
      changed: () => this.#options.hub.progressChanged(taskId),
      partDone: () => this.#options.partDone(taskId),
      validated: (clean) => this.#options.validated(taskId, clean),
    });
    this.#telemetry.set(taskId, fresh);
    return fresh;
  }

  connectionCountOf(taskId: string): number {
    return this.#connections.get(taskId)?.connectionCount ?? 0;
  }

  get connectedTasks(): string[] {
    return [...this.#connections.keys()];
  }

  /** Closes every connection of the task, whatever it is doing, and returns what went wrong. */
  async close(taskId: string): Promise<Error[]> {
    const open = this.#connections.get(taskId);
    this.#connections.delete(taskId);
    this.#telemetry.get(taskId)?.rest();
    if (!this.#options.isLive(taskId)) {
      this.#telemetry.delete(taskId);
      this.#specs.delete(taskId);
    }
    return open ? open.closeAll() : [];
  }

  #connectionsOf(row: TaskRow): TaskConnections {
    const known = this.#connections.get(row.id);
    if (known) return known;
    const endpoints = { source: row.spec.sourceDb, target: row.spec.targetDb };
    const pass = this.#options.notes.checkpoint(row.id, legNotes.fencePass);
    const fresh = new TaskConnections(
      row.id,
      endpoints,
      (role) => this.#options.vault.open(row.id, role, endpoints[role]),
      typeof pass === 'string' ? { [FENCE_PASS_SETTING]: pass } : {},
    );
    this.#connections.set(row.id, fresh);
    return fresh;
  }
}

function scopedLog(log: Log, taskId: string): Log {
  return {
    debug: (fields, message) => log.debug({ taskId, ...fields }, message),
    info: (fields, message) => log.info({ taskId, ...fields }, message),
    warn: (fields, message) => log.warn({ taskId, ...fields }, message),
    error: (fields, message) => log.error({ taskId, ...fields }, message),
  };
}
