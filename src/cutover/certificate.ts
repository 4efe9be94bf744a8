// The certificate of a cutover, made from the notes of its steps: as far as they have come for the hooks, and whole for
// settle.
import {
  cutoverNotes,
  type DrainNote,
  type FenceNote,
  type VerdictsNote,
  type WriteStop,
} from '../model/cutover-notes.ts';
import { certificateHash } from '../model/certificate.ts';
import { MigrationError } from '../model/errors.ts';
import type { Certificate, SequenceVerdict, TableVerdict } from '../model/task.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

/** What is known before the target opens. */
export function certificateSoFar(scope: TaskScope): Partial<Certificate> {
  const fence = scope.checkpoints.get<FenceNote>(cutoverNotes.fence);
  const markerLsn = scope.checkpoints.get<DrainNote>(cutoverNotes.drain)?.markerLsn ?? null;
  const verdicts = scope.checkpoints.get<VerdictsNote>(cutoverNotes.verdicts);
  return {
    taskId: scope.taskId,
    fence: scope.spec.options.fence,
    ...(fence && { fenceLsn: fence.fenceLsn, armedAt: fence.armedAt, sourceVersion: fence.sourceVersion }),
    ...(markerLsn === null ? {} : { markerLsn }),
    ...(verdicts && {
      tables: verdicts.tables,
      validatedAt: verdicts.validatedAt,
      equal: verdicts.tables.every((table) => table.equal),
    }),
    sequences: scope.checkpoints.get<readonly SequenceVerdict[]>(cutoverNotes.sequences) ?? [],
  };
}

export interface CertifiedFacts {
  readonly targetVersion: string;
  readonly tables: readonly TableVerdict[];
  readonly unvalidated: readonly string[];
  readonly afterOpen: Certificate['afterOpen'];
}

/** Throws `internal` when a step has left no note. */
export function makeCertificate(scope: TaskScope, facts: CertifiedFacts): Certificate {
  const { fenceLsn, armedAt, sourceVersion, markerLsn, validatedAt, sequences } = certificateSoFar(scope);
  const openedAt = scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.openedAt ?? null;
  if (
    fenceLsn === undefined ||
    armedAt === undefined ||
    sourceVersion === undefined ||
    markerLsn === undefined ||
    validatedAt === undefined ||
    openedAt === null
  )
    throw new MigrationError('internal', 'a step of the cutover has left no note to certify');
  const content = {
    taskId: scope.taskId,
    fence: scope.spec.options.fence,
    sourceVersion,
    targetVersion: facts.targetVersion,
    fenceLsn,
    markerLsn,
    tables: facts.tables,
    sequences: sequences ?? [],
    validatedAt,
    armedAt,
    openedAt,
    completedAt: new Date().toISOString(),
    equal: facts.tables.every((table) => table.equal),
    ...(facts.afterOpen === undefined ? {} : { afterOpen: facts.afterOpen }),
    ...(facts.unvalidated.length === 0 ? {} : { unvalidatedConstraints: facts.unvalidated }),
  };
  return { ...content, hash: certificateHash(content) };
}
