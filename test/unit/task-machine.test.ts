// The statechart without servers (test/support/driven-task.ts). Every committed snapshot is sent through JSON, so that
// nothing in it can be lost by persisting.
import { describe, expect, test } from 'vitest';
import { optionsOf } from '../../machines/task-context.ts';
import { MigrationError } from '../../src/model/errors.ts';
import { reverseSpec } from '../../src/model/reverse.ts';
import type { TaskState } from '../../src/model/task-state.ts';
import { acceptedCommands, closedGates } from '../../src/runtime/view.ts';
import { activities, driveTo, makeTask, settledOutput, type Task } from '../support/driven-task.ts';

describe('tables are copied beside the stream', () => {
  const finding = { code: 'c', severity: 'warning', object: 'b', message: 'm', remedy: null } as const;
  const add = { type: 'ADD', tables: ['public.b'], findings: [finding] } as const;
  const recopy = { type: 'RECOPY', tables: ['public.users'] } as const;
  const output = { findings: [finding] };

  test.each([
    [add, { copyDue: 'add', copyPass: 1, addPass: 1, addTables: ['public.b'], findings: [finding] }],
    [recopy, { copyDue: 'recopy', copyPass: 1, recopyTables: ['public.users'], recopyPass: 0 }],
  ] as const)('the stream goes on: %o', async (command, context) => {
    const task = await driveTo('syncingWal');
    task.send(command);
    expect(task.state).toBe('syncingWal');
    expect(task.streamRunning).toBe(true);
    expect(task.isRunning('copyBeside')).toBe(true);
    expect(task.context).toMatchObject(context);
    await task.done('copyBeside', output);
    expect(task.context).toMatchObject({ copyDue: null, findings: [finding] }); // said once
    expect(task.isRunning('installFence')).toBe(true); // also of what was added
  });

  test('the cutover waits for them', async () => {
    const task = await driveTo('syncingWal');
    await task.done('installFence');
    task.send(recopy);
    task.stream({ type: 'CAUGHT_UP' });
    task.send({ type: 'CUTOVER' });
    expect(task.state).toBe('syncingWal');
    await task.done('copyBeside', output);
    expect(task.state).toBe('syncingWal');
    await task.done('installFence');
    expect(task.state).toBe('stoppingWrites');
  });

  test('one at a time', async () => {
    const task = await driveTo('syncingWal');
    task.send(add);
    for (const command of [add, recopy]) expect(task.actor.getSnapshot().can(command)).toBe(false);
    await task.done('copyBeside', output);
    for (const command of [add, recopy]) expect(task.actor.getSnapshot().can(command)).toBe(true);
  });

  test('a lost connection is tried again beside the stream; what a person must deal with pauses', async () => {
    const task = await driveTo('syncingWal');
    task.send(add);
    await task.fail('copyBeside', 'connection_failed');
    expect(task.state).toBe('syncingWal');
    expect(task.streamRunning).toBe(true);
    expect(task.context).toMatchObject({ attempt: 1, error: { code: 'connection_failed' } });
    await task.done('deadline');
    expect(task.isRunning('copyBeside')).toBe(true);
    await task.fail('copyBeside', 'disk_full');
    expect(task.state).toBe('paused');
  });

  test('a pause in the middle goes on once the stream stands', async () => {
    const task = await driveTo('syncingWal');
    task.send(add);
    task.send({ type: 'PAUSE' });
    await task.done('release');
    task.send({ type: 'RESUME' });
    task.send({ type: 'ADMIT' });
    expect(task.state).toBe('syncingWal');
    expect(task.isRunning('copyBeside')).toBe(false);
    expect(task.isRunning('installFence')).toBe(false);
    task.stream({ type: 'SLOT_READY' });
    expect(task.isRunning('copyBeside')).toBe(true);
  });

  test('after a restart it waits for the stream, too', async () => {
    const task = await driveTo('syncingWal');
    task.send(add);
    const again = makeTask({}, task.persisted());
    again.send({ type: 'RESTORED' });
    expect(again.isRunning('copyBeside')).toBe(false);
    again.stream({ type: 'SLOT_READY' });
    expect(again.isRunning('copyBeside')).toBe(true);
  });

  test.each(['migratingData', 'stoppingWrites'] as const)('not in %s', async (state) => {
    const task = await driveTo(state);
    expect(task.actor.getSnapshot().can(add)).toBe(false);
  });

  test('a slot that is lost meanwhile: an added table is made before everything is copied', async () => {
    const task = await driveTo('syncingWal');
    task.send(add);
    task.stream({ type: 'STREAM_FAILED', error: new MigrationError('slot_lost', 'gone').toReport() });
    await task.done('release');
    task.send({ type: 'RECOPY', tables: ['public.users'] });
    task.send({ type: 'ADMIT' });
    expect(task.state).toBe('creatingTables');
    expect(task.context.copyDue).toBe(null);
  });
});

