// The life of one migration. States are the words of the API; substates say what is happening inside one.
//
//   created ─START→ queued ─ADMIT→ init ─→ creatingTables ─→ replicating ────────────────────────────→ finalizing ─→ completed
//                     ↑                                       ├ flow:   migratingData → syncingWal      preparing
//                   RESUME                                    │           ↑               │ CUTOVER,    ── point of no
//                     │                                       │           │               ↓ gates open     return ──
//                   paused ←─PAUSE, operator's errors──       │        unfencing ←─ stoppingWrites     settling (only
//                  retrying ←─transient errors──              │           ↑          arming, draining   forward)
//                                                             │           └──────── validating
//   cancelling → cancelled                                    ├ copy:   idle ⇄ copying
//   failing    → failed                                       └ verify: idle ⇄ verifying
//
// 1. `replicating` invokes the stream for its whole life: it owns slot and walsender, and lives through the fence.
// 2. Nothing pauses, retries or is restored under the fence: `unfencing` comes first. After the point of no return
//    there is no way back: PAUSE and CANCEL are not accepted, errors are retried with the fence up.
// 3. `finalizing` lies outside `replicating`: the marker was the stream's last duty, and a restored task must not start
//    a walsender on a slot that is being dropped. Un-fencing from there enters `replicating` again.
// 4. States tagged `dormant` need no actor and no connection; the manager stops the child there.
// 5. Effects that must happen are invokes (run again after a restart); plain actions may be lost by a crash.
import { assign, fromCallback, fromPromise, raise, setup, stateIn, type EventObject } from 'xstate';
import type { ErrorReport } from '../src/model/errors.ts';
import { isBlocked } from '../src/model/finding.ts';
import { errorVerdict, MAX_ATTEMPTS, retryDelayMs, type ErrorVerdict } from '../src/model/retry.ts';
import type { StreamEvent } from '../src/model/stream.ts';
import type { Activities, ActivityName, TaskRef } from './activities.ts';
import {
  initialContext,
  type ResumePoint,
  type TaskContext,
  type TaskInput,
  type TaskMachineEvent,
} from './task-context.ts';

/** Raised when persisted snapshots change shape; `runtime/restore.ts` has a migration for every older one. */
export const TASK_MACHINE_VERSION = 1;

/** Between automatic cutovers, after one that failed. */
const AUTO_CUTOVER_DELAY_MS = 30_000;
/** Failed automatic cutovers after which a person must ask for the next. */
const MAX_AUTO_CUTOVERS = 3;
/** Between attempts at what must succeed: un-fencing, fence installation, the steps after the point of no return. */
const PERSIST_DELAY_MS = 2_000;

/** Runtime provides the code; a chart without it refuses to run instead of pretending. */
function contract<N extends ActivityName>(name: N) {
  return fromPromise<Activities[N]['output'], TaskRef>(() =>
    Promise.reject(new Error(`${name} is not provided`)),
  );
}

const inMs = (delayMs: number): string => new Date(Date.now() + delayMs).toISOString();

/** The error that an event carries: of a failed activity, of the stream, or of the verify region. */
function errorOf(event: { readonly type: string }): ErrorReport {
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

const ref = ({ context }: { context: TaskContext }): TaskRef => ({ taskId: context.taskId });

const taskSetup = setup({
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
    installFence: contract('installFence'),
    armFence: contract('armFence'),
    drain: contract('drain'),
    disarmFence: contract('disarmFence'),
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
    resumesAt: ({ context }, point: ResumePoint) => context.resumesAt === point,
    cutoverGatesOpen: ({ context }) => context.cutoverRequested && context.caughtUp && context.fenceInstalled,
    hasFailedBefore: ({ context }) => context.attempt > 0,
    nothingMade: ({ context }) => context.resumesAt === 'init',
    isBehind: ({ context }) => !context.caughtUp,
    isCaughtUp: ({ context }) => context.caughtUp,
    mustWaitForAuto: ({ context }) => context.auto && context.cutoverFailures > 0,
    after: ({ context }, next: TaskContext['afterUnfencing']) => context.afterUnfencing === next,
  },
  actions: {
    recordError: assign({ error: ({ event }) => errorOf(event) }),
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
    markEnded: assign({ endedAt: () => inMs(0) }),
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
        hint: 'look at waiting_for for who held it up, or raise options.cutover_timeout_ms or validation_timeout_ms',
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
      return {
        error,
        afterUnfencing: next[errorVerdict(error.kind)],
        attempt,
        retryAt: inMs(retryDelayMs(attempt, Math.random())),
      };
    }),
    setDropTarget: assign({
      dropTarget: ({ event }) => ('dropTarget' in event ? event.dropTarget === true : false),
    }),
  },
});

