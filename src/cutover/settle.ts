// The end of a migration, after the point of no return: the target is open, so every step goes only forward and may run
// again after a kill. The certificate is on disk before anything that it was made from is removed.
import { cutoverNotes, type DrainNote, type FenceNote, type VerdictsNote } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import type { RelationName } from '../model/relation.ts';
import type { Certificate, SequenceVerdict } from '../model/task.ts';
import { removeBookkeeping } from '../postgres/bookkeeping.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { dropPublication } from '../postgres/publication.ts';
import { dropSlot } from '../postgres/slot.ts';
import { identRelation } from '../postgres/sql.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { Attempts } from './attempts.ts';
import { disarmFence, keepsFence, removeFence } from './fence.ts';
import { runPhases } from './planned-statements.ts';
import { restoreSequences } from './sequences.ts';
import { isOpened, noteOpened } from './write-stop.ts';

/** VALIDATE waits for VACUUM and DDL only; the application is not held up by it. */
const LOCK_TIMEOUT = '30s';
/** Foreign keys and triggers come first and stand between the application and the target. */
const OPENING_LOCK_TIMEOUT = '5s';
const ANALYZE_BATCH = 50;

/**
 * Sequences, where the target has lost them; foreign keys and triggers, which opens the target; VALIDATE, ANALYZE,
 * certificate; then slot, publication, fence (unless `keepFence`) and bookkeeping go.
 * `cleanupPending`: something is still there, because a server is out of reach or somebody holds a lock; calling it
 * again removes it and returns the same certificate. Errors: those of the target while the certificate is being made.
 */
export async function settle(
  scope: TaskScope,
): Promise<{ certificate: Certificate; cleanupPending: boolean }> {
  const certificate = scope.checkpoints.get<Certificate>(cutoverNotes.certificate) ?? (await certify(scope));
  scope.failpoint('finalize.before-source-cleanup');
  const attempts = new Attempts(scope);
  await attempts.run('source', 'slot', () => dropSlot(scope));
  scope.failpoint('finalize.after-slot-drop');
  await attempts.run('source', 'publication', () => dropPublication(scope));
  if (!keepsFence(scope)) {
    await attempts.run('source', 'fence', async () => {
      await disarmFence(scope);
      await removeFence(scope);
    });
  }
  await attempts.run('target', 'bookkeeping', () => removeBookkeeping(scope));
  return { certificate, cleanupPending: attempts.conclude() !== null };
}

async function certify(scope: TaskScope): Promise<Certificate> {
  const note = <T>(key: keyof typeof cutoverNotes): T => {
    const found = scope.checkpoints.get<T>(cutoverNotes[key]);
    if (found === undefined) throw new MigrationError('internal', `no ${key} to certify`);
    return found;
  };
  const sequences = note<readonly SequenceVerdict[]>('sequences');
  // Once it is open they are the application's.
  if (!isOpened(scope)) await restoreSequences(scope, sequences);
  await runPhases(scope, { phases: ['foreign-key', 'final'], lockTimeout: OPENING_LOCK_TIMEOUT });
  noteOpened(scope);
  await runPhases(scope, { phases: ['refresh'], lockTimeout: LOCK_TIMEOUT });
  const unvalidated: string[] = [];
  await runPhases(scope, {
    phases: ['validate'],
    lockTimeout: LOCK_TIMEOUT,
    onError: (statement, error) => {
      // Class 23: rows violate the constraint. They were compared and are the source's own, written there past its
      // checks; no further attempt would change that, so the constraint stays NOT VALID and the certificate says so.
      const sqlstate = error instanceof MigrationError ? error.details?.['sqlstate'] : undefined;
      if (typeof sqlstate !== 'string' || !sqlstate.startsWith('23')) throw error;
      scope.log.warn({ err: error, object: statement.object }, 'a constraint stays NOT VALID');
      unvalidated.push(statement.object);
    },
  });
  await analyze(scope);
  const { rows } = await scope.target.query<{ version: string }>(
    `select current_setting('server_version') as version`,
  );
  const fence = note<FenceNote>('fence');
  const { markerLsn } = note<DrainNote>('drain');
  const verdicts = note<VerdictsNote>('verdicts');
  if (markerLsn === null) throw new MigrationError('internal', 'the marker has not been applied');
  const certificate: Certificate = {
    taskId: scope.taskId,
    fence: scope.spec.options.fence,
    sourceVersion: fence.sourceVersion,
    targetVersion: rows[0]?.version ?? 'unknown',
    fenceLsn: fence.fenceLsn,
    markerLsn,
    tables: verdicts.tables,
    sequences,
    validatedAt: verdicts.validatedAt,
    ...(unvalidated.length === 0 ? {} : { unvalidatedConstraints: unvalidated }),
  };
  scope.checkpoints.set(cutoverNotes.certificate, certificate);
  return certificate;
}

/** Statistics for the first queries; each table of the list is analyzed in a transaction of its own. */
async function analyze(scope: TaskScope): Promise<void> {
  const { tables, roots } = schemaPlanOf(scope);
  const targets: RelationName[] = [...tables, ...roots].map((mapping) => mapping.target);
  if (targets.length === 0) return;
  const session = await scope.target.session({ purpose: 'analyze', signal: scope.signal });
  try {
    for (let from = 0; from < targets.length; from += ANALYZE_BATCH) {
      const list = targets.slice(from, from + ANALYZE_BATCH).map((relation) => identRelation(relation));
      scope.progress.setWaitingFor(`ANALYZE on the target, ${from} of ${targets.length} tables done`);
      await session.client.query(`analyze ${list.join(', ')}`);
    }
  } catch (error) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    throw fromPostgres(error, { role: 'target' });
  } finally {
    scope.progress.setWaitingFor(null);
    await session.close();
  }
}
