// Who holds locks on the tables of a migration: the proof that no writer is left, and the names that an operator needs
// when what locks the tables one after the other, or arming the fence, has to wait for somebody. Prepared transactions are nobody's session.
import type { Side } from './connections.ts';
import type { RelationName } from '../model/relation.ts';
import type { Role } from '../model/endpoint.ts';
import { relationKey } from '../model/relation.ts';

/** A transaction that holds locks on at least one of the tables. */
export interface LockHolder {
  /** `pg_locks.virtualtransaction`: unique while the server runs. */
  readonly virtualTransaction: string;
  /** Null for a prepared transaction. */
  readonly pid: number | null;
  readonly gid: string | null;
  readonly user: string | null;
  readonly state: string | null;
  readonly backendType: string | null;
  readonly ageSeconds: number;
  /** First 100 characters of the last statement. */
  readonly query: string | null;
  /** One of the tables, and how many they are. */
  readonly relation: string;
  readonly relations: number;
}

/**
 * Modes under which a transaction may have written rows: INSERT, UPDATE, DELETE, MERGE and COPY take ROW EXCLUSIVE,
 * TRUNCATE takes ACCESS EXCLUSIVE. The modes in between (CREATE INDEX, CREATE TRIGGER, VACUUM, LOCK TABLE …) write no
 * rows: whoever holds one of them and writes takes ROW EXCLUSIVE as well.
 */
export const WRITING_MODES: readonly string[] = ['RowExclusiveLock', 'AccessExclusiveLock'];

/** Modes that CREATE TRIGGER (SHARE ROW EXCLUSIVE) waits for. */
export const CREATE_TRIGGER_CONFLICTS: readonly string[] = [
  'RowExclusiveLock',
  'ShareUpdateExclusiveLock',
  'ShareLock',
  'ShareRowExclusiveLock',
  'ExclusiveLock',
  'AccessExclusiveLock',
];

/** Modes that DROP TRIGGER and most of ALTER TABLE (ACCESS EXCLUSIVE) wait for: all. */
export const ALL_MODES: readonly string[] = ['AccessShareLock', 'RowShareLock', ...CREATE_TRIGGER_CONFLICTS];

/** Object ids of the relations that exist, in their order; `undefined` where one does not. */
export async function relationOids(
  side: Side,
  relations: readonly RelationName[],
): Promise<(number | undefined)[]> {
  const { rows } = await side.query<{ oid: number | null }>(
    `select c.oid from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
       left join pg_namespace s on s.nspname = w.schema
       left join pg_class c on c.relnamespace = s.oid and c.relname = w.name
     order by w.n`,
    [relations.map((relation) => relation.schema), relations.map((relation) => relation.name)],
  );
  return rows.map((row) => row.oid ?? undefined);
}

/** Transactions that hold (not: wait for) a lock of one of `modes` on one of the tables, oldest first. */
export async function lockHolders(
  side: Side,
  oids: readonly number[],
  modes: readonly string[],
): Promise<readonly LockHolder[]> {
  // A prepared transaction has no pid, and keeps the virtual id of the session that prepared it until the server is
  // restarted; the lock on its own transaction id leads to its name.
  const { rows } = await side.query<{
    vxid: string;
    pid: number | null;
    gid: string | null;
    usename: string | null;
    state: string | null;
    backend_type: string | null;
    age: number | null;
    query: string | null;
    schema: string | null;
    name: string | null;
    relations: number;
  }>(
    `with held as materialized (
       select l.virtualtransaction as vxid, l.pid, min(l.relation::oid) as relation,
         count(distinct l.relation)::int as relations
       from pg_locks l
       where l.locktype = 'relation' and l.granted and l.relation = any ($1::oid[]) and l.mode = any ($2::text[])
         and l.database = (select oid from pg_database where datname = current_database())
         and l.pid is distinct from pg_backend_pid()
       group by 1, 2)
     select h.vxid, h.pid, h.relations, p.gid, coalesce(a.usename, p.owner)::text as usename, a.state, a.backend_type,
       left(a.query, 100) as query, n.nspname::text as schema, c.relname::text as name,
       extract(epoch from clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 as age
     from held h
       left join pg_class c on c.oid = h.relation left join pg_namespace n on n.oid = c.relnamespace
       left join pg_stat_activity a on a.pid = h.pid
       left join pg_locks x on h.pid is null and x.pid is null and x.virtualtransaction = h.vxid
         and x.locktype = 'transactionid' and x.granted
         and x.transactionid in (select transaction from pg_prepared_xacts where database = current_database())
       left join pg_prepared_xacts p on p.transaction = x.transactionid and p.database = current_database()
     order by coalesce(a.xact_start, p.prepared)`,
    [oids, modes],
  );
  return rows.map((row) => ({
    virtualTransaction: row.vxid,
    pid: row.pid,
    gid: row.gid,
    user: row.usename,
    state: row.state,
    backendType: row.backend_type,
    ageSeconds: Math.round(row.age ?? 0),
    query: row.query,
    relation: relationKey({ schema: row.schema ?? '?', name: row.name ?? '?' }),
    relations: row.relations,
  }));
}

/** The three oldest in words: `pid 4711 (app, idle in transaction, 12 s, public.orders: update orders …)`. */
export function describeHolders(holders: readonly LockHolder[]): string {
  if (holders.length === 0) return 'somebody that this role may not see';
  const named = holders.slice(0, 3).map((holder) => {
    const who = holder.pid === null ? `prepared transaction '${holder.gid ?? '?'}'` : `pid ${holder.pid}`;
    const tables =
      holder.relations > 1 ? `${holder.relation} and ${holder.relations - 1} more` : holder.relation;
    const doing = holder.query ? `: ${holder.query.replaceAll(/\s+/g, ' ').trim()}` : '';
    const facts = [holder.user ?? 'unknown user', holder.state, `${holder.ageSeconds} s`, tables + doing];
    return `${who} (${facts.filter((fact) => fact !== null).join(', ')})`;
  });
  return named.join('; ') + (holders.length > 3 ? ` and ${holders.length - 3} more` : '');
}

/** What an operator can type to end them. */
export function remedyFor(holders: readonly LockHolder[], role: Role = 'source'): string {
  if (holders.length === 0) return `end what holds locks on the tables on the ${role}`;
  const commands = holders
    .slice(0, 3)
    .map((holder) =>
      holder.pid === null
        ? `rollback prepared '${(holder.gid ?? '?').replaceAll("'", "''")}'`
        : `select pg_terminate_backend(${holder.pid})`,
    );
  return `commit or end these transactions on the ${role}: ${commands.join('; ')}`;
}
