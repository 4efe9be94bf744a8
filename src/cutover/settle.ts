// The end of a migration, after the point of no return: the target is open, so every step goes only forward and may run
// again after a kill. The certificate is on disk before anything that it was made from is removed.
import { cutoverNotes, type VerdictsNote } from '../model/cutover-notes.ts';
import { asMigrationError, MigrationError } from '../model/errors.ts';
import type { SchemaVerdict } from '../model/schema-plan.ts';
import type { Certificate, SequenceVerdict, TableVerdict } from '../model/certificate.ts';
import { removeBookkeeping } from '../postgres/bookkeeping.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { dropPublication } from '../postgres/publication.ts';
import { restoreIdentities } from '../postgres/replica-identity.ts';
import { findSlot } from '../postgres/slot-record.ts';
import { dropSlot } from '../postgres/slot-removal.ts';
import { sourceSystem, verifySystemOf } from '../postgres/source-system.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { analyzeTarget } from './analyze.ts';
import { Attempts } from './attempts.ts';
import { certificateSoFar, makeCertificate } from './certificate.ts';
import { certifiedServers } from './certified-servers.ts';
import { armFence, confirmFence, disarmFence, keepsFence, removeFence } from './fence.ts';
import { markOpened } from './fence-function.ts';
import { callHook } from './hooks.ts';
import { runPhases } from './planned-statements.ts';
import { removeTargetFence, unfenceTarget } from './reverse.ts';
import { copySequences, restoreSequences } from './sequences.ts';
import { withStructures } from './structures.ts';
import { isOpened, noteOpened } from './write-stop.ts';

/** VALIDATE waits for VACUUM and DDL only; the application is not held up by it. */
const LOCK_TIMEOUT = '30s';
/** Foreign keys and triggers come first and stand between the application and the target. */
const OPENING_LOCK_TIMEOUT = '5s';

/** The application waits. */
const MARK_TIMEOUT_MS = 2_000;

const OPENED_BEFORE = 'it was made by another attempt than the one that had opened the target';
const NO_SNAPSHOT = 'a server did not answer in time just before the target opened';

/**
 * Sequences, where the target has lost them; foreign keys and triggers, which opens the target; VALIDATE, ANALYZE where
 * it was not before, certificate; then slot, publication, fence (unless `keepFence`) and bookkeeping go.
 * `cleanupPending`: something is still there, because a server is out of reach or somebody holds a lock; calling it
 * again removes it and returns the same certificate. Errors: those of the target while the certificate is being made;
 * `validation_failed` while the target is not open and the source has taken writes that it lacks.
 */
export async function settle(
  scope: TaskScope,
  others: OtherFolders,
): Promise<{ certificate: Certificate; cleanupPending: boolean }> {
  const certificate =
    scope.checkpoints.get<Certificate>(cutoverNotes.certificate) ?? (await certify(scope, others));
  scope.failpoint('finalize.before-source-cleanup');
  const attempts = new Attempts(scope);
  await attempts.run('source', 'slot', () => dropSlot(scope));
  scope.failpoint('finalize.after-slot-drop');
  await attempts.run('source', 'publication', () => dropPublication(scope));
  await attempts.run('source', 'replica identities', () => restoreIdentities(scope));
  if (!keepsFence(scope)) {
    await attempts.run('source', 'fence', async () => {
      await disarmFence(scope, { evenIfOpened: true });
      await removeFence(scope);
    });
  }
  await attempts.run('target', 'fence of the other direction', () => removeTargetFence(scope));
  await attempts.run('target', 'bookkeeping', () => removeBookkeeping(scope));
  return { certificate, cleanupPending: attempts.conclude() !== null };
}

/** Whole digests as of the opening; made by validate/snapshots.ts. */
export interface HeldSnapshots {
  digest(
    verdicts: readonly TableVerdict[],
  ): Promise<{ readonly tables: readonly TableVerdict[]; readonly fault: string | null }>;
  close(): Promise<void>;
}

export type HoldSnapshots = (scope: TaskScope) => Promise<HeldSnapshots | null>;

/** What validate/ and schema/ do; the domain folders do not know each other. */
export interface OtherFolders {
  readonly hold?: HoldSnapshots;
  /** Compares every table as a whole, and notes the verdicts. */
  readonly compareAgain: () => Promise<readonly TableVerdict[]>;
  readonly compareSchema?: (scope: TaskScope) => Promise<SchemaVerdict | null>;
}

