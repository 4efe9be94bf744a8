// Binds the names that the statechart invokes (machines/activities.ts) to the functions of the domain folders.
import { fromCallback, fromPromise, type EventObject } from 'xstate';
import type { Activities, ActivityName, TaskRef } from '../../machines/activities.ts';
import { copyTables } from '../copy/copy-tables.ts';
import { copyLargeObjects } from '../copy/large-objects.ts';
import { acceptRecopy, leaveLostSlot, type RecopyRequest } from '../copy/recopy.ts';
import { copyUnlogged } from '../copy/unlogged.ts';
import { analyzeTarget } from '../cutover/analyze.ts';
import { cleanUp } from '../cutover/clean-up.ts';
import { drain } from '../cutover/drain.ts';
import { armFence, disarmFence, installFence } from '../cutover/fence.ts';
import { prepareTarget } from '../cutover/prepare-target.ts';
import { disarmReverse, prepareReverse } from '../cutover/reverse.ts';
import { settle, type OtherFolders } from '../cutover/settle.ts';
import { coolDown, warmUp } from '../cutover/warm-up.ts';
import type { TaskCommand } from '../../machines/task-context.ts';
import { asMigrationError, MigrationError } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import type { StreamEvent } from '../model/stream.ts';
import { ensureCopyJobs } from '../postgres/host.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { runPreflight } from '../preflight/run.ts';
import type { AdditionRequest } from '../schema/addition.ts';
import { compareSchema } from '../schema/compare.ts';
import { createTables } from '../schema/create-tables.ts';
import { refreshDefaults } from '../sync/added-defaults.ts';
import { checkCatalog } from '../sync/catalog-watch.ts';
import { runStream, type AddPartitions } from '../sync/stream.ts';
import { compareTables } from '../validate/compare.ts';
import { validateOnline } from '../validate/online.ts';
import { holdSnapshots } from '../validate/snapshots.ts';
import type { ActivityRunner } from './activity-runner.ts';
import { findingsOfAddition } from './findings.ts';
import { copyLive, type LiveCopyRequest } from './live-copy.ts';

export interface ActivityHost {
  readonly runner: ActivityRunner;
  scopeOf(taskId: string, signal: AbortSignal): TaskScope;
  /** `drop_target` of the command that ended the task. */
  dropTargetOf(taskId: string): boolean;
  /** How often a new online validation was asked for. */
  validationPassOf(taskId: string): number;
  /** The last request to copy tables again. */
  recopyOf(taskId: string): RecopyRequest;
  /** The cutover is over: notes that another task's fence is lifted, and makes the reverse task. May be called again. */
  settled(taskId: string): void;
  /** The last request to add tables, which are of the task's request from now on. */
  adoptAddition(taskId: string): AdditionRequest;
  /** The last request to copy tables beside the stream; added ones are of the task's request from now on. */
  liveCopyOf(taskId: string): LiveCopyRequest;
  releaseConnections(taskId: string): Promise<void>;
}

/** `deadlineMs`: of a step of the cutover. */
type Work<N extends ActivityName> = (
  scope: TaskScope,
  host: ActivityHost,
  deadlineMs: number | undefined,
) => Promise<Activities[N]['output']>;

/** The chart's deadline comes a little later: the error that says who holds a step up is to be first. */
const AHEAD_MS = 1_000;

function stepDeadline(deadlineAt: string | null | undefined): number | undefined {
  if (!deadlineAt) return undefined;
  const atMs = Date.parse(deadlineAt);
  return atMs - Math.min(AHEAD_MS, (atMs - Date.now()) / 4);
}

/** What the end of a cutover needs of the other folders. */
export function foldersOf(scope: TaskScope): OtherFolders {
  return {
    hold: holdSnapshots,
    compareAgain: async () => (await compareTables(scope, { whole: true })).tables,
    // both schemas of a reverse task were compared when its slot was armed, and DTS has changed neither since
    ...(scope.spec.origin ? {} : { compareSchema }),
  };
}

