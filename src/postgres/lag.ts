// One look at source and slot: how far the source has written, whether the slot still holds what we need, and how much
// WAL it retains. Called by the stream's sampler, once or twice a second.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { TaskScope } from './task-scope.ts';

export interface SlotHealth {
  /** `pg_current_wal_lsn()` of the source. */
  readonly sourceLsn: Lsn;
  /** Null when the slot does not exist. */
  readonly slot: {
    /** `reserved`, `extended`, `unreserved` or `lost`. */
    readonly walStatus: string | null;
    /** WAL that the source keeps for the slot: current position − restart_lsn. */
    readonly retainedBytes: number;
    readonly confirmedFlushLsn: Lsn | null;
    readonly restartLsn: Lsn | null;
  } | null;
}

/** Reads the position of the source and the state of the slot `name` in one statement. */
export async function sampleSlot(scope: TaskScope, name: string): Promise<SlotHealth> {
  const { rows } = await scope.source.query<{
    source_lsn: Lsn;
    slot_name: string | null;
    wal_status: string | null;
    retained: string | null;
    confirmed: Lsn | null;
    restart: Lsn | null;
  }>(
    `select pg_current_wal_lsn()::text as source_lsn, s.slot_name, s.wal_status,
       pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::text as retained, s.confirmed_flush_lsn::text as confirmed,
       s.restart_lsn::text as restart
     from (select 1) one left join pg_replication_slots s on s.slot_name = $1`,
    [name],
  );
  const row = rows[0];
  if (!row) throw new MigrationError('internal', 'source: the slot sample returned no row');
  return {
    sourceLsn: row.source_lsn,
    slot:
      row.slot_name === null
        ? null
        : {
            walStatus: row.wal_status,
            retainedBytes: Math.max(0, Number(row.retained ?? 0)),
            confirmedFlushLsn: row.confirmed,
            restartLsn: row.restart,
          },
  };
}
