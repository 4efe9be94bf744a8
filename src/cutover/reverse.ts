// The way back, as the task sees it whose cutover is to be undoable: a publication and a slot on its target, armed while
// nobody can write on either side, so that every later write is in it and both sides are equal where it begins. The
// reverse task (runtime) takes them over. It reads the target and writes the source, whose fence lets it through.
//
// Loops cannot be: the slot of one direction is made after the stream of the other has ended for good.
import { randomBytes, randomUUID } from 'node:crypto';
import { cutoverNotes } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import {
  legNotes,
  nextLegId,
  reverseNotes,
  reverseSpec,
  reversePlan,
  type ReverseNote,
} from '../model/reverse.ts';
import type { TaskSpec } from '../model/task.ts';
import { ensureBookkeeping, removeBookkeeping } from '../postgres/bookkeeping.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { copyCompleteNotes } from '../postgres/copy-state.ts';
import {
  dropPublication,
  ensurePublication,
  publicationNote,
  publishAgain,
} from '../postgres/publication.ts';
import {
  checkIdentities,
  identitiesNote,
  makeIdentitiesFull,
  restoreIdentities,
} from '../postgres/replica-identity.ts';
import { dropSlot } from '../postgres/slot-removal.ts';
import { ensureSlot } from '../postgres/slot.ts';
import { forgetSlot, slotNote } from '../postgres/slot-record.ts';
import {
  saveSchemaPlan,
  schemaPlanNote,
  schemaPlanOf,
  type Checkpoints,
  type TaskScope,
} from '../postgres/task-scope.ts';
import { cutoverDeadline } from '../postgres/under-fence.ts';
import type { Attempts } from './attempts.ts';
import { allowWrites, removeFence } from './fence.ts';

function prefixed(checkpoints: Checkpoints, prefix: string): Checkpoints {
  return {
    get: (key) => checkpoints.get(prefix + key),
    set: (key, value) => checkpoints.set(prefix + key, value),
    delete: (key) => checkpoints.delete(prefix + key),
  };
}

/** The other task, looking the other way, with notes of its own among ours. */
function turned(
  scope: TaskScope,
  task: Pick<TaskScope, 'taskId' | 'incarnation'>,
  prefix: string,
  spec: TaskSpec,
): TaskScope {
  return {
    taskId: task.taskId,
    incarnation: task.incarnation,
    spec,
    source: scope.target,
    target: scope.source,
    checkpoints: prefixed(scope.checkpoints, prefix),
    progress: scope.progress,
    hookCommands: scope.hookCommands,
    spillFolder: scope.spillFolder,
    log: scope.log,
    signal: scope.signal,
    failpoint: (name) => {
      if (name === 'slot.created') scope.failpoint('reverse.slot-created');
    },
  };
}

function findNote(scope: TaskScope): ReverseNote | undefined {
  return scope.checkpoints.get<ReverseNote>(reverseNotes.reverse);
}

/** `patienceMs`: what is left of the write stop, which its slot must not outlast. */
function reverseScope(scope: TaskScope, note: ReverseNote, patienceMs = Number.POSITIVE_INFINITY): TaskScope {
  const spec = reverseSpec(scope.taskId, scope.incarnation, scope.spec);
  const slotTimeoutMs = Math.max(1, Math.min(spec.options.slotTimeoutMs, Math.floor(patienceMs)));
  const options = { ...spec.options, slotTimeoutMs };
  return turned(scope, note, reverseNotes.prefix, { ...spec, options });
}

/**
 * While the stream runs: what takes locks and needs no slot, so that the write stop does not wait for it. Idempotent; an
 * armed slot that a given-up cutover has left goes. Errors: those of the publication and of the bookkeeping.
 */
export async function prepareReverse(scope: TaskScope): Promise<void> {
  if (!scope.spec.options.reverse) return;
  let note = findNote(scope);
  if (!note) {
    note = {
      taskId: nextLegId(scope.taskId, scope.spec),
      incarnation: randomUUID(),
      pass: randomBytes(24).toString('base64url'),
      handedOver: false,
    };
    scope.checkpoints.set(reverseNotes.reverse, note);
  }
  const reverse = reverseScope(scope, note);
  saveSchemaPlan(reverse, reversePlan(schemaPlanOf(scope)));
  await wayBack(async () => {
    await dropArmed(reverse);
    await ensureBookkeeping(reverse);
    await makeIdentitiesFull(reverse);
    await checkIdentities(reverse);
    publishAgain(reverse);
    await ensurePublication(reverse);
  });
}

