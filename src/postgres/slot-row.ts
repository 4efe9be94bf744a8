// A replication slot as the source shows it, and whether it looks like one of ours.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { TaskScope } from './task-scope.ts';

export interface SlotRow {
  readonly plugin: string | null;
  readonly here: boolean;
  readonly temporary: boolean;
  readonly two_phase: boolean;
  readonly active_pid: number | null;
  /** application_name of whoever reads from it. */
  readonly reader: string | null;
  readonly wal_status: string | null;
  readonly restart_lsn: Lsn | null;
  readonly confirmed: Lsn | null;
  readonly invalidation: string | null;
}

export async function readSlot(scope: TaskScope, name: string): Promise<SlotRow | null> {
  // to_jsonb: two_phase exists from 14 on, conflicting from 16, invalidation_reason from 17. 16 also calls a slot
  // conflicting whose WAL was removed; that one alone has lost its restart_lsn.
  const { rows } = await scope.source.query<SlotRow>(
    `select plugin, coalesce(database = current_database(), false) as here, temporary, active_pid, wal_status,
       (select application_name from pg_stat_activity where pid = active_pid) as reader,
       restart_lsn::text, confirmed_flush_lsn::text as confirmed,
       coalesce((to_jsonb(s) ->> 'two_phase')::boolean, false) as two_phase,
       coalesce(to_jsonb(s) ->> 'invalidation_reason',
         case when to_jsonb(s) ->> 'conflicting' = 'true' and restart_lsn is not null then 'conflicting' end) as invalidation
     from pg_replication_slots s where slot_name = $1`,
    [name],
  );
  return rows[0] ?? null;
}

/** Of pg_replication_slots.invalidation_reason, with the setting to change. */
export function invalidationReason(reason: string): string {
  switch (reason) {
    case 'idle_timeout':
      return 'nobody read from it for too long; set idle_replication_slot_timeout to 0 before the next attempt';
    case 'wal_level_insufficient':
      return 'wal_level was lowered; set it to logical before the next attempt';
    case 'rows_removed':
    case 'conflicting':
      return 'the server has removed rows that it needed: it is or was a standby';
    default:
      return 'the source removed WAL that was still needed; raise max_slot_wal_keep_size before the next attempt';
  }
}

/** Whether the slot has the shape that we give it; another plugin, database or kind is somebody else's. */
export function foreignShape(row: SlotRow): string | null {
  if (row.plugin !== 'pgoutput') return `its plugin is ${row.plugin ?? 'none (a physical slot)'}`;
  if (!row.here) return 'it belongs to another database';
  if (row.temporary) return 'it is temporary';
  if (row.two_phase) return 'it was switched to two-phase decoding';
  return null;
}

export function stranger(name: string, reason: string): MigrationError {
  return new MigrationError('slot_stranger', `source: replication slot ${name}: ${reason}`, {
    hint: `choose another id, or, if nobody uses that slot: select pg_drop_replication_slot('${name}')`,
    details: { slot: name },
  });
}