describe('the way to completed', () => {
  test('passes every state of the API in order', async () => {
    const task = await driveTo('finalizing');
    await task.done('prepareTarget');
    expect(task.context.pastPointOfNoReturn).toBe(true);
    await task.done('settle', settledOutput);
    expect(task.state).toBe('completed');
    expect(task.context.certificate).toEqual(settledOutput.certificate);
  });

  test('the stream lives from before the copy until the comparison is done', async () => {
    const task = await driveTo('migratingData');
    expect(task.streamRunning).toBe(true);
    expect(task.isRunning('copyTables')).toBe(false); // not before the slot stands
    const later = await driveTo('validating');
    expect(later.streamRunning).toBe(true);
    await later.done('compareTables', { tables: [{ table: 'public.users', equal: true }] });
    expect(later.streamRunning).toBe(false);
  });

  test('auto cuts over as soon as the gates open, without a command', async () => {
    await driveTo('stoppingWrites', { cutover: 'auto' });
  });

  test('CUTOVER waits for every gate: caught up and fence installed', async () => {
    const task = await driveTo('syncingWal');
    task.send({ type: 'CUTOVER' });
    task.stream({ type: 'CAUGHT_UP' });
    expect(task.state).toBe('syncingWal');
    task.stream({ type: 'FELL_BEHIND' });
    await task.done('installFence');
    expect(task.state).toBe('syncingWal');
    task.stream({ type: 'CAUGHT_UP' });
    expect(task.state).toBe('stoppingWrites');
  });

  test('CUTOVER says of each closed gate what it waits for, and begins when there is none left', async () => {
    const task = await driveTo('syncingWal', {
      cutoverMaxLagBytes: 1_000,
      cutoverMaxValidationAgeMs: 60_000,
    });
    const waitsFor = (lagBytes: number | null): string[] =>
      closedGates(task.actor.getSnapshot(), task.spec.options, lagBytes);
    const fence = 'the write fence to be installed';
    const validation = 'the online validation to find everything equal within 60000 ms';
    task.send({ type: 'CUTOVER' });
    const unknown = 'the lag, which is not known yet, to be at most 1000 bytes';
    expect(waitsFor(null)).toEqual([fence, unknown, validation]);
    task.stream({ type: 'CAUGHT_UP' });
    expect(waitsFor(10)).toEqual([fence, validation]);
    await task.done('installFence');
    expect(waitsFor(10)).toEqual([validation]);
    task.stream({ type: 'FELL_BEHIND' });
    expect(waitsFor(5_000)).toEqual(['the lag, which is 5000 bytes, to be at most 1000 bytes', validation]);
    task.send({ type: 'VALIDATION_CLEAN' });
    task.send({ type: 'RECOPY', tables: ['public.a', 'public.b', 'public.c', 'public.d', 'public.e'] });
    task.stream({ type: 'CAUGHT_UP' });
    task.send({ type: 'VALIDATION_CLEAN' });
    expect(waitsFor(10)).toEqual(['the copy of public.a, public.b, public.c and 2 more to be done']);
    await task.done('copyBeside', { findings: [] });
    expect(waitsFor(10)).toEqual([fence, validation]);
    await task.done('installFence');
    expect(waitsFor(10)).toEqual([validation]); // what was copied is compared, too
    expect(task.state).toBe('syncingWal');
    task.send({ type: 'VALIDATION_NOT_CLEAN' });
    task.send({ type: 'VALIDATION_CLEAN' });
    expect(task.state).toBe('stoppingWrites');
  });

  test('an automatic cutover that failed is not tried again at once, and says until when', async () => {
    const task = await driveTo('stoppingWrites', { cutover: 'auto' });
    await task.fail('armFence', 'cutover_timeout');
    await task.done('disarmFence');
    await task.done('installFence');
    expect(task.state).toBe('syncingWal');
    expect(closedGates(task.actor.getSnapshot(), task.spec.options, 0)).toEqual([
      `the pause after a failed cutover, until ${task.context.deadlineAt}`,
    ]);
    await task.done('deadline');
    expect(task.state).toBe('stoppingWrites');
  });

  test('a person who asks for the cutover need not wait for that pause', async () => {
    const task = await driveTo('stoppingWrites', { cutover: 'auto' });
    await task.fail('armFence', 'cutover_timeout');
    await task.done('disarmFence');
    await task.done('installFence');
    task.send({ type: 'CUTOVER' });
    expect(task.state).toBe('stoppingWrites');
  });

  test('a cutover that needs no online validation does not speak of it', async () => {
    const task = await driveTo('syncingWal');
    task.stream({ type: 'CAUGHT_UP' });
    await task.done('installFence');
    expect(closedGates(task.actor.getSnapshot(), task.spec.options, 0)).toEqual([]);
  });

  test('a blocking finding pauses before anything is made', async () => {
    const task = await driveTo('init');
    const finding = {
      code: 'wal_level',
      severity: 'blocking',
      object: 'source',
      message: 'wal_level is replica',
      remedy: 'x',
    };
    await task.done('preflight', { findings: [finding] });
    expect(task.state).toBe('paused');
    expect(task.context.error).toMatchObject({ code: 'preflight_blocked' });
    expect(task.context.findings).toEqual([finding]);
  });
});