const fail = { target: '#task.failing', actions: 'recordError' } as const;

const onError = [
  { guard: 'errorFails', ...fail },
  { guard: 'errorRetries', target: '#task.retrying', actions: ['recordError', 'scheduleRetry'] },
  { target: '#task.paused', actions: 'recordError' },
] as const;

const giveUp = {
  CANCEL: { target: '#task.cancelling', actions: 'setDropTarget' },
  ABANDON: { target: '#task.failing', actions: 'setDropTarget' },
} as const;

const goOn = [
  { guard: { type: 'resumesAt', params: 'creatingTables' }, target: '#task.creatingTables' },
  { guard: { type: 'resumesAt', params: 'migratingData' }, target: '#task.replicating' },
  { guard: { type: 'resumesAt', params: 'syncingWal' }, target: '#task.replicating.flow.syncingWal' },
  { guard: { type: 'resumesAt', params: 'finalizing' }, target: '#task.finalizing.settling' },
  { target: '#task.init' },
] as const;

/** Leaving the fence for a reason that is no error of the cutover itself. */
const interrupted = (next: TaskContext['afterUnfencing']) =>
  ({
    target: '#task.replicating.flow.stoppingWrites.unfencing',
    actions: ['reportInterrupted', { type: 'unfenceThen', params: next }],
  }) as const;

const cutoverFailed = {
  target: '#task.replicating.flow.stoppingWrites.unfencing',
  actions: 'recordCutoverError',
} as const;

const streamFailed = {
  target: '#task.replicating.flow.stoppingWrites.unfencing',
  actions: 'recordStreamError',
} as const;

const timedOut = {
  target: '#task.replicating.flow.stoppingWrites.unfencing',
  actions: ['reportTimeout', { type: 'unfenceThen', params: 'syncingWal' }],
} as const;

const deadline = {
  src: 'deadline',
  input: ({ context }: { context: TaskContext }) => ({ at: context.deadlineAt }),
} as const;

