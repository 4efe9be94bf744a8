// The only seam between XState and SQLite: wraps the task machine so that every accepted transition is committed before
// any of its effects starts. Guarantee: invokes run at least once, plain actions at most once.
//
// What it relies on in xstate 5.33.3 (test/unit/xstate-contract.test.ts fails when an upgrade changes it):
// 1. `machine.transition` reports actions through `scope.actionExecutor` and does nothing else that is visible outside;
//    starting and stopping children are such actions too, so buffering them buffers every effect.
// 2. `getPersistedSnapshot` contains the invoked children with their inputs, also before they were started.
// 3. `xstate.stop` arrives as an event when the parent stops the actor: it must not be persisted, the row stays live.
import type { ActorLogic, ActorScope, AnyStateMachine, EventFromLogic, Snapshot, SnapshotFrom } from 'xstate';

export interface DurableInput {
  readonly taskId: string;
}

export interface Durability<M extends AnyStateMachine> {
  /** The persisted snapshot of the task's row, already migrated to the machine's version. Throws for a bad row. */
  load(taskId: string): Snapshot<unknown>;
  /** Commits to SQLite, synchronously; a throw means that nothing happened. */
  commit(taskId: string, event: EventFromLogic<M>, next: SnapshotFrom<M>, persisted: Snapshot<unknown>): void;
  /** Called after the effects of a committed transition have been started. */
  committed(taskId: string, next: SnapshotFrom<M>): void;
}

type BufferedAction = Parameters<
  ActorScope<Snapshot<unknown>, EventFromLogic<AnyStateMachine>>['actionExecutor']
>[0];

/** Logic of a durable task actor: its input is the task's id, its state comes from the row. */
export function durable<M extends AnyStateMachine>(
  machine: M,
  durability: Durability<M>,
): ActorLogic<SnapshotFrom<M>, EventFromLogic<M>, DurableInput> {
  const idOf = (scope: { readonly id: string }): string => scope.id; // the manager spawns a child under its task's id
  return {
    // the inspector looks for the definition here
    ...({ config: machine.config } as object),
    getInitialSnapshot(scope, input) {
      return machine.restoreSnapshot(durability.load(input.taskId), scope as never) as SnapshotFrom<M>;
    },
    restoreSnapshot() {
      throw new Error('a durable actor is restored from its row, never from its parent');
    },
    getPersistedSnapshot: (snapshot, options) => machine.getPersistedSnapshot(snapshot as never, options),
    start(snapshot) {
      machine.start(snapshot as never);
    },
    transition(snapshot, event, scope) {
      if (event.type === 'xstate.stop')
        return machine.transition(snapshot as never, event, scope as never) as SnapshotFrom<M>;
      const buffered: BufferedAction[] = [];
      const bufferingScope = {
        ...scope,
        actionExecutor: (action: BufferedAction) => void buffered.push(action),
      };
      let next = snapshot;
      try {
        next = machine.transition(snapshot as never, event, bufferingScope as never) as SnapshotFrom<M>;
        if (next === (snapshot as unknown)) return next;
        durability.commit(idOf(scope), event, next, machine.getPersistedSnapshot(next as never));
        for (const action of buffered) scope.actionExecutor(action);
        durability.committed(idOf(scope), next);
      } catch (error) {
        // The actor dies of it: children that xstate would leave behind are stopped here.
        for (const child of new Set(Object.values({ ...childrenOf(snapshot), ...childrenOf(next) })))
          scope.stopChild(child);
        throw error;
      }
      return next;
    },
  };
}

function childrenOf(
  snapshot: unknown,
): Record<string, Parameters<ActorScope<Snapshot<unknown>, { type: string }>['stopChild']>[0]> {
  return (snapshot as { children: Record<string, never> }).children;
}

/** JSON of a persisted snapshot; errors of finished children keep what a reader needs. */
export function toJson(persisted: Snapshot<unknown>): unknown {
  return JSON.parse(
    JSON.stringify(persisted, (_key, value: unknown) =>
      value instanceof Error
        ? 'toReport' in value && typeof value.toReport === 'function'
          ? (value.toReport as () => unknown)()
          : { message: value.message }
        : value,
    ),
  );
}
