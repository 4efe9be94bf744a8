// One look at source and slot: how far the source has written, whether the slot still holds what we need, how much WAL it
// retains, and how long that can go on. Called by the stream's sampler, once or twice a second.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { TaskScope } from './task-scope.ts';

export interface SlotHealth {
  /** `pg_current_wal_lsn()` of the source. */
  readonly sourceLsn: Lsn;
  /** Last position that our walsender has sent; null without one. */
  readonly sentLsn: Lsn | null;
  /** Null when the slot does not exist. */
  readonly slot: {
    /** `reserved`, `extended`, `unreserved` or `lost`. */
    readonly walStatus: string | null;
    /** WAL that the source keeps for the slot: current position − restart_lsn. */
    readonly retainedBytes: number;
    readonly confirmedFlushLsn: Lsn | null;
    readonly restartLsn: Lsn | null;
    /** WAL that may still be written before the slot is lost; null: max_slot_wal_keep_size is unlimited. */
    readonly safeWalBytes: number | null;
  } | null;
}

/** Reads the position of the source and the state of the slot `name` in one statement. */
export async function sampleSlot(scope: TaskScope, name: string): Promise<SlotHealth> {
  const { rows } = await scope.source.query<{
    source_lsn: Lsn;
    sent: Lsn | null;
    slot_name: string | null;
    wal_status: string | null;
    retained: string | null;
    confirmed: Lsn | null;
    restart: Lsn | null;
    safe: string | null;
  }>(
    `select pg_current_wal_lsn()::text as source_lsn, r.sent_lsn::text as sent, s.slot_name, s.wal_status,
       pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::text as retained, s.confirmed_flush_lsn::text as confirmed,
       s.restart_lsn::text as restart, s.safe_wal_size::text as safe
     from (select 1) one left join pg_replication_slots s on s.slot_name = $1
       left join pg_stat_replication r on r.pid = s.active_pid`,
    [name],
  );
  const row = rows[0];
  if (!row) throw new MigrationError('internal', 'source: the slot sample returned no row');
  const number = (value: string | null): number | null => (value === null ? null : Number(value));
  return {
    sourceLsn: row.source_lsn,
    sentLsn: row.sent,
    slot:
      row.slot_name === null
        ? null
        : {
            walStatus: row.wal_status,
            retainedBytes: Math.max(0, Number(row.retained ?? 0)),
            confirmedFlushLsn: row.confirmed,
            restartLsn: row.restart,
            safeWalBytes: number(row.safe),
          },
  };
}

/** What decoding for the slot has written to disk on the source so far (logical_decoding_work_mem); null before 14. */
export async function readSpill(
  scope: TaskScope,
  name: string,
  sourceVersion: number,
): Promise<number | null> {
  if (sourceVersion < 140_000) return null;
  const { rows } = await scope.source.query<{ spill: string }>(
    'select spill_bytes::text as spill from pg_stat_replication_slots where slot_name = $1',
    [name],
  );
  return rows[0] ? Number(rows[0].spill) : null;
}
