// Statistics of the target's tables, before it opens: the first queries of the application must not meet plans for empty
// tables. Run while the stream catches up, so that the write stop does not pay for it.
import { cutoverNotes } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { identRelation } from '../postgres/sql.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';

const ANALYZE_BATCH = 50;

/** Every table once, also those that are added later; each table of a list is analyzed in a transaction of its own. */
export async function analyzeTarget(scope: TaskScope): Promise<void> {
  const noted = scope.checkpoints.get<true | readonly string[]>(cutoverNotes.analyzed) ?? [];
  if (noted === true) return;
  const done = new Set(noted);
  const { tables, roots } = schemaPlanOf(scope);
  const targets: RelationName[] = [...tables, ...roots]
    .map((mapping) => mapping.target)
    .filter((relation) => !done.has(relationKey(relation)));
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
  scope.checkpoints.set(cutoverNotes.analyzed, [
    ...done,
    ...targets.map((relation) => relationKey(relation)),
  ]);
}