export const taskMachine = taskSetup.createMachine({
  id: 'task',
  context: ({ input }) => initialContext(input),
  initial: 'created',
  states: {
    created: {
      tags: 'dormant',
      on: {
        START: { target: 'queued', actions: 'markStarted' },
        CANCEL: { target: 'cancelled' },
      },
    },

    queued: {
      tags: 'dormant',
      on: {
        ADMIT: [...goOn],
        PAUSE: 'paused.held',
        CANCEL: [{ guard: 'nothingMade', target: 'cancelled' }, giveUp.CANCEL],
        ABANDON: giveUp.ABANDON,
      },
    },

    init: {
      entry: { type: 'resumeAt', params: 'init' },
      invoke: {
        src: 'preflight',
        input: ref,
        onDone: [
          {
            guard: ({ event }) => isBlocked(event.output.findings),
            target: 'paused',
            actions: assign({
              findings: ({ event }) => event.output.findings,
              error: ({ event }): ErrorReport => ({
                code: 'preflight_blocked',
                kind: 'operator',
                message: event.output.findings
                  .filter((finding) => finding.severity === 'blocking')
                  .map((finding) => finding.message)
                  .join('; '),
                hint: 'apply the remedies of the findings, then resume',
              }),
            }),
          },
          {
            target: 'creatingTables',
            actions: ['succeed', assign({ findings: ({ event }) => event.output.findings })],
          },
        ],
        onError: [...onError],
      },
      on: { PAUSE: 'paused', ...giveUp },
    },

    creatingTables: {
      entry: { type: 'resumeAt', params: 'creatingTables' },
      invoke: {
        src: 'createTables',
        input: ref,
        onDone: {
          target: 'replicating',
          actions: [
            'succeed',
            assign({ findings: ({ context, event }) => [...context.findings, ...event.output.findings] }),
          ],
        },
        onError: [...onError],
      },
      on: { PAUSE: 'paused', ...giveUp },
    },

    replicating: {
      type: 'parallel',
      entry: assign({ caughtUp: false, fenceInstalled: false }),
      // the stream reports what goes wrong as STREAM_FAILED; an error of the actor itself is a bug of ours
      invoke: { id: 'stream', src: 'stream', input: ref, onError: fail },
      on: {
        CAUGHT_UP: { guard: 'isBehind', actions: ['recover', assign({ caughtUp: true })] },
        FELL_BEHIND: { guard: 'isCaughtUp', actions: assign({ caughtUp: false }) },
        STREAM_PROGRESS: { guard: 'hasFailedBefore', actions: 'recover' },
        PART_DONE: { guard: 'hasFailedBefore', actions: 'recover' },
        STREAM_FAILED: [...onError],
        PAUSE: 'paused',
        ...giveUp,
      },
      states: {
        flow: {
          initial: 'migratingData',
          states: {
            migratingData: {
              entry: { type: 'resumeAt', params: 'migratingData' },
              on: { COPY_DONE: { target: 'syncingWal', actions: 'succeed' } },
            },

            syncingWal: {
              entry: [
                { type: 'resumeAt', params: 'syncingWal' },
                // an automatic cutover is not tried again and again into the same wall: then a person must ask
                assign({
                  cutoverRequested: ({ context }) =>
                    context.auto &&
                    context.cutoverFailures < MAX_AUTO_CUTOVERS &&
                    context.error?.kind !== 'divergence',
                }),
              ],
              initial: 'installing',
              states: {
                // well before the fence is needed: creating triggers waits for locks
                installing: {
                  invoke: {
                    src: 'installFence',
                    input: ref,
                    onDone: [
                      {
                        guard: 'mustWaitForAuto',
                        target: 'spacing',
                        actions: [
                          'recover',
                          assign({ fenceInstalled: true }),
                          { type: 'waitFor', params: AUTO_CUTOVER_DELAY_MS },
                        ],
                      },
                      { target: 'watching', actions: ['recover', assign({ fenceInstalled: true })] },
                    ],
                    onError: [
                      {
                        guard: 'errorRetries',
                        target: 'installingLater',
                        actions: [
                          'recordError',
                          'scheduleRetry',
                          { type: 'waitFor', params: PERSIST_DELAY_MS },
                        ],
                      },
                      ...onError,
                    ],
                  },
                },
                installingLater: { invoke: { ...deadline, onDone: 'installing' } },
                spacing: { invoke: { ...deadline, onDone: 'watching' } },
                watching: {
                  always: { guard: 'cutoverGatesOpen', target: '#task.replicating.flow.stoppingWrites' },
                },
              },
              on: { CUTOVER: { actions: assign({ cutoverRequested: true, cutoverFailures: 0 }) } },
            },

            stoppingWrites: {
              initial: 'fenced',
              states: {
                fenced: {
                  entry: assign({
                    deadlineAt: ({ context }) => inMs(context.cutoverTimeoutMs),
                    afterUnfencing: 'syncingWal',
                    error: null,
                  }),
                  invoke: { ...deadline, onDone: timedOut },
                  initial: 'arming',
                  states: {
                    arming: {
                      invoke: { src: 'armFence', input: ref, onDone: 'draining', onError: cutoverFailed },
                    },
                    draining: {
                      invoke: {
                        src: 'drain',
                        input: ref,
                        onDone: '#task.replicating.flow.validating',
                        onError: cutoverFailed,
                      },
                    },
                  },
                  on: {
                    PAUSE: interrupted('paused'),
                    RESTORED: interrupted('syncingWal'),
                    STREAM_FAILED: streamFailed,
                  },
                },
                unfencing: {
                  // a person's request, or the end of the attempt: a new cutover needs a new request
                  entry: assign({
                    cutoverRequested: false,
                    cutoverFailures: ({ context }) => context.cutoverFailures + 1,
                  }),
                  initial: 'disarming',
                  states: {
                    disarming: {
                      invoke: {
                        src: 'disarmFence',
                        input: ref,
                        onDone: [
                          { guard: { type: 'after', params: 'paused' }, target: '#task.paused' },
                          { guard: { type: 'after', params: 'retrying' }, target: '#task.retrying' },
                          { guard: { type: 'after', params: 'failing' }, target: '#task.failing' },
                          { target: '#task.replicating.flow.syncingWal' },
                        ],
                        // the source must get its writes back: never give up
                        onError: {
                          target: 'waiting',
                          actions: { type: 'waitFor', params: PERSIST_DELAY_MS },
                        },
                      },
                    },
                    waiting: { invoke: { ...deadline, onDone: 'disarming' } },
                  },
                  on: {
                    PAUSE: { actions: { type: 'unfenceThen', params: 'paused' } },
                    STREAM_FAILED: { actions: 'recordStreamError' },
                  },
                },
              },
            },

            validating: {
              entry: [
                assign({ deadlineAt: ({ context }) => inMs(context.validationTimeoutMs) }),
                raise({ type: 'VERIFY_REQUESTED' }),
              ],
              exit: raise({ type: 'VERIFY_ENDED' }),
              invoke: { ...deadline, onDone: timedOut },
              on: {
                VERIFIED: [
                  { guard: ({ event }) => event.equal, target: '#task.finalizing' },
                  {
                    target: '#task.replicating.flow.stoppingWrites.unfencing',
                    actions: [
                      { type: 'unfenceThen', params: 'syncingWal' },
                      assign({
                        error: ({ event }): ErrorReport => ({
                          code: 'validation_failed',
                          kind: 'divergence',
                          message: `source and target differ in ${event.tables.join(', ')}; the source accepts writes again`,
                          hint: 'compare the tables named; cancel with drop_target and start over, or repair them and request the cutover again',
                          details: { tables: event.tables },
                        }),
                      }),
                    ],
                  },
                ],
                VERIFY_FAILED: cutoverFailed,
                STREAM_FAILED: streamFailed,
                PAUSE: interrupted('paused'),
                RESTORED: interrupted('syncingWal'),
              },
            },
          },
        },

        copy: {
          initial: 'idle',
          states: {
            idle: {
              on: {
                SLOT_READY: { guard: stateIn('#task.replicating.flow.migratingData'), target: 'copying' },
              },
            },
            copying: {
              invoke: {
                src: 'copyTables',
                input: ref,
                onDone: { target: 'idle', actions: raise({ type: 'COPY_DONE' }) },
                onError: [...onError],
              },
            },
          },
        },

        verify: {
          initial: 'idle',
          states: {
            idle: { on: { VERIFY_REQUESTED: 'verifying' } },
            verifying: {
              invoke: {
                src: 'compareTables',
                input: ref,
                onDone: {
                  target: 'idle',
                  actions: raise(({ event }) => ({
                    type: 'VERIFIED' as const,
                    equal: event.output.tables.every((table) => table.equal),
                    tables: event.output.tables.filter((table) => !table.equal).map((table) => table.table),
                  })),
                },
                onError: {
                  target: 'idle',
                  actions: raise(({ event }) => ({ type: 'VERIFY_FAILED' as const, error: errorOf(event) })),
                },
              },
              on: { VERIFY_ENDED: 'idle' },
            },
          },
        },
      },
    },

    finalizing: {
      initial: 'preparing',
      states: {
        preparing: {
          entry: assign({ deadlineAt: ({ context }) => inMs(context.cutoverTimeoutMs) }),
          invoke: [
            { ...deadline, onDone: timedOut },
            {
              src: 'prepareTarget',
              input: ref,
              onDone: {
                target: 'settling',
                actions: assign({
                  pastPointOfNoReturn: true,
                  resumesAt: 'finalizing',
                  attempt: 0,
                  error: null,
                }),
              },
              onError: cutoverFailed,
            },
          ],
          on: { PAUSE: interrupted('paused'), RESTORED: interrupted('syncingWal'), ...giveUp },
        },
        // The transition into this state, once committed, is the point of no return.
        settling: {
          invoke: {
            src: 'settle',
            input: ref,
            onDone: {
              target: '#task.completed',
              actions: [
                'succeed',
                assign({
                  certificate: ({ event }) => event.output.certificate,
                  cleanupPending: ({ event }) => event.output.cleanupPending,
                }),
              ],
            },
            onError: {
              target: 'settlingLater',
              actions: ['recordError', 'scheduleRetry', { type: 'waitFor', params: PERSIST_DELAY_MS }],
            },
          },
        },
        settlingLater: { invoke: { ...deadline, onDone: 'settling' } },
      },
    },

    paused: {
      initial: 'releasing',
      states: {
        releasing: { invoke: { src: 'release', input: ref, onDone: 'held', onError: 'held' } },
        held: { tags: 'dormant' },
      },
      on: { RESUME: { target: 'queued', actions: 'renewBudget' }, ...giveUp },
    },

    retrying: {
      invoke: {
        src: 'deadline',
        input: ({ context }) => ({ at: context.retryAt }),
        onDone: [...goOn],
      },
      on: { PAUSE: 'paused', ...giveUp },
    },

    cancelling: {
      invoke: {
        src: 'cleanUp',
        input: ref,
        onDone: {
          target: 'cancelled',
          actions: assign({ cleanupPending: ({ event }) => event.output.cleanupPending }),
        },
        onError: { target: 'cancelled', actions: ['recordError', assign({ cleanupPending: true })] },
      },
    },

    failing: {
      invoke: {
        src: 'cleanUp',
        input: ref,
        onDone: {
          target: 'failed',
          actions: assign({ cleanupPending: ({ event }) => event.output.cleanupPending }),
        },
        onError: { target: 'failed', actions: assign({ cleanupPending: true }) },
      },
    },

    completed: { type: 'final', entry: 'markEnded' },
    cancelled: { type: 'final', entry: 'markEnded' },
    failed: { type: 'final', entry: 'markEnded' },
  },
});
