// The manager actor with its hands: spawns and rests task actors, delivers commands, commits transitions, restores after a
// start. The statecharts decide; this file only does what they ask for. Connections and figures are task-work.ts's.
import { createActor, transition, type ActorRefFrom } from 'xstate';
import type { Store } from '../../db/open.ts';
import { TaskNotes } from '../../db/notes.ts';
import { TaskStore, type TaskRow } from '../../db/tasks.ts';
import { managerMachine, timers } from '../../machines/manager.ts';
import { optionsOf, type TaskCommand, type TaskMachineEvent } from '../../machines/task-context.ts';
import { taskStateOf } from '../../machines/task-state.ts';
import { TASK_MACHINE_VERSION, taskMachine } from '../../machines/task.ts';
import { asMigrationError, isStoreFailure, MigrationError, type ErrorReport } from '../model/errors.ts';
import type { Failpoint } from '../model/failpoints.ts';
import { SLOT_ENDANGERED } from '../model/finding.ts';
import type { OptionsPatch } from '../model/request-changes.ts';
import type { LiveTask, TaskManager } from '../model/service.ts';
import { isEnded, taskStates, type TaskState } from '../model/task-state.ts';
import type { HookCommands, Log } from '../postgres/task-scope.ts';
import { allowWrites } from '../cutover/fence.ts';
import { taskActors } from './activities.ts';
import { deadline } from './deadline.ts';
import { durable, toJson } from './durable.ts';
import type { EventHub } from './event-hub.ts';
import { goesForward, Leftovers } from './leftovers.ts';
import { persistedSnapshotOf } from './restore.ts';
import type { SecretVault } from './secrets.ts';
import { SlotWatcher } from './slot-watcher.ts';
import { TaskWork } from './task-work.ts';
import { progressPercent } from './telemetry.ts';
import { acceptedCommands, restingSnapshot, type TaskSnapshot } from './view.ts';

/** States whose rows never have an actor; `paused` may still be releasing and is looked at one by one. */
const ACTORLESS: ReadonlySet<TaskState> = new Set([...taskStates.filter(isEnded), 'created', 'queued']);
/** States in which the source may be refusing writes for a cutover. */
const FENCED: ReadonlySet<TaskState> = new Set(['stoppingWrites', 'validating', 'finalizing']);
/** Before a task whose commit failed (our own disk is full) is spawned again from its row. */
const RESPAWN_DELAY_MS = 5_000;

type TaskActor = ActorRefFrom<typeof taskMachine>;

export interface SupervisorOptions {
  readonly store: Store;
  readonly vault: SecretVault;
  readonly hub: EventHub;
  readonly hookCommands: HookCommands;
  readonly spillFolder: string;
  readonly log: Log;
  readonly failpoint: (name: Failpoint) => void;
  readonly maxRunningTasks: number;
  readonly cleanupIntervalMs: number;
  readonly slotCheckIntervalMs: number;
}

