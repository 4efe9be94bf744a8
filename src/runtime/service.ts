// The service behind library, HTTP and command line: requests become rows, commands become events, rows become views.
import { randomBytes, randomUUID } from 'node:crypto';
import { initialTransition } from 'xstate';
import { readJournal } from '../../db/journal.ts';
import type { Store } from '../../db/open.ts';
import type { TaskRow } from '../../db/tasks.ts';
import type { TaskCommand } from '../../machines/task-context.ts';
import { TASK_MACHINE_VERSION, taskMachine } from '../../machines/task.ts';
import { liftFence } from '../cutover/clean-up.ts';
import { forecastCutover } from '../cutover/forecast.ts';
import { asMigrationError, MigrationError } from '../model/errors.ts';
import { isBlocked, type Finding } from '../model/finding.ts';
import { firstIdOf, nextLegId } from '../model/reverse.ts';
import { parseRelationName, relationKey } from '../model/relation.ts';
import { invalidRequest } from '../model/request-faults.ts';
import {
  parseOptionsPatch,
  parseRepair,
  parseTablesAddition,
  type OptionsPatch,
  type TablesAddition,
} from '../model/request-changes.ts';
import { parseRequest, type TaskRequest } from '../model/request.ts';
import type {
  CommandResult,
  Inspection,
  Service,
  TaskEvent,
  TaskManager,
  TaskPage,
} from '../model/service.ts';
import type { CutoverForecast } from '../model/forecast.ts';
import type { RepairRequest, RepairView, ValidationView } from '../model/validation.ts';
import { forecastComparison } from '../validate/forecast.ts';
import { validationView, findRun, requestRepair } from '../validate/notes.ts';
import type { SchemaView } from '../model/schema-plan.ts';
import { isEnded, taskStates, type TaskState } from '../model/task-state.ts';
import type { Certificate } from '../model/certificate.ts';
import type { TableProgress } from '../model/progress.ts';
import type { TaskSpec, TaskView } from '../model/task.ts';
import { TaskConnections } from '../postgres/task-connections.ts';
import {
  findSchemaPlan,
  schemaPlanOf,
  schemaViewOf,
  type HookCommands,
  type Log,
  type TaskScope,
  type Checkpoints,
} from '../postgres/task-scope.ts';
import { runPreflight } from '../preflight/run.ts';
import { keysOf, resolveAddition, scopeWith } from '../schema/addition.ts';
import { additionFindings, planFindings } from '../schema/create-tables.ts';
import type { EventHub } from './event-hub.ts';
import { referencedPassword, type SecretVault } from './secrets.ts';
import type { Supervisor } from './supervisor.ts';
import { toJson } from './durable.ts';
import { restingSnapshot, reverseTaskOf, taskView, writeStopOf } from './view.ts';

/** How often a reader of events looks for new figures. */
const PROGRESS_INTERVAL_MS = 500;
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

/** States in which the command's result already holds. */
const alreadyHolds: Readonly<Record<TaskCommand['type'], readonly TaskState[]>> = {
  START: [],
  PAUSE: ['paused'],
  RESUME: [
    'queued',
    'init',
    'creatingTables',
    'migratingData',
    'syncingWal',
    'stoppingWrites',
    'validating',
    'finalizing',
    'retrying',
  ],
  CUTOVER: ['stoppingWrites', 'validating', 'finalizing', 'completed'],
  VALIDATE: [],
  RECOPY: [],
  FINISH: ['finishing', 'completed'],
  ADD: [],
  CANCEL: ['cancelling', 'cancelled'],
  ABANDON: ['failing', 'failed'],
};

/** What planning the schema has to say; that it cannot be planned is said, too. */
async function planned(plan: () => Promise<Finding[]>): Promise<Finding[]> {
  try {
    return await plan();
  } catch (error) {
    const { code, message, hint } = asMigrationError(error);
    return [{ code, severity: 'blocking', object: 'schema', message, remedy: hint ?? null }];
  }
}

function withoutRepeats(findings: readonly Finding[]): Finding[] {
  const byKey = new Map(findings.map((finding) => [`${finding.code} ${finding.object}`, finding]));
  return [...byKey.values()];
}

/** Throws `invalid_request` for hooks that the service has no folder for. */
function refuseCommands({ options: { hooks } }: TaskSpec): void {
  const faults = (['beforeOpen', 'afterOpen'] as const)
    .filter((name) => hooks[name]?.command !== undefined)
    .map((name) => ({
      field: `options.hooks.${name}.command`,
      message:
        'this service runs no commands: its operator sets DTS_HOOKS_DIR (--hooks-dir) to the folder that they lie in, or give a url',
    }));
  if (faults.length > 0) throw invalidRequest(faults);
}

