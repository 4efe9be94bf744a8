// The two connections of a comparison, set up so that both servers print and hash values alike. compare.ts and online.ts
// open them.
import type { Lsn } from '../model/lsn.ts';
import type { Session, Side } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { DIGEST_SETTINGS } from './digest.ts';
import type { RowForm } from './row-hash.ts';

/** Somebody's DDL on a table must not eat up the write stop. */
const LOCK_TIMEOUT = '10s';

/** Settings of comparisons by key. One range is little: through its index; single keys by one probe each. */
export const BY_KEY: Readonly<Record<string, string>> = {
  enable_seqscan: 'off',
  enable_hashjoin: 'off',
  enable_mergejoin: 'off',
  enable_sort: 'off',
  max_parallel_workers_per_gather: '0',
  jit: 'off',
};

export interface SidePair {
  readonly source: Session;
  readonly target: Session;
}

/**
 * Opens both; `settings` beyond those of every comparison. `pipeline`: statements are sent before earlier ones are answered.
 * Errors: those of a connection.
 */
export async function openPair(
  scope: Pick<TaskScope, 'source' | 'target'>,
  signal: AbortSignal,
  settings: Readonly<Record<string, string>> = {},
  pipeline = false,
): Promise<SidePair> {
  const opening = [scope.source, scope.target].map((side) => openSession(side, signal, settings, pipeline));
  const [source, target] = await Promise.allSettled(opening);
  if (source?.status === 'fulfilled' && target?.status === 'fulfilled')
    return { source: source.value, target: target.value };
  for (const each of [source, target]) if (each?.status === 'fulfilled') await each.value.close();
  throw [source, target].find((each) => each?.status === 'rejected')?.reason;
}

export async function closePair(pair: SidePair): Promise<void> {
  await Promise.all([pair.source.close(), pair.target.close()]);
}

/** The source's position behind what was read from it. */
export async function positionBehind({ source }: SidePair): Promise<Lsn> {
  const { rows } = await source.client.query<{ lsn: Lsn }>('select pg_current_wal_insert_lsn()::text as lsn');
  return rows[0]?.lsn ?? '0/0';
}

async function openSession(
  side: Side,
  signal: AbortSignal,
  settings: Readonly<Record<string, string>>,
  pipeline: boolean,
): Promise<Session> {
  const session = await side.session({ purpose: 'validate', signal, pipeline });
  try {
    const all = { ...DIGEST_SETTINGS, lock_timeout: LOCK_TIMEOUT, ...settings };
    await session.client.query(
      'select set_config(s.name, s.value, false) from unnest($1::text[], $2::text[]) as s(name, value)',
      [Object.keys(all), Object.values(all)],
    );
    return session;
  } catch (error) {
    await session.close();
    throw fromPostgres(error, { role: side.role });
  }
}

/** Whether the servers store text in different encodings. */
export async function needsRecoding(scope: Pick<TaskScope, 'source' | 'target'>): Promise<boolean> {
  const [source, target] = await Promise.all([serverEncoding(scope.source), serverEncoding(scope.target)]);
  return source !== target;
}

/** How rows are compared that both sides hash there and then. */
export async function rowFormOf(scope: Pick<TaskScope, 'source' | 'target'>): Promise<RowForm> {
  const [source, target] = await Promise.all([serverEncoding(scope.source), serverEncoding(scope.target)]);
  if (source !== target) return 'recoded';
  // send functions would refuse what is no UTF-8, our sessions' encoding
  return source === 'SQL_ASCII' ? 'text' : 'values';
}

/** A database keeps its encoding. */
const encodings = new WeakMap<Side, string>();

async function serverEncoding(side: Side): Promise<string> {
  const known = encodings.get(side);
  if (known !== undefined) return known;
  const { rows } = await side.query<{ encoding: string }>(
    `select current_setting('server_encoding') as encoding`,
  );
  const encoding = rows[0]?.encoding ?? 'UTF8';
  encodings.set(side, encoding);
  return encoding;
}
