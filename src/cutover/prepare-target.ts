// Before the point of no return, under the fence: sets the sequences and rehearses what will make the target complete
// (foreign keys, triggers, policies) in a transaction that is rolled back; arms the way back. Only `settle` really makes it: a cutover that
// turns back here must leave a target on which the stream can go on, without triggers that fire or keys that cascade.
import { cutoverNotes } from '../model/cutover-notes.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { cutoverDeadline } from '../postgres/under-fence.ts';
import { certificateSoFar } from './certificate.ts';
import { confirmFence } from './fence.ts';
import { callHook } from './hooks.ts';
import { rehearsePhases } from './planned-statements.ts';
import { armReverse } from './reverse.ts';
import { copySequences } from './sequences.ts';

/** Short: the source's writers wait too. */
const LOCK_TIMEOUT = '5s';

/**
 * Idempotent. `deadline`: ms since the epoch. Errors: those of the sequences, `schema_failed` for a statement that would fail after the opening, those of
 * `armReverse` and `confirmFence`, `hook_failed`.
 */
export async function prepareTarget(scope: TaskScope, deadline = cutoverDeadline(scope)): Promise<void> {
  await bothOf(setSequences(scope), rehearseAndArm(scope, deadline));
  await confirmFence(scope);
  if (await callHook(scope, 'beforeOpen', certificateSoFar(scope), deadline)) await confirmFence(scope); // it took its time
  scope.failpoint('finalize.hook-called');
  scope.checkpoints.set(cutoverNotes.prepared, new Date().toISOString());
  scope.failpoint('finalize.before-point-of-no-return');
}

async function setSequences(scope: TaskScope): Promise<void> {
  const sequences = await copySequences(scope);
  scope.checkpoints.set(cutoverNotes.sequences, sequences);
  scope.failpoint('finalize.sequences-set');
}

async function rehearseAndArm(scope: TaskScope, deadline: number): Promise<void> {
  await rehearsePhases(scope, { phases: ['foreign-key', 'final'], lockTimeout: LOCK_TIMEOUT });
  await armReverse(scope, deadline);
}

/** Waits for both also when one fails: nothing of ours must be at work when the fence is lifted. */
async function bothOf(...works: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(works)) if (result.status === 'rejected') throw result.reason;
}