export class MigrationService implements Service {
  readonly #parts: ServiceParts;
  readonly #supervisor: Supervisor;

  constructor(parts: ServiceParts) {
    this.#parts = parts;
    this.#supervisor = parts.supervisor;
  }

  get taskManager(): TaskManager {
    return this.#supervisor;
  }

  get inspection(): Inspection {
    return this.#parts.inspection;
  }

  async createTask(request: TaskRequest): Promise<{ readonly task: TaskView; readonly created: boolean }> {
    const { id = `m${randomBytes(6).toString('hex')}`, spec, secrets } = parseRequest(request);
    if (this.#parts.hookCommands.isOff) refuseCommands(spec);
    const { store, vault, hub } = this.#parts;
    const bodyHash = vault.fingerprint({ spec, secrets });
    const known = this.#supervisor.tasks.find(id);
    if (known) {
      if (known.bodyHash === bodyHash) return { task: this.#view(known), created: false };
      throw new MigrationError('task_exists', `a task with the id ${id} exists and is a different one`, {
        hint: 'choose another id, or leave it out to have one made',
        details: { id },
      });
    }
    this.#refuseReservedId(id, spec);
    const [initial] = initialTransition(taskMachine, { taskId: id, spec });
    store.transaction(() => {
      this.#supervisor.tasks.insert(
        {
          id,
          incarnation: randomUUID(),
          bodyHash,
          spec,
          machineVersion: TASK_MACHINE_VERSION,
          actorSnapshot: toJson(taskMachine.getPersistedSnapshot(initial)),
        },
        'created',
      );
      vault.store(id, 'source', secrets.source);
      vault.store(id, 'target', secrets.target);
    });
    hub.journalGrew();
    return { task: await this.getTask(id), created: true };
  }

  /** Ids of reverse tasks to come. */
  #refuseReservedId(id: string, spec: TaskSpec): void {
    const { tasks } = this.#supervisor;
    const refuse = (message: string): never => {
      throw new MigrationError('task_exists', message, { hint: 'choose another id', details: { id } });
    };
    const first = firstIdOf(id);
    if (first !== null && tasks.find(first)?.spec.options.reverse === true)
      refuse(`the id ${id} is kept for reverse tasks of ${first}`);
    const leg = nextLegId(id, spec);
    if (spec.options.reverse && tasks.find(leg))
      refuse(`a task ${leg} exists, which the reverse task would be called`);
  }

  async startTask(id: string, signal?: AbortSignal): Promise<CommandResult> {
    const { state } = this.#supervisor.work.row(id);
    if (isEnded(state))
      throw new MigrationError('task_ended', `task ${id} is ${state}`, { details: { state } });
    if (state !== 'created' && state !== 'paused') {
      throw new MigrationError('task_already_running', `task ${id} is already running (${state})`, {
        details: { state },
      });
    }
    const result = this.#command(id, { type: 'START' });
    signal?.addEventListener(
      'abort',
      () =>
        void this.pauseTask(id).catch((error: unknown) =>
          this.#parts.log.warn({ taskId: id, err: error }, 'pause on abort'),
        ),
      { once: true },
    );
    if (signal?.aborted) return this.pauseTask(id);
    return result;
  }

  async pauseTask(id: string): Promise<CommandResult> {
    return this.#command(id, { type: 'PAUSE' });
  }

  async resumeTask(id: string): Promise<CommandResult> {
    return this.#command(id, { type: 'RESUME' });
  }

  async cutover(id: string): Promise<CommandResult> {
    return this.#command(id, { type: 'CUTOVER' });
  }

