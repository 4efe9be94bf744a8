// From a task's row to a snapshot that today's statechart understands.
import type { Snapshot } from 'xstate';
import type { TaskRow } from '../../db/tasks.ts';
import { optionsOf, type TaskContext } from '../../machines/task-context.ts';
import { TASK_MACHINE_VERSION } from '../../machines/task.ts';
import { MigrationError } from '../model/errors.ts';

/** `migrations[v]` turns a snapshot of version v into one of v + 1. Pure; never removed while rows may be that old. */
const migrations: Readonly<Record<number, (snapshot: unknown) => unknown>> = {
  // 2 has copies beside the stream: states and context that 1 has not; what 1 has stayed as it was
  1: (snapshot) => snapshot,
  // 3 may cancel after the fence is lifted
  2: (snapshot) => snapshot,
};

/** With the row's options, which may have changed since. Throws `internal` for a row of a newer service or one that is no snapshot. */
export function persistedSnapshotOf(
  row: Pick<TaskRow, 'id' | 'machineVersion' | 'actorSnapshot' | 'spec'>,
): Snapshot<unknown> {
  if (row.machineVersion > TASK_MACHINE_VERSION) {
    throw new MigrationError('internal', `task ${row.id} was written by a newer version of DTS`, {
      hint: 'start the newer version again',
    });
  }
  let snapshot = row.actorSnapshot;
  for (let version = row.machineVersion; version < TASK_MACHINE_VERSION; version++) {
    const migrate = migrations[version];
    if (!migrate)
      throw new MigrationError('internal', `task ${row.id}: no migration from machine version ${version}`);
    snapshot = migrate(snapshot);
  }
  if (
    typeof snapshot !== 'object' ||
    snapshot === null ||
    !('value' in snapshot) ||
    !('status' in snapshot) ||
    !('context' in snapshot)
  ) {
    throw new MigrationError('internal', `task ${row.id}: the stored snapshot is not readable`);
  }
  const context = { ...(snapshot.context as TaskContext), ...optionsOf(row.spec) };
  return { ...snapshot, context } as unknown as Snapshot<unknown>;
}