export class Supervisor implements TaskManager {
  readonly tasks: TaskStore;
  readonly notes: TaskNotes;
  readonly work: TaskWork;
  readonly #options: SupervisorOptions;
  readonly #leftovers: Leftovers;
  readonly #slots: SlotWatcher;
  readonly #respawns = new Set<NodeJS.Timeout>();
  readonly #manager;
  #stopping = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.tasks = new TaskStore(options.store);
    this.notes = new TaskNotes(options.store);
    const { tasks, notes } = this;
    const tell = (taskId: string, event: TaskMachineEvent): void => this.actorOf(taskId)?.send(event);
    const work = new TaskWork({
      ...options,
      tasks,
      notes,
      isLive: (taskId) => this.actorOf(taskId) !== undefined,
      partDone: (taskId) => tell(taskId, { type: 'PART_DONE' }),
      validated: (taskId, clean) =>
        tell(taskId, { type: clean ? 'VALIDATION_CLEAN' : 'VALIDATION_NOT_CLEAN' }),
      queued: () => this.#admit(),
    });
    this.work = work;
    this.#leftovers = new Leftovers({
      ...options,
      tasks,
      work,
      liveIds: () => this.#liveIds(),
      removeTask: (taskId) => this.removeTask(taskId),
    });
    this.#slots = new SlotWatcher({
      ...options,
      tasks,
      notes,
      work,
      isStopping: () => this.#stopping,
      // a stream that runs finds out by itself
      slotLost: (taskId, error) => this.#deliverIfTaken(taskId, { type: 'SLOT_LOST', error }),
      slotEndangered: (taskId, finding) =>
        this.#deliverIfTaken(taskId, { type: 'FINDING', code: SLOT_ENDANGERED, finding }),
    });
    const task = durable(taskMachine.provide({ actors: { ...taskActors(work), deadline } }), {
      load: (taskId) => persistedSnapshotOf(this.work.row(taskId)),
      commit: (taskId, event, next, persisted) => this.#commit(taskId, event, next, toJson(persisted)),
      committed: (taskId, next) => this.#committed(taskId, next),
    });
    this.#manager = createActor(
      managerMachine.provide({
        actors: { task },
        actions: {
          taskLeft: (_, { taskId }) => this.#taskLeft(taskId),
          taskCrashed: (_, { taskId, error }) => this.#taskCrashed(taskId, error),
          cleanUpEnded: () => void this.#leftovers.cleanUpAll(),
          watchSlots: () => void this.#slots.round(),
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
      if (this.#isDormant(this.work.row(id))) continue;
      this.#options.log.info({ taskId: id }, 'task restored');
      this.#spawn(id)?.send({ type: 'RESTORED' });
    }
    this.#admit();
  }

  get manager() {
    return this.#manager;
  }

  // ---- rows and commands

  /** Sends a command; its transition is committed when this returns. Throws `event_not_accepted`. */
  command(id: string, command: TaskCommand): void {
    this.work.refuseWhileStopping();
    const row = this.work.row(id);
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

  /** Of what runs, too; a task without an actor is read with its new options. */
  changeOptions(id: string, patch: OptionsPatch): void {
    const spec = this.work.setOptions(id, patch);
    this.actorOf(id)?.send({ type: 'OPTIONS_CHANGED', options: optionsOf(spec) });
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

  #deliverIfTaken(id: string, event: TaskMachineEvent): void {
    const snapshot = this.actorOf(id)?.getSnapshot() ?? restingSnapshot(this.work.row(id));
    if (snapshot.can(event)) this.#deliver(id, snapshot, event);
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
    if (this.work.row(taskId).machineVersion > TASK_MACHINE_VERSION) {
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
    void this.work.releaseAfterRuns(taskId).finally(() => {
      this.#admit();
      // Not left for the periodic one: the source may be fenced, and the slot holds back WAL.
      if (!this.#stopping && this.tasks.find(taskId)?.crash) void this.#leftovers.cleanUpTask(taskId);
    });
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
      const row = this.work.row(taskId);
      if (this.#stopping || !FENCED.has(row.state) || goesForward(row)) return;
      await this.work.withScope(taskId, 'unfenceBlindly', (scope) => allowWrites(scope));
      this.#options.log.warn({ taskId }, 'the fence was lifted, because our store cannot be written');
    } catch (error) {
      this.#options.log.error(
        { taskId, err: error },
        'the fence could not be lifted; tried again with the task',
      );
    }
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
    return this.work.closeConnections(id);
  }

  cleanupCompletedTasks(): Promise<void> {
    return this.#leftovers.cleanUpAll();
  }

  /** Ends actors and connections within about three seconds; rows stay as they are, so the next start resumes. */
  async stop(): Promise<void> {
    this.#stopping = true;
    for (const timer of this.#respawns) clearTimeout(timer);
    this.work.beginStop();
    this.#manager.stop();
    await this.work.stop();
  }

  #liveIds(): string[] {
    return Object.keys(this.#manager.getSnapshot().children).filter((id) => !timers.includes(id));
  }

  #liveTask(id: string, actor: TaskActor): LiveTask {
    const telemetry = this.work.telemetryOf(id);
    const count = (): number => this.work.connectionCountOf(id);
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

function asReport(error: unknown): ErrorReport {
  return typeof error === 'object' && error !== null && 'kind' in error && !(error instanceof Error)
    ? (error as ErrorReport)
    : asMigrationError(error).toReport();
}
