// What the end of a cutover changes among our rows: the other direction's fence is lifted, and the reverse task is made.
// One SQLite transaction, so that a kill leaves both or neither; what was done already is not done again.
import { initialTransition, transition } from 'xstate';
import type { Store } from '../../db/open.ts';
import type { TaskNotes } from '../../db/notes.ts';
import type { TaskRow, TaskStore } from '../../db/tasks.ts';
import { TASK_MACHINE_VERSION, taskMachine } from '../../machines/task.ts';
import { cutoverNotes, type WriteStop } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import type { Failpoint } from '../model/failpoints.ts';
import { legNotes, reverseFigures, reverseNotes, reverseSpec, type ReverseNote } from '../model/reverse.ts';
import { carriedNotes } from '../cutover/reverse.ts';
import { toJson } from './durable.ts';
import type { SecretVault } from './secrets.ts';

interface LegStores {
  readonly store: Store;
  readonly notes: TaskNotes;
  readonly tasks: TaskStore;
  readonly vault: SecretVault;
  readonly failpoint: (name: Failpoint) => void;
}

/** Of a task past its cutover. True when the reverse task was made just now; it is queued. */
export function settleLegs(stores: LegStores, row: TaskRow): boolean {
  const { notes, failpoint } = stores;
  const { origin } = row.spec;
  if (origin) noteTargetUnfenced(stores, origin);
  const note = notes.checkpoint(row.id, reverseNotes.reverse) as ReverseNote | undefined;
  if (!note || note.handedOver) return false;
  failpoint('reverse.before-handover');
  makeReverseTask(stores, row, note);
  failpoint('reverse.handed-over');
  return true;
}

/** The rollback of `origin`'s cutover has lifted its fence. */
function noteTargetUnfenced(
  { notes, tasks }: LegStores,
  origin: { readonly taskId: string; readonly incarnation: string },
): void {
  if (tasks.find(origin.taskId)?.incarnation !== origin.incarnation) return; // deleted meanwhile
  const stop = notes.checkpoint(origin.taskId, cutoverNotes.writeStop) as WriteStop | undefined;
  if (!stop || stop.liftedAt !== null) return;
  const lifted: WriteStop = { ...stop, liftedAt: new Date().toISOString() };
  notes.setCheckpoint(origin.taskId, cutoverNotes.writeStop, lifted);
}

function makeReverseTask({ store, notes, tasks, vault }: LegStores, row: TaskRow, note: ReverseNote): void {
  const { taskId: id, incarnation } = note;
  if (tasks.find(id))
    throw new MigrationError(
      'task_exists',
      `a task with the id ${id} exists, which the reverse task should have`,
      {
        hint: 'delete that task; this is tried again by itself',
        details: { id },
      },
    );
  const spec = reverseSpec(row.id, row.incarnation, row.spec);
  const [created] = initialTransition(taskMachine, { taskId: id, spec });
  const [queued] = transition(taskMachine, created, { type: 'START' });
  store.transaction(() => {
    tasks.insert(
      {
        id,
        incarnation,
        bodyHash: vault.fingerprint({ spec, incarnation }),
        spec,
        machineVersion: TASK_MACHINE_VERSION,
        actorSnapshot: toJson(taskMachine.getPersistedSnapshot(queued)),
      },
      'queued',
    );
    vault.copy({ taskId: row.id, role: 'target' }, id, 'source');
    vault.copy({ taskId: row.id, role: 'source' }, id, 'target');
    for (const [key, value] of Object.entries(carriedNotes((name) => notes.checkpoint(row.id, name))))
      notes.setCheckpoint(id, key, value);
    notes.setCheckpoint(id, legNotes.fencePass, note.pass);
    notes.saveTables(id, reverseFigures(notes.tables(row.id)));
    notes.setCheckpoint(row.id, reverseNotes.reverse, { ...note, handedOver: true } satisfies ReverseNote);
  });
}
