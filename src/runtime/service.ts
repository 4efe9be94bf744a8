// The service behind library, HTTP and command line: requests become rows, commands become events (task-reader.ts: rows
// become views).
import { randomBytes, randomUUID } from 'node:crypto';
import { initialTransition } from 'xstate';
import type { TaskRow } from '../../db/tasks.ts';
import type { TaskCommand } from '../../machines/task-context.ts';
import { TASK_MACHINE_VERSION, taskMachine } from '../../machines/task.ts';
import { liftFence } from '../cutover/clean-up.ts';
import { forecastCutover } from '../cutover/forecast.ts';
import { MigrationError } from '../model/errors.ts';
import { isBlocked, type Finding } from '../model/finding.ts';
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
import type { CommandResult, Inspection, Service, TaskManager } from '../model/service.ts';
import type { CutoverForecast } from '../model/forecast.ts';
import type { RepairRequest, RepairView } from '../model/validation.ts';
import { forecastComparison } from '../validate/forecast.ts';
import { findRun, requestRepair } from '../validate/notes.ts';
import { isEnded, type TaskState } from '../model/task-state.ts';
import type { TaskView } from '../model/task.ts';
import { findSchemaPlan } from '../postgres/task-scope.ts';
import { findingsOfAddition, findingsOfRequest, refuseCommands } from './findings.ts';
import { toJson } from './durable.ts';
import { TaskReader } from './task-reader.ts';
import { copyingOf, restingSnapshot, reverseTaskOf, writeStopOf } from './view.ts';
import { lastLegOf, refuseReservedId, refuseWhileReversed } from './way-back.ts';

