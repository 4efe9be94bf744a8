// The supervisor: one child per task that has work, at most `capacity` of them, and the periodic cleanup. It owns the
// connections through its actions: whatever ends a child, its connections are closed and the next task is let in.
//
// One bad task hurts nobody else: its error arrives as `xstate.error.actor.*` and is handled here (unhandled, xstate
// would stop all siblings). Children are told apart from the cleanup timer by their id: the task's.
import { fromCallback, fromPromise, setup, spawnChild, stopChild, type AnyActorLogic } from 'xstate';

export type ManagerEvent =
  /** Spawn the child of this task from its row. */
  | { readonly type: 'SPAWN'; readonly taskId: string }
  /** The task reached a state that needs no actor. */
  | { readonly type: 'RESTED'; readonly taskId: string }
  | { readonly type: 'CLEANUP_DUE' }
  | { readonly type: 'SLOTS_DUE' }
  | { readonly type: `xstate.done.actor.${string}`; readonly actorId: string; readonly output: unknown }
  | { readonly type: `xstate.error.actor.${string}`; readonly actorId: string; readonly error: unknown };

export interface ManagerInput {
  readonly cleanupIntervalMs: number;
  readonly slotCheckIntervalMs: number;
}

/** Ids of the children that are no tasks; no task's id has a capital letter. */
export const timers: readonly string[] = ['cleanupTimer', 'slotTimer'];

export const managerMachine = setup({
  types: {
    context: {} as ManagerInput,
    input: {} as ManagerInput,
    events: {} as ManagerEvent,
  },
  actors: {
    /** `durable(taskMachine)`, provided by the runtime; input `{taskId}`: the row is read by the logic itself. */
    task: fromPromise<null, { readonly taskId: string }>(() =>
      Promise.reject(new Error('task is not provided')),
    ) as AnyActorLogic,
    timer: fromCallback<
      { type: 'NONE' },
      { readonly everyMs: number; readonly event: 'CLEANUP_DUE' | 'SLOTS_DUE' }
    >(({ input, sendBack }) => {
      const timer = setInterval(() => sendBack({ type: input.event }), input.everyMs);
      timer.unref();
      return () => clearInterval(timer);
    }),
  },
  actions: {
    /** Closes what is left of the task and lets the next one in. */
    taskLeft: (_, _params: { readonly taskId: string }) => {
      throw new Error('taskLeft is not provided');
    },
    /** Records that the actor itself died. */
    taskCrashed: (_, _params: { readonly taskId: string; readonly error: unknown }) => {
      throw new Error('taskCrashed is not provided');
    },
    cleanUpEnded: () => {
      throw new Error('cleanUpEnded is not provided');
    },
    /** Looks at the slots that no stream looks at. */
    watchSlots: () => {
      throw new Error('watchSlots is not provided');
    },
  },
}).createMachine({
  id: 'manager',
  context: ({ input }) => input,
  invoke: [
    {
      id: 'cleanupTimer',
      src: 'timer',
      input: ({ context }) => ({ everyMs: context.cleanupIntervalMs, event: 'CLEANUP_DUE' as const }),
    },
    {
      id: 'slotTimer',
      src: 'timer',
      input: ({ context }) => ({ everyMs: context.slotCheckIntervalMs, event: 'SLOTS_DUE' as const }),
    },
  ],
  on: {
    SPAWN: {
      actions: spawnChild('task', {
        id: ({ event }) => event.taskId,
        input: ({ event }) => ({ taskId: 'taskId' in event ? event.taskId : '' }),
      }),
    },
    RESTED: {
      actions: [
        stopChild(({ event }) => event.taskId),
        { type: 'taskLeft', params: ({ event }) => ({ taskId: event.taskId }) },
      ],
    },
    CLEANUP_DUE: { actions: 'cleanUpEnded' },
    SLOTS_DUE: { actions: 'watchSlots' },
    'xstate.done.actor.*': {
      actions: [
        stopChild(({ event }) => event.actorId),
        { type: 'taskLeft', params: ({ event }) => ({ taskId: event.actorId }) },
      ],
    },
    'xstate.error.actor.*': {
      actions: [
        stopChild(({ event }) => event.actorId),
        { type: 'taskCrashed', params: ({ event }) => ({ taskId: event.actorId, error: event.error }) },
        { type: 'taskLeft', params: ({ event }) => ({ taskId: event.actorId }) },
      ],
    },
  },
});
