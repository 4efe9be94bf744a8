// Check of run.ts: room for our connections and locks, encodings that can hold each other's text, extensions that types come from.
import type { Finding } from '../model/finding.ts';
import type { Role } from '../model/endpoint.ts';
import { ident } from '../postgres/sql.ts';
import { onlyRow, type Ask } from './ask.ts';

export interface ConnectionLimit {
  /** max_connections, or the connection limit of the database or of the role (superusers pass those two). */
  readonly of: 'server' | 'database' | 'role';
  /** Of the database or role; null for the server. */
  readonly name: string | null;
  readonly max: number;
  /** What an ordinary role can still open; what this task has open counts as free. */
  readonly free: number;
}

/** Below this nothing works: pool, copy, stream. */
const LEAST_CONNECTIONS = 6;

export async function readConnectionLimits(ask: Ask, taskId: string): Promise<ConnectionLimit[]> {
  // backend_type of other roles' backends is hidden without pg_read_all_stats; reserved_connections exists from 16 on
  return ask<{ of: 'server' | 'database' | 'role'; name: string | null; max: number; free: number }>(
    `with used as materialized (
       select datname, usename, pid in (select pid from pg_stat_replication) as is_walsender
       from pg_stat_activity
       where datid is not null and usesysid is not null and not starts_with(application_name, $1)
         and coalesce(backend_type, 'client backend') in ('client backend', 'walsender')
     ), limits as (
       select 'server' as of, null as name, current_setting('max_connections')::int as max,
         current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true)::int, 0)
           + (select count(*)::int from used where not is_walsender) as used
       union all
       select 'database', d.datname::text, d.datconnlimit,
         (select count(*)::int from used where used.datname = d.datname)
       from pg_database d, pg_roles r
       where d.datname = current_database() and d.datconnlimit >= 0 and r.rolname = current_user and not r.rolsuper
       union all
       select 'role', r.rolname::text, r.rolconnlimit,
         (select count(*)::int from used where used.usename = r.rolname)
       from pg_roles r where r.rolname = current_user and r.rolconnlimit >= 0 and not r.rolsuper
     )
     select of, name, max, greatest(max - used, 0) as free from limits`,
    [`dts/${taskId}/`],
  );
}

/** One finding for each limit that is too low: each has a statement of its own. */
export function assessConnections(
  role: Role,
  limits: readonly ConnectionLimit[],
  copyJobs: number,
): Finding[] {
  const wanted = copyJobs * 2 + 8;
  return limits
    .filter(({ free }) => free < wanted)
    .map(({ of, name, max, free }) => {
      const enough = max + wanted - free;
      return {
        code: `${role}_connections_scarce`,
        severity: free < LEAST_CONNECTIONS ? 'blocking' : 'warning',
        object: name ?? role,
        message: `${role}: ${free} of the ${max} connections that ${name === null ? 'the server' : `${of} ${name}`} allows are free; with copy_jobs ${copyJobs} the task may open ${wanted}`,
        remedy:
          name === null
            ? `lower options.copy_jobs, or: alter system set max_connections = ${enough}; then restart the server`
            : `lower options.copy_jobs, or: alter ${of} ${ident(name)} connection limit ${enough}`,
      };
    });
}

export interface LockTable {
  /** max_locks_per_transaction. */
  readonly perTransaction: number;
  /** max_connections and max_prepared_transactions: the lock table has room for so many times as many objects. */
  readonly holders: number;
}

/** Of the lock table, which all sessions share: beyond it the application's statements may find it full (53200). */
const MOST_OF_LOCK_TABLE = 3 / 4;

export async function readLockTable(ask: Ask): Promise<LockTable> {
  return onlyRow(
    await ask<{ perTransaction: number; holders: number }>(
      `select current_setting('max_locks_per_transaction')::int as "perTransaction",
         current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int as holders`,
    ),
  );
}

export async function countIndexes(ask: Ask, oids: readonly number[]): Promise<number> {
  return onlyRow(
    await ask<{ count: number }>(
      'select count(*)::int as count from pg_index where indrelid = any($1::oid[])',
      [oids],
    ),
  ).count;
}

/**
 * A transaction keeps its locks to its end. The copy's holder locks all tables; those that hash the tables as they were at the
 * opening have read all of them in the end, which locks their indexes, too.
 */
export function assessLockTable(
  role: Role,
  { perTransaction, holders }: LockTable,
  relations: number,
): Finding[] {
  const room = perTransaction * holders;
  if (relations <= room * MOST_OF_LOCK_TABLE) return [];
  return [
    {
      code: `${role}_lock_table_small`,
      severity: 'warning',
      object: 'max_locks_per_transaction',
      message: `${role}: one transaction of the task locks up to ${relations} tables and indexes; the server's lock table has room for ${room}, the application's locks included`,
      remedy: `alter system set max_locks_per_transaction = ${Math.ceil((relations * 2) / holders)}; then restart the server`,
    },
  ];
}

/** Of the database, such as `UTF8`. */
export async function readEncoding(ask: Ask): Promise<string> {
  return onlyRow(
    await ask<{ encoding: string }>(
      `select pg_encoding_to_char(encoding)::text as encoding from pg_database where datname = current_database()`,
    ),
  ).encoding;
}

export function assessEncodings(source: string, target: string): Finding[] {
  if (source === target || target === 'UTF8') return [];
  return [
    {
      code: 'encodings_differ',
      severity: 'blocking',
      object: 'target',
      message: `the source's encoding is ${source}, the target's ${target}: some text could not be stored`,
      remedy: `create the target database with encoding 'UTF8'${source === 'UTF8' ? '' : ` or '${source}'`}`,
    },
  ];
}

/** Extensions whose types the selected columns have. */
export async function readNeededExtensions(ask: Ask, oids: readonly number[]): Promise<string[]> {
  const rows = await ask<{ name: string }>(
    `select distinct e.extname::text as name
     from pg_attribute a join pg_type t on t.oid = a.atttypid
       join pg_depend d on d.classid = 'pg_type'::regclass and d.deptype = 'e'
         and d.objid in (t.oid, t.typelem, t.typbasetype)
       join pg_extension e on e.oid = d.refobjid
     where a.attrelid = any($1::oid[]) and a.attnum > 0 and not a.attisdropped order by 1`,
    [oids],
  );
  return rows.map(({ name }) => name);
}

export async function readMissingExtensions(ask: Ask, needed: readonly string[]): Promise<string[]> {
  const rows = await ask<{ name: string }>(
    `select name from unnest($1::text[]) as n(name)
     where not exists (select from pg_available_extensions a where a.name = n.name) order by 1`,
    [needed],
  );
  return rows.map(({ name }) => name);
}

export function assessExtensions(missing: readonly string[]): Finding[] {
  return missing.map((name) => ({
    code: 'extension_unavailable',
    severity: 'blocking',
    object: name,
    message: `target: selected columns have types of the extension ${name}, which is not installed on that server`,
    remedy: `install the extension's package on the target, so that this works: create extension ${ident(name)}`,
  }));
}
