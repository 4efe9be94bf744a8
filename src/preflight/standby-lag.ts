// Check of run.ts: whether the source lets our role see how far its standbys lie behind, where max_source_lag_bytes makes the
// copy wait for them. pg_stat_replication hides positions from whoever is no member of pg_read_all_stats.
import type { Finding } from '../model/finding.ts';
import { ident } from '../postgres/sql.ts';
import { onlyRow, type Ask } from './ask.ts';

export async function checkStandbyLag(ask: Ask, limit: number | null, role: string): Promise<Finding[]> {
  if (limit === null) return [];
  const { visible } = onlyRow(
    await ask<{ visible: boolean }>(`select pg_has_role('pg_read_all_stats', 'usage') as visible`),
  );
  if (visible) return [];
  return [
    {
      code: 'standby_lag_hidden',
      severity: 'warning',
      object: role,
      message: `source: role ${role} does not see how far standbys lie behind, so that max_source_lag_bytes has no effect`,
      remedy: `grant pg_read_all_stats to ${ident(role)}`,
    },
  ];
}