  async rollback(id: string): Promise<CommandResult> {
    const { state } = this.#supervisor.work.row(id);
    const reverse = reverseTaskOf(this.#supervisor.notes, id);
    if (reverse !== null && this.#supervisor.tasks.find(reverse)) return this.cutover(reverse);
    throw new MigrationError(
      'event_not_accepted',
      `task ${id} (${state}) has no cutover that can be rolled back`,
      {
        hint: 'only that of a completed task with options.reverse, while its reverse_task is there',
        details: { state, allowed: this.#view(this.#supervisor.work.row(id)).allowedCommands },
      },
    );
  }

  async finish(id: string): Promise<CommandResult> {
    const last = this.#lastLeg(id);
    if (!last.spec.origin)
      throw new MigrationError('event_not_accepted', `task ${id} (${last.state}) has no reverse stream`, {
        hint: 'there is one after the cutover of a task with options.reverse',
        details: { state: last.state, allowed: this.#view(last).allowedCommands },
      });
    return this.#command(last.id, { type: 'FINISH' });
  }

  /** The task itself, or the last of those that its cutover led to. */
  #lastLeg(id: string): TaskRow {
    const row = this.#supervisor.work.row(id);
    const next = reverseTaskOf(this.#supervisor.notes, id);
    return next !== null && this.#supervisor.tasks.find(next) ? this.#lastLeg(next) : row;
  }

  /** Throws `task_live` while the way back is open: it needs the row, and the fence. */
  #refuseWhileReversed(id: string): void {
    const last = this.#lastLeg(id);
    if (last.id === id || isEnded(last.state)) return;
    throw new MigrationError(
      'task_live',
      `the reverse task ${last.id} of ${id} has not ended (${last.state})`,
      {
        hint: `finish it first: POST …/${id}/finish`,
        details: { state: last.state, reverseTask: last.id },
      },
    );
  }

  async forecastCutover(id: string): Promise<CutoverForecast> {
    this.#requireSyncing(id, 'a cutover cannot be forecast');
    return this.#supervisor.work.withScope(id, 'forecastCutover', async (scope) =>
      forecastCutover(scope, await forecastComparison(scope)),
    );
  }

  #requireSyncing(id: string, what: string): void {
    const row = this.#supervisor.work.row(id);
    if (row.state === 'syncingWal') return;
    throw new MigrationError('event_not_accepted', `${what} in state ${row.state}`, {
      hint: 'wait until the task is in state syncingWal',
      details: { state: row.state, allowed: this.#view(row).allowedCommands },
    });
  }

  async getCertificate(id: string): Promise<Certificate> {
    const { certificate, state } = await this.getTask(id);
    if (certificate) return certificate;
    throw new MigrationError('event_not_accepted', `task ${id} has no certificate (${state})`, {
      hint: 'a certificate is made when the cutover is completed',
      details: { state },
    });
  }

  async changeOptions(id: string, patch: OptionsPatch): Promise<TaskView> {
    const { state } = this.#supervisor.work.row(id);
    const valid = parseOptionsPatch(patch);
    if (isEnded(state))
      throw new MigrationError('task_ended', `task ${id} is ${state}`, { details: { state } });
    this.#supervisor.work.setOptions(id, valid);
    return this.getTask(id);
  }

  async recopyTable(id: string, table: string): Promise<CommandResult> {
    const known = (await this.getTables(id)).map((each) => each.table);
    let name = table;
    try {
      name = relationKey(parseRelationName(table));
    } catch {
      // told below, with the names that there are
    }
    if (!known.includes(name))
      throw invalidRequest([{ field: 'name', message: `${table} is none of the tables of this task` }]);
    return this.#command(id, { type: 'RECOPY', tables: [name] });
  }

  async recopyTask(id: string): Promise<CommandResult> {
    const plan = findSchemaPlan({ checkpoints: this.#checkpointsOf(id) });
    const tables = (plan?.tables ?? []).map(({ source }) => relationKey(source));
    return this.#command(id, { type: 'RECOPY', tables });
  }

  async addTables(id: string, request: TablesAddition): Promise<CommandResult> {
    this.#requireSyncing(id, 'tables cannot be added');
    const { spec } = this.#supervisor.work.row(id);
    if (spec.origin)
      throw new MigrationError('event_not_accepted', `tables cannot be added to the reverse task ${id}`, {
        hint: `start a migration of their own, or roll back and add them to the task that leads forward again`,
        details: { state: 'syncingWal', allowed: this.#view(this.#supervisor.work.row(id)).allowedCommands },
      });
    const { add } = parseTablesAddition(request);
    const { tables, findings } = await this.#supervisor.work.withScope(id, 'addTables', async (scope) => {
      const plan = schemaPlanOf(scope);
      const names = await resolveAddition(scope, plan, add);
      const found = await runPreflight(scopeWith(scope, plan, names), keysOf(plan));
      const pass = (plan.addition?.pass ?? 0) + 1;
      const more = isBlocked(found)
        ? []
        : await planned(() => additionFindings(scope, plan, { pass, tables: names }));
      return { tables: names, findings: withoutRepeats([...found, ...more]) };
    });
    if (isBlocked(findings)) {
      const blocking = findings.filter(({ severity }) => severity === 'blocking');
      throw new MigrationError('preflight_blocked', blocking.map(({ message }) => message).join('; '), {
        hint: 'apply the remedies of the findings and add the tables again; nothing was changed',
        details: { findings },
      });
    }
    return this.#command(id, { type: 'ADD', tables, findings });
  }

  async validateTask(id: string): Promise<CommandResult> {
    return this.#command(id, { type: 'VALIDATE' });
  }

  async repairTask(id: string, request: RepairRequest): Promise<RepairView> {
    const row = this.#supervisor.work.row(id);
    const checkpoints = this.#checkpointsOf(id);
    if (row.state !== 'syncingWal' || findRun(checkpoints) === undefined)
      throw new MigrationError('event_not_accepted', `task ${id} (${row.state}) has no online validation`, {
        hint: 'rows are repaired in state syncingWal by the online validation: POST …/validate begins it',
        details: { state: row.state, allowed: this.#view(row).allowedCommands },
      });
    const plan = findSchemaPlan({ checkpoints });
    const keyOf = (name: string): readonly string[] | undefined =>
      plan?.tables.find((table) => relationKey(table.source) === name)?.keyColumns;
    return requestRepair(checkpoints, parseRepair(request, keyOf));
  }

  #checkpointsOf(id: string): Checkpoints {
    const { notes } = this.#supervisor;
    return {
      get: <T>(key: string) => notes.checkpoint(id, key) as T | undefined,
      set: (key, value) => notes.setCheckpoint(id, key, value),
      delete: (key) => notes.deleteCheckpoint(id, key),
    };
  }

  async getValidation(id: string): Promise<ValidationView> {
    this.#supervisor.work.row(id);
    const checkpoints = this.#checkpointsOf(id);
    return validationView(checkpoints, findSchemaPlan({ checkpoints }));
  }

  async cancelTask(id: string, options: { readonly dropTarget?: boolean } = {}): Promise<CommandResult> {
    return this.#command(id, { type: 'CANCEL', dropTarget: options.dropTarget ?? false });
  }

  async abandonTask(id: string, options: { readonly dropTarget?: boolean } = {}): Promise<CommandResult> {
    return this.#command(id, { type: 'ABANDON', dropTarget: options.dropTarget ?? false });
  }

  async unfenceTask(id: string): Promise<CommandResult> {
    const row = this.#supervisor.work.row(id);
    if (!isEnded(row.state)) {
      throw new MigrationError(
        'event_not_accepted',
        `task ${id} has not ended (${row.state}): its fence is its own`,
        {
          hint: 'pause or cancel the task; both allow writes again',
          details: { state: row.state, allowed: this.#view(row).allowedCommands },
        },
      );
    }
    this.#refuseWhileReversed(id);
    if (!writeStopOf(this.#supervisor.notes, id).fenced) return { task: this.#view(row), changed: false };
    await this.#supervisor.work.withScope(id, 'liftFence', (scope) => liftFence(scope));
    this.#supervisor.tasks.recordCleanup(id, 'UNFENCED', row.cleanupPending);
    this.#parts.hub.journalGrew();
    return { task: await this.getTask(id), changed: true };
  }

  async deleteTask(id: string, options: { readonly force?: boolean } = {}): Promise<void> {
    const row = this.#supervisor.work.row(id);
    if (!isEnded(row.state) && row.state !== 'created') {
      throw new MigrationError('task_live', `task ${id} has not ended (${row.state})`, {
        hint: 'cancel it first',
        details: { state: row.state },
      });
    }
    this.#refuseWhileReversed(id);
    const { fenced } = writeStopOf(this.#supervisor.notes, id);
    if ((row.cleanupPending || fenced) && options.force !== true) {
      throw new MigrationError(
        'task_live',
        `task ${id} still has ${fenced ? 'a fence' : 'objects'} on a server`,
        {
          hint: fenced
            ? 'unfence it first; force=true forgets the task and leaves the fence where it is'
            : 'the cleanup is retried by itself; force=true forgets the task and leaves the objects where they are',
          details: { state: row.state, fenced, cleanupPending: row.cleanupPending },
        },
      );
    }
    await this.#supervisor.removeTask(id);
    this.#supervisor.tasks.delete(id);
    this.#parts.hub.journalGrew();
  }

  async getTask(id: string): Promise<TaskView> {
    return this.#view(this.#supervisor.work.row(id));
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
    const { rows, total } = this.#supervisor.tasks.list({
      limit,
      offset,
      ...(state === undefined ? {} : { state }),
    });
    return { tasks: rows.map((row) => this.#view(row)), total };
  }

  async getTables(id: string): Promise<readonly TableProgress[]> {
    this.#supervisor.work.row(id);
    return this.#supervisor.work.telemetryOf(id).tables;
  }

  async getSchema(id: string): Promise<SchemaView> {
    this.#supervisor.work.row(id);
    return schemaViewOf((key) => this.#supervisor.notes.checkpoint(id, key));
  }

  async preflight(request: TaskRequest): Promise<readonly Finding[]> {
    const { id = `preflight_${randomBytes(4).toString('hex')}`, spec, secrets } = parseRequest(request);
    if (this.#parts.hookCommands.isOff) refuseCommands(spec);
    const endpoints = { source: spec.sourceDb, target: spec.targetDb };
    const connections = new TaskConnections(id, endpoints, async (role) => ({
      ...secrets[role],
      ...(await referencedPassword(endpoints[role], role)),
    }));
    const controller = new AbortController();
    const ignore = (): void => undefined;
    const scope: TaskScope = {
      taskId: id,
      incarnation: randomUUID(),
      spec,
      source: connections.source,
      target: connections.target,
      checkpoints: { get: () => undefined, set: ignore, delete: ignore },
      progress: {
        setTables: ignore,
        updateTable: ignore,
        setSync: ignore,
        setValidationClean: ignore,
        setWaitingFor: ignore,
      },
      hookCommands: this.#parts.hookCommands,
      log: this.#parts.log,
      signal: controller.signal,
      failpoint: ignore,
    };
    try {
      const findings = await runPreflight(scope);
      // without connections or with tables that do not exist there is nothing to plan
      return isBlocked(findings)
        ? findings
        : withoutRepeats([...findings, ...(await planned(() => planFindings(scope)))]);
    } finally {
      await connections.closeAll();
    }
  }

  async *events(options: {
    readonly id?: string;
    readonly sinceSeq?: number;
    readonly signal: AbortSignal;
  }): AsyncIterable<TaskEvent> {
    const { id, signal } = options;
    if (id !== undefined) this.#supervisor.work.row(id);
    const reader = this.#parts.hub.subscribe();
    const close = (): void => reader.close();
    signal.addEventListener('abort', close, { once: true });
    // A client of one task that names no position gets its whole history; a client of all gets what happens from now on.
    let seq = options.sinceSeq ?? (id === undefined ? this.#supervisor.tasks.lastSeq() : 0);
    try {
      for (let first = true; !signal.aborted; first = false) {
        for (;;) {
          const rows = readJournal(this.#parts.store, seq, id);
          for (const row of rows) {
            seq = row.seq;
            yield { kind: 'state', seq, taskId: row.taskId, event: row.event, state: row.state, at: row.at };
          }
          if (rows.length === 0) break;
        }
        const dirty = first && id !== undefined ? [id] : reader.takeDirty();
        for (const taskId of dirty) {
          if (id !== undefined && taskId !== id) continue;
          const row = this.#supervisor.tasks.find(taskId);
          if (!row) continue;
          const view = this.#view(row);
          yield { kind: 'progress', taskId, state: view.state, progress: view.progress, detail: view.detail };
        }
        if (id !== undefined && !this.#supervisor.tasks.find(id)) return; // deleted
        await reader.wait(PROGRESS_INTERVAL_MS);
      }
    } finally {
      signal.removeEventListener('abort', close);
      close();
    }
  }

  machineDefinition(): unknown {
    return JSON.parse(JSON.stringify(taskMachine.definition)) as unknown;
  }

  async stop(): Promise<void> {
    await this.#supervisor.stop();
    this.#parts.store.close();
  }

  #command(id: string, command: TaskCommand): CommandResult {
    const row = this.#supervisor.work.row(id);
    const requested =
      command.type === 'CUTOVER' &&
      row.state === 'syncingWal' &&
      restingSnapshot(row).context.cutoverRequested;
    if (requested || alreadyHolds[command.type].includes(row.state))
      return { task: this.#view(row), changed: false };
    this.#supervisor.command(id, command);
    return { task: this.#view(this.#supervisor.work.row(id)), changed: true };
  }

  #view(row: TaskRow): TaskView {
    const supervisor = this.#supervisor;
    const detail = supervisor.work.telemetryOf(row.id).snapshot();
    return taskView(row, detail, supervisor.work.connectionCountOf(row.id), supervisor.notes);
  }
}
