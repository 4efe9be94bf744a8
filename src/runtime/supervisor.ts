// The manager actor with its hands: spawns and rests task actors, owns every task's connections and figures, restores
// after a start, cleans up periodically. The statecharts decide; this file only does what they ask for.
import { createActor, transition, type ActorRefFrom } from 'xstate';
import type { Store } from '../../db/open.ts';
import { TaskNotes } from '../../db/notes.ts';
import { TaskStore, type TaskRow } from '../../db/tasks.ts';
import { managerMachine, timers } from '../../machines/manager.ts';
import type { TaskCommand, TaskMachineEvent } from '../../machines/task-context.ts';
import { taskStateOf } from '../../machines/task-state.ts';
import { TASK_MACHINE_VERSION, taskMachine } from '../../machines/task.ts';
import type { RecopyRequest } from '../copy/recopy.ts';
import { asMigrationError, isStoreFailure, MigrationError, type ErrorReport } from '../model/errors.ts';
import type { Failpoint } from '../model/failpoints.ts';
import type { LiveTask, TaskManager } from '../model/service.ts';
import { isEnded, taskStates, type TaskState } from '../model/task-state.ts';
import type { OptionsPatch } from '../model/request-changes.ts';
import type { HookCommands, Log, TaskScope } from '../postgres/task-scope.ts';
import type { AdditionRequest } from '../schema/addition.ts';
import { cleanUp } from '../cutover/clean-up.ts';
import { allowWrites } from '../cutover/fence.ts';
import { settle } from '../cutover/settle.ts';
import { compareSchema } from '../schema/compare.ts';
import { holdSnapshots } from '../validate/snapshots.ts';
import { taskActors, type ActivityHost } from './activities.ts';
import { ActivityRunner } from './activity-runner.ts';
import { deadline } from './deadline.ts';
import { durable, toJson } from './durable.ts';
import { settleLegs } from './legs.ts';
import type { EventHub } from './event-hub.ts';
import { persistedSnapshotOf } from './restore.ts';
import type { SecretVault } from './secrets.ts';
import { lookAtSlot, needsWatch, watchedStates } from './slot-watch.ts';
import { TaskResources } from './task-resources.ts';
import { progressPercent, type TaskTelemetry } from './telemetry.ts';
import { acceptedCommands, restingSnapshot, type TaskSnapshot } from './view.ts';

const ENDED: readonly TaskState[] = taskStates.filter(isEnded);
/** States whose rows never have an actor; `paused` may still be releasing and is looked at one by one. */
const ACTORLESS: ReadonlySet<TaskState> = new Set([...ENDED, 'created', 'queued']);
/** States in which the source may be refusing writes for a cutover. */
const FENCED: ReadonlySet<TaskState> = new Set(['stoppingWrites', 'validating', 'finalizing']);
/** Before a task whose commit failed (our own disk is full) is spawned again from its row. */
const RESPAWN_DELAY_MS = 5_000;
/** Slots of tasks at rest that are looked at at the same time. */
const WATCHED_AT_ONCE = 4;
/** Actors and connections have this long to end when the service stops; the rest is cut. */
const STOP_TIMEOUT_MS = 3_000;

type TaskActor = ActorRefFrom<typeof taskMachine>;

export interface SupervisorOptions {
  readonly store: Store;
  readonly vault: SecretVault;
  readonly hub: EventHub;
  readonly hookCommands: HookCommands;
  readonly log: Log;
  readonly failpoint: (name: Failpoint) => void;
  readonly maxRunningTasks: number;
  readonly cleanupIntervalMs: number;
  readonly slotCheckIntervalMs: number;
}

