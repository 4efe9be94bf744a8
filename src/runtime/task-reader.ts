// The reading half of the service: rows and notes become what clients see.
import type { Store } from '../../db/open.ts';
import type { TaskRow } from '../../db/tasks.ts';
import type { Certificate } from '../model/certificate.ts';
import { MigrationError } from '../model/errors.ts';
import type { TableProgress } from '../model/progress.ts';
import { invalidRequest } from '../model/request-faults.ts';
import type { SchemaView } from '../model/schema-plan.ts';
import type { Inspection, TaskEvent, TaskPage } from '../model/service.ts';
import { taskStates, type TaskState } from '../model/task-state.ts';
import type { TaskView } from '../model/task.ts';
import type { ValidationView } from '../model/validation.ts';
import {
  findSchemaPlan,
  schemaViewOf,
  type Checkpoints,
  type HookCommands,
  type Log,
} from '../postgres/task-scope.ts';
import { validationView } from '../validate/notes.ts';
import type { EventHub } from './event-hub.ts';
import type { SecretVault } from './secrets.ts';
import type { Supervisor } from './supervisor.ts';
import { taskEvents } from './task-events.ts';
import { taskView } from './view.ts';

const MAX_PAGE = 1_000;
const DEFAULT_PAGE = 50;

export interface ServiceParts {
  readonly store: Store;
  readonly vault: SecretVault;
  readonly hub: EventHub;
  readonly supervisor: Supervisor;
  readonly inspection: Inspection;
  readonly hookCommands: HookCommands;
  readonly log: Log;
}

export class TaskReader {
  protected readonly parts: ServiceParts;
  protected readonly supervisor: Supervisor;

  constructor(parts: ServiceParts) {
    this.parts = parts;
    this.supervisor = parts.supervisor;
  }

  async getCertificate(id: string): Promise<Certificate> {
    const { certificate, state } = await this.getTask(id);
    if (certificate) return certificate;
    throw new MigrationError('event_not_accepted', `task ${id} has no certificate (${state})`, {
      hint: 'a certificate is made when the cutover is completed',
      details: { state },
    });
  }

  protected checkpointsOf(id: string): Checkpoints {
    const { notes } = this.supervisor;
    return {
      get: <T>(key: string) => notes.checkpoint(id, key) as T | undefined,
      set: (key, value) => notes.setCheckpoint(id, key, value),
      delete: (key) => notes.deleteCheckpoint(id, key),
    };
  }

  async getValidation(id: string): Promise<ValidationView> {
    this.supervisor.work.row(id);
    const checkpoints = this.checkpointsOf(id);
    return validationView(checkpoints, findSchemaPlan({ checkpoints }));
  }

  async getTask(id: string): Promise<TaskView> {
    return this.view(this.supervisor.work.row(id));
  }

  async listTasks(
    query: { readonly limit?: number; readonly offset?: number; readonly state?: TaskState } = {},
  ): Promise<TaskPage> {
    const { limit = DEFAULT_PAGE, offset = 0, state } = query;
    const faults = [
      ...(Number.isInteger(limit) && limit >= 1 && limit <= MAX_PAGE
        ? []
        : [{ field: 'limit', message: `must be an integer from 1 to ${MAX_PAGE}` }]),
      ...(Number.isInteger(offset) && offset >= 0
        ? []
        : [{ field: 'offset', message: 'must be an integer from 0' }]),
      ...(state === undefined || taskStates.includes(state)
        ? []
        : [{ field: 'state', message: `must be one of ${taskStates.join(', ')}` }]),
    ];
    if (faults.length > 0) throw invalidRequest(faults);
    const { rows, total } = this.supervisor.tasks.list({
      limit,
      offset,
      ...(state === undefined ? {} : { state }),
    });
    return { tasks: rows.map((row) => this.view(row)), total };
  }

  async getTables(id: string): Promise<readonly TableProgress[]> {
    this.supervisor.work.row(id);
    return this.supervisor.work.telemetryOf(id).tables;
  }

  async getSchema(id: string): Promise<SchemaView> {
    this.supervisor.work.row(id);
    return schemaViewOf((key) => this.supervisor.notes.checkpoint(id, key));
  }

  async *events(options: {
    readonly id?: string;
    readonly sinceSeq?: number;
    readonly signal: AbortSignal;
  }): AsyncIterable<TaskEvent> {
    if (options.id !== undefined) this.supervisor.work.row(options.id);
    const { store, hub } = this.parts;
    const { tasks } = this.supervisor;
    yield* taskEvents({ store, hub, tasks, view: (row) => this.view(row) }, options);
  }

  protected view(row: TaskRow): TaskView {
    const detail = this.supervisor.work.telemetryOf(row.id).snapshot();
    return taskView(row, detail, this.supervisor.work.connectionCountOf(row.id), this.supervisor.notes);
  }
}
