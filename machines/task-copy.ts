// The region `copy` of task.ts: the first copy, which the stream waits for, and copies beside the stream: tables that are
// added, or copied again, while the flow stays in syncingWal. A copy that loses its connection is tried again without
// touching the stream; what a person must deal with pauses the task as a whole.
import { assign, raise, stateIn } from 'xstate';
import { ref, taskSetup, withPlanFindings } from './task-setup.ts';
import { onError } from './task-transitions.ts';

export const copyRegion = taskSetup.createStateConfig({
  initial: 'idle',
  states: {
    idle: {
      on: {
        SLOT_READY: [
          { guard: stateIn('#task.replicating.flow.migratingData'), target: 'copying' },
          { guard: 'isCopyDue', target: 'beside' },
        ],
        COPY_DUE: 'beside',
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
    beside: {
      initial: 'copying',
      states: {
        // after a restart the stream looks first what has become of the source's tables
        waitingForStream: { on: { SLOT_READY: 'copying' } },
        copying: {
          invoke: {
            src: 'copyBeside',
            input: ref,
            onDone: {
              target: '#task.replicating.copy.idle',
              actions: [
                'recover',
                assign({
                  copyDue: null,
                  findings: ({ context, event }) =>
                    event.output.findings === null
                      ? context.findings
                      : withPlanFindings(context.findings, event.output.findings),
                }),
                raise({ type: 'COPY_DONE' }),
              ],
            },
            onError: [
              {
                guard: 'errorRetries',
                target: 'later',
                actions: ['recordError', 'scheduleRetry'],
              },
              ...onError,
            ],
          },
        },
        later: {
          invoke: {
            src: 'deadline',
            input: ({ context }) => ({ at: context.retryAt }),
            onDone: 'copying',
          },
        },
      },
      on: { RESTORED: '.waitingForStream' },
    },
  },
});
