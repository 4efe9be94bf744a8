// What the chart of task.ts is written in: types, names of the invoked activities, guards and actions. Pure: guards and
// actions only read and assign the context; whatever touches a server is an invoke.
import { assign, fromCallback, fromPromise, setup, type EventObject } from 'xstate';
import type { Certificate } from '../src/model/certificate.ts';
import type { ErrorReport } from '../src/model/errors.ts';
import { SLOT_ENDANGERED, type Finding } from '../src/model/finding.ts';
import { errorVerdict, MAX_ATTEMPTS, retryDelayMs, type ErrorVerdict } from '../src/model/retry.ts';
import type { StreamEvent } from '../src/model/stream.ts';
import type { Activities, ActivityName, TaskRef } from './activities.ts';
import { type ResumePoint, type TaskContext, type TaskInput, type TaskMachineEvent } from './task-context.ts';

/** Runtime provides the code; a chart without it refuses to run instead of pretending. */
function contract<N extends ActivityName>(name: N) {
  return fromPromise<Activities[N]['output'], TaskRef>(() =>
    Promise.reject(new Error(`${name} is not provided`)),
  );
}

export const inMs = (delayMs: number): string => new Date(Date.now() + delayMs).toISOString();

/** The error that an event carries: of a failed activity, of the stream, or of the verify region. */
export function errorOf(event: { readonly type: string }): ErrorReport {
  const { error } = event as { error?: unknown };
  if (
    typeof error === 'object' &&
    error !== null &&
    'toReport' in error &&
    typeof error.toReport === 'function'
  ) {
    return (error.toReport as () => ErrorReport)();
  }
  if (typeof error === 'object' && error !== null && 'code' in error && 'kind' in error)
    return error as ErrorReport;
  return { code: 'internal', kind: 'bug', message: error instanceof Error ? error.message : String(error) };
}

/**
 * What a completed task says when the whole digests of the opening differ although no change that the stream knows of did:
 * somebody else has written to the target. Null when all is equal.
 */
export function openedUnequal({ equal, tables }: Certificate): ErrorReport | null {
  if (equal) return null;
  const names = tables.filter((table) => !table.equal).map(({ table }) => table);
  return {
    code: 'validation_failed',
    kind: 'divergence',
    message: `source and target differed in ${names.join(', ')} when the target opened`,
    hint: 'somebody else has written to the target during the migration: `dts verify` compares both sides again, as long as neither changes',
    details: { tables: names },
  };
}

/** A step that is run again says again what it has said. */
function withFindings(known: readonly Finding[], more: readonly Finding[]): readonly Finding[] {
  const keyOf = ({ code, object, message }: Finding): string => `${code} ${object} ${message}`;
  const said = new Set(known.map(keyOf));
  return [...known, ...more.filter((finding) => !said.has(keyOf(finding)))];
}

/** What was left out for want of a table may have come with one that was added. */
export function withPlanFindings(known: readonly Finding[], ofPlan: readonly Finding[]): readonly Finding[] {
  return withFindings(
    known.filter(({ code }) => !code.endsWith('_left_out')),
    ofPlan,
  );
}

/** One finding of a code at most; null: none. */
function withOnly(known: readonly Finding[], code: string, finding: Finding | null): readonly Finding[] {
  return [...known.filter((each) => each.code !== code), ...(finding === null ? [] : [finding])];
}

/** The danger of a slot that is lost is over. That we dropped it ourselves stays visible after the error has been dealt with. */
function withLostSlot(known: readonly Finding[], error: ErrorReport): readonly Finding[] {
  if (error.code !== 'slot_lost') return known;
  const findings = withOnly(known, SLOT_ENDANGERED, null);
  if (error.details?.['maxRetainedWalBytes'] === undefined) return findings;
  const dropped: Finding = {
    code: 'slot_dropped',
    severity: 'warning',
    object: 'source',
    message: error.message,
    remedy: error.hint ?? null,
  };
  return withOnly(findings, dropped.code, dropped);
}

/** Whether the event's finding is not among them, or is to be taken back. */
function isNews(known: readonly Finding[], event: TaskMachineEvent): boolean {
  if (event.type !== 'FINDING') return false;
  const { code, finding } = event;
  const same = known.filter((each) => each.code === code);
  if (finding === null) return same.length > 0;
  return !same.some(({ message, remedy }) => message === finding.message && remedy === finding.remedy);
}

const isCopyDue = ({ copyDue }: TaskContext): boolean => copyDue === 'add' || copyDue === 'recopy';

export const ref = ({ context }: { context: TaskContext }): TaskRef => ({ taskId: context.taskId });