describe('errors', () => {
  const working = ['init', 'creatingTables', 'migratingData', 'syncingWal'] as const;
  const running: Record<(typeof working)[number], string> = {
    init: 'preflight',
    creatingTables: 'createTables',
    migratingData: 'copyTables',
    syncingWal: 'installFence',
  };

  test.each(working)('%s: a transient error is retried and goes on where it was', async (state) => {
    const task = await driveTo(state);
    if (state === 'migratingData') task.stream({ type: 'SLOT_READY' });
    await task.fail(running[state], 'connection_failed');
    if (state !== 'syncingWal') {
      expect(task.state).toBe('retrying');
      expect(task.context.retryAt).not.toBeNull();
      expect(task.context.error).toMatchObject({ code: 'connection_failed' });
      await task.done('deadline');
    }
    expect(task.state).toBe(state);
  });

  test.each(working)(
    '%s: an error that a person can fix pauses, RESUME goes on where it was',
    async (state) => {
      const task = await driveTo(state);
      if (state === 'migratingData') task.stream({ type: 'SLOT_READY' });
      await task.fail(running[state], 'disk_full');
      expect(task.state).toBe('paused');
      expect(task.streamRunning).toBe(false);
      await task.done('release');
      task.send({ type: 'RESUME' });
      expect(task.state).toBe('queued');
      task.send({ type: 'ADMIT' });
      expect(task.state).toBe(state);
    },
  );

  test.each(working)('%s: a bug fails the task and cleans up', async (state) => {
    const task = await driveTo(state);
    if (state === 'migratingData') task.stream({ type: 'SLOT_READY' });
    await task.fail(running[state], 'internal');
    expect(task.state).toBe('failing');
    await task.done('cleanUp', { cleanupPending: true, error: null });
    expect(task.state).toBe('failed');
    expect(task.context).toMatchObject({ cleanupPending: true, error: { code: 'internal' } });
  });

  test('the retries end in a pause when nothing ever progresses', async () => {
    const task = await driveTo('init');
    for (let attempt = 0; task.state !== 'paused' && attempt < 50; attempt++) {
      await task.fail('preflight', 'connection_failed');
      if (task.state === 'retrying') await task.done('deadline');
    }
    expect(task.state).toBe('paused');
    expect(task.context.attempt).toBe(12);
  });

  test('progress of the stream renews the budget of retries', async () => {
    const task = await driveTo('syncingWal');
    task.stream({ type: 'STREAM_FAILED', error: new MigrationError('connection_failed', 'gone').toReport() });
    expect(task.state).toBe('retrying');
    expect(task.context.attempt).toBe(1);
    await task.done('deadline');
    expect(task.state).toBe('syncingWal');
    expect(task.streamRunning).toBe(true);
    task.stream({ type: 'STREAM_PROGRESS' });
    expect(task.context).toMatchObject({ attempt: 0, error: null });
  });

  test('a lost slot pauses and says so', async () => {
    const task = await driveTo('syncingWal');
    task.stream({ type: 'STREAM_FAILED', error: new MigrationError('slot_lost', 'gone').toReport() });
    expect(task.state).toBe('paused');
    expect(task.context.error).toMatchObject({ code: 'slot_lost', kind: 'lost' });
  });

  test.each(['slot_lost', 'publication_lost', 'source_replaced'] as const)(
    'RECOPY goes back to the copy, behind a new slot, from a pause by %s',
    async (code) => {
      const task = await driveTo('syncingWal');
      task.stream({ type: 'STREAM_FAILED', error: new MigrationError(code, 'gone').toReport() });
      await task.done('release');
      task.send({ type: 'RECOPY', tables: ['public.users'] });
      expect(task.state).toBe('queued');
      task.send({ type: 'ADMIT' });
      expect(task.state).toBe('migratingData');
      expect(task.context).toMatchObject({ recopyPass: 1, recopyRenewsSlot: true, error: null });
    },
  );

  test('a pause for another reason keeps its slot: RECOPY is refused', async () => {
    const task = await driveTo('syncingWal');
    task.stream({ type: 'STREAM_FAILED', error: new MigrationError('disk_full', 'full').toReport() });
    expect(task.actor.getSnapshot().can({ type: 'RECOPY', tables: [] })).toBe(false);
  });
});