const works: { readonly [N in ActivityName]: Work<N> } = {
  preflight: async (scope) => {
    const findings = await runPreflight(scope);
    scope.failpoint('init.before-done');
    return { findings };
  },
  createTables: (scope, host) => createTables(scope, host.adoptAddition(scope.taskId)),
  copyTables: async (scope) => {
    await copyTables(scope);
    return null;
  },
  copyBeside: (scope, host) => copyLive(scope, host.liveCopyOf(scope.taskId)),
  installFence: async (scope) => {
    await installFence(scope);
    await prepareReverse(scope);
    await analyzeTarget(scope);
    await ensureCopyJobs(scope);
    return null;
  },
  armFence: async (scope, _, deadlineMs) => {
    await warmUp(scope);
    return armFence(scope, deadlineMs);
  },
  drain: async (scope, _, deadlineMs) => {
    const stop = new AbortController();
    const draining = drain({ ...scope, signal: AbortSignal.any([scope.signal, stop.signal]) }, deadlineMs);
    draining.catch(() => undefined); // awaited below
    try {
      // Nobody can write any more: what the stream has not shown by now would be missing for good.
      await checkCatalog(scope);
    } catch (error) {
      stop.abort();
      await draining.catch(() => undefined);
      throw error;
    }
    return draining;
  },
  disarmFence: async (scope) => {
    try {
      await disarmFence(scope);
    } catch (error) {
      const { message } = asMigrationError(error);
      scope.progress.setWaitingFor(
        `the source to take writes again, which is tried until it works: ${message}`,
      );
      throw error;
    }
    scope.progress.setWaitingFor(null);
    await coolDown(scope);
    await disarmReverse(scope);
    return null;
  },
  validateOnline: (scope, host) => validateOnline(scope, host.validationPassOf(scope.taskId)),
  compareTables: async (scope, _, deadlineMs) => {
    await copyUnlogged(scope, deadlineMs);
    await copyLargeObjects(scope, deadlineMs);
    return compareTables(scope, { deadlineMs });
  },
  prepareTarget: async (scope, _, deadlineMs) => {
    // the way back makes nothing of the source's schema
    if (!scope.spec.origin) await refreshDefaults(scope);
    await prepareTarget(scope, deadlineMs);
    return null;
  },
  settle: async (scope, host) => {
    scope.failpoint('finalize.after-point-of-no-return');
    const settled = await settle(scope, foldersOf(scope));
    host.settled(scope.taskId);
    return settled;
  },
  cleanUp: async ({ taskId, signal }, host) => {
    // What the task was given up for may be a network that swallows everything: on a connection from before, a
    // statement would wait until TCP gives up; a new one fails in seconds.
    await host.releaseConnections(taskId);
    return cleanUp(host.scopeOf(taskId, signal), { dropTarget: host.dropTargetOf(taskId) });
  },
  release: async (scope, host) => {
    await host.releaseConnections(scope.taskId);
    return null;
  },
};

function logic<N extends ActivityName>(name: N, host: ActivityHost) {
  return fromPromise<Activities[N]['output'], TaskRef>(({ input: { taskId, deadlineAt }, signal }) =>
    host.runner.run(taskId, name, signal, () =>
      works[name](host.scopeOf(taskId, signal), host, stepDeadline(deadlineAt)),
    ),
  );
}

type Addition = Extract<TaskCommand, { readonly type: 'ADD' }>;

/** What a person would ask for who adds these tables, once it is known that nothing stands in the way. */
async function additionOf(scope: TaskScope, names: readonly string[]): Promise<Addition> {
  const { tables, findings } = await findingsOfAddition(scope, names);
  const blocking = findings.filter(({ severity }) => severity === 'blocking');
  if (blocking.length > 0)
    throw new MigrationError(
      'source_ddl',
      `source: ${names.join(', ')} became partitions and cannot be added: ${blocking.map(({ message }) => message).join('; ')}`,
      { hint: blocking.map(({ remedy }) => remedy).join('; '), details: { findings } },
    );
  const added: Finding = {
    code: 'partition_added',
    severity: 'info',
    object: tables.join(', '),
    message: `the source has got the partitions ${tables.join(', ')}: they were added (on_ddl: apply-additive)`,
    remedy: null,
  };
  return { type: 'ADD', tables, findings: [...findings, added] };
}

/** The stream as an actor: tells the chart what happened and ends only when it is stopped or failed. */
function streamLogic(host: ActivityHost) {
  return fromCallback<EventObject, TaskRef, StreamEvent>(({ input: { taskId }, sendBack }) => {
    const controller = new AbortController();
    const { signal } = controller;
    const emit = (event: StreamEvent | Addition): void => {
      if (!signal.aborted) sendBack(event);
    };
    host.runner
      .run(taskId, 'stream', signal, async () => {
        const scope = host.scopeOf(taskId, signal);
        acceptRecopy(scope, host.recopyOf(taskId));
        await leaveLostSlot(scope);
        const add: AddPartitions = async (names) => emit(await additionOf(scope, names));
        // a reverse task ends before the source that it writes changes
        return runStream(scope, emit, undefined, scope.spec.origin ? null : add);
      })
      .catch((error: unknown) => emit({ type: 'STREAM_FAILED', error: asMigrationError(error).toReport() }));
    return () => controller.abort();
  });
}

/** Implementations for `taskMachine.provide({ actors })`. */
export function taskActors(host: ActivityHost) {
  return {
    preflight: logic('preflight', host),
    createTables: logic('createTables', host),
    copyTables: logic('copyTables', host),
    copyBeside: logic('copyBeside', host),
    installFence: logic('installFence', host),
    armFence: logic('armFence', host),
    drain: logic('drain', host),
    disarmFence: logic('disarmFence', host),
    validateOnline: logic('validateOnline', host),
    compareTables: logic('compareTables', host),
    prepareTarget: logic('prepareTarget', host),
    settle: logic('settle', host),
    cleanUp: logic('cleanUp', host),
    release: logic('release', host),
    stream: streamLogic(host),
  };
}
