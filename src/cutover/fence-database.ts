// The strategy `database-read-only`: new sessions of the source's database begin read-only, and the old ones must go.
// fence.ts arms and lifts it. Advisory, as the certificate says: a session may set itself writable again.
import type { QueryResultRow } from 'pg';
import { cutoverNotes, type DatabaseFenceNote } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import { rolesPastReadOnly } from '../postgres/read-only-roles.ts';
import { ident, literal } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { onNewConnection } from './fence-function.ts';
import type { LockHolder } from '../postgres/lock-holders.ts';

const SETTING = 'default_transaction_read_only';

/** Makes the database read-only for new sessions. Idempotent: what the setting was before is noted once. */
export async function armDatabase(scope: TaskScope): Promise<void> {
  const { source, target } = { source: scope.spec.sourceDb, target: scope.spec.targetDb };
  if (source.host === target.host && source.port === target.port && source.dbname === target.dbname)
    throw new MigrationError('fence_failed', 'source and target are one database, which would be read-only', {
      hint: 'create the migration with options.fence: triggers',
      details: { role: 'source' },
    });
  if (scope.checkpoints.get<DatabaseFenceNote>(cutoverNotes.databaseFence) === undefined) {
    const { rows } = await scope.source.query<{ setting: string | null }>(
      `select (select split_part(c, '=', 2) from pg_db_role_setting s, unnest(s.setconfig) c
               where s.setrole = 0 and s.setdatabase = d.oid and starts_with(c, $1 || '=')) as setting
       from pg_database d where datname = current_database()`,
      [SETTING],
    );
    scope.checkpoints.set(cutoverNotes.databaseFence, {
      previous: rows[0]?.setting ?? null,
    } satisfies DatabaseFenceNote);
  }
  await scope.source.query(`alter database ${ident(source.dbname)} set ${SETTING} = on`);
  const rolesPast = await rolesPastReadOnly(scope.source);
  if (rolesPast.length > 0)
    scope.log.warn(
      { roles: rolesPast },
      'roles whose own setting lets them write past the read-only database',
    );
  scope.checkpoints.set(cutoverNotes.rolesPastFence, rolesPast);
}

/** Whether the database still is as it was armed. */
export async function isDatabaseArmed(scope: TaskScope): Promise<boolean> {
  const { rows } = await scope.source.query<{ armed: boolean }>(
    `select exists (select from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
       where d.datname = current_database() and s.setrole = 0 and $1 = any (s.setconfig)) as armed`,
    [`${SETTING}=on`],
  );
  return rows[0]?.armed === true;
}

/** Gives the database the setting that it had. Does nothing where we have not changed it. */
export async function liftDatabase(scope: TaskScope): Promise<void> {
  const note = scope.checkpoints.get<DatabaseFenceNote>(cutoverNotes.databaseFence);
  if (note === undefined) return;
  const database = ident(scope.spec.sourceDb.dbname);
  await onNewConnection(scope, (client) =>
    client.query(
      note.previous === null
        ? `alter database ${database} reset ${SETTING}`
        : `alter database ${database} set ${SETTING} = ${literal(note.previous)}`,
    ),
  );
  scope.checkpoints.delete(cutoverNotes.databaseFence);
}

interface SessionRow extends QueryResultRow {
  readonly pid: number;
  readonly usename: string | null;
  readonly state: string | null;
  readonly age: number;
  readonly query: string | null;
}

/** Sessions that may still write: begun before `before`, the server's own time of the arming. */
export async function olderSessions(scope: TaskScope, before: string): Promise<LockHolder[]> {
  const { rows } = await scope.source.query<SessionRow>(
    `select pid, usename::text, state, left(query, 100) as query,
       extract(epoch from clock_timestamp() - coalesce(xact_start, state_change, backend_start))::float8 as age
     from pg_stat_activity
     where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
       and backend_start <= $1::timestamptz and not starts_with(application_name, $2)
     order by backend_start`,
    [before, `dts/${scope.taskId}/`],
  );
  return rows.map((row) => ({
    virtualTransaction: `session ${row.pid}`,
    pid: row.pid,
    gid: null,
    user: row.usename,
    state: row.state,
    backendType: 'client backend',
    ageSeconds: Math.round(row.age),
    query: row.query,
    relation: 'the database',
    relations: 1,
  }));
}
