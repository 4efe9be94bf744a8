// The task's replication slot on the source: made once, behind the barrier, recognised after a crash, dropped at the
// end. The stream ensures it; copy and cutover read its record. A slot that is gone is never made again silently.
import { MigrationError } from '../model/errors.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import { whyNotFollow } from './promotion.ts';
import { moveToBeginning } from './slot-beginning.ts';
import { createSlot } from './slot-creation.ts';
import { findSlot, recopyRemedy, slotNote, type SlotRecord } from './slot-record.ts';
import { whyNotIntended } from './slot-intent.ts';
import { removeSlot } from './slot-removal.ts';
import { foreignShape, invalidationReason, readSlot, stranger } from './slot-row.ts';
import { sourceSystem, verifySystemOf } from './source-system.ts';
import { taskObjectName } from './sql.ts';
import type { TaskScope } from './task-scope.ts';

/** acked_lsn of dts.progress: the furthest position that we may have acknowledged. Null before the first stream. */
async function ackedLsn(scope: TaskScope, slot: SlotRecord): Promise<Lsn | null> {
  const { rows } = await scope.target.query<{ acked: Lsn; incarnation: string }>(
    'select acked_lsn::text as acked, slot_incarnation as incarnation from dts.progress where task_id = $1',
    [scope.taskId],
  );
  const row = rows[0];
  if (row && row.incarnation !== slot.incarnation)
    throw stranger(slot.name, 'the progress on the target belongs to another slot');
  return row?.acked ?? null;
}

/**
 * Makes the slot and waits for its beginning, or checks the one that is there:
 *
 *   record     slot                                          result
 *   1 none     absent                                        created
 *   2 none     present, no intent of ours                    `slot_stranger`
 *   3 none     present, intent, as slot-intent.ts wants it   ours but unused (killed before its record): made again
 *   4 none     present, intent, otherwise                    `slot_stranger`
 *   5 ours     absent                                        `slot_lost`
 *   6 ours     another plugin, database, kind, two_phase     `slot_stranger`
 *   7 ours     wal_status lost, or invalidated               `slot_lost`
 *   8 ours     confirmed_flush_lsn beyond dts.progress.acked_lsn   `slot_stranger`: somebody else read from it
 *   9 ours     anything else                                 nothing to do
 *  10 dropped  any                                           `slot_lost`: this task is past its slot
 *  11 ours     any, on another cluster or timeline           `source_replaced`, before 5 to 9 are looked at
 *  12 ours     our copy, on a promoted standby               goes on there, if promotion.ts can prove that it may
 *
 * Other errors: `slot_creation_timeout` naming the transactions that it waits for, `insufficient_privilege`.
 */
export async function ensureSlot(scope: TaskScope): Promise<SlotRecord> {
  const record = findSlot(scope);
  if (record) {
    try {
      await verifySlot(scope, record);
      return record;
    } catch (error) {
      return followPromotion(scope, record, error);
    }
  }
  const name = taskObjectName(scope.taskId);
  const row = await readSlot(scope, name);
  if (row) {
    const reason = await whyNotIntended(scope, row);
    if (reason !== null) throw stranger(name, reason);
    scope.log.info({ slot: name }, 'a slot of an interrupted start is made again');
    await removeSlot(scope, name);
  }
  const made = await createSlot(scope, name);
  await moveToBeginning(scope, made);
  return made;
}

/** Cases 5–11 of {@link ensureSlot}; for the sampler and before every connection of the walsender. */
export async function verifySlot(scope: TaskScope, record: SlotRecord): Promise<void> {
  const lost = (reason: string): MigrationError =>
    new MigrationError('slot_lost', `source: replication slot ${record.name} ${reason}`, {
      hint: `changes since then cannot be read any more: ${recopyRemedy(scope)}`,
      details: { slot: record.name },
    });
  if (record.dropped) throw lost('was dropped by this task');
  if (record.system) verifySystemOf(await sourceSystem(scope), record, scope);
  const row = await readSlot(scope, record.name);
  if (!row) throw lost('is gone');
  const shape = foreignShape(row);
  if (shape !== null) throw stranger(record.name, shape);
  if (row.wal_status === 'lost' || row.restart_lsn === null || row.invalidation !== null) {
    const reason = row.invalidation ?? 'wal_removed';
    throw lost(`was invalidated (${reason}): ${invalidationReason(reason)}`);
  }
  const acked = (await ackedLsn(scope, record)) ?? record.consistentLsn;
  if (row.confirmed !== null && compareLsn(row.confirmed, acked) > 0)
    throw stranger(
      record.name,
      `somebody else has read from it: it is at ${row.confirmed}, but we have acknowledged only ${acked}`,
    );
}

/** Case 12: the record is then of the new timeline. Throws `error` again in every other, with the reason. */
async function followPromotion(scope: TaskScope, record: SlotRecord, error: unknown): Promise<SlotRecord> {
  if (!(error instanceof MigrationError) || error.code !== 'source_replaced') throw error;
  const found = await sourceSystem(scope);
  const reason = await whyNotFollow(scope, record, found);
  if (reason !== null)
    throw new MigrationError('source_replaced', `${error.message}; ${reason}`, {
      ...(error.hint === undefined ? {} : { hint: error.hint }),
      ...(error.details === undefined ? {} : { details: error.details }),
      cause: error,
    });
  const followed: SlotRecord = { ...record, system: found };
  await verifySlot(scope, followed);
  scope.checkpoints.set(slotNote, followed);
  scope.log.warn({ slot: record.name, ...found }, 'the source was promoted; the stream goes on there');
  return followed;
}
