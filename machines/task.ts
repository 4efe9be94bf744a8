// The life of one migration. States are the words of the API; substates say what is happening inside one.
//
//   created ─START→ queued ─ADMIT→ init ─→ creatingTables ─→ replicating ────────────────────────────→ finalizing ─→ completed
//                     ↑                                       ├ flow:   migratingData → syncingWal      preparing
//                   RESUME                                    │           ↑               │ CUTOVER,    ── point of no
//                     │                                       │           │               ↓ gates open     return ──
//                   paused ←─PAUSE, operator's errors──       │        unfencing ←─ stoppingWrites     settling (only
//                  retrying ←─transient errors──              │           ↑          arming, draining   forward)
//                                                             │           └──────── validating
//   cancelling → cancelled                                    ├ copy:   idle ⇄ copying, idle ⇄ beside
//   failing    → failed                                       └ verify: idle ⇄ online, verifying
//   finishing  → completed (a reverse task that is not cut over any more)
//
// ADD and RECOPY in syncingWal leave the flow there: the copy region makes and copies the tables `beside` the stream, and
// the cutover's gates stay closed meanwhile. RECOPY of a task whose slot is lost leads to migratingData, behind a new slot.
//
// 1. `replicating` invokes the stream for its whole life: it owns slot and walsender, and lives through the fence.
// 2. Nothing pauses, retries, is given up or restored under the fence: `unfencing` comes first, and is tried until it works;
//    only ABANDON leaves it, to the clean-up. After the point of no return there is no way back: PAUSE and CANCEL are
//    not accepted, errors are retried with the fence up.
// 3. `finalizing` lies outside `replicating`: the marker was the stream's last duty, and a restored task must not start
//    a walsender on a slot that is being dropped. Un-fencing from there enters `replicating` again.
// 4. States tagged `dormant` need no actor and no connection; the manager stops the child there.
// 5. A reverse task (context.isReverse) is made in `queued` and begins at syncingWal: its slot stands, both sides are equal.
// 6. Effects that must happen are invokes (run again after a restart); plain actions may be lost by a crash.
import { assign, raise } from 'xstate';
import type { ErrorReport } from '../src/model/errors.ts';
import { isBlocked } from '../src/model/finding.ts';
import { initialContext, type TaskContext } from './task-context.ts';
import { copyRegion } from './task-copy.ts';
import { inMs, openedUnequal, ref, refUnderFence, taskSetup, withPlanFindings } from './task-setup.ts';
import { deadline, fail, onError } from './task-transitions.ts';
import { verifyRegion } from './task-verify.ts';

/** Raised when persisted snapshots change shape; `runtime/restore.ts` has a migration for every older one. */
export const TASK_MACHINE_VERSION = 3;

/** Between automatic cutovers, after one that failed. */
const AUTO_CUTOVER_DELAY_MS = 30_000;
/** Failed automatic cutovers after which a person must ask for the next. */
const MAX_AUTO_CUTOVERS = 3;
/** Between attempts at what must succeed: un-fencing, fence installation, the steps after the point of no return. */
const PERSIST_DELAY_MS = 2_000;
/** Between comparisons of a target that may not open because it differs. */
const COMPARE_AGAIN_MS = 30_000;

const giveUp = {
  CANCEL: { target: '#task.cancelling', actions: 'setDropTarget' },
  ABANDON: { target: '#task.failing', actions: 'setDropTarget' },
} as const;

/** Given up under the fence: the source gets its writes back first. */
const giveUpUnfenced = {
  CANCEL: {
    target: '#task.replicating.flow.stoppingWrites.unfencing',
    actions: ['setDropTarget', { type: 'unfenceThen', params: 'cancelling' }],
  },
  ABANDON: {
    target: '#task.replicating.flow.stoppingWrites.unfencing',
    actions: ['setDropTarget', { type: 'unfenceThen', params: 'failing' }],
  },
} as const;

const finish = { guard: 'isReverse', target: '#task.finishing' } as const;

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

