// A Service in memory, for what HTTP itself can get wrong: routing, names, streams, sockets. It keeps the contract of
// src/model/service.ts, moves nothing and knows no database; the real service is tested end to end.
import { MigrationError } from '../../src/model/errors.ts';
import type { Finding } from '../../src/model/finding.ts';
import {
  parseRepair,
  parseTablesAddition,
  type OptionsPatch,
  type TablesAddition,
} from '../../src/model/request-changes.ts';
import { parseRequest, type TaskRequest } from '../../src/model/request.ts';
import type { SchemaView } from '../../src/model/schema-plan.ts';
import type {
  CommandResult,
  Inspection,
  InspectionMessage,
  LiveTask,
  Service,
  TaskEvent,
  TaskManager,
  TaskPage,
} from '../../src/model/service.ts';
import { isEnded, type TaskCommandType, type TaskState } from '../../src/model/task-state.ts';
import type { Certificate } from '../../src/model/certificate.ts';
import type { TableProgress } from '../../src/model/progress.ts';
import type { TaskSpec, TaskView } from '../../src/model/task.ts';
import type { CutoverForecast } from '../../src/model/forecast.ts';
import { schemaViewOf } from '../../src/postgres/task-scope.ts';
import type { ValidationView, RepairRequest, RepairView } from '../../src/model/validation.ts';
import { requestRepair } from '../../src/validate/notes.ts';

const NOW = '2026-01-02T03:04:05.000Z';

function taskView(id: string, spec: TaskSpec, state: TaskState = 'created'): TaskView {
  return {
    id,
    state,
    resumesAt: null,
    progress: 0,
    spec,
    findings: [],
    error: null,
    retryAt: null,
    lagBytes: null,
    connections: 0,
    detail: {
      tables: [],
      bytesCopied: 0,
      bytesEstimated: 0,
      rowsCopied: 0,
      bytesPerSecond: 0,
      etaSeconds: null,
      copying: null,
      sync: null,
      waitingFor: null,
    },
    restingSlot: null,
    allowedCommands: ['START', 'CANCEL'],
    fenced: false,
    cutoverWaitsFor: [],
    writeStopMs: null,
    cleanupPending: false,
    reverseTask: null,
    certificate: null,
    createdAt: NOW,
    startedAt: null,
    endedAt: null,
  };
}

type Listener = (event: TaskEvent) => void;

export class FakeService implements Service {
  readonly tasks = new Map<string, TaskView>();
  readonly bodies = new Map<string, string>();
  readonly journal: Extract<TaskEvent, { kind: 'state' }>[] = [];
  /** Every call: method and arguments. */
  readonly calls: [method: string, ...args: unknown[]][] = [];
  readonly listeners = new Set<Listener>();
  readonly viewers = new Set<(message: InspectionMessage) => void>();
  /** Sent to every viewer first, as a live service does. */
  actors: InspectionMessage[] = [];
  findings: Finding[] = [];
  tables: TableProgress[] = [];
  /** Thrown by the next call of any method, once. */
  failure: unknown = null;

  readonly taskManager: TaskManager = {
    getTask: () => undefined,
    listTasks: (): LiveTask[] => [],
    getTaskCount: () => this.tasks.size,
    removeTask: () => Promise.resolve([]),
    cleanupCompletedTasks: () => Promise.resolve(),
  };

  readonly inspection: Inspection = {
    subscribe: (viewer) => {
      this.#called('subscribe');
      this.viewers.add(viewer);
      for (const actor of this.actors) viewer(actor);
      return () => void this.viewers.delete(viewer);
    },
  };

