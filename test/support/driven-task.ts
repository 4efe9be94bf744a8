// The statechart without servers: activities are promises that the test settles, time passes by events only.
import { createActor, fromCallback, fromPromise, type Snapshot } from 'xstate';
import { expect } from 'vitest';
import type { ActivityName } from '../../machines/activities.ts';
import type { TaskMachineEvent } from '../../machines/task-context.ts';
import { taskStateOf } from '../../machines/task-state.ts';
import { taskMachine } from '../../machines/task.ts';
import { MigrationError, type ErrorCode } from '../../src/model/errors.ts';
import { parseRequest, type TaskRequest } from '../../src/model/request.ts';
import type { TaskSpec } from '../../src/model/task.ts';
import type { TaskState } from '../../src/model/task-state.ts';

export const activities: readonly ActivityName[] = [
  'preflight',
  'createTables',
  'copyTables',
  'copyBeside',
  'installFence',
  'armFence',
  'drain',
  'validateOnline',
  'disarmFence',
  'compareTables',
  'prepareTarget',
  'settle',
  'cleanUp',
  'release',
];

interface Call {
  readonly name: string;
  readonly input: object;
  readonly resolve: (output: unknown) => void;
  readonly reject: (error: unknown) => void;
  readonly signal: AbortSignal;
  settled: boolean;
}

const isOpen = (call: Call): boolean => !call.settled && !call.signal.aborted;

const db = { host: 'h', user: 'u', dbname: 'd', password: 'secret' };

type Options = NonNullable<TaskRequest['options']>;

export function makeTask(
  options: Options = {},
  snapshot?: Snapshot<unknown>,
  toSpec: (spec: TaskSpec) => TaskSpec = (spec) => spec,
) {
  const spec = toSpec(parseRequest({ sourceDb: db, targetDb: db, tables: ['users'], options }).spec);
  const calls: Call[] = [];
  let streamEvents: (event: TaskMachineEvent) => void = () => undefined;
  let streams = 0;
  const activity = (name: string) =>
    fromPromise<never, object>(
      ({ signal, input }) =>
        new Promise<never>((resolve, reject) =>
          calls.push({ name, input, resolve: resolve as never, reject, signal, settled: false }),
        ),
    );
  const machine = taskMachine.provide({
    actors: {
      ...(Object.fromEntries(activities.map((name) => [name, activity(name)])) as object),
      deadline: activity('deadline') as never,
      stream: fromCallback(({ sendBack }) => {
        streams++;
        streamEvents = sendBack;
        return () => void streams--;
      }) as never,
    },
  });
  const actor = createActor(machine, {
    input: { taskId: 't', spec },
    ...(snapshot ? { snapshot } : {}),
  });
  actor.start();
  const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  const find = (name: string): Call => {
    const call = calls.findLast((candidate) => candidate.name === name && isOpen(candidate));
    if (!call)
      throw new Error(
        `${name} is not running; running: ${calls
          .filter(isOpen)
          .map((open) => open.name)
          .join(', ')}`,
      );
    call.settled = true;
    return call;
  };
  return {
    actor,
    spec,
    get state(): TaskState {
      return taskStateOf(actor.getSnapshot().value);
    },
    get context() {
      return actor.getSnapshot().context;
    },
    get streamRunning() {
      return streams === 1;
    },
    send: (event: TaskMachineEvent) => actor.send(event),
    stream: (event: TaskMachineEvent) => streamEvents(event),
    async done(name: string, output: unknown = null) {
      find(name).resolve(output);
      await settled();
    },
    async fail(name: string, code: ErrorCode) {
      find(name).reject(new MigrationError(code, `${name} failed`));
      await settled();
    },
    isRunning: (name: string) => calls.some((call) => call.name === name && isOpen(call)),
    inputOf: (name: string) => calls.findLast((call) => call.name === name)?.input,
    persisted: () => JSON.parse(JSON.stringify(actor.getPersistedSnapshot())) as Snapshot<unknown>,
  };
}

export type Task = ReturnType<typeof makeTask>;

/** Drives a task to a state by the shortest way. */
export async function driveTo(state: TaskState, options: Options = {}): Promise<Task> {
  const task = makeTask(options);
  const steps: readonly (readonly [TaskState, () => Promise<void> | void])[] = [
    ['created', () => undefined],
    ['queued', () => task.send({ type: 'START' })],
    ['init', () => task.send({ type: 'ADMIT' })],
    ['creatingTables', () => task.done('preflight', { findings: [] })],
    ['migratingData', () => task.done('createTables', { findings: [] })],
    [
      'syncingWal',
      async () => {
        task.stream({ type: 'SLOT_READY' });
        await task.done('copyTables');
      },
    ],
    [
      'stoppingWrites',
      async () => {
        await task.done('installFence');
        task.stream({ type: 'CAUGHT_UP' });
        if (options.cutover !== 'auto') task.send({ type: 'CUTOVER' });
      },
    ],
    [
      'validating',
      async () => {
        await task.done('armFence', { fenceLsn: '0/1' });
        await task.done('drain', { markerLsn: '0/2' });
      },
    ],
    ['finalizing', () => task.done('compareTables', { tables: [{ table: 'public.users', equal: true }] })],
  ];
  for (const [name, step] of steps) {
    await step();
    expect(task.state).toBe(name);
    if (name === state) return task;
  }
  throw new Error(`no way to ${state}`);
}

export const settledOutput = { certificate: { taskId: 't', equal: true, tables: [] }, cleanupPending: false };