describe('under the fence', () => {
  const fenced = ['stoppingWrites', 'validating', 'finalizing'] as const;

  test.each(fenced)('%s: PAUSE allows writes again before it pauses', async (state) => {
    const task = await driveTo(state);
    task.send({ type: 'PAUSE' });
    expect(task.state).toBe('stoppingWrites');
    expect(task.isRunning('disarmFence')).toBe(true);
    await task.done('disarmFence');
    expect(task.state).toBe('paused');
    expect(task.context.resumesAt).toBe('syncingWal');
  });

  test.each(fenced)('%s: a restart allows writes again and goes on syncing', async (state) => {
    const before = await driveTo(state);
    const snapshot = before.persisted();
    before.actor.stop();
    const task = makeTask({}, snapshot);
    task.send({ type: 'RESTORED' });
    await task.done('disarmFence');
    expect(task.state).toBe('syncingWal');
    expect(task.streamRunning).toBe(true);
    expect(task.context).toMatchObject({ cutoverRequested: false, error: { code: 'cutover_interrupted' } });
  });

  test.each(fenced)('%s: the deadline allows writes again', async (state) => {
    const task = await driveTo(state);
    await task.done('deadline');
    expect(task.isRunning('disarmFence')).toBe(true);
    await task.done('disarmFence');
    expect(task.state).toBe('syncingWal');
    expect(task.context.error).toMatchObject({ code: 'cutover_timeout' });
  });

  test.each(fenced)('%s: CANCEL lifts the fence first, and is not overruled', async (state) => {
    const task = await driveTo(state);
    task.send({ type: 'CANCEL', dropTarget: true });
    expect(task.isRunning('disarmFence')).toBe(true);
    task.send({ type: 'PAUSE' });
    await task.fail('disarmFence', 'connection_failed');
    task.stream({ type: 'STREAM_FAILED', error: new MigrationError('connection_failed', 'gone').toReport() });
    await task.done('deadline');
    await task.done('disarmFence');
    expect(task.state).toBe('cancelling');
    expect(task.context.dropTarget).toBe(true);
    await task.done('cleanUp', { cleanupPending: false, error: null });
    expect(task.state).toBe('cancelled');
  });

  test.each(fenced)(
    '%s: ABANDON lifts the fence first; asked for again, the clean-up has to',
    async (state) => {
      const task = await driveTo(state);
      task.send({ type: 'ABANDON' });
      await task.fail('disarmFence', 'connection_failed');
      await task.done('deadline');
      expect(task.isRunning('disarmFence')).toBe(true);
      task.send({ type: 'ABANDON' });
      expect(task.state).toBe('failing');
      const patient = await driveTo(state);
      patient.send({ type: 'ABANDON' });
      await patient.done('disarmFence');
      expect(patient.state).toBe('failing');
    },
  );

  test('a step of the cutover is told when the chart gives it up', async () => {
    const task = await driveTo('stoppingWrites');
    expect(task.inputOf('armFence')).toEqual({
      taskId: task.context.taskId,
      deadlineAt: task.context.deadlineAt,
    });
  });

  test('options that have changed hold for the next cutover, and open a gate at once', async () => {
    const task = await driveTo('syncingWal', { cutoverMaxValidationAgeMs: 60_000 });
    await task.done('installFence');
    task.stream({ type: 'CAUGHT_UP' });
    task.send({ type: 'CUTOVER' });
    expect(task.state).toBe('syncingWal');
    const options = { ...optionsOf(task.spec), needsValidation: false, cutoverTimeoutMs: 90_000 };
    task.send({ type: 'OPTIONS_CHANGED', options });
    expect(task.state).toBe('stoppingWrites');
    expect(Date.parse(task.context.deadlineAt ?? '')).toBeGreaterThan(Date.now() + 80_000);
  });

  test('a difference found by validation stops the cutover, not the replication', async () => {
    const task = await driveTo('validating');
    await task.done('compareTables', { tables: [{ table: 'public.users', equal: false }] });
    await task.done('disarmFence');
    expect(task.state).toBe('syncingWal');
    expect(task.streamRunning).toBe(true);
    expect(task.context.error).toMatchObject({
      code: 'validation_failed',
      details: { tables: ['public.users'] },
    });
  });

  test('un-fencing is tried until it works', async () => {
    const task = await driveTo('stoppingWrites');
    await task.fail('armFence', 'fence_failed');
    for (let attempt = 0; attempt < 20; attempt++) {
      await task.fail('disarmFence', 'connection_failed');
      await task.done('deadline');
    }
    await task.done('disarmFence');
    expect(task.state).toBe('paused');
  });

  test('a stream that fails under the fence is started again after un-fencing', async () => {
    const task = await driveTo('stoppingWrites');
    task.stream({ type: 'STREAM_FAILED', error: new MigrationError('connection_failed', 'gone').toReport() });
    await task.done('disarmFence');
    expect(task.state).toBe('retrying');
    await task.done('deadline');
    expect(task.state).toBe('syncingWal');
    expect(task.streamRunning).toBe(true);
  });

  test('PAUSE under the fence holds although the stream breaks before the fence is lifted', async () => {
    const task = await driveTo('stoppingWrites');
    task.send({ type: 'PAUSE' });
    task.stream({ type: 'STREAM_FAILED', error: new MigrationError('connection_failed', 'gone').toReport() });
    await task.done('disarmFence');
    expect(task.state).toBe('paused');
  });

  test('PAUSE while un-fencing does not overtake it', async () => {
    const task = await driveTo('stoppingWrites');
    await task.fail('armFence', 'lock_timeout');
    task.send({ type: 'PAUSE' });
    expect(task.isRunning('disarmFence')).toBe(true);
    await task.done('disarmFence');
    expect(task.state).toBe('paused');
  });

  test('an automatic cutover gives up after three failures and waits for a person', async () => {
    const task = await driveTo('stoppingWrites', { cutover: 'auto' });
    for (let failure = 1; failure < 3; failure++) {
      await task.fail('armFence', 'lock_timeout');
      await task.done('disarmFence');
      await task.done('installFence');
      expect(task.state).toBe('syncingWal');
      await task.done('deadline'); // the space between two tries
      expect(task.state).toBe('stoppingWrites');
    }
    await task.fail('armFence', 'lock_timeout');
    await task.done('disarmFence');
    await task.done('installFence');
    await task.done('deadline');
    expect(task.state).toBe('syncingWal');
    task.send({ type: 'CUTOVER' });
    expect(task.state).toBe('stoppingWrites');
  });
});

