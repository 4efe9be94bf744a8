// Rows that earlier versions of the statechart have written, as they are: today's takes each of them up where it was and
// brings it to its end. (test/cases/machine holds what the code of that version persisted.)
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Snapshot } from 'xstate';
import { describe, expect, test } from 'vitest';
import { TASK_MACHINE_VERSION } from '../../machines/task.ts';
import { isEnded } from '../../src/model/task-state.ts';
import { persistedSnapshotOf } from '../../src/runtime/restore.ts';
import { activities, makeTask, settledOutput, type Task } from '../support/driven-task.ts';

const rowsOf = (version: number): Record<string, Snapshot<unknown> & { readonly value: unknown }> =>
  JSON.parse(
    readFileSync(join(import.meta.dirname, `../cases/machine/version-${version}.json`), 'utf8'),
  ) as never;

const versions = Array.from({ length: TASK_MACHINE_VERSION }, (_, n) => n + 1);
const rows = versions.flatMap((version) =>
  Object.entries(rowsOf(version)).map(([name, actorSnapshot]) => ({ version, name, actorSnapshot })),
);

const outputs: Readonly<Record<string, unknown>> = {
  preflight: { findings: [] },
  createTables: { findings: [] },
  copyBeside: { findings: null },
  armFence: { fenceLsn: '0/1' },
  drain: { markerLsn: '0/2' },
  compareTables: { tables: [{ table: 'public.users', equal: true }] },
  settle: settledOutput,
  cleanUp: { cleanupPending: false, error: null },
};

/** Answers whatever runs, and asks for what a person would ask, until the task has ended. */
async function bringToItsEnd(task: Task): Promise<void> {
  for (let step = 0; step < 60 && !isEnded(task.state); step++) {
    if (task.state === 'created') task.send({ type: 'START' });
    if (task.state === 'queued') task.send({ type: 'ADMIT' });
    if (task.state === 'paused') task.send({ type: 'RESUME' });
    if (task.streamRunning) task.stream({ type: 'SLOT_READY' });
    if (task.state === 'syncingWal') {
      task.stream({ type: 'CAUGHT_UP' });
      task.send({ type: 'CUTOVER' });
    }
    if (task.state === 'retrying') await task.done('deadline');
    const running = activities.find((name) => name !== 'validateOnline' && task.isRunning(name));
    if (running) await task.done(running, outputs[running] ?? null);
  }
}

describe('a row of an earlier version', () => {
  test.each(rows)('$version, $name', async ({ version, name, actorSnapshot }) => {
    const { spec } = makeTask();
    const row = { id: 't', machineVersion: version, actorSnapshot, spec };
    const task = makeTask({}, persistedSnapshotOf(row));
    expect(task.actor.getSnapshot().value).toEqual(actorSnapshot.value);
    task.send({ type: 'RESTORED' });
    await bringToItsEnd(task);
    expect(task.state).toBe(name.endsWith('cancelling') ? 'cancelled' : 'completed');
    expect(task.context.error).toBeNull();
  });
});

test('a row is taken up with the options as they are now', () => {
  const [{ actorSnapshot }] = rows as [(typeof rows)[number]];
  const { spec } = makeTask({ cutoverTimeoutMs: 5_000, cutoverMaxValidationAgeMs: 60_000 });
  const row = { id: 't', machineVersion: 1, actorSnapshot, spec };
  expect(makeTask({}, persistedSnapshotOf(row)).context).toMatchObject({
    cutoverTimeoutMs: 5_000,
    needsValidation: true,
  });
});

test('a row that cannot be taken up is refused in words', () => {
  const [{ actorSnapshot }] = rows as [(typeof rows)[number]];
  const restore = (machineVersion: number, row: unknown): unknown =>
    persistedSnapshotOf({ id: 't', machineVersion, actorSnapshot: row, spec: makeTask().spec });
  expect(() => restore(TASK_MACHINE_VERSION + 1, actorSnapshot)).toThrow(
    expect.objectContaining({
      message: 'task t was written by a newer version of DTS',
      hint: 'start the newer version again',
    }),
  );
  expect(() => restore(0, actorSnapshot)).toThrow('no migration from machine version 0');
  expect(() => restore(TASK_MACHINE_VERSION, { value: 'init' })).toThrow('is not readable');
});
