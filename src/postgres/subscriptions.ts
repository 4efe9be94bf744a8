// Logical subscriptions on a source. Preflight refuses them and the fence does again: their apply workers walk through
// statement triggers, an armed fence's included.
import type { QueryResultRow } from 'pg';

type Ask = <R extends QueryResultRow>(sql: string, params: readonly unknown[]) => Promise<readonly R[]>;

/** Subscriptions that write one of the tables, disabled ones too: enabling one is a moment's work. By name. */
export async function subscriptionsWriting(ask: Ask, oids: readonly number[]): Promise<string[]> {
  // Of pg_subscription anybody may read some columns, up to 13 not the oid: pg_stat_subscription has it.
  const rows = await ask<{ name: string }>(
    `select distinct s.subname::text as name
     from pg_subscription_rel r join pg_stat_subscription v on v.subid = r.srsubid
       join pg_subscription s on s.subname = v.subname
         and s.subdbid = (select oid from pg_database where datname = current_database())
     where r.srrelid = any($1::oid[]) order by 1`,
    [oids],
  );
  return rows.map(({ name }) => name);
}