describe('after the point of no return', () => {
  const past = async (): Promise<Task> => {
    const task = await driveTo('finalizing');
    await task.done('prepareTarget');
    return task;
  };

  test('no command is accepted', async () => {
    const task = await past();
    expect(acceptedCommands(task.actor.getSnapshot())).toEqual([]);
  });

  test('every error is retried, only forward', async () => {
    const task = await past();
    for (const code of ['connection_failed', 'disk_full', 'internal', 'slot_lost'] as const) {
      await task.fail('settle', code);
      expect(task.state).toBe('finalizing');
      expect(task.context.error).toMatchObject({ code });
      await task.done('deadline');
    }
    await task.done('settle', settledOutput);
    expect(task.state).toBe('completed');
  });

  test('a restart goes on forward', async () => {
    const before = await past();
    const task = makeTask({}, before.persisted());
    task.send({ type: 'RESTORED' });
    expect(task.isRunning('disarmFence')).toBe(false);
    await task.done('settle', settledOutput);
    expect(task.state).toBe('completed');
  });
});

describe('persisting', () => {
  const all = ['created', 'queued', 'init', 'creatingTables', 'migratingData', 'syncingWal'] as const;

  test.each(all)('%s: a restored task is in the same state and does the same work', async (state) => {
    const before = await driveTo(state);
    const running = activities.filter((name) => before.isRunning(name));
    const task = makeTask({}, before.persisted());
    task.send({ type: 'RESTORED' });
    expect(task.state).toBe(state);
    expect(activities.filter((name) => task.isRunning(name))).toEqual(running);
    expect(task.context).toEqual(before.context);
  });

  test('a task killed while copying copies again without a new SLOT_READY', async () => {
    const before = await driveTo('migratingData');
    before.stream({ type: 'SLOT_READY' });
    const task = makeTask({}, before.persisted());
    task.send({ type: 'RESTORED' });
    task.stream({ type: 'SLOT_READY' });
    await task.done('copyTables');
    expect(task.state).toBe('syncingWal');
  });
});

