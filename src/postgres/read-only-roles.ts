// Roles that pass the fence `database-read-only`: a setting of a role wins over the database's. Asked by preflight and when
// the fence is armed.
import type { QueryResult, QueryResultRow } from 'pg';

interface Asks {
  query<R extends QueryResultRow>(sql: string): Promise<Pick<QueryResult<R>, 'rows'>>;
}

/** Roles, by name, whose sessions in the present database begin writable by a setting of their own. */
export async function rolesPastReadOnly(side: Asks): Promise<readonly string[]> {
  // of the role in this database first, then of the role everywhere; off, false, no and 0 are one to the server
  const { rows } = await side.query<{ name: string }>(
    `select r.rolname::text as name from pg_roles r
       cross join lateral (
         select split_part(c.entry, '=', 2) as value
           from pg_db_role_setting s, unnest(s.setconfig) as c(entry)
          where s.setrole = r.oid and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
            and starts_with(c.entry, 'default_transaction_read_only=')
          order by s.setdatabase desc limit 1) as own
     where lower(own.value) in ('off', 'false', 'no', '0', 'f', 'n', 'of', 'fa', 'fal', 'fals') order by 1`,
  );
  return rows.map(({ name }) => name);
}