  createTask(request: TaskRequest): Promise<{ task: TaskView; created: boolean }> {
    return this.#answer('createTask', [request], () => {
      const { spec, id = `t${this.tasks.size + 1}` } = parseRequest(request);
      const body = JSON.stringify(request);
      const known = this.tasks.get(id);
      if (known && this.bodies.get(id) === body) return { task: known, created: false };
      if (known)
        throw new MigrationError('task_exists', `task ${id} exists with another body`, { details: { id } });
      const task = taskView(id, spec);
      this.tasks.set(id, task);
      this.bodies.set(id, body);
      return { task, created: true };
    });
  }

  startTask(id: string): Promise<CommandResult> {
    return this.#answer('startTask', [id], () => {
      const task = this.#find(id);
      if (task.state !== 'created') throw new MigrationError('task_already_running', `task ${id} is running`);
      return this.#move(id, 'init');
    });
  }

  pauseTask(id: string): Promise<CommandResult> {
    return this.#answer('pauseTask', [id], () => this.#move(id, 'paused'));
  }

  resumeTask(id: string): Promise<CommandResult> {
    return this.#answer('resumeTask', [id], () => this.#move(id, 'queued'));
  }

  forecastCutover(id: string): Promise<CutoverForecast> {
    return this.#answer('forecastCutover', [id], () => {
      this.#find(id);
      return { steps: [], writeStopMs: 0, blockers: [], targetBlockers: [], waitsFor: [], problems: [] };
    });
  }

  repairTask(id: string, request: RepairRequest): Promise<RepairView> {
    return this.#answer('repairTask', [id, request], () => {
      this.#find(id);
      const keyOf = (table: string): string[] | undefined => (table === 'public.orders' ? ['id'] : undefined);
      return requestRepair(
        { get: () => undefined, set: () => undefined, delete: () => undefined },
        parseRepair(request, keyOf),
      );
    });
  }

  getCertificate(id: string): Promise<Certificate> {
    return this.#answer('getCertificate', [id], () => {
      const { certificate } = this.#find(id);
      if (certificate) return certificate;
      throw new MigrationError('event_not_accepted', `task ${id} has no certificate`);
    });
  }

  changeOptions(id: string, patch: OptionsPatch): Promise<TaskView> {
    return this.#answer('changeOptions', [id, patch], () => this.#find(id));
  }

  addTables(id: string, request: TablesAddition): Promise<CommandResult> {
    return this.#answer('addTables', [id, parseTablesAddition(request)], () => ({
      task: this.#find(id),
      changed: true,
    }));
  }

  recopyTable(id: string, table: string): Promise<CommandResult> {
    return this.#answer('recopyTable', [id, table], () => ({ task: this.#find(id), changed: true }));
  }

  recopyTask(id: string): Promise<CommandResult> {
    return this.#answer('recopyTask', [id], () => ({ task: this.#find(id), changed: true }));
  }

  validateTask(id: string): Promise<CommandResult> {
    return this.#answer('validateTask', [id], () => ({ task: this.#find(id), changed: true }));
  }

  getValidation(id: string): Promise<ValidationView> {
    return this.#answer('getValidation', [id], () => {
      this.#find(id);
      return {
        startedAt: NOW,
        settledAt: null,
        keysInDoubt: 0,
        keysWaiting: 0,
        clean: false,
        error: null,
        tables: [],
        repairs: [],
      };
    });
  }

  cancelTask(id: string, options?: { readonly dropTarget?: boolean }): Promise<CommandResult> {
    return this.#answer('cancelTask', [id, options], () => this.#move(id, 'cancelled'));
  }

  abandonTask(id: string, options?: { readonly dropTarget?: boolean }): Promise<CommandResult> {
    return this.#answer('abandonTask', [id, options], () => this.#move(id, 'failed'));
  }

  cutover(id: string): Promise<CommandResult> {
    return this.#answer('cutover', [id], () => {
      const { state } = this.#find(id);
      if (state === 'syncingWal') return this.#move(id, 'stoppingWrites');
      const allowed: TaskCommandType[] = ['START', 'CANCEL'];
      throw new MigrationError('event_not_accepted', `CUTOVER is not possible in ${state}`, {
        details: { state, allowed },
      });
    });
  }

  rollback(id: string): Promise<CommandResult> {
    return this.#answer('rollback', [id], () => this.#move(id, 'stoppingWrites'));
  }

  finish(id: string): Promise<CommandResult> {
    return this.#answer('finish', [id], () => this.#move(id, 'finishing'));
  }

  unfenceTask(id: string): Promise<CommandResult> {
    return this.#answer('unfenceTask', [id], () => ({ task: this.#find(id), changed: false }));
  }

  deleteTask(id: string, options: { readonly force?: boolean } = {}): Promise<void> {
    return this.#answer('deleteTask', [id, options], () => {
      const { state, cleanupPending } = this.#find(id);
      if (state !== 'created' && !isEnded(state)) throw new MigrationError('task_live', `task ${id} is live`);
      if (cleanupPending && options.force !== true)
        throw new MigrationError('task_live', `task ${id} still has objects on a server`);
      this.tasks.delete(id);
    });
  }

  getTask(id: string): Promise<TaskView> {
    return this.#answer('getTask', [id], () => this.#find(id));
  }

  listTasks(query: { limit?: number; offset?: number; state?: TaskState } = {}): Promise<TaskPage> {
    return this.#answer('listTasks', [query], () => {
      const all = [...this.tasks.values()].filter(
        ({ state }) => query.state === undefined || state === query.state,
      );
      const offset = query.offset ?? 0;
      return { tasks: all.slice(offset, offset + (query.limit ?? 50)), total: all.length };
    });
  }

  getTables(id: string): Promise<readonly TableProgress[]> {
    return this.#answer('getTables', [id], () => (this.#find(id), this.tables));
  }

  getSchema(id: string): Promise<SchemaView> {
    return this.#answer('getSchema', [id], () => (this.#find(id), schemaViewOf(() => undefined)));
  }

  preflight(request: TaskRequest): Promise<readonly Finding[]> {
    return this.#answer('preflight', [request], () => (parseRequest(request), this.findings));
  }

  async *events(options: {
    readonly id?: string;
    readonly sinceSeq?: number;
    readonly signal: AbortSignal;
  }): AsyncGenerator<TaskEvent> {
    const { id, sinceSeq = 0, signal } = options;
    this.#called('events', { id, sinceSeq: options.sinceSeq });
    const wanted = (event: TaskEvent): boolean => id === undefined || event.taskId === id;
    const queue: TaskEvent[] = this.journal.filter((event) => event.seq > sinceSeq && wanted(event));
    let wake = (): void => undefined;
    const listener: Listener = (event) => {
      if (wanted(event)) queue.push(event);
      wake();
    };
    this.listeners.add(listener);
    const stopped = (): void => wake();
    signal.addEventListener('abort', stopped);
    try {
      while (!signal.aborted) {
        const event = queue.shift();
        if (event) yield event;
        else await new Promise<void>((resolve) => (wake = resolve));
      }
    } finally {
      this.listeners.delete(listener);
      signal.removeEventListener('abort', stopped);
    }
  }

  machineDefinition(): unknown {
    return { id: 'task', initial: 'created', states: { creatingTables: {}, some_state: {} } };
  }

  stop(): Promise<void> {
    return Promise.resolve();
  }

  emit(event: TaskEvent): void {
    if (event.kind === 'state') this.journal.push(event);
    for (const listener of this.listeners) listener(event);
  }

  inspect(message: InspectionMessage): void {
    for (const viewer of this.viewers) viewer(message);
  }

  #find(id: string): TaskView {
    const task = this.tasks.get(id);
    if (!task) throw new MigrationError('task_not_found', `there is no task ${id}`);
    return task;
  }

  #move(id: string, state: TaskState): CommandResult {
    const before = this.#find(id);
    const task = { ...before, state };
    this.tasks.set(id, task);
    return { task, changed: before.state !== state };
  }

  #called(method: string, ...args: unknown[]): void {
    this.calls.push([method, ...args]);
    const { failure } = this;
    this.failure = null;
    if (failure !== null) throw failure as Error;
  }

  async #answer<T>(method: string, args: readonly unknown[], work: () => T): Promise<T> {
    await Promise.resolve();
    this.#called(method, ...args);
    return work();
  }
}
