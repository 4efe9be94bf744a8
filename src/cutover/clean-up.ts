// Leaves nothing of a cancelled or failed task behind, and lifts the fence that a completed one kept. Called by the
// statechart's cancelling and failing, by the periodic clean-up and by `unfence`. Writes are allowed again first.
import { cutoverNotes } from '../model/cutover-notes.ts';
import type { ErrorReport } from '../model/errors.ts';
import type { Certificate } from '../model/certificate.ts';
import { removeBookkeeping } from '../postgres/bookkeeping.ts';
import { dropPublication } from '../postgres/publication.ts';
import { restoreIdentities } from '../postgres/replica-identity.ts';
import { dropSlot } from '../postgres/slot-removal.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { Attempts } from './attempts.ts';
import { dropTargetTables } from './drop-target.ts';
import { allowWrites, disarmFence, keepsFence, removeFence } from './fence.ts';
import { removeReverse } from './reverse.ts';
import { noteLifted } from './write-stop.ts';

/**
 * Removes fence, slot and publication from the source, gives tables their replica identity back, and our bookkeeping from the target; with `dropTarget` also the
 * tables that this task made there. Never throws but `aborted`: what could not be removed is `cleanupPending`, `error`
 * is the first reason, and another call goes on. A task with a certificate keeps its tables and, with `keepFence`, its
 * fence, whatever is asked; a reverse task made no tables. What was armed for a way back goes, too.
 */
export async function cleanUp(
  scope: TaskScope,
  options: { readonly dropTarget: boolean },
): Promise<{ cleanupPending: boolean; error: ErrorReport | null }> {
  const completed = scope.checkpoints.get<Certificate>(cutoverNotes.certificate) !== undefined;
  const keepFence = completed && keepsFence(scope);
  const attempts = new Attempts(scope);
  if (!keepFence)
    await attempts.run('source', 'disarm', () => disarmFence(scope, { evenIfOpened: completed }));
  await attempts.run('source', 'slot', () => dropSlot(scope));
  scope.failpoint('cancel.mid-cleanup');
  await attempts.run('source', 'publication', () => dropPublication(scope));
  await attempts.run('source', 'replica identities', () => restoreIdentities(scope));
  // Last on the source: DROP TRIGGER may wait for readers, and the slot holds back WAL.
  if (!keepFence) await attempts.run('source', 'fence', () => removeFence(scope));
  if (!completed) await removeReverse(scope, attempts);
  const dropped =
    !options.dropTarget ||
    completed ||
    scope.spec.origin !== undefined ||
    (await attempts.run('target', 'tables', () => dropTargetTables(scope)));
  // The journal knows which tables are ours: it stays until they are gone.
  if (dropped) await attempts.run('target', 'bookkeeping', () => removeBookkeeping(scope));
  const error = attempts.conclude();
  return { cleanupPending: error !== null, error };
}

/**
 * Un-fences the source of an ended task: writes at once, then triggers and function go. The note that it is lifted comes
 * last, so that a removal that failed can be asked for again. Errors: `lock_timeout` naming who is in the way.
 */
export async function liftFence(scope: TaskScope): Promise<void> {
  await allowWrites(scope, { evenIfOpened: true });
  await removeFence(scope);
  noteLifted(scope);
}
