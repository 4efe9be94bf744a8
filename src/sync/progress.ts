// The two tables on the target that make the replay exact: dts.progress (how far, and what was acknowledged) and
// dts.part (which snapshot each part was read under). Read at every (re)connection: the target knows, we do not.
import type { QueryResultRow } from 'pg';
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import { parseRange } from '../model/part-range.ts';
import { parsePgSnapshot } from '../model/pg-snapshot.ts';
import { relationKey } from '../model/relation.ts';
import { unfinishedTables } from '../postgres/copy-state.ts';
import { flushTarget, type Queryable } from '../postgres/flush-wal.ts';
import { recopyRemedy, type SlotRecord } from '../postgres/slot-record.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import type { CopiedPart } from './filter.ts';

export interface Progress {
  /** End LSN of the last source transaction on the target: where to go on. */
  readonly appliedLsn: Lsn;
  /** Furthest position that the slot may have been told. */
  readonly ackedLsn: Lsn;
  /** Whether the keys of what is changed are to be written down (validate/changes.ts). */
  readonly tracking: boolean;
}

/** Reads the row, made at the slot's beginning where it is missing. `slot_stranger` when it is another slot's. */
export async function loadProgress(scope: TaskScope, slot: SlotRecord): Promise<Progress> {
  // Read first: ON CONFLICT waits for a transaction that updates the row, and the one that may still do so is a session
  // of ours whose connection broke. The applier waits for that one, under its lock_timeout.
  let row = await readProgress(scope, scope.target);
  if (!row) {
    await scope.target.query(
      `insert into dts.progress (task_id, slot_incarnation, applied_lsn, acked_lsn)
       values ($1, $2, $3::pg_lsn, $3::pg_lsn) on conflict do nothing`,
      [scope.taskId, slot.incarnation, slot.consistentLsn],
    );
    row = await readProgress(scope, scope.target);
  }
  return progressOf(scope, slot, row);
}

/**
 * The same, once there is a row. A crash of the target will not take it back, as it could the last commits of an earlier
 * connection: the source may be told of it. Errors: also those of a session.
 */
export async function loadDurableProgress(scope: TaskScope, slot: SlotRecord): Promise<Progress> {
  return progressOf(scope, slot, await flushTarget(scope, (client) => readProgress(scope, client)));
}

function progressOf(scope: TaskScope, slot: SlotRecord, row: ProgressRow | undefined): Progress {
  if (row?.incarnation !== slot.incarnation)
    throw new MigrationError(
      'slot_stranger',
      `target: the progress of ${scope.taskId} belongs to another slot`,
      {
        hint: `the rows on the target were made by another run: ${recopyRemedy(scope)}`,
        details: { slot: slot.name, found: row?.incarnation ?? null },
      },
    );
  return { appliedLsn: row.applied, ackedLsn: row.acked, tracking: row.tracking };
}

interface ProgressRow extends QueryResultRow {
  readonly incarnation: string;
  readonly applied: Lsn;
  readonly acked: Lsn;
  readonly tracking: boolean;
}

async function readProgress({ taskId }: TaskScope, target: Queryable): Promise<ProgressRow | undefined> {
  const { rows } = await target.query<ProgressRow>(
    `select slot_incarnation as incarnation, applied_lsn::text as applied, acked_lsn::text as acked, tracking
     from dts.progress where task_id = $1`,
    [taskId],
  );
  return rows[0];
}

/** The markers of this slot's parts, of tables whose changes are applied. Throws `internal` when one of them has none. */
export async function loadParts(
  scope: TaskScope,
  slot: SlotRecord,
  held: ReadonlySet<string>,
): Promise<readonly CopiedPart[]> {
  if (scope.spec.origin) return []; // nothing was copied: both sides were equal where its slot begins
  const parts = await loadPartsOf(scope, slot, null);
  // asked behind the markers: a table is said to be copied again before they are removed; and one that is being added is not
  // published before it is held
  const isLater = new Set([...held, ...unfinishedTables(scope)]);
  const copied = new Set(parts.map((part) => part.relation));
  const missing = schemaPlanOf(scope)
    .tables.map((table) => relationKey(table.source))
    .filter((table) => !copied.has(table) && !isLater.has(table));
  if (missing.length > 0)
    throw new MigrationError(
      'internal',
      `target: no marker of a copy for ${missing.slice(0, 5).join(', ')}`,
      {
        details: { missing },
      },
    );
  return parts.filter(({ relation }) => !held.has(relation));
}

/** Every marker of these tables under this slot; null: of all. */
export async function loadPartsOf(
  scope: TaskScope,
  slot: SlotRecord,
  relations: readonly string[] | null,
): Promise<readonly CopiedPart[]> {
  const { rows } = await scope.target.query<{
    relation: string;
    part: number;
    range: string | null;
    pg_snapshot: string;
    horizon: Lsn;
  }>(
    `select relation, part, range, pg_snapshot, horizon_lsn::text as horizon from dts.part
     where task_id = $1 and slot_incarnation = $2 and ($3::text[] is null or relation = any ($3::text[]))
     order by relation, part`,
    [scope.taskId, slot.incarnation, relations],
  );
  return rows.map((row) => ({
    relation: row.relation,
    part: row.part,
    range: parseRange(row.range),
    pgSnapshot: parsePgSnapshot(row.pg_snapshot),
    horizonLsn: row.horizon,
  }));
}
