// What is noted before a slot is made, so that one that is found without a record can be told: made by a start of ours that
// was interrupted, or by somebody else under the same name. Asked by slot.ts before it is made again, and by
// slot-removal.ts before it is dropped.
import { compareLsn, type Lsn } from '../model/lsn.ts';
import type { SourceSystem } from './slot-record.ts';
import { foreignShape, type SlotRow } from './slot-row.ts';
import { sourceSystem } from './source-system.ts';
import type { TaskScope } from './task-scope.ts';

const SLOT_INTENT = 'slotIntent';

interface SlotIntent {
  readonly system: SourceSystem;
  /** Of the WAL when it was noted: a slot that was there already reserves what is before it. */
  readonly lsn: Lsn;
}

/** Before CREATE_REPLICATION_SLOT. */
export async function noteIntent(scope: TaskScope, system: SourceSystem): Promise<void> {
  const { rows } = await scope.source.query<{ lsn: Lsn }>('select pg_current_wal_insert_lsn()::text as lsn');
  const lsn = rows[0]?.lsn ?? '0/0';
  scope.checkpoints.set(SLOT_INTENT, { system, lsn } satisfies SlotIntent);
}

export function forgetIntent(scope: TaskScope): void {
  scope.checkpoints.delete(SLOT_INTENT);
}

export function hasIntent(scope: TaskScope): boolean {
  return scope.checkpoints.get(SLOT_INTENT) !== undefined;
}

/** Why the slot, of which there is no record, is none that this task was making; null: it is. */
export async function whyNotIntended(scope: TaskScope, row: SlotRow): Promise<string | null> {
  // `true`: by a version that noted no more
  const intent = scope.checkpoints.get<SlotIntent | true>(SLOT_INTENT);
  if (intent === undefined) return 'it exists and is not ours';
  const shape = foreignShape(row);
  if (shape !== null || intent === true) return shape;
  const { id, timeline } = await sourceSystem(scope);
  if (id !== intent.system.id || timeline !== intent.system.timeline)
    return 'ours was being made on another cluster or timeline';
  const begun = row.restart_lsn ?? row.confirmed; // a slot that was invalidated has the second alone
  if (begun === null || compareLsn(begun, intent.lsn) < 0)
    return `it holds WAL from before ours was being made at ${intent.lsn}`;
  if (row.active_pid !== null && row.reader?.startsWith(`${scope.source.sessionName}/`) !== true)
    return `somebody else reads from it (pid ${row.active_pid}, ${row.reader ?? 'unknown'})`;
  return null;
}