describe('commands', () => {
  /** Which commands each state accepts. A row that is missing here does not compile. */
  const accepted: Record<
    Exclude<
      TaskState,
      'retrying' | 'cancelling' | 'failing' | 'finishing' | 'completed' | 'cancelled' | 'failed' | 'paused'
    >,
    string[]
  > = {
    created: ['START', 'CANCEL'],
    queued: ['PAUSE', 'CANCEL', 'ABANDON'],
    init: ['PAUSE', 'CANCEL', 'ABANDON'],
    creatingTables: ['PAUSE', 'CANCEL', 'ABANDON'],
    migratingData: ['PAUSE', 'CANCEL', 'ABANDON'],
    syncingWal: ['PAUSE', 'CANCEL', 'ABANDON', 'CUTOVER', 'VALIDATE', 'RECOPY'],
    stoppingWrites: ['PAUSE', 'CANCEL', 'ABANDON'],
    validating: ['PAUSE', 'CANCEL', 'ABANDON'],
    finalizing: ['PAUSE', 'CANCEL', 'ABANDON'],
  };

  test.each(Object.entries(accepted))('%s accepts %s', async (state, commands) => {
    const task = await driveTo(state as TaskState);
    expect(acceptedCommands(task.actor.getSnapshot()).toSorted()).toEqual(commands.toSorted());
  });

  test('paused accepts RESUME, CANCEL and ABANDON, and rests without an actor', async () => {
    const task = await driveTo('syncingWal');
    task.send({ type: 'PAUSE' });
    expect(task.state).toBe('paused');
    expect(task.actor.getSnapshot().hasTag('dormant')).toBe(false);
    await task.done('release');
    expect(task.actor.getSnapshot().hasTag('dormant')).toBe(true);
    expect(acceptedCommands(task.actor.getSnapshot())).toEqual(['RESUME', 'CANCEL', 'ABANDON']);
  });

  test('a queued task that has made nothing is cancelled at once; one that has is cleaned up', async () => {
    const fresh = await driveTo('queued');
    fresh.send({ type: 'CANCEL' });
    expect(fresh.state).toBe('cancelled');
    const resumed = await driveTo('creatingTables');
    resumed.send({ type: 'PAUSE' });
    resumed.send({ type: 'RESUME' });
    resumed.send({ type: 'CANCEL' });
    expect(resumed.state).toBe('cancelling');
  });
});