/** Asking again changes nothing; but whoever asks after a failure does not wait for the next automatic try. */
function isRequested(row: TaskRow, command: TaskCommand): boolean {
  if (command.type !== 'CUTOVER' || row.state !== 'syncingWal') return false;
  const { cutoverRequested, cutoverFailures } = restingSnapshot(row).context;
  return cutoverRequested && cutoverFailures === 0;
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

export class MigrationService extends TaskReader implements Service {
  get taskManager(): TaskManager {
    return this.supervisor;
  }

  get inspection(): Inspection {
    return this.parts.inspection;
  }

  async createTask(request: TaskRequest): Promise<{ readonly task: TaskView; readonly created: boolean }> {
    const { id = `m${randomBytes(6).toString('hex')}`, spec, secrets } = parseRequest(request);
    refuseCommands(spec, this.parts.hookCommands);
    const { store, vault, hub } = this.parts;
    const bodyHash = vault.fingerprint({ spec, secrets });
    const known = this.supervisor.tasks.find(id);
    if (known) {
      if (known.bodyHash === bodyHash) return { task: this.view(known), created: false };
      throw new MigrationError('task_exists', `a task with the id ${id} exists and is a different one`, {
        hint: 'choose another id, or leave it out to have one made',
        details: { id },
      });
    }
    refuseReservedId(this.supervisor, id, spec);
    const [initial] = initialTransition(taskMachine, { taskId: id, spec });
    store.transaction(() => {
      this.supervisor.tasks.insert(
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

  async startTask(id: string, signal?: AbortSignal): Promise<CommandResult> {
    const { state } = this.supervisor.work.row(id);
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
          this.parts.log.warn({ taskId: id, err: error }, 'pause on abort'),
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
    const { state } = this.supervisor.work.row(id);
    const reverse = reverseTaskOf(this.supervisor.notes, id);
    if (reverse !== null && this.supervisor.tasks.find(reverse)) return this.cutover(reverse);
    throw new MigrationError(
      'event_not_accepted',
      `task ${id} (${state}) has no cutover that can be rolled back`,
      {
        hint: 'only that of a completed task with options.reverse, while its reverse_task is there',
        details: { state, allowed: this.view(this.supervisor.work.row(id)).allowedCommands },
      },
    );
  }

  async finish(id: string): Promise<CommandResult> {
    const last = lastLegOf(this.supervisor, this.supervisor.work.row(id));
    if (!last.spec.origin)
      throw new MigrationError('event_not_accepted', `task ${id} (${last.state}) has no reverse stream`, {
        hint: 'there is one after the cutover of a task with options.reverse',
        details: { state: last.state, allowed: this.view(last).allowedCommands },
      });
    return this.#command(last.id, { type: 'FINISH' });
  }

  async forecastCutover(id: string): Promise<CutoverForecast> {
    this.#requireSyncing(id, 'a cutover cannot be forecast');
    this.#refuseWhileCopying(id, 'a cutover cannot be forecast');
    return this.supervisor.work.withScope(id, 'forecastCutover', async (scope) =>
      forecastCutover(scope, await forecastComparison(scope), (await this.getTask(id)).cutoverWaitsFor),
    );
  }

  /** One copy beside the stream at a time, and nothing that looks at all tables meanwhile. */
  #refuseWhileCopying(id: string, what: string): void {
    const row = this.supervisor.work.row(id);
    if (row.crash || row.state !== 'syncingWal') return; // a task whose slot is lost copies everything
    const waitsFor = copyingOf(restingSnapshot(row).context);
    if (waitsFor === null) return;
    throw new MigrationError('event_not_accepted', `${what}: ${waitsFor} is not done`, {
      hint: `wait until it is: GET …/${id} tells how far it is as copying`,
      details: { state: row.state, allowed: this.view(row).allowedCommands },
    });
  }

  #requireSyncing(id: string, what: string): void {
    const row = this.supervisor.work.row(id);
    if (row.state === 'syncingWal') return;
    throw new MigrationError('event_not_accepted', `${what} in state ${row.state}`, {
      hint: 'wait until the task is in state syncingWal',
      details: { state: row.state, allowed: this.view(row).allowedCommands },
    });
  }

  async changeOptions(id: string, patch: OptionsPatch): Promise<TaskView> {
    const { state } = this.supervisor.work.row(id);
    const valid = parseOptionsPatch(patch);
    if (isEnded(state))
      throw new MigrationError('task_ended', `task ${id} is ${state}`, { details: { state } });
    this.supervisor.changeOptions(id, valid);
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
    this.#refuseWhileCopying(id, `${name} cannot be copied again`);
    return this.#command(id, { type: 'RECOPY', tables: [name] });
  }

  async recopyTask(id: string): Promise<CommandResult> {
    const plan = findSchemaPlan({ checkpoints: this.checkpointsOf(id) });
    const tables = (plan?.tables ?? []).map(({ source }) => relationKey(source));
    this.#refuseWhileCopying(id, 'the tables cannot be copied again');
    return this.#command(id, { type: 'RECOPY', tables });
  }

  async addTables(id: string, request: TablesAddition): Promise<CommandResult> {
    this.#requireSyncing(id, 'tables cannot be added');
    this.#refuseWhileCopying(id, 'tables cannot be added');
    const { spec } = this.supervisor.work.row(id);
    if (spec.origin)
      throw new MigrationError('event_not_accepted', `tables cannot be added to the reverse task ${id}`, {
        hint: `start a migration of their own, or roll back and add them to the task that leads forward again`,
        details: { state: 'syncingWal', allowed: this.view(this.supervisor.work.row(id)).allowedCommands },
      });
    const { add } = parseTablesAddition(request);
    const { tables, findings } = await this.supervisor.work.withScope(id, 'addTables', (scope) =>
      findingsOfAddition(scope, add),
    );
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
    const row = this.supervisor.work.row(id);
    const checkpoints = this.checkpointsOf(id);
    if (row.state !== 'syncingWal' || findRun(checkpoints) === undefined)
      throw new MigrationError('event_not_accepted', `task ${id} (${row.state}) has no online validation`, {
        hint: 'rows are repaired in state syncingWal by the online validation: POST …/validate begins it',
        details: { state: row.state, allowed: this.view(row).allowedCommands },
      });
    const plan = findSchemaPlan({ checkpoints });
    const keyOf = (name: string): readonly string[] | undefined =>
      plan?.tables.find((table) => relationKey(table.source) === name)?.keyColumns;
    return requestRepair(checkpoints, parseRepair(request, keyOf));
  }

  async cancelTask(id: string, options: { readonly dropTarget?: boolean } = {}): Promise<CommandResult> {
    return this.#command(id, { type: 'CANCEL', dropTarget: options.dropTarget ?? false });
  }

  async abandonTask(id: string, options: { readonly dropTarget?: boolean } = {}): Promise<CommandResult> {
    return this.#command(id, { type: 'ABANDON', dropTarget: options.dropTarget ?? false });
  }

  async unfenceTask(id: string): Promise<CommandResult> {
    const row = this.supervisor.work.row(id);
    if (!isEnded(row.state)) {
      throw new MigrationError(
        'event_not_accepted',
        `task ${id} has not ended (${row.state}): its fence is its own`,
        {
          hint: 'pause or cancel the task; both allow writes again',
          details: { state: row.state, allowed: this.view(row).allowedCommands },
        },
      );
    }
    refuseWhileReversed(this.supervisor, row);
    if (!writeStopOf(this.supervisor.notes, id).fenced) return { task: this.view(row), changed: false };
    await this.supervisor.work.withScope(id, 'liftFence', (scope) => liftFence(scope));
    this.supervisor.tasks.recordCleanup(id, 'UNFENCED', row.cleanupPending);
    this.parts.hub.journalGrew();
    return { task: await this.getTask(id), changed: true };
  }

  async deleteTask(id: string, options: { readonly force?: boolean } = {}): Promise<void> {
    const row = this.supervisor.work.row(id);
    if (!isEnded(row.state) && row.state !== 'created') {
      throw new MigrationError('task_live', `task ${id} has not ended (${row.state})`, {
        hint: 'cancel it first',
        details: { state: row.state },
      });
    }
    refuseWhileReversed(this.supervisor, row);
    const { fenced } = writeStopOf(this.supervisor.notes, id);
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
    await this.supervisor.removeTask(id);
    this.supervisor.tasks.delete(id);
    this.parts.hub.journalGrew();
  }

  preflight(request: TaskRequest): Promise<readonly Finding[]> {
    return findingsOfRequest(request, this.parts);
  }

  machineDefinition(): unknown {
    return JSON.parse(JSON.stringify(taskMachine.definition)) as unknown;
  }

  async stop(): Promise<void> {
    await this.supervisor.stop();
    this.parts.store.close();
  }

  #command(id: string, command: TaskCommand): CommandResult {
    const row = this.supervisor.work.row(id);
    if (isRequested(row, command) || alreadyHolds[command.type].includes(row.state))
      return { task: this.view(row), changed: false };
    this.supervisor.command(id, command);
    return { task: this.view(this.supervisor.work.row(id)), changed: true };
  }
}
