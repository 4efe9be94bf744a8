// Who keeps the target from clearing away old row versions: asked for by the preflight, and by the sampler of a stream that
// lags. What a session of the same database may still see stays: from its snapshot (backend_xmin) on, or, once it has
// written, from its own transaction (backend_xid) on (ComputeXidHorizons in procarray.c).
import type { QueryResultRow } from 'pg';

type Ask = <R extends QueryResultRow>(sql: string, params: readonly unknown[]) => Promise<readonly R[]>;

export interface OldSnapshot {
  readonly pid: number;
  readonly user: string;
  /** Age of its transaction. */
  readonly seconds: number;
  /** The beginning of its last statement. */
  readonly query: string;
}

/** Younger transactions end by themselves before anyone reads about them. */
const OLD_SECONDS = 30;

/** The session that holds back the most, of those that are not this task's; null: none is that old. */
export async function oldestSnapshot(
  ask: Ask,
  taskId: string,
  olderThanSeconds = OLD_SECONDS,
): Promise<OldSnapshot | null> {
  const rows = await ask<{ pid: number; user: string | null; seconds: number; query: string }>(
    `select pid, usename::text as "user", extract(epoch from clock_timestamp() - xact_start)::int as seconds, left(query, 100) as query
     from pg_stat_activity
     where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
       and coalesce(backend_xmin, backend_xid) is not null and not starts_with(application_name, $1)
       and xact_start <= clock_timestamp() - make_interval(secs => $2)
     order by greatest(age(backend_xmin), age(backend_xid)) desc, xact_start limit 1`,
    [`dts/${taskId}/`, olderThanSeconds],
  );
  const row = rows[0];
  return row ? { ...row, user: row.user ?? 'unknown' } : null;
}
