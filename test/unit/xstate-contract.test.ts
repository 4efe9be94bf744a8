// What src/runtime/durable.ts relies on in the pinned xstate. An upgrade that changes any of it fails here first.
import {
  assign,
  createActor,
  fromPromise,
  sendTo,
  setup,
  spawnChild,
  stopChild,
  type AnyActorLogic,
} from 'xstate';
import { expect, test } from 'vitest';

const machine = setup({
  types: { context: {} as { n: number }, events: {} as { type: 'GO' } | { type: 'BACK' } },
  actors: { work: fromPromise<null, { id: string }>(() => new Promise(() => undefined)) },
  actions: { plain: () => undefined },
}).createMachine({
  id: 'm',
  context: { n: 0 },
  initial: 'idle',
  states: {
    idle: {
      on: { GO: { target: 'busy', actions: [assign({ n: ({ context }) => context.n + 1 }), 'plain'] } },
    },
    busy: { invoke: { id: 'work', src: 'work', input: { id: 'x' } }, on: { BACK: 'idle' } },
  },
});

/** Logic that passes everything on but buffers the actions of a transition. */
function buffering(seen: { actions: string[]; persisted: unknown[]; events: string[] }): AnyActorLogic {
  return {
    getInitialSnapshot: (scope: never, input: never) => machine.getInitialSnapshot(scope, input),
    getPersistedSnapshot: (snapshot: never) => machine.getPersistedSnapshot(snapshot),
    start: (snapshot: never) => machine.start(snapshot),
    transition(
      snapshot: never,
      event: { type: string },
      scope: { actionExecutor: (action: unknown) => void },
    ) {
      seen.events.push(event.type);
      const buffered: { type: string }[] = [];
      const next = machine.transition(
        snapshot,
        event as never,
        { ...scope, actionExecutor: (action: never) => void buffered.push(action) } as never,
      );
      seen.actions.push(...buffered.map((action) => action.type));
      seen.persisted.push(JSON.parse(JSON.stringify(machine.getPersistedSnapshot(next))));
      for (const action of buffered) scope.actionExecutor(action);
      return next;
    },
  } as unknown as AnyActorLogic;
}

test('every effect of a transition goes through actionExecutor, the start of an invoke included', () => {
  let started = 0;
  let plain = 0;
  const counted = machine.provide({
    actors: { work: fromPromise(() => new Promise<null>(() => void started++)) },
    actions: { plain: () => void plain++ },
  });
  const inert: { type: string }[] = [];
  const actor = createActor(counted).start();
  const scope = {
    self: actor,
    actionExecutor: (action: never) => void inert.push(action),
    system: actor.system,
    defer: () => undefined,
  } as never;
  counted.transition(actor.getSnapshot(), { type: 'GO' }, scope);
  expect(inert.map((action) => action.type)).toEqual(['plain', 'xstate.spawnChild']);
  expect({ started, plain }).toEqual({ started: 0, plain: 0 });
});

test('a persisted snapshot holds the invoked child and its input before the child was started', () => {
  const seen = { actions: [] as string[], persisted: [] as unknown[], events: [] as string[] };
  const actor = createActor(buffering(seen)).start();
  actor.send({ type: 'GO' });
  expect(seen.persisted[0]).toMatchObject({
    value: 'busy',
    context: { n: 1 },
    children: { work: { src: 'work', snapshot: { status: 'active', input: { id: 'x' } } } },
  });
});

test('a restored promise is run again with the input of its first start', async () => {
  const inputs: unknown[] = [];
  const counted = machine.provide({
    actors: { work: fromPromise(({ input }) => new Promise<null>(() => void inputs.push(input))) },
  });
  const first = createActor(counted).start();
  first.send({ type: 'GO' });
  const persisted = JSON.parse(JSON.stringify(first.getPersistedSnapshot())) as never;
  createActor(counted, { snapshot: persisted }).start();
  await Promise.resolve();
  expect(inputs).toEqual([{ id: 'x' }, { id: 'x' }]);
});

test('stopping a child aborts the signal of its promise and is not awaited', () => {
  let signal: AbortSignal | undefined;
  const counted = machine.provide({
    actors: { work: fromPromise((scope) => new Promise<null>(() => void (signal = scope.signal))) },
  });
  const actor = createActor(counted).start();
  actor.send({ type: 'GO' });
  expect(signal?.aborted).toBe(false);
  actor.send({ type: 'BACK' });
  expect(signal?.aborted).toBe(true);
});

test('a parent stops a child with xstate.stop, which must not be persisted', () => {
  const seen = { actions: [] as string[], persisted: [] as unknown[], events: [] as string[] };
  const parent = createActor(
    setup({ actors: { child: buffering(seen) } }).createMachine({
      on: {
        ADD: { actions: spawnChild('child', { id: 'c' }) },
        REMOVE: { actions: stopChild('c') },
        POKE: { actions: sendTo('c', { type: 'GO' }) },
      },
    }),
  ).start();
  parent.send({ type: 'ADD' });
  parent.send({ type: 'POKE' });
  parent.send({ type: 'REMOVE' });
  expect(seen.events).toEqual(['GO', 'xstate.stop']);
  expect(parent.getSnapshot().children).toEqual({});
});

test('an error of a child that is handled leaves its siblings running; the event names the child', () => {
  const failing = setup({}).createMachine({
    on: {
      BANG: {
        actions: () => {
          throw new Error('bang');
        },
      },
    },
  });
  const steady = setup({}).createMachine({});
  const errors: unknown[] = [];
  const parent = createActor(
    setup({ actors: { failing, steady } }).createMachine({
      entry: [spawnChild('failing', { id: 'bad' }), spawnChild('steady', { id: 'good' })],
      on: {
        HIT: { actions: sendTo('bad', { type: 'BANG' }) },
        'xstate.error.actor.*': {
          actions: [
            ({ event }) => errors.push((event as unknown as { actorId: string }).actorId),
            stopChild(({ event }) => (event as unknown as { actorId: string }).actorId),
          ],
        },
      },
    }),
  );
  parent.subscribe({ error: (error) => errors.push(error) });
  parent.start();
  parent.send({ type: 'HIT' });
  expect(errors).toEqual(['bad']);
  expect(Object.keys(parent.getSnapshot().children)).toEqual(['good']);
  expect(parent.getSnapshot().status).toBe('active');
});

test('logic whose getInitialSnapshot throws reaches the parent as an error, not as an exception', () => {
  const broken = {
    getInitialSnapshot: () => {
      throw new Error('bad row');
    },
    transition: (s: unknown) => s,
    getPersistedSnapshot: (s: unknown) => s,
  } as unknown as AnyActorLogic;
  const errors: unknown[] = [];
  const parent = createActor(
    setup({ actors: { broken } }).createMachine({
      on: {
        ADD: { actions: spawnChild('broken', { id: 'b' }) },
        'xstate.error.actor.*': {
          actions: ({ event }) => errors.push((event as unknown as { error: Error }).error.message),
        },
      },
    }),
  ).start();
  parent.send({ type: 'ADD' });
  expect(errors).toEqual(['bad row']);
});