async function certify(
  scope: TaskScope,
  { hold = () => Promise.resolve(null), compareAgain, compareSchema }: OtherFolders,
): Promise<Certificate> {
  if (!isOpened(scope)) await ensureFenced(scope, compareAgain);
  const verdicts = scope.checkpoints.get<VerdictsNote>(cutoverNotes.verdicts);
  const sequences = scope.checkpoints.get<readonly SequenceVerdict[]>(cutoverNotes.sequences);
  if (!verdicts || !sequences) throw new MigrationError('internal', 'no verdicts or sequences to certify');
  // Once it is open the sequences are the application's, and its rows are not what was certified: nothing gives whole
  // digests of the moment of opening any more, and the certificate says so.
  const opened = isOpened(scope);
  const wanted = !opened && verdicts.tables.some((table) => table.method === 'changes');
  const holding = wanted ? hold(scope) : Promise.resolve(null);
  holding.catch(() => undefined); // awaited below
  if (!opened)
    await restoreSequences(scope, sequences).catch(async (error: unknown) => {
      await (await holding.catch(() => null))?.close();
      throw error;
    });
  if (!opened) await tellSource(scope);
  const snapshots = await holding;
  try {
    await runPhases(scope, {
      phases: ['foreign-key', 'final'],
      lockTimeout: OPENING_LOCK_TIMEOUT,
      together: true,
    });
    // before it is true: after a kill between the two, the sequences would be set and the snapshots taken too late
    noteOpened(scope);
    await unfenceTarget(scope);
    scope.failpoint('finalize.opened');
    const afterOpen = await tellOpened(scope);
    await runPhases(scope, { phases: ['refresh'], lockTimeout: LOCK_TIMEOUT });
    const unvalidated = await validateConstraints(scope);
    await analyzeTarget(scope);
    const { tables, fault } = snapshots
      ? await snapshots.digest(verdicts.tables)
      : { tables: verdicts.tables, fault: opened ? OPENED_BEFORE : NO_SNAPSHOT };
    const schema = (await compareSchema?.(scope)) ?? null;
    const { rows } = await scope.target.query<{ version: string }>(
      `select current_setting('server_version') as version`,
    );
    const targetVersion = rows[0]?.version ?? 'unknown';
    const certificate = makeCertificate(scope, {
      servers: await certifiedServers(scope),
      targetVersion,
      tables: await withStructures(scope, tables),
      partialDigests: fault,
      schema,
      unvalidated,
      afterOpen,
    });
    scope.checkpoints.set(cutoverNotes.certificate, certificate);
    return certificate;
  } finally {
    await snapshots?.close();
  }
}

/**
 * The fence may have been lifted since it was last seen: by hand, while we were away. Then it is armed again, and what was
 * compared before is compared as a whole.
 */
async function ensureFenced(scope: TaskScope, compareAgain: OtherFolders['compareAgain']): Promise<void> {
  const known = scope.checkpoints.get<VerdictsNote>(cutoverNotes.verdicts);
  if (!(await wasLifted(scope)) && known?.tables.every(({ equal }) => equal)) return;
  scope.checkpoints.delete(cutoverNotes.verdicts); // nothing holds any more, also for whoever goes on after a kill
  await armFence(scope);
  scope.checkpoints.set(cutoverNotes.sequences, await copySequences(scope));
  const differing = (await compareAgain()).filter(({ equal }) => !equal).map(({ table }) => table);
  if (differing.length === 0) return;
  throw new MigrationError(
    'validation_failed',
    `source and target differ in ${differing.join(', ')}: somebody had lifted the source's fence, and it took writes; the target is not open`,
    {
      hint: 'make those rows of the target equal by hand; the comparison is repeated by itself, and the target opens when nothing differs',
      details: { tables: differing },
    },
  );
}

/** False also where the source is gone, or another server by now: that must not keep the target closed. */
async function wasLifted(scope: TaskScope): Promise<boolean> {
  try {
    await confirmFence(scope);
    return false;
  } catch (error) {
    try {
      const slot = findSlot(scope);
      if (slot) verifySystemOf(await sourceSystem(scope), slot, scope);
      const known = fromPostgres(error, { role: 'source' });
      if (known.code !== 'fence_failed') throw known;
      scope.log.warn({ err: known }, 'the source may have taken writes: it is fenced and compared again');
      return true;
    } catch (doubt) {
      if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: doubt });
      scope.log.warn({ err: fromPostgres(doubt) }, 'whether the source is still fenced is not known');
      return false;
    }
  }
}

/** The source may be gone by now: that must not keep the target closed. */
async function tellSource(scope: TaskScope): Promise<void> {
  if (scope.spec.options.fence !== 'triggers') return;
  await markOpened(scope, MARK_TIMEOUT_MS).catch((error: unknown) => {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    scope.log.warn({ err: fromPostgres(error) }, 'the source could not be told that the target opens');
  });
}

/** The target is open whatever the hook says; so its failure is only told. */
async function tellOpened(scope: TaskScope): Promise<Certificate['afterOpen']> {
  if (scope.spec.options.hooks.afterOpen === null) return undefined;
  try {
    await callHook(scope, 'afterOpen', certificateSoFar(scope));
    return 'done';
  } catch (error) {
    const known = asMigrationError(error);
    if (known.kind === 'aborted') throw known;
    scope.log.warn({ err: known }, 'the hook after_open failed');
    return known.toReport();
  }
}

/** Returns what stays NOT VALID. */
async function validateConstraints(scope: TaskScope): Promise<string[]> {
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
  return unvalidated;
}
