// Called by settle: the tables of the certificate with the structure that they have on both sides, so that `dts verify` can tell
// later what has become of it.
import type { CertifiedTable, TableStructure, TableVerdict } from '../model/certificate.ts';
import type { Role } from '../model/endpoint.ts';
import { MigrationError } from '../model/errors.ts';
import { parseRelationName } from '../model/relation.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { readStructures } from '../postgres/table-structure.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

/** The source may be gone by now. */
const TIMEOUT_MS = 30_000;

/** Errors: `aborted`. */
export async function withStructures(
  scope: TaskScope,
  verdicts: readonly TableVerdict[],
): Promise<readonly CertifiedTable[]> {
  const names = {
    source: verdicts.map(({ table }) => table),
    target: verdicts.map((verdict) => verdict.target),
  };
  const [source, target] = await Promise.all([
    structuresOn(scope, 'source', names.source),
    structuresOn(scope, 'target', names.target),
  ]);
  return verdicts.map((verdict) => ({
    ...verdict,
    structure: {
      source: source.get(verdict.table) ?? null,
      target: target.get(verdict.target) ?? null,
    },
  }));
}

/** What is not known is not certified, and keeps nothing from ending. */
async function structuresOn(
  scope: TaskScope,
  role: Role,
  names: readonly string[],
): Promise<ReadonlyMap<string, TableStructure>> {
  try {
    return await readStructures(scope[role], names.map(parseRelationName), TIMEOUT_MS);
  } catch (error) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    scope.log.warn({ err: fromPostgres(error), role }, 'the certificate lacks the structure of the tables');
    return new Map();
  }
}
