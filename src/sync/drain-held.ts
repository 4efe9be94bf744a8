// Applies what is set aside of a table, through the replay that applies everything else: the copy's filter decides of every
// change whether the table's new rows have seen it. Run by the copy while the stream goes on setting aside, and for what is
// left by the stream itself when the table is released; both lock the table's row of dts.held_table with every batch, so
// that each change is applied once, whoever is killed when.
import { MigrationError } from '../model/errors.ts';
import { lsnToBigint, type Lsn } from '../model/lsn.ts';
import { relationKey } from '../model/relation.ts';
import { readHolds } from '../postgres/held-tables.ts';
import { slotOf } from '../postgres/slot-record.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { Applier } from './apply.ts';
import { openApplySession } from './apply-session.ts';
import { CopyFilter } from './filter.ts';
import { HeldFeed } from './held-feed.ts';
import { heldPosition } from './position.ts';
import { loadPartsOf } from './progress.ts';
import { RelationMap } from './relations.ts';
import { Replay, ReplayInOrder } from './replay.ts';
import { newFigures } from './replay-figures.ts';

/**
 * Applies what is set aside of `relation` up to now; its parts are all on the target. Returns how many changes that were.
 * Errors: `source_ddl` where its columns have changed, `unexpected_row`, those of a session.
 */
export async function drainHeld(scope: TaskScope, relation: string): Promise<number> {
  const waiting = await scope.target.query(
    'select from dts.held_change where task_id = $1 and relation = $2 limit 1',
    [scope.taskId, relation],
  );
  if (waiting.rowCount === 0) return 0;
  const figures = newFigures();
  for (let orderedUntil: Lsn | null = null; ; ) {
    try {
      await replayHeld(scope, relation, orderedUntil, figures);
      return figures.changesApplied;
    } catch (error) {
      scope.signal.throwIfAborted();
      const isNew =
        error instanceof ReplayInOrder &&
        (orderedUntil === null || lsnToBigint(error.until) > lsnToBigint(orderedUntil));
      if (!isNew) throw error instanceof ReplayInOrder ? error.cause : error;
      orderedUntil = error.until;
    }
  }
}

async function replayHeld(
  scope: TaskScope,
  relation: string,
  orderedUntil: Lsn | null,
  figures: ReturnType<typeof newFigures>,
): Promise<void> {
  const table = schemaPlanOf(scope).tables.find(({ source }) => relationKey(source) === relation);
  if (!table) throw new MigrationError('internal', `${relation} is held and is not in the plan`);
  const filter = new CopyFilter(await loadPartsOf(scope, slotOf(scope), [relation]));
  const session = await openApplySession(scope, scope.signal);
  try {
    const held = (await readHolds(scope)).tables.find((each) => each.relation === relation);
    if (!held) throw new MigrationError('internal', `target: ${relation} is not held`);
    const applier = new Applier(
      scope,
      session,
      heldPosition(scope, relation),
      { appliedLsn: held.appliedLsn, tracking: false },
      false,
    );
    await new Replay({
      scope,
      feed: new HeldFeed(scope, relation),
      applier,
      relations: new RelationMap(scope, [table], null),
      filter,
      figures,
      orderedUntil,
      onStored: () => scope.failpoint('held.applied'),
    }).run();
  } finally {
    await session.close();
  }
}
