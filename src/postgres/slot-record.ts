// What a task remembers of its replication slot, in its checkpoints: the stream makes it, copy and cutover read it.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { TaskScope } from './task-scope.ts';

/** What tells a cluster from its clones: both answers of IDENTIFY_SYSTEM. */
export interface SourceSystem {
  /** system_identifier of pg_control: of initdb, shared by physical copies. */
  readonly id: string;
  /** Begins anew with every promotion and every point-in-time recovery. */
  readonly timeline: number;
}

/** What the task remembers of its slot; checkpoint `slot`, written when slot and barrier stand. */
export interface SlotRecord {
  readonly name: string;
  /** Unique per created slot: parts and progress of another incarnation are worthless. */
  readonly incarnation: string;
  /** Every transaction that commits behind it is streamed, and decoded under the right catalog (slot-beginning.ts). */
  readonly consistentLsn: Lsn;
  /** Where it was made; absent in a record that was written before this was noted. */
  readonly system?: SourceSystem;
  /** Standbys may have a copy of it (17+). */
  readonly failover?: boolean;
  /** Set by dropSlot; the record stays, so that nothing makes the slot again. */
  readonly dropped?: boolean;
}

/** Checkpoint of the SlotRecord. */
export const slotNote = 'slot';

/** The slot's record, or undefined while publication, slot and barrier do not stand yet. */
export function findSlot(scope: TaskScope): SlotRecord | undefined {
  return scope.checkpoints.get<SlotRecord>(slotNote);
}

/** The slot's record. Throws `internal` when there is none: parts may be read only after SLOT_READY. */
export function slotOf(scope: TaskScope): SlotRecord {
  const slot = findSlot(scope);
  if (!slot) throw new MigrationError('internal', 'the replication slot has not been made yet');
  return slot;
}

/** After dropSlot: another one may be made. */
export function forgetSlot(scope: TaskScope): void {
  scope.checkpoints.delete(slotNote);
}

/** What to do when changes are missing that no server can tell any more. */
export function recopyRemedy({ taskId, spec }: Pick<TaskScope, 'taskId' | 'spec'>): string {
  // what the old source has is what the rollback would lose: it is not replaced
  if (spec.origin) return `a rollback would lose them: POST /api/v1/migrations/${taskId}/finish`;
  return `POST /api/v1/migrations/${taskId}/recopy copies all tables again behind a new slot (the schema stays), or cancel this migration`;
}
