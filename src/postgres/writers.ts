// The write transactions that a slot or a barrier waits for, named for the operator: whom to ask, or to end. Prepared
// transactions count too; nobody is connected for them, and they wait for COMMIT PREPARED for ever.
import type { Side } from './connections.ts';

export interface Writer {
  /** Null for a prepared transaction. */
  readonly pid: number | null;
  /** Global id of a prepared transaction. */
  readonly gid: string | null;
  readonly user: string | null;
  readonly database: string | null;
  readonly ageSeconds: number;
  /** Beginning of its present or last statement. */
  readonly query: string;
}

/**
 * Transactions of any database with a transaction id that began before `startedMs` (our clock) or have run for two
 * seconds (the slot waits for later ones too), oldest first.
 */
export async function writersSince(side: Side, startedMs: number): Promise<readonly Writer[]> {
  // The age is compared, not the time: the server's clock need not agree with ours.
  const waited = Math.min(2, (Date.now() - startedMs) / 1_000);
  const { rows } = await side.query<{
    pid: number | null;
    gid: string | null;
    usename: string | null;
    datname: string | null;
    age: string;
    query: string;
  }>(
    `select * from (
       select pid, null::text as gid, usename::text, datname::text,
         extract(epoch from clock_timestamp() - xact_start)::text as age, left(query, 120) as query
       from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()
       union all
       select null, gid, owner::text, database::text, extract(epoch from clock_timestamp() - prepared)::text, ''
       from pg_prepared_xacts) w
     where age::numeric >= $1::numeric order by age::numeric desc limit 20`,
    [waited],
  );
  return rows.map((row) => ({
    pid: row.pid,
    gid: row.gid,
    user: row.usename,
    database: row.datname,
    ageSeconds: Math.round(Number(row.age)),
    query: row.query,
  }));
}

/**
 * A transaction id above all that run now. A new one: the xmax of a snapshot would be too low, for it
 * lies behind the last transaction that has ended, and above it others may be running.
 */
export async function newTransactionId(side: Side): Promise<string> {
  const { rows } = await side.query<{ id: string }>('select pg_current_xact_id()::text as id');
  return rows[0]?.id ?? '0';
}

/**
 * Resolves when all transactions that have an id at the call have ended, for every snapshot that is taken from then on. `wait` is
 * called between two looks: what it throws ends the waiting.
 */
export async function passBarrier(side: Side, wait: () => Promise<void>): Promise<void> {
  const id = await newTransactionId(side);
  while (!(await allEndedBelow(side, id))) await wait();
}

async function allEndedBelow(side: Side, id: string): Promise<boolean> {
  const { rows } = await side.query<{ ended: boolean }>(
    'select pg_snapshot_xmin(pg_current_snapshot())::text::numeric >= $1::numeric as ended',
    [id],
  );
  return rows[0]?.ended === true;
}

/** In words, the three oldest by name. */
export function describeWriters(writers: readonly Writer[]): string {
  if (writers.length === 0) return 'write transactions on the source (none that this role may see)';
  const named = writers.slice(0, 3).map((writer) => {
    const who = writer.pid === null ? `prepared transaction '${writer.gid ?? ''}'` : `pid ${writer.pid}`;
    const where = `${writer.user ?? 'unknown'}@${writer.database ?? 'unknown'}`;
    const doing = writer.query === '' ? '' : `: ${writer.query.replaceAll(/\s+/g, ' ')}`;
    return `${who} (${where}, ${writer.ageSeconds} s${doing})`;
  });
  const more = writers.length > 3 ? ` and ${writers.length - 3} more` : '';
  return named.join(', ') + more;
}
