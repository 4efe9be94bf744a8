// The guarantees of runtime/durable.ts with a real SQLite file and a machine small enough to see everything.
import { assign, createActor, fromPromise, setup, spawnChild, type Snapshot } from 'xstate';
import { describe, expect, onTestFinished, test } from 'vitest';
import { openStore } from '../../db/open.ts';
import { TaskStore } from '../../db/tasks.ts';
import { parseRequest } from '../../src/model/request.ts';
import { durable, toJson } from '../../src/runtime/durable.ts';

interface Probe {
  readonly effects: string[];
  commitFails: boolean;
  childStopped: boolean;
}

function makeHarness() {
  const store = openStore(':memory:');
  onTestFinished(() => store.close());
  const tasks = new TaskStore(store);
  const probe: Probe = { effects: [], commitFails: false, childStopped: false };
  const rowState = (): string =>
    JSON.stringify((tasks.find('t')?.actorSnapshot as { value?: unknown } | undefined)?.value);
  const machine = setup({
    types: { context: {} as { n: number }, events: {} as { type: 'GO' | 'AGAIN' | 'BANG' | 'UNKNOWN' } },
    actors: {
      work: fromPromise<null, object>(({ signal }) => {
        probe.effects.push(`work started, row ${rowState()}`);
        signal.addEventListener('abort', () => (probe.childStopped = true));
        return new Promise(() => undefined);
      }),
    },
    actions: {
      tell: () => void probe.effects.push(`plain action, row ${rowState()}`),
      bang: assign(() => {
        throw new Error('a fault in an action');
      }),
    },
  }).createMachine({
    id: 'task',
    context: { n: 0 },
    initial: 'idle',
    states: {
      idle: { on: { GO: { target: 'busy', actions: 'tell' } } },
      busy: {
        invoke: { src: 'work', input: {} },
        on: { AGAIN: { actions: assign({ n: ({ context }) => context.n + 1 }) }, BANG: { actions: 'bang' } },
      },
    },
  });
  const { spec } = parseRequest({
    sourceDb: { host: 'h', user: 'u', dbname: 'd' },
    targetDb: { host: 'h', user: 'u', dbname: 'd' },
  });
  const initial = createActor(machine).getPersistedSnapshot();
  tasks.insert(
    { id: 't', incarnation: 'i', bodyHash: 'b', spec, machineVersion: 1, actorSnapshot: toJson(initial) },
    'created',
  );
  const logic = durable(machine, {
    load: () => tasks.find('t')?.actorSnapshot as Snapshot<unknown>,
    commit: (taskId, event, _next, persisted) => {
      if (probe.commitFails) throw new Error('disk full');
      tasks.commit({
        taskId,
        event: event.type,
        state: 'init',
        machineVersion: 1,
        actorSnapshot: toJson(persisted),
        cleanupPending: false,
        error: null,
      });
    },
    committed: () => void probe.effects.push('committed'),
  });
  const errors: unknown[] = [];
  const spawn = () => {
    const parent = createActor(
      setup({ actors: { logic } }).createMachine({
        entry: spawnChild('logic', { id: 't', input: { taskId: 't' } }),
        on: {
          'xstate.error.actor.*': {
            actions: ({ event }) => errors.push((event as unknown as { error: Error }).error.message),
          },
        },
      }),
    ).start();
    const child = (
      parent.getSnapshot().children as Record<string, { send: (event: { type: string }) => void }>
    )['t'];
    return { parent, send: (type: string) => child?.send({ type }) };
  };
  return { tasks, probe, spawn, errors };
}

describe('durable', () => {
  test('the transition is in SQLite before a plain action or an invoke starts', () => {
    const { probe, spawn } = makeHarness();
    spawn().send('GO');
    expect(probe.effects).toEqual(['plain action, row "busy"', 'committed', 'work started, row "busy"']);
  });

  test('each accepted event is one journal row; an ignored event is none', () => {
    const { tasks, spawn } = makeHarness();
    const actor = spawn();
    actor.send('GO');
    actor.send('UNKNOWN');
    actor.send('AGAIN');
    expect(tasks.find('t')).toMatchObject({ rev: 2, actorSnapshot: { value: 'busy', context: { n: 1 } } });
    expect(tasks.lastSeq()).toBe(3); // CREATED, GO, AGAIN
  });

  test('a commit that fails starts no effect, stops the children and reaches the parent', () => {
    const { tasks, probe, spawn, errors } = makeHarness();
    const actor = spawn();
    probe.commitFails = true;
    actor.send('GO');
    expect(probe.effects).toEqual([]);
    expect(errors).toEqual(['disk full']);
    expect(tasks.find('t')?.rev).toBe(0);
  });

  test('a throw in an action keeps the last good row, stops the children and reaches the parent', () => {
    const { tasks, probe, spawn, errors } = makeHarness();
    const actor = spawn();
    actor.send('GO');
    actor.send('BANG');
    expect(errors).toEqual(['a fault in an action']);
    expect(probe.childStopped).toBe(true);
    expect(tasks.find('t')).toMatchObject({ rev: 1, actorSnapshot: { value: 'busy' } });
  });

  test('stopping the actor leaves its row live: the next one runs the invoke again', () => {
    const { tasks, probe, spawn } = makeHarness();
    const first = spawn();
    first.send('GO');
    first.parent.stop();
    expect(probe.childStopped).toBe(true);
    expect(tasks.find('t')).toMatchObject({ rev: 1, actorSnapshot: { status: 'active', value: 'busy' } });
    spawn();
    expect(probe.effects.filter((effect) => effect.startsWith('work'))).toHaveLength(2);
  });
});
