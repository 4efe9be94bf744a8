// Check of run.ts: a free walsender on the source for our stream.
import type { Finding } from '../model/finding.ts';
import type { Role } from '../model/endpoint.ts';
import { onlyRow, type Ask } from './ask.ts';

export interface WalsenderFacts {
  /** max_wal_senders. */
  readonly max: number;
  /** By everybody but this task. */
  readonly used: number;
}

export async function readWalsenders(ask: Ask, taskId: string): Promise<WalsenderFacts> {
  return onlyRow(
    await ask<{ max: number; used: number }>(
      `select current_setting('max_wal_senders')::int as max,
         (select count(*)::int from pg_stat_replication
          where not starts_with(coalesce(application_name, ''), $1)) as used`,
      [`dts/${taskId}/`],
    ),
  );
}

export function areWalsendersExhausted({ max, used }: WalsenderFacts): boolean {
  return used >= max;
}

export function assessWalsenders(facts: WalsenderFacts, side: Role = 'source'): Finding[] {
  const { max, used } = facts;
  if (!areWalsendersExhausted(facts)) return [];
  return [
    {
      code: 'walsenders_exhausted',
      severity: 'blocking',
      object: 'max_wal_senders',
      message: `${side}: all ${max} walsenders are in use; this task needs one`,
      remedy: `alter system set max_wal_senders = ${used + 1}; then restart the server`,
    },
  ];
}