/** For a step of the cutover, which knows how long it has. */
export const refUnderFence = ({ context }: { context: TaskContext }): TaskRef => ({
  taskId: context.taskId,
  deadlineAt: context.deadlineAt,
});

export const taskSetup = setup({
  types: {
    context: {} as TaskContext,
    input: {} as TaskInput,
    events: {} as TaskMachineEvent,
    tags: {} as 'dormant',
  },
  actors: {
    preflight: contract('preflight'),
    createTables: contract('createTables'),
    copyTables: contract('copyTables'),
    copyBeside: contract('copyBeside'),
    installFence: contract('installFence'),
    armFence: contract('armFence'),
    drain: contract('drain'),
    disarmFence: contract('disarmFence'),
    validateOnline: contract('validateOnline'),
    compareTables: contract('compareTables'),
    prepareTarget: contract('prepareTarget'),
    settle: contract('settle'),
    cleanUp: contract('cleanUp'),
    release: contract('release'),
    /** Resolves at an absolute time: xstate's own delays do not survive a restart. */
    deadline: fromPromise<null, { readonly at: string | null }>(() =>
      Promise.reject(new Error('deadline is not provided')),
    ),
    stream: fromCallback<EventObject, TaskRef, StreamEvent>(() => {
      throw new Error('stream is not provided');
    }),
  },
  guards: {
    errorFails: ({ event }) => errorVerdict(errorOf(event).kind) === 'fail',
    /** An activity that was aborted although its state still stands lost its connections: it is run again. */
    errorRetries: ({ context, event }) =>
      context.attempt < MAX_ATTEMPTS &&
      (['retry', 'ignore'] satisfies ErrorVerdict[] as ErrorVerdict[]).includes(
        errorVerdict(errorOf(event).kind),
      ),
    /** Our store is older than the cutover: the source must not take writes again. */
    wasOpened: ({ event }) => errorOf(event).code === 'already_opened',
    errorIsDifference: ({ event }) => errorOf(event).kind === 'divergence',
    errorIgnored: ({ event }) => errorVerdict(errorOf(event).kind) === 'ignore',
    resumesAt: ({ context }, point: ResumePoint) => context.resumesAt === point,
    cutoverGatesOpen: ({ context }) =>
      context.cutoverRequested &&
      context.caughtUp &&
      context.fenceInstalled &&
      !isCopyDue(context) &&
      (!context.needsValidation || context.validationClean),
    isFindingNew: ({ context, event }) => isNews(context.findings, event),
    isClean: ({ context }) => context.validationClean,
    isNotClean: ({ context }) => !context.validationClean,
    validatesOnline: ({ context }) => context.validatesOnline || context.validationPass > 0,
    isReverse: ({ context }) => context.isReverse === true,
    isCopyDue: ({ context }) => isCopyDue(context),
    /** One copy beside the stream at a time. */
    mayCopy: ({ context }) => context.isReverse !== true && !isCopyDue(context),
    hasFailedBefore: ({ context }) => context.attempt > 0,
    /** The stream cannot go on with its slot: it is gone, another's, or of another cluster or timeline. */
    isLost: ({ context: { error, resumesAt, isReverse } }) =>
      isReverse !== true &&
      (error?.kind === 'lost' || error?.code === 'source_replaced') &&
      (resumesAt === 'migratingData' || resumesAt === 'syncingWal'),
    nothingMade: ({ context }) => context.resumesAt === 'init',
    isBehind: ({ context }) => !context.caughtUp,
    isCaughtUp: ({ context }) => context.caughtUp,
    mustWaitForAuto: ({ context }) => context.auto && context.cutoverFailures > 0,
    /** By a person, since the last cutover failed. */
    isAskedFor: ({ context }) => context.cutoverFailures === 0,
    /** Whoever gave the task up under the fence is not overruled by a later PAUSE. */
    isGivenUp: ({ context }) => ['cancelling', 'failing'].includes(context.afterUnfencing),
    after: ({ context }, next: TaskContext['afterUnfencing']) => context.afterUnfencing === next,
  },
  actions: {
    recordError: assign(({ context, event }) => {
      const error = errorOf(event);
      return { error, findings: withLostSlot(context.findings, error) };
    }),
    /** What was found equal before was compared without the new columns. */
    noteSchemaChange: assign(({ context, event }) =>
      event.type === 'SCHEMA_CHANGED'
        ? {
            findings: withFindings(context.findings, event.findings),
            validationPass: context.validationPass + 1,
          }
        : {},
    ),
    noteFinding: assign(({ context, event }) =>
      event.type === 'FINDING' ? { findings: withOnly(context.findings, event.code, event.finding) } : {},
    ),
    noteRecopy: assign(({ context, event }) =>
      event.type === 'RECOPY'
        ? {
            copyDue: 'recopy' as const,
            copyPass: (context.copyPass ?? 0) + 1,
            recopyTables: event.tables,
            error: null,
          }
        : {},
    ),
    noteAddition: assign(({ context, event }) =>
      event.type === 'ADD'
        ? {
            copyDue: 'add' as const,
            copyPass: (context.copyPass ?? 0) + 1,
            addPass: context.addPass + 1,
            addTables: event.tables,
            findings: withFindings(context.findings, event.findings),
            error: null,
          }
        : {},
    ),
    scheduleRetry: assign({
      attempt: ({ context }) => context.attempt + 1,
      retryAt: ({ context }) => inMs(retryDelayMs(context.attempt + 1, Math.random())),
    }),
    succeed: assign({ attempt: 0, retryAt: null, error: null }),
    /** Progress after failed attempts. Other errors (a failed validation) stay visible. */
    recover: assign(({ context }) => (context.attempt > 0 ? { attempt: 0, retryAt: null, error: null } : {})),
    /** A person asked to go on: the budget of retries starts afresh, the error stays until a step succeeds. */
    renewBudget: assign({ attempt: 0, retryAt: null }),
    markStarted: assign({ startedAt: ({ context }) => context.startedAt ?? inMs(0) }),
    markEnded: assign({
      endedAt: () => inMs(0),
      findings: ({ context }) => withOnly(context.findings, SLOT_ENDANGERED, null),
    }),
    resumeAt: assign((_, point: ResumePoint) => ({ resumesAt: point })),
    waitFor: assign((_, delayMs: number) => ({ deadlineAt: inMs(delayMs) })),
    unfenceThen: assign((_, next: TaskContext['afterUnfencing']) => ({ afterUnfencing: next })),
    reportInterrupted: assign(({ context }) => ({
      error: {
        code: 'cutover_interrupted',
        kind: 'transient',
        message: 'the cutover was interrupted; the source accepts writes again',
        hint: context.auto ? 'it is tried again by itself' : 'request the cutover again',
      } satisfies ErrorReport,
    })),
    reportTimeout: assign(({ context }) => ({
      error: {
        code: 'cutover_timeout',
        kind: 'transient',
        message: `the cutover did not finish by ${context.deadlineAt ?? 'its deadline'}; the source accepts writes again`,
        hint: 'raise cutover_timeout_ms or validation_timeout_ms: PATCH …/options',
      } satisfies ErrorReport,
    })),
    /**
     * A failed step of the cutover: where un-fencing leads depends on what the error means. Differences stop the
     * cutover, not the replication: the operator looks at them while the stream goes on.
     */
    recordCutoverError: assign(({ event }) => {
      const error = errorOf(event);
      const next: Record<ErrorVerdict, TaskContext['afterUnfencing']> = {
        retry: 'syncingWal',
        ignore: 'syncingWal',
        pause: error.kind === 'divergence' ? 'syncingWal' : 'paused',
        fail: 'failing',
      };
      return { error, afterUnfencing: next[errorVerdict(error.kind)] };
    }),
    /** The stream ended under the fence: it starts again only with `replicating`, so un-fencing leads out of it. */
    recordStreamError: assign(({ context, event }) => {
      const error = errorOf(event);
      const next: Record<ErrorVerdict, TaskContext['afterUnfencing']> = {
        retry: 'retrying',
        ignore: 'retrying',
        pause: 'paused',
        fail: 'failing',
      };
      const attempt = context.attempt + 1;
      const leads = next[errorVerdict(error.kind)];
      // the way out may be decided already: a person's PAUSE is not undone by the stream that breaks meanwhile
      const order: readonly TaskContext['afterUnfencing'][] = [
        'syncingWal',
        'retrying',
        'paused',
        'failing',
        'cancelling',
      ];
      const known = context.afterUnfencing;
      return {
        error,
        findings: withLostSlot(context.findings, error),
        afterUnfencing: order.indexOf(known) > order.indexOf(leads) ? known : leads,
        attempt,
        retryAt: inMs(retryDelayMs(attempt, Math.random())),
      };
    }),
    takeOptions: assign(({ event }) => (event.type === 'OPTIONS_CHANGED' ? event.options : {})),
    setDropTarget: assign({
      dropTarget: ({ event }) => ('dropTarget' in event ? event.dropTarget === true : false),
    }),
  },
});