export const taskMachine = taskSetup.createMachine({
  id: 'task',
  context: ({ input }) => initialContext(input),
  initial: 'created',
  on: {
    OPTIONS_CHANGED: { actions: 'takeOptions' },
    // of the stream, or of who looks at the slot while none runs
    FINDING: { guard: 'isFindingNew', actions: 'noteFinding' },
  },
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
        SLOT_LOST: { target: 'paused.held', actions: 'recordError' },
        FINISH: finish,
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
            assign({
              findings: ({ context, event }) => withPlanFindings(context.findings, event.output.findings),
            }),
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
        SCHEMA_CHANGED: { actions: 'noteSchemaChange' },
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
                raise({ type: 'VALIDATION_DUE' }),
              ],
              initial: 'entered',
              states: {
                entered: {
                  always: [{ guard: 'isCopyDue', target: 'waitingForCopy' }, { target: 'installing' }],
                },
                // tables are copied beside the stream: the cutover waits for them
                waitingForCopy: {},
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
                spacing: {
                  always: { guard: 'isAskedFor', target: 'watching' },
                  invoke: { ...deadline, onDone: 'watching' },
                },
                watching: {
                  always: { guard: 'cutoverGatesOpen', target: '#task.replicating.flow.stoppingWrites' },
                },
              },
              on: {
                CUTOVER: { actions: assign({ cutoverRequested: true, cutoverFailures: 0 }) },
                FINISH: finish,
                // beside the stream, which sets their changes aside; what was installed is looked at again afterwards
                RECOPY: {
                  guard: 'mayCopy',
                  target: '.waitingForCopy',
                  actions: ['noteRecopy', raise({ type: 'COPY_DUE' })],
                },
                ADD: {
                  guard: 'mayCopy',
                  target: '.waitingForCopy',
                  actions: ['noteAddition', raise({ type: 'COPY_DUE' })],
                },
                COPY_DONE: { target: '.installing', actions: raise({ type: 'VALIDATION_DUE' }) },
                SCHEMA_CHANGED: { actions: ['noteSchemaChange', raise({ type: 'VALIDATION_DUE' })] },
                VALIDATE: {
                  actions: [
                    assign({ validationPass: ({ context }) => context.validationPass + 1 }),
                    raise({ type: 'VALIDATION_DUE' }),
                  ],
                },
              },
            },

            stoppingWrites: {
              initial: 'fenced',
              states: {
                fenced: {
                  entry: [
                    assign({
                      deadlineAt: ({ context }) => inMs(context.cutoverTimeoutMs),
                      afterUnfencing: 'syncingWal',
                      error: null,
                    }),
                    raise({ type: 'FENCE_COMING' }),
                  ],
                  invoke: { ...deadline, onDone: timedOut },
                  initial: 'arming',
                  states: {
                    arming: {
                      invoke: {
                        src: 'armFence',
                        input: refUnderFence,
                        onDone: 'draining',
                        onError: cutoverFailed,
                      },
                    },
                    draining: {
                      invoke: {
                        src: 'drain',
                        input: refUnderFence,
                        onDone: '#task.replicating.flow.validating',
                        onError: cutoverFailed,
                      },
                    },
                  },
                  on: {
                    PAUSE: interrupted('paused'),
                    RESTORED: interrupted('syncingWal'),
                    STREAM_FAILED: streamFailed,
                    ...giveUpUnfenced,
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
                          { guard: { type: 'after', params: 'cancelling' }, target: '#task.cancelling' },
                          { guard: { type: 'after', params: 'failing' }, target: '#task.failing' },
                          { target: '#task.replicating.flow.syncingWal' },
                        ],
                        onError: [
                          { guard: 'wasOpened', target: '#task.paused', actions: 'recordError' },
                          // the source must get its writes back: never give up
                          { target: 'waiting', actions: { type: 'waitFor', params: PERSIST_DELAY_MS } },
                        ],
                      },
                    },
                    waiting: { invoke: { ...deadline, onDone: 'disarming' } },
                  },
                  on: {
                    PAUSE: [
                      { guard: 'isGivenUp', actions: [] },
                      { actions: { type: 'unfenceThen', params: 'paused' } },
                    ],
                    CANCEL: {
                      actions: ['setDropTarget', { type: 'unfenceThen', params: 'cancelling' }],
                    },
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
                ...giveUpUnfenced,
              },
            },
          },
        },

        copy: copyRegion,
        verify: verifyRegion,
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
              input: refUnderFence,
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
          on: { PAUSE: interrupted('paused'), RESTORED: interrupted('syncingWal'), ...giveUpUnfenced },
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
                  error: ({ event }) => openedUnequal(event.output.certificate),
                }),
              ],
            },
            onError: [
              {
                guard: 'errorIsDifference', // a person mends it, and it reads whole tables
                target: 'settlingLater',
                actions: ['recordError', 'scheduleRetry', { type: 'waitFor', params: COMPARE_AGAIN_MS }],
              },
              {
                target: 'settlingLater',
                actions: ['recordError', 'scheduleRetry', { type: 'waitFor', params: PERSIST_DELAY_MS }],
              },
            ],
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
      on: {
        RESUME: { target: 'queued', actions: 'renewBudget' },
        SLOT_LOST: { actions: 'recordError' },
        // what was lost cannot be had back; with all rows copied again nobody needs it
        RECOPY: {
          guard: 'isLost',
          target: 'queued',
          actions: [
            'renewBudget',
            // a table that was being added may not be made yet
            assign({
              resumesAt: ({ context }) => (context.copyDue === 'add' ? 'creatingTables' : 'migratingData'),
              copyDue: null,
              recopyPass: ({ context }) => context.recopyPass + 1,
              recopyTables: ({ event }) => event.tables,
              recopyRenewsSlot: true,
              error: null,
            }),
          ],
        },
        FINISH: finish,
        ...giveUp,
      },
    },

    retrying: {
      invoke: {
        src: 'deadline',
        input: ({ context }) => ({ at: context.retryAt }),
        onDone: [...goOn],
      },
      on: {
        SLOT_LOST: { target: 'paused', actions: 'recordError' },
        PAUSE: 'paused',
        FINISH: finish,
        ...giveUp,
      },
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

    finishing: {
      invoke: {
        src: 'cleanUp',
        input: ref,
        onDone: {
          target: 'completed',
          actions: ['succeed', assign({ cleanupPending: ({ event }) => event.output.cleanupPending })],
        },
        onError: { target: 'completed', actions: ['recordError', assign({ cleanupPending: true })] },
      },
    },

    completed: { type: 'final', entry: 'markEnded' },
    cancelled: { type: 'final', entry: 'markEnded' },
    failed: { type: 'final', entry: 'markEnded' },
  },
});
