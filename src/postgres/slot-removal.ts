// The end of a task's slot: dropped, or left behind on a server that is not ours any more. Every wait is bounded.
import { MigrationError } from '../model/errors.ts';
import { fromPostgres } from './errors.ts';
import { forgetIntent, hasIntent, whyNotIntended } from './slot-intent.ts';
import { findSlot, slotNote, type SlotRecord } from './slot-record.ts';
import { foreignShape, readSlot } from './slot-row.ts';
import { sourceSystem } from './source-system.ts';
import { taskObjectName } from './sql.ts';
import type { TaskScope } from './task-scope.ts';

const DROP_TIMEOUT_MS = 30_000;

/**
 * Drops the slot, ending its walsender first when one is running. Idempotent; a slot that this task never made is left
 * alone. Errors: `deadline_exceeded` when it stays in use, `connection_failed`.
 */
export async function dropSlot(scope: TaskScope): Promise<void> {
  const record = findSlot(scope);
  if (record?.dropped === true) return;
  const name = taskObjectName(scope.taskId);
  if (record || (await isLeftover(scope, name))) await removeSlot(scope, name);
  if (record) scope.checkpoints.set(slotNote, { ...record, dropped: true } satisfies SlotRecord);
  forgetIntent(scope);
}

/** Whether an interrupted start of this task has left it. */
async function isLeftover(scope: TaskScope, name: string): Promise<boolean> {
  if (!hasIntent(scope)) return false;
  const row = await readSlot(scope, name);
  return row !== null && (await whyNotIntended(scope, row)) === null;
}

/**
 * Forgets the slot, so that ensureSlot makes another, and drops what is left of it. On another cluster nothing is: what
 * bears the name there is somebody else's. Idempotent. Errors: those of dropSlot.
 */
export async function abandonSlot(scope: TaskScope): Promise<void> {
  const record = findSlot(scope);
  if (!record) return;
  const found = record.system && (await sourceSystem(scope));
  // a promoted standby of the same cluster has a copy of ours, if any
  if (found?.id === record.system?.id) await dropSlot(scope);
  scope.checkpoints.delete(slotNote);
  forgetIntent(scope);
}

/** Ends the walsender that still reads from our slot: one that outlived its connection. Bounded. */
export async function releaseSlot(scope: TaskScope, name: string): Promise<void> {
  await untilDone(scope, `slot ${name} is still in use`, async () => {
    const row = await readSlot(scope, name);
    if (!row || row.active_pid === null) return true;
    await scope.source.query('select pg_terminate_backend($1)', [row.active_pid]);
    return false;
  });
}

/** Drops it where it has the shape of ours. Errors: `deadline_exceeded`. */
export async function removeSlot(scope: TaskScope, name: string): Promise<void> {
  await untilDone(scope, `slot ${name} is still in use`, async () => {
    const row = await readSlot(scope, name);
    if (!row || foreignShape(row) !== null) return true;
    if (row.active_pid !== null) {
      await scope.source.query('select pg_terminate_backend($1)', [row.active_pid]);
      return false;
    }
    try {
      await scope.source.query('select pg_drop_replication_slot($1)', [name]);
      return true;
    } catch (error) {
      // 55006 object_in_use: taken again between the two statements; 42704: dropped meanwhile
      const state = fromPostgres(error).details?.['sqlstate'];
      if (state === '42704') return true;
      if (state !== '55006') throw error;
      return false;
    }
  });
}

async function untilDone(scope: TaskScope, what: string, attempt: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + DROP_TIMEOUT_MS;
  for (;;) {
    if (await attempt()) {
      scope.progress.setWaitingFor(null);
      return;
    }
    scope.progress.setWaitingFor(what);
    if (Date.now() > deadline)
      throw new MigrationError('deadline_exceeded', `source: ${what} after ${DROP_TIMEOUT_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