describe('the online validation', () => {
  test('runs from syncingWal until the fence comes, and again after it was lifted', async () => {
    const task = await driveTo('syncingWal');
    expect(task.isRunning('validateOnline')).toBe(true);
    await task.done('installFence');
    task.stream({ type: 'CAUGHT_UP' });
    task.send({ type: 'CUTOVER' });
    expect(task.state).toBe('stoppingWrites');
    expect(task.isRunning('validateOnline')).toBe(false);
    await task.fail('armFence', 'cutover_timeout');
    await task.done('disarmFence');
    expect(task.state).toBe('syncingWal');
    expect(task.isRunning('validateOnline')).toBe(true);
    expect(task.isRunning('compareTables')).toBe(false);
  });

  test('does not begin by itself with validation: cutover, but when it is asked for', async () => {
    const task = await driveTo('syncingWal', { validation: 'cutover' });
    expect(task.isRunning('validateOnline')).toBe(false);
    task.send({ type: 'VALIDATE' });
    expect(task.isRunning('validateOnline')).toBe(true);
    expect(task.context.validationPass).toBe(1);
    task.send({ type: 'VALIDATE' });
    expect(task.isRunning('validateOnline')).toBe(true);
    expect(task.context.validationPass).toBe(2);
  });

  test('keeps a cutover that needs it waiting until it is clean', async () => {
    const task = await driveTo('syncingWal', { cutoverMaxValidationAgeMs: 60_000 });
    await task.done('installFence');
    task.stream({ type: 'CAUGHT_UP' });
    task.send({ type: 'CUTOVER' });
    expect(task.state).toBe('syncingWal');
    task.send({ type: 'VALIDATION_CLEAN' });
    expect(task.state).toBe('stoppingWrites');
    expect(task.context.validationClean).toBe(false);
  });

  test('that is no longer clean closes the gate again', async () => {
    const task = await driveTo('syncingWal', { cutoverMaxValidationAgeMs: 60_000 });
    task.send({ type: 'VALIDATION_CLEAN' });
    task.send({ type: 'VALIDATION_NOT_CLEAN' });
    await task.done('installFence');
    task.stream({ type: 'CAUGHT_UP' });
    task.send({ type: 'CUTOVER' });
    expect(task.state).toBe('syncingWal');
  });

  test('goes on after a restart, and a failure of it stops nothing else', async () => {
    const task = await driveTo('syncingWal');
    const restored = makeTask({}, task.persisted());
    restored.send({ type: 'RESTORED' });
    expect(restored.isRunning('validateOnline')).toBe(true);
    await restored.fail('validateOnline', 'internal');
    expect(restored.state).toBe('syncingWal');
    expect(restored.context.error).toMatchObject({ code: 'internal' });
  });
});

