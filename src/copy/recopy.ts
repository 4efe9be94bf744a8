// Tables that are copied again while a task follows its source (a repair, or doubt about their rows). The statechart goes
// back to migratingData: the stream that ran has ended and the next one waits for the copy, so that no change is applied
// to a table between its old rows and its new ones. The new markers then tell what the new rows have already seen, as
// after any copy: nothing else is read again, and nothing that was streamed is lost.
//
// A task whose slot is lost is asked for all of its tables: what is missing in between cannot be read any more, so the next
// stream makes another slot (another incarnation: no marker, position or note of the old one counts) and everything is
// copied behind it. The schema on the target stays, keys and indexes with it.
import { MigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import type { SchemaPlan } from '../model/schema-plan.ts';
import { markCopyIncomplete } from '../postgres/copy-state.ts';
import { endSessions } from '../postgres/end-sessions.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { abandonPublication } from '../postgres/publication.ts';
import { abandonSlot } from '../postgres/slot-removal.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { PATIENT } from '../postgres/transaction-options.ts';
import { hasUnique } from './index-plan.ts';
import { startOver } from './markers.ts';
import { leaveWhole } from './plan-read.ts';

/** What the statechart remembers of the requests so far. */
export interface RecopyRequest {
  /** Number of the last request; 0: none yet. */
  readonly pass: number;
  /** `relationKey`s of source tables of the plan. */
  readonly tables: readonly string[];
  /** The slot is lost, and these are all tables. */
  readonly renewsSlot: boolean;
}

const RECOPY = 'recopy';

/** Checkpoint: `pending` until the old rows are gone. */
interface RecopyRecord extends RecopyRequest {
  readonly pending: boolean;
  /** Nothing of the lost slot is left; where `renewsSlot`. */
  readonly slotLeft?: boolean;
}

/**
 * Takes a new request in, before the stream of its `replicating` begins: from here on the copy is incomplete. Doing it
 * again with the same request changes nothing.
 */
export function acceptRecopy(scope: TaskScope, request: RecopyRequest): void {
  const known = scope.checkpoints.get<RecopyRecord>(RECOPY);
  if (request.pass === (known?.pass ?? 0)) return;
  markCopyIncomplete(scope);
  scope.checkpoints.set(RECOPY, { ...request, pending: true } satisfies RecopyRecord);
}

/**
 * When the last request renews the slot: drops what is left of the lost one and forgets what was noted by it, so that the
 * stream makes publication and slot as for a new task. Idempotent. Errors: as of dropSlot and of a statement.
 */
export async function leaveLostSlot(scope: TaskScope): Promise<void> {
  const record = scope.checkpoints.get<RecopyRecord>(RECOPY);
  if (record?.renewsSlot !== true || record.slotLeft === true) return;
  try {
    await endAppliers(scope); // one that still commits would find its progress gone
    await abandonSlot(scope);
    abandonPublication(scope);
    scope.failpoint('recopy.slot-left');
    await scope.target.transaction(async (client) => {
      for (const table of ['dts.part', 'dts.progress', 'dts.changed', 'dts.held_change', 'dts.held_table'])
        await client.query(`delete from ${table} where task_id = $1`, [scope.taskId]);
    }, PATIENT);
    scope.failpoint('recopy.progress-forgotten');
  } catch (error) {
    throw fromPostgres(error);
  }
  scope.checkpoints.set(RECOPY, { ...record, slotLeft: true } satisfies RecopyRecord);
}

/** Tables whose secondary unique constraints stand before their first row is copied behind a renewed slot. */
export function constrainedBefore(scope: TaskScope, plan: SchemaPlan): readonly string[] {
  if (scope.checkpoints.get<RecopyRecord>(RECOPY)?.renewsSlot !== true) return [];
  return plan.tables
    .map(({ source }) => relationKey(source))
    .filter((relation) => hasUnique(plan.statements, relation));
}

/**
 * Whether unique constraints beside the key stand before the table is copied again: two snapshots may hold one value in two
 * rows, so one must read it all.
 */
export function isConstrained(plan: SchemaPlan, relation: string): boolean {
  return hasUnique(plan.statements, relation) || plan.uniqueBefore?.includes(relation) === true;
}

/**
 * Removes the rows and markers of the tables asked for; copyTables then finds them uncopied. Killed in between, it begins
 * again: none of their parts has been read yet.
 */
export async function forgetCopies(
  scope: TaskScope,
  plan: SchemaPlan,
  slotIncarnation: string,
): Promise<void> {
  const record = scope.checkpoints.get<RecopyRecord>(RECOPY);
  if (record?.pending !== true) return;
  await endAppliers(scope);
  for (const relation of record.tables) {
    const table = plan.tables.find(({ source }) => relationKey(source) === relation);
    if (!table)
      throw new MigrationError('internal', `${relation} is to be copied again and is not in the plan`);
    // Its unique constraints stand already: two snapshots may hold one value in two rows, so one must read it all.
    // Behind a renewed slot the cuts are not made yet, and respect that.
    if (!record.renewsSlot && isConstrained(plan, relation)) leaveWhole(scope, relation);
    await startOver(scope, slotIncarnation, { relation, table });
    scope.failpoint('copy.forgotten');
  }
  scope.checkpoints.set(RECOPY, { ...record, pending: false } satisfies RecopyRecord);
}

/** A batch of the stream that was stopped must not commit between the old rows and the new ones. */
function endAppliers(scope: TaskScope): Promise<void> {
  return endSessions(scope, scope.target, ['apply']);
}
