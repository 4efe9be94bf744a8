// After a failover: whether the promoted standby that answers at the source's address has the history that the target was
// made of. Asked by ensureSlot before it gives up. Nothing is guessed: the target must hold nothing that lies behind the
// point where the histories part, and the slot must be the server's own copy of ours.
import { MigrationError } from '../model/errors.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import { validationNotes } from '../model/validation.ts';
import { isCopyComplete, unfinishedTables } from './copy-state.ts';
import { fromPostgres } from './errors.ts';
import type { SlotRecord, SourceSystem } from './slot-record.ts';
import { sleep, type TaskScope } from './task-scope.ts';

const END_POLL_MS = 50;
const END_TIMEOUT_MS = 30_000;

/** Where the server's history left `timeline`, of a timeline history file; null when it never was on it. Pure. */
export function leftTimelineAt(history: string, timeline: number): Lsn | null {
  for (const line of history.split('\n')) {
    const [, parent, lsn] = /^\s*(\d+)\s+([0-9A-Fa-f]+\/[0-9A-Fa-f]+)/.exec(line) ?? [];
    if (lsn !== undefined && Number(parent) === timeline) return lsn;
  }
  return null;
}

/**
 * Null when the stream may go on here; else why not, in words. Synchronised slots (17+) lag behind the primary's, so what was
 * acknowledged there may not be known here, and what the target has applied may be missing here:
 *
 *   1 the slot is none that standbys get, or parts are still to be copied or repaired      a part may be of either history
 *   2 the histories part before the target's position, or before a part's horizon          the target has what never was
 *   3 no synchronised copy of the slot, or one that is lost, or beyond what we acknowledged  changes may be missing
 */
export async function whyNotFollow(
  scope: TaskScope,
  record: SlotRecord,
  found: SourceSystem,
): Promise<string | null> {
  if (record.failover !== true) return 'the slot is none that is synchronised to standbys';
  if (found.id !== record.system?.id) return 'it is no standby of the server where the slot was made';
  if (found.timeline < record.system.timeline) return 'its history ended earlier';
  const repairs = scope.checkpoints.get<readonly { readonly state: string }[]>(validationNotes.repairs) ?? [];
  const isCopied = isCopyComplete(scope) && unfinishedTables(scope).length === 0;
  if (!isCopied || repairs.some(({ state }) => state === 'pending'))
    return 'rows were still being copied or repaired';
  const parted = leftTimelineAt(await timelineHistory(scope, found.timeline), record.system.timeline);
  if (parted === null) return `its history does not contain timeline ${record.system.timeline}`;
  // what a session of ours still commits would not be looked at
  await endTargetSessions(scope);
  const target = await targetPosition(scope, record);
  if (compareLsn(target.furthest, parted) > 0)
    return `its history parted at ${parted}, and the target has changes up to ${target.furthest}`;
  const { rows } = await scope.source.query<{ usable: boolean; confirmed: Lsn | null }>(
    `select not pg_is_in_recovery() and coalesce((to_jsonb(s) ->> 'synced')::boolean, false) and not temporary
         and plugin = 'pgoutput' and database = current_database() and restart_lsn is not null
         and wal_status <> 'lost' and to_jsonb(s) ->> 'invalidation_reason' is null as usable,
       confirmed_flush_lsn::text as confirmed
     from pg_replication_slots s where slot_name = $1`,
    [record.name],
  );
  const slot = rows[0];
  if (!slot?.usable || slot.confirmed === null) return `it has no usable copy of slot ${record.name}`;
  return compareLsn(slot.confirmed, target.acked) > 0
    ? `its copy of the slot is at ${slot.confirmed}, beyond ${target.acked} that we have acknowledged`
    : null;
}

async function timelineHistory(scope: TaskScope, timeline: number): Promise<string> {
  const session = await scope.source.session({
    purpose: 'identify',
    replication: true,
    signal: scope.signal,
  });
  try {
    // content is declared bytea and sent as it is
    const { rows } = await session.client.query<{ content: Buffer | string }>(`TIMELINE_HISTORY ${timeline}`);
    const content = rows[0]?.content ?? '';
    return typeof content === 'string' ? content : content.toString('latin1');
  } catch (error) {
    throw fromPostgres(error, { role: 'source' });
  } finally {
    await session.close();
  }
}

async function targetPosition(
  scope: TaskScope,
  record: SlotRecord,
): Promise<{ readonly furthest: Lsn; readonly acked: Lsn }> {
  const { rows } = await scope.target.query<{ furthest: Lsn; acked: Lsn }>(
    `select greatest($3::pg_lsn, (select max(horizon_lsn) from dts.part where task_id = $1 and slot_incarnation = $2),
         p.applied_lsn)::text as furthest,
       coalesce(p.acked_lsn, $3::pg_lsn)::text as acked
     from (select 1) one left join dts.progress p on p.task_id = $1 and p.slot_incarnation = $2`,
    [scope.taskId, record.incarnation, record.consistentLsn],
  );
  const row = rows[0];
  if (!row) throw new MigrationError('internal', 'target: it does not tell its position');
  return row;
}

/** Of the stream, the copy and the validation: those with a purpose of their own. They come back by themselves. */
async function endTargetSessions(scope: TaskScope): Promise<void> {
  for (const deadline = Date.now() + END_TIMEOUT_MS; ; ) {
    const { rowCount } = await scope.target.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and starts_with(application_name, $1)`,
      [`dts/${scope.taskId}/target/`],
    );
    if (rowCount === 0) return;
    if (Date.now() > deadline)
      throw new MigrationError('deadline_exceeded', 'target: sessions of this task do not end');
    await sleep(END_POLL_MS, scope.signal);
  }
}
