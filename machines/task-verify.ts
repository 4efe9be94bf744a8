// The region `verify` of task.ts: comparisons beside whatever the flow does. It never changes the flow but by what it raises.
import { assign, raise } from 'xstate';
import { errorOf, ref, refUnderFence, taskSetup } from './task-setup.ts';

export const verifyRegion = taskSetup.createStateConfig({
  initial: 'idle',
  states: {
    idle: {
      on: {
        VERIFY_REQUESTED: 'verifying',
        VALIDATION_DUE: { guard: 'validatesOnline', target: 'online' },
      },
    },
    // it goes on by its notes; trouble is its own and tried again inside
    online: {
      invoke: {
        src: 'validateOnline',
        input: ref,
        onError: [
          { guard: 'errorIgnored', target: 'online', reenter: true },
          { target: 'idle', actions: 'recordError' },
        ],
      },
      exit: assign({ validationClean: false }),
      on: {
        VALIDATION_DUE: { target: 'online', reenter: true },
        VALIDATION_CLEAN: { guard: 'isNotClean', actions: assign({ validationClean: true }) },
        VALIDATION_NOT_CLEAN: { guard: 'isClean', actions: assign({ validationClean: false }) },
        FENCE_COMING: 'idle',
        VERIFY_REQUESTED: 'verifying',
      },
    },
    verifying: {
      invoke: {
        src: 'compareTables',
        input: refUnderFence,
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
});