export class Supervisor implements TaskManager, ActivityHost {
  readonly tasks: TaskStore;
  readonly notes: TaskNotes;
  readonly runner: ActivityRunner;
  readonly #options: SupervisorOptions;
  readonly #resources: TaskResources;
  readonly #cleaning = new Set<string>();
  readonly #respawns = new Set<NodeJS.Timeout>();
  readonly #manager;
  #stopping = false;
  #watching = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.tasks = new TaskStore(options.store);
    this.notes = new TaskNotes(options.store);
    this.#resources = new TaskResources({
      ...options,
      notes: this.notes,
      isLive: (taskId) => this.actorOf(taskId) !== undefined,
      partDone: (taskId) => this.#tell(taskId, { type: 'PART_DONE' }),
      validated: (taskId, clean) =>
        this.#tell(taskId, { type: clean ? 'VALIDATION_CLEAN' : 'VALIDATION_NOT_CLEAN' }),
    });
    this.runner = new ActivityRunner(options.log, (taskId) => this.releaseConnections(taskId));
    const task = durable(taskMachine.provide({ actors: { ...taskActors(this), deadline } }), {
      load: (taskId) => persistedSnapshotOf(this.row(taskId)),
      commit: (taskId, event, next, persisted) => this.#commit(taskId, event, next, toJson(persisted)),
      committed: (taskId, next) => this.#committed(taskId, next),
    });
    this.#manager = createActor(
      managerMachine.provide({
        actors: { task },
        actions: {
          taskLeft: (_, { taskId }) => this.#taskLeft(taskId),
          taskCrashed: (_, { taskId, error }) => this.#taskCrashed(taskId, error),
          cleanUpEnded: () => void this.cleanupCompletedTasks(),
          watchSlots: () => void this.#watchSlots(),
        },
      }),
      { id: 'manager', input: options },
    );
  }

  /** Restores every task that was at work when the last process ended, then lets queued ones in. */
  start(): void {
    this.#manager.start();
    const working = taskStates.filter((state) => !ACTORLESS.has(state));
    for (const id of this.tasks.idsIn(working)) {
      if (this.#isDormant(this.row(id))) continue;
      this.#options.log.info({ taskId: id }, 'task restored');
      this.#spawn(id)?.send({ type: 'RESTORED' });
    }
    this.#admit();
  }

  get manager() {
    return this.#manager;
  }

  // ---- rows and commands

  /** Throws `task_not_found`. */
  row(id: string): TaskRow {
    const row = this.tasks.find(id);
    if (!row) throw new MigrationError('task_not_found', `no task has the id ${JSON.stringify(id)}`);
    return row;
  }

  /** Sends a command; its transition is committed when this returns. Throws `event_not_accepted`. */
  command(id: string, command: TaskCommand): void {
    this.#refuseWhileStopping();
    const row = this.row(id);
    const actor = this.actorOf(id);
    const snapshot: TaskSnapshot = actor ? actor.getSnapshot() : restingSnapshot(row);
    if (row.crash || !snapshot.can(command)) {
      const allowed = row.crash ? [] : acceptedCommands(snapshot);
      throw new MigrationError(
        'event_not_accepted',
        `a task in state ${row.state} does not accept ${command.type}`,
        {
          hint: allowed.length === 0 ? 'no command is accepted now' : `accepted now: ${allowed.join(', ')}`,
          details: { state: row.state, allowed },
        },
      );
    }
    this.#deliver(id, snapshot, command);
  }

  /** To the actor, or, where there is none, by the chart alone. */
  #deliver(id: string, snapshot: TaskSnapshot, event: TaskMachineEvent): void {
    const actor = this.actorOf(id);
    if (actor) {
      actor.send(event);
      return;
    }
    const [next] = transition(taskMachine, snapshot, event);
    if (next.status === 'done' || next.hasTag('dormant')) {
      this.#commit(id, event, next, toJson(taskMachine.getPersistedSnapshot(next)));
      this.#committed(id, next);
      this.#admit();
    } else {
      this.#spawn(id)?.send(event);
    }
  }

  actorOf(id: string): TaskActor | undefined {
    return (this.#manager.getSnapshot().children as Record<string, TaskActor | undefined>)[id];
  }

  #commit(taskId: string, event: { readonly type: string }, next: TaskSnapshot, persisted: unknown): void {
    const error = 'error' in event ? asReport(event.error) : null;
    this.tasks.commit({
      taskId,
      event: event.type,
      state: taskStateOf(next.value),
      machineVersion: TASK_MACHINE_VERSION,
      actorSnapshot: persisted,
      cleanupPending: next.context.cleanupPending,
      error,
    });
    this.#options.hub.journalGrew();
  }

  #committed(taskId: string, next: TaskSnapshot): void {
    const state = taskStateOf(next.value);
    this.#options.log.info({ taskId, state }, 'transition');
    // The manager learns of finished children by itself; resting ones it must be told of, after this transition.
    if (next.status === 'active' && next.hasTag('dormant') && this.actorOf(taskId)) {
      queueMicrotask(() => {
        if (this.actorOf(taskId)?.getSnapshot().hasTag('dormant'))
          this.#manager.send({ type: 'RESTED', taskId });
      });
    }
  }

  #isDormant(row: TaskRow): boolean {
    try {
      return restingSnapshot(row).hasTag('dormant');
    } catch {
      return false; // a bad row is spawned, so that its actor's error reaches the manager
    }
  }

  /** Undefined when the row could not be restored, or is a newer service's: that one must find it as it left it. */
  #spawn(taskId: string): TaskActor | undefined {
    if (this.row(taskId).machineVersion > TASK_MACHINE_VERSION) {
      this.#options.log.error({ taskId }, 'a task of a newer version of DTS is left alone');
      return undefined;
    }
    if (!this.actorOf(taskId)) this.#manager.send({ type: 'SPAWN', taskId });
    return this.actorOf(taskId);
  }

  #admit(): void {
    if (this.#stopping) return;
    for (const id of this.tasks.idsIn(['queued'])) {
      if (this.getTaskCount() >= this.#options.maxRunningTasks) return;
      if (!this.actorOf(id)) this.#spawn(id)?.send({ type: 'ADMIT' });
    }
  }

  #taskLeft(taskId: string): void {
    void this.#releaseAfterRuns(taskId).finally(() => {
      this.#admit();
      // Not left for the periodic one: the source may be fenced, and the slot holds back WAL.
      if (!this.#stopping && this.tasks.find(taskId)?.crash) void this.#retryCleanup(taskId);
    });
  }

  async #releaseAfterRuns(taskId: string): Promise<void> {
    await this.runner.idle(taskId, STOP_TIMEOUT_MS);
    if (!this.actorOf(taskId)) await this.releaseConnections(taskId);
  }

  #taskCrashed(taskId: string, error: unknown): void {
    const known = asMigrationError(error);
    this.#options.log.error({ taskId, err: error }, 'task actor died');
    if (isStoreFailure(error)) {
      // Our own store failed: nothing was committed, so the row is as true as before. Try again from it.
      const timer = setTimeout(() => {
        this.#respawns.delete(timer);
        if (!this.#stopping) this.#spawn(taskId)?.send({ type: 'RESTORED' });
      }, RESPAWN_DELAY_MS);
      this.#respawns.add(timer);
      void this.#unfenceBlindly(taskId);
      return;
    }
    try {
      this.tasks.recordCrash(taskId, known.toReport());
      this.#options.hub.journalGrew();
    } catch (storeError) {
      this.#options.log.error(
        { taskId, err: storeError },
        'the crash could not be recorded; the row stays live',
      );
    }
  }

  /**
   * Un-fencing is a transition, and while our store refuses those the source would stay fenced. Nothing is noted: a task
   * that is restored under the fence begins by lifting it.
   */
  async #unfenceBlindly(taskId: string): Promise<void> {
    try {
      const row = this.row(taskId);
      if (this.#stopping || !FENCED.has(row.state) || goesForward(row)) return;
      await this.withScope(taskId, 'unfenceBlindly', (scope) => allowWrites(scope));
      this.#options.log.warn({ taskId }, 'the fence was lifted, because our store cannot be written');
    } catch (error) {
      this.#options.log.error(
        { taskId, err: error },
        'the fence could not be lifted; tried again with the task',
      );
    }
  }

  // ---- what activities work with

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
      this.tasks.saveSpec(taskId, next);
      this.#resources.setSpec(taskId, next);
    }
    return { pass: addPass, tables: addTables };
  }

  /** Takes effect at once, also in what runs. */
  setOptions(taskId: string, patch: OptionsPatch): void {
    this.#refuseWhileStopping();
    const { spec } = this.row(taskId);
    const next = { ...spec, options: { ...spec.options, ...patch } };
    this.tasks.saveSpec(taskId, next);
    this.#resources.setSpec(taskId, next);
  }

  settled(taskId: string): void {
    const { notes, tasks } = this;
    const made = settleLegs({ ...this.#options, notes, tasks }, this.row(taskId));
    if (!made) return;
    this.#options.hub.journalGrew();
    this.#admit();
  }

  telemetryOf(taskId: string): TaskTelemetry {
    return this.#resources.telemetryOf(taskId);
  }

  connectionCountOf(taskId: string): number {
    return this.#resources.connectionCountOf(taskId);
  }

  async releaseConnections(taskId: string): Promise<void> {
    for (const error of await this.#resources.close(taskId)) {
      this.#options.log.warn({ taskId, err: error }, 'a connection did not close cleanly');
    }
  }

  #tell(taskId: string, event: TaskMachineEvent): void {
    this.actorOf(taskId)?.send(event);
  }

  // ---- the task manager of the library

  getTask(id: string): LiveTask | undefined {
    const actor = this.actorOf(id);
    return actor && this.#liveTask(id, actor);
  }

  listTasks(): LiveTask[] {
    return this.#liveIds().flatMap((id) => this.getTask(id) ?? []);
  }

  getTaskCount(): number {
    return this.#liveIds().length;
  }

  async removeTask(id: string): Promise<Error[]> {
    if (this.actorOf(id)) this.#manager.send({ type: 'RESTED', taskId: id });
    await this.runner.idle(id, STOP_TIMEOUT_MS);
    return this.#resources.close(id);
  }

  async cleanupCompletedTasks(): Promise<void> {
    const { log } = this.#options;
    try {
      for (const id of [...this.#resources.connectedTasks, ...this.#liveIds()]) {
        const row = this.tasks.find(id);
        if (row && !isEnded(row.state)) continue;
        if (this.#cleaning.has(id)) continue;
        for (const error of await this.removeTask(id))
          log.warn({ taskId: id, err: error }, 'leftover connection');
      }
      for (const id of this.tasks.idsWithPendingCleanup(ENDED)) await this.#retryCleanup(id);
    } catch (error) {
      log.error({ err: error }, 'periodic cleanup failed');
    }
  }

  /** A few at once: a source that does not answer holds up nobody else's. */
  async #watchSlots(): Promise<void> {
    if (this.#watching || this.#stopping) return;
    this.#watching = true;
    try {
      const waiting = this.tasks.idsIn(watchedStates);
      const work = async (): Promise<void> => {
        for (let id = waiting.pop(); id !== undefined && !this.#stopping; id = waiting.pop())
          await this.#watchSlot(id);
      };
      await Promise.all(Array.from({ length: WATCHED_AT_ONCE }, work));
    } catch (error) {
      this.#options.log.error({ err: error }, 'the slots could not be looked at');
    } finally {
      this.#watching = false;
    }
  }

  async #watchSlot(id: string): Promise<void> {
    try {
      const row = this.row(id);
      const sampledAt = this.telemetryOf(id).snapshot().sync?.sampledAt ?? null;
      const { error } = restingSnapshot(row).context;
      if (row.crash || !needsWatch(this.notes, { id, state: row.state, error }, sampledAt)) return;
      await this.withScope(id, 'watchSlot', (scope) => lookAtSlot(scope));
    } catch (error) {
      const failure = asMigrationError(error);
      this.#options.log.warn({ taskId: id, err: failure }, 'the slot of a task that does not stream');
      if (failure.kind !== 'lost' || this.#stopping) return;
      const snapshot = this.actorOf(id)?.getSnapshot() ?? restingSnapshot(this.row(id));
      const event = { type: 'SLOT_LOST', error: failure.toReport() } as const;
      // a stream that runs finds out by itself
      if (snapshot.can(event)) this.#deliver(id, snapshot, event);
    }
  }

  async #retryCleanup(id: string): Promise<void> {
    if (this.#cleaning.has(id)) return;
    this.#cleaning.add(id);
    try {
      const row = this.row(id);
      const pending = await this.withScope(id, 'periodicCleanup', async (scope) => {
        if (!goesForward(row))
          return (await cleanUp(scope, { dropTarget: this.dropTargetOf(id) })).cleanupPending;
        const settled = await settle(scope, holdSnapshots, compareSchema);
        this.settled(id);
        return settled.cleanupPending;
      });
      if (pending) return;
      this.tasks.recordCleanup(id, 'CLEANED_UP', false);
      this.#options.hub.journalGrew();
    } catch (error) {
      this.#options.log.warn({ taskId: id, err: error }, 'cleanup is still pending');
    } finally {
      this.#cleaning.delete(id);
    }
  }

  /** Work on a task that has no actor, with connections that are closed afterwards. */
  async withScope<T>(id: string, name: string, work: (scope: TaskScope) => Promise<T>): Promise<T> {
    this.#refuseWhileStopping();
    const controller = new AbortController();
    this.#stopSignals.add(controller);
    try {
      return await this.runner.run(id, name, controller.signal, () =>
        work(this.scopeOf(id, controller.signal)),
      );
    } finally {
      this.#stopSignals.delete(controller);
      if (!this.actorOf(id)) await this.releaseConnections(id);
    }
  }

  readonly #stopSignals = new Set<AbortController>();

  /** Ends actors and connections within about three seconds; rows stay as they are, so the next start resumes. */
  async stop(): Promise<void> {
    this.#stopping = true;
    for (const timer of this.#respawns) clearTimeout(timer);
    for (const controller of this.#stopSignals) controller.abort();
    this.#manager.stop();
    await Promise.all(this.runner.busyTasks.map((id) => this.runner.idle(id, STOP_TIMEOUT_MS)));
    await Promise.all(this.#resources.connectedTasks.map((id) => this.releaseConnections(id)));
  }

  #refuseWhileStopping(): void {
    if (this.#stopping) throw new MigrationError('service_stopped', 'the service is shutting down');
  }

  #liveIds(): string[] {
    return Object.keys(this.#manager.getSnapshot().children).filter((id) => !timers.includes(id));
  }

  #liveTask(id: string, actor: TaskActor): LiveTask {
    const telemetry = this.telemetryOf(id);
    const count = (): number => this.connectionCountOf(id);
    return {
      id,
      get state() {
        return taskStateOf(actor.getSnapshot().value);
      },
      get progress() {
        return progressPercent(taskStateOf(actor.getSnapshot().value), telemetry.tables);
      },
      getConnectionCount: count,
    };
  }
}

/** The target is open, or may be: whatever happened to the actor, the source must not take writes again. */
function goesForward(row: TaskRow): boolean {
  const snapshot = row.actorSnapshot as { context?: { pastPointOfNoReturn?: unknown } } | null;
  return snapshot?.context?.pastPointOfNoReturn === true;
}

function asReport(error: unknown): ErrorReport {
  return typeof error === 'object' && error !== null && 'kind' in error && !(error instanceof Error)
    ? (error as ErrorReport)
    : asMigrationError(error).toReport();
}
