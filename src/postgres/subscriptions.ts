// Logical subscriptions on a source. Their apply workers walk through statement triggers, an armed fence's included, and
// meet row triggers: preflight and the fence ask what they write.
import type { QueryResultRow } from 'pg';
import type { RelationName } from '../model/relation.ts';

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

/** Those of the tables that subscriptions write, also as leaves of a partitioned table that one writes. */
export async function tablesOfSubscriptions(ask: Ask, oids: readonly number[]): Promise<RelationName[]> {
  const rows = await ask<RelationName & QueryResultRow>(
    `select distinct n.nspname::text as schema, c.relname::text as name
     from pg_subscription_rel r
       cross join lateral (select r.srrelid as relid union select relid from pg_partition_tree(r.srrelid)) w
       join pg_class c on c.oid = w.relid and c.relkind = 'r' join pg_namespace n on n.oid = c.relnamespace
     where c.oid = any($1::oid[]) order by 1, 2`,
    [oids],
  );
  return [...rows];
}