/**
 * Under the fence, when the target is complete: makes the slot, always anew, for one of an earlier attempt holds what we
 * have applied since. `deadline`: ms since the epoch. Errors: `slot_creation_timeout` naming the transactions on the target that
 * it waits for, and others of the slot.
 */
export async function armReverse(scope: TaskScope, deadline = cutoverDeadline(scope)): Promise<void> {
  const note = findNote(scope);
  if (!scope.spec.options.reverse || !note) return;
  const reverse = reverseScope(scope, note, deadline - Date.now());
  saveSchemaPlan(reverse, reversePlan(schemaPlanOf(scope))); // with the columns that on_ddl has carried meanwhile
  await wayBack(async () => {
    await dropArmed(reverse);
    await checkIdentities(reverse);
    await ensurePublication(reverse);
    await ensureSlot(reverse);
  });
  scope.failpoint('reverse.armed');
}

/** The cutover was given up. The source has its writes back by now: what cannot be dropped goes with `prepareReverse`. */
export async function disarmReverse(scope: TaskScope): Promise<void> {
  const note = findNote(scope);
  if (!note || note.handedOver) return;
  try {
    await dropArmed(reverseScope(scope, note));
  } catch (error) {
    scope.log.warn({ err: fromPostgres(error) }, 'the slot of the way back could not be dropped yet');
  }
}

/** Of a task that ends without a cutover: slot, publication and identities on the target, bookkeeping on the source. */
export async function removeReverse(scope: TaskScope, attempts: Attempts): Promise<void> {
  const note = findNote(scope);
  if (!note || note.handedOver) return;
  const reverse = reverseScope(scope, note);
  await attempts.run('target', 'reverse slot', () => dropSlot(reverse));
  await attempts.run('target', 'reverse publication', () => dropPublication(reverse));
  await attempts.run('target', 'replica identities', () => wayBack(() => restoreIdentities(reverse)));
  await attempts.run('source', 'reverse bookkeeping', () => removeBookkeeping(reverse));
}

async function dropArmed(reverse: TaskScope): Promise<void> {
  await dropSlot(reverse);
  forgetSlot(reverse);
}

/** Messages below speak of the reverse task's source, which is our target. */
async function wayBack(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    const known = fromPostgres(error);
    if (known.kind === 'aborted') throw known;
    throw new MigrationError(known.code, `the way back, from target to source: ${known.message}`, {
      kind: known.kind,
      ...(known.hint === undefined ? {} : { hint: known.hint }),
      ...(known.details === undefined ? {} : { details: known.details }),
      cause: known,
    });
  }
}

// ---- and as the reverse task sees the fence that stands on its target

function originScope(scope: TaskScope): TaskScope | null {
  const { origin, sourceDb, targetDb } = scope.spec;
  if (!origin) return null;
  const spec = { ...scope.spec, sourceDb: targetDb, targetDb: sourceDb };
  return turned(scope, origin, legNotes.originPrefix, spec);
}

/** The target of a reverse task takes writes again. Idempotent; nothing to do for a task that a request made. */
export async function unfenceTarget(scope: TaskScope): Promise<void> {
  const origin = originScope(scope);
  if (!origin) return;
  await allowWrites(origin, { evenIfOpened: true });
  scope.failpoint('reverse.source-unfenced');
}

/** Takes that fence's triggers away. Errors: `lock_timeout` naming who is in the way. */
export async function removeTargetFence(scope: TaskScope): Promise<void> {
  const origin = originScope(scope);
  if (origin) await removeFence(origin);
}

/** Checkpoints that the reverse task begins with; `get` reads those of the task that armed it. */
export function carriedNotes(get: (key: string) => unknown): Record<string, unknown> {
  const { prefix } = reverseNotes;
  const carried: Record<string, unknown> = {
    ...copyCompleteNotes,
    [cutoverNotes.analyzed]: true, // its target is the old source
  };
  for (const key of [slotNote, publicationNote, schemaPlanNote, identitiesNote])
    carried[key] = get(prefix + key);
  carried[legNotes.originPrefix + cutoverNotes.databaseFence] = get(cutoverNotes.databaseFence);
  return Object.fromEntries(Object.entries(carried).filter(([, value]) => value !== undefined));
}
