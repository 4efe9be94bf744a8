// The certificate of a cutover, made from the notes of its steps: as far as they have come for the hooks, and whole for
// settle.
import {
  cutoverNotes,
  type DrainNote,
  type FenceNote,
  type VerdictsNote,
  type WriteStop,
} from '../model/cutover-notes.ts';
import { certificateHash } from '../model/certificate-hash.ts';
import { MigrationError } from '../model/errors.ts';
import type { SchemaVerdict } from '../model/schema-plan.ts';
import type {
  Certificate,
  CertifiedTable,
  SchemaSummary,
  SequenceVerdict,
  WriteStopReport,
} from '../model/certificate.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

const SCHEMA_DIFFERENCES_SHOWN = 20;

/** What is known before the target opens. */
export function certificateSoFar(scope: TaskScope): Partial<Certificate> {
  const fence = scope.checkpoints.get<FenceNote>(cutoverNotes.fence);
  const markerLsn = scope.checkpoints.get<DrainNote>(cutoverNotes.drain)?.markerLsn ?? null;
  const verdicts = scope.checkpoints.get<VerdictsNote>(cutoverNotes.verdicts);
  const rolesPastFence = scope.checkpoints.get<readonly string[]>(cutoverNotes.rolesPastFence) ?? [];
  return {
    taskId: scope.taskId,
    fence: scope.spec.options.fence,
    ...(rolesPastFence.length > 0 && { rolesPastFence }),
    ...(fence && { fenceLsn: fence.fenceLsn, armedAt: fence.armedAt, sourceVersion: fence.sourceVersion }),
    ...(markerLsn === null ? {} : { markerLsn }),
    ...(verdicts && {
      tables: verdicts.tables,
      validatedAt: verdicts.validatedAt,
      equal: verdicts.tables.every((table) => table.equal),
      ...(verdicts.largeObjects && { largeObjects: verdicts.largeObjects }),
    }),
    sequences: scope.checkpoints.get<readonly SequenceVerdict[]>(cutoverNotes.sequences) ?? [],
  };
}

export interface CertifiedFacts {
  readonly servers: NonNullable<Certificate['servers']>;
  readonly targetVersion: string;
  readonly tables: readonly CertifiedTable[];
  /** Why digests of some tables are of the last changes only; null when none are, or nobody knows. */
  readonly partialDigests: string | null;
  readonly schema: SchemaVerdict | null;
  readonly unvalidated: readonly string[];
  readonly afterOpen: Certificate['afterOpen'];
}

/** The certificate lives in the task's snapshot: names only; `GET …/schema` has the texts. */
function shortened({
  equal,
  statements,
  differences,
  differencesTotal,
  error,
}: SchemaVerdict): SchemaSummary {
  return {
    equal,
    statements,
    differencesTotal,
    differences: differences.slice(0, SCHEMA_DIFFERENCES_SHOWN).map(({ object }) => object),
    error,
  };
}

/** Throws `internal` when a step has left no note. */
export function makeCertificate(scope: TaskScope, facts: CertifiedFacts): Certificate {
  const {
    fenceLsn,
    armedAt,
    sourceVersion,
    markerLsn,
    validatedAt,
    sequences,
    largeObjects,
    rolesPastFence,
  } = certificateSoFar(scope);
  const openedAt = scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.openedAt ?? null;
  const writeStop = writeStopReport(scope);
  if (
    fenceLsn === undefined ||
    armedAt === undefined ||
    sourceVersion === undefined ||
    markerLsn === undefined ||
    validatedAt === undefined ||
    openedAt === null
  )
    throw new MigrationError('internal', 'a step of the cutover has left no note to certify');
  const isPartial = facts.tables.some(({ method }) => method === 'changes');
  const content: Omit<Certificate, 'hash'> = {
    taskId: scope.taskId,
    fence: scope.spec.options.fence,
    servers: facts.servers,
    sourceVersion,
    targetVersion: facts.targetVersion,
    fenceLsn,
    markerLsn,
    tables: facts.tables,
    digests: isPartial
      ? { extent: 'changes', reason: facts.partialDigests }
      : { extent: 'whole', reason: null },
    sequences: sequences ?? [],
    validatedAt,
    armedAt,
    openedAt,
    ...(writeStop && { writeStop }),
    completedAt: new Date().toISOString(),
    equal: facts.tables.every((table) => table.equal),
    ...(largeObjects && { largeObjects }),
    ...(rolesPastFence && { rolesPastFence }),
    ...(facts.schema === null ? {} : { schema: shortened(facts.schema) }),
    ...(facts.afterOpen === undefined ? {} : { afterOpen: facts.afterOpen }),
    ...(facts.unvalidated.length === 0 ? {} : { unvalidatedConstraints: facts.unvalidated }),
  };
  return { ...content, hash: certificateHash(content) };
}

/** Undefined where a step has not noted its time. */
function writeStopReport({ checkpoints }: TaskScope): WriteStopReport | undefined {
  const fence = checkpoints.get<FenceNote>(cutoverNotes.fence);
  const times = [
    fence?.armedAt,
    fence?.provedAt,
    checkpoints.get<DrainNote>(cutoverNotes.drain)?.appliedAt,
    checkpoints.get<VerdictsNote>(cutoverNotes.verdicts)?.validatedAt,
    checkpoints.get<string>(cutoverNotes.prepared),
    checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.openedAt ?? undefined,
  ].map((time) => Date.parse(time ?? ''));
  if (times.some(Number.isNaN)) return undefined;
  const [fenceMs = 0, drainMs = 0, compareMs = 0, prepareMs = 0, openMs = 0] = times
    .slice(1)
    .map((time, n) => Math.max(0, time - (times[n] ?? time)));
  return {
    ms: Math.max(0, (times.at(-1) ?? 0) - (times[0] ?? 0)),
    predictedMs: checkpoints.get<number>(cutoverNotes.forecast) ?? null,
    steps: { fenceMs, drainMs, compareMs, prepareMs, openMs },
  };
}