describe('a reverse task', () => {
  const reverseTask = (): Task => {
    const task = makeTask({}, undefined, (spec) => reverseSpec('shop', 'incarnation', spec));
    task.send({ type: 'START' });
    expect(task.state).toBe('queued');
    task.send({ type: 'ADMIT' });
    return task;
  };

  test('begins at syncingWal with its stream, and copies nothing', () => {
    const task = reverseTask();
    expect(task.state).toBe('syncingWal');
    expect(task.streamRunning).toBe(true);
    task.stream({ type: 'SLOT_READY' });
    expect(task.isRunning('copyTables')).toBe(false);
    expect(task.actor.getSnapshot().can({ type: 'RECOPY', tables: ['public.users'] })).toBe(false);
  });

  test('is finished from syncingWal, paused and retrying: cleaned up, then completed', async () => {
    for (const before of ['syncingWal', 'paused', 'retrying'] as const) {
      const task = reverseTask();
      if (before === 'paused') task.send({ type: 'PAUSE' });
      if (before === 'retrying')
        task.stream({
          type: 'STREAM_FAILED',
          error: new MigrationError('connection_failed', 'gone').toReport(),
        });
      expect(task.state).toBe(before);
      task.send({ type: 'FINISH' });
      expect(task.state).toBe('finishing');
      expect(task.streamRunning).toBe(false);
      const restored = makeTask({}, task.persisted());
      restored.send({ type: 'RESTORED' });
      await restored.done('cleanUp', { cleanupPending: true, error: null });
      expect(restored.state).toBe('completed');
      expect(restored.context).toMatchObject({ cleanupPending: true, certificate: null, error: null });
    }
  });

  test('is not finished under the fence, and a task that a request made never', async () => {
    const task = reverseTask();
    await task.done('installFence');
    task.stream({ type: 'CAUGHT_UP' });
    task.send({ type: 'CUTOVER' });
    expect(task.state).toBe('stoppingWrites');
    expect(task.actor.getSnapshot().can({ type: 'FINISH' })).toBe(false);
    expect((await driveTo('syncingWal')).actor.getSnapshot().can({ type: 'FINISH' })).toBe(false);
  });
});

describe('findings of the stream', () => {
  const danger = (message: string) =>
    ({ code: 'slot_endangered', severity: 'warning', object: 'source', message, remedy: 'r' }) as const;
  const say = (message: string) =>
    ({ type: 'FINDING', code: 'slot_endangered', finding: danger(message) }) as const;
  const takeBack = { type: 'FINDING', code: 'slot_endangered', finding: null } as const;

  test('one of a code takes the place of the one before, and is said and taken back once', async () => {
    const task = await driveTo('syncingWal');
    const before = task.context.findings;
    expect(task.actor.getSnapshot().can(takeBack)).toBe(false);
    task.stream(say('soon'));
    expect(task.actor.getSnapshot().can(say('soon'))).toBe(false);
    task.stream(say('now'));
    expect(task.context.findings).toEqual([...before, danger('now')]);
    expect(task.context.validationPass).toBe(0);
    task.stream(takeBack);
    expect(task.context.findings).toEqual(before);
  });

  test('a task at rest takes them, too', async () => {
    const task = await driveTo('syncingWal');
    task.send({ type: 'PAUSE' });
    await task.done('release');
    task.send(say('soon'));
    expect(task.context.findings).toContainEqual(danger('soon'));
    expect(task.actor.getSnapshot().hasTag('dormant')).toBe(true);
  });

  test('the danger of a slot ends with the slot: when it is lost, and with the task', async () => {
    const lost = await driveTo('syncingWal');
    lost.stream(say('soon'));
    lost.stream({ type: 'STREAM_FAILED', error: new MigrationError('slot_lost', 'gone').toReport() });
    expect(lost.context.findings).not.toContainEqual(danger('soon'));
    const cancelled = await driveTo('syncingWal');
    cancelled.stream(say('soon'));
    cancelled.send({ type: 'CANCEL' });
    expect(cancelled.context.findings).toContainEqual(danger('soon'));
    await cancelled.done('cleanUp', { cleanupPending: false, error: null });
    expect(cancelled.state).toBe('cancelled');
    expect(cancelled.context.findings).not.toContainEqual(danger('soon'));
  });
});
