// Compares source and target under the fence: called by the statechart's `verify` region. A table that the online
// validation has read costs only the keys that changed since; the others are compared as a whole. Nothing is reused from
// an earlier call, because writes were allowed in between. Differences are verdicts, not errors.
import { cutoverNotes, type VerdictsNote } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import type { TableVerdict } from '../model/certificate.ts';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { copyJobsOf } from '../postgres/host.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { readingDeadline, tookTooLong } from '../postgres/under-fence.ts';
import { compareChanges } from './delta.ts';
import { combineDigest, digestSql, limitsOf, type DigestRow } from './digest.ts';
import { compareLargeObjects } from './large-objects.ts';
import { findRun, saveTableNote, tableNote, verifiedUpTo } from './notes.ts';
import { closePair, needsRecoding, openPair, type SidePair } from './sessions.ts';
import { verifySourceColumns } from './source-columns.ts';

/**
 * Counts and digests of all tables of the plan, in plan order; `copyJobs` tables at a time, the largest first, both
 * sides of a table at once; then large objects. `whole`: nothing that is known of changes is relied upon. Errors:
 * `validation_failed` (large objects differ), `source_ddl`, `lock_timeout`, `deadline_exceeded` at `deadlineMs`, since the epoch.
 */
export async function compareTables(
  scope: TaskScope,
  {
    deadlineMs = readingDeadline(scope),
    whole = false,
  }: { readonly deadlineMs?: number | undefined; readonly whole?: boolean } = {},
): Promise<{ tables: TableVerdict[] }> {
  const plan = schemaPlanOf(scope);
  const tables = [...plan.tables, ...(plan.unlogged ?? [])];
  const [recode] = await Promise.all([needsRecoding(scope), verifySourceColumns(scope)]);
  const verdicts = new Map<string, TableVerdict>();
  const stop = new AbortController();
  const signal = AbortSignal.any([scope.signal, stop.signal]);
  const failures: MigrationError[] = [];
  const fail = (error: MigrationError): void => {
    failures.push(error); // the first is the news; the others follow from stopping
    stop.abort();
  };
  const timer = setTimeout(
    () =>
      fail(
        tookTooLong(
          scope,
          { what: `the comparison, with ${verdicts.size} of ${tables.length} tables done,` },
          { compared: verdicts.size, tables: tables.length },
        ),
      ),
    Math.min(Math.max(0, deadlineMs - Date.now()), 2 ** 31 - 1),
  );
  const queue: PlannedTable[] = [];
  const worker = async (): Promise<void> => {
    const pair = await openPair(scope, signal);
    try {
      for (let table = queue.shift(); table !== undefined && !signal.aborted; table = queue.shift()) {
        const name = relationKey(table.source);
        const verdict = await compareTable(table, pair, recode);
        const note = tableNote(scope.checkpoints, name);
        const verifiedLsn = verifiedUpTo(findRun(scope.checkpoints), name, note);
        verdicts.set(name, { ...verdict, verifiedLsn });
        // of the others the API shows keys, which the online validation finds
        if (!verdict.equal && table.keyColumns.length === 0 && plan.tables.includes(table))
          saveTableNote(scope.checkpoints, name, { ...note, state: 'differs' });
        scope.progress.setWaitingFor(`the comparison, ${verdicts.size} of ${tables.length} tables done`);
        scope.failpoint('validate.mid-tables');
      }
    } finally {
      await closePair(pair);
    }
  };
  try {
    scope.progress.setWaitingFor(`the comparison, 0 of ${tables.length} tables done`);
    try {
      const known = whole ? new Map<string, TableVerdict>() : await compareChanges(scope, signal);
      for (const [key, verdict] of known) verdicts.set(key, verdict);
    } catch (error) {
      fail(fromPostgres(error));
    }
    queue.push(
      ...tables
        .filter((table) => !verdicts.has(relationKey(table.source)))
        .toSorted((a, b) => b.bytesEstimated - a.bytesEstimated),
    );
    const wanted = failures[0] || queue.length === 0 ? 0 : Math.min(copyJobsOf(scope), queue.length);
    const workers = Array.from({ length: wanted }, () =>
      worker().catch((error: unknown) => fail(fromPostgres(error))),
    );
    await Promise.all(workers);
  } finally {
    clearTimeout(timer);
    scope.progress.setWaitingFor(null);
  }
  if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request');
  if (failures[0]) throw failures[0];
  const inOrder = tables
    .map((table) => verdicts.get(relationKey(table.source)))
    .filter((v) => v !== undefined);
  const largeObjects = await compareLargeObjects(scope, deadlineMs);
  const note: VerdictsNote = {
    validatedAt: new Date().toISOString(),
    tables: inOrder,
    ...(largeObjects && { largeObjects }),
  };
  scope.checkpoints.set(cutoverNotes.verdicts, note);
  return { tables: inOrder };
}

/** Whole digests of both sides, at once. Errors: those of the servers, with role and relation. */
export async function compareTable(
  table: Pick<PlannedTable, 'source' | 'target' | 'where' | 'leftOut' | 'ignored'> & {
    readonly columns: readonly { readonly name: string }[];
  },
  pair: SidePair,
  recode: boolean,
): Promise<TableVerdict> {
  const [source, target] = await Promise.all([
    digest(
      pair.source,
      digestSql(table.source, table.columns, recode, table.where),
      relationKey(table.source),
      'source',
    ),
    digest(pair.target, digestSql(table.target, table.columns, recode), relationKey(table.target), 'target'),
  ]);
  return {
    table: relationKey(table.source),
    target: relationKey(table.target),
    sourceRows: source.rows,
    targetRows: target.rows,
    sourceDigest: source.digest,
    targetDigest: target.digest,
    equal: source.rows === target.rows && source.digest === target.digest,
    method: 'full',
    ...limitsOf(table),
    verifiedLsn: null,
  };
}

async function digest(
  session: Session,
  sql: string,
  relation: string,
  role: 'source' | 'target',
): Promise<{ rows: number; digest: string }> {
  try {
    const { rows } = await session.client.query<DigestRow>(sql);
    const row = rows[0];
    return { rows: Number(row?.rows ?? 0), digest: combineDigest(row?.first ?? null, row?.second ?? null) };
  } catch (error) {
    throw fromPostgres(error, { role, relation });
  }
}
