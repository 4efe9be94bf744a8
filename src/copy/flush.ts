// Rows that a crash of the source could still take back must not become final on the target: with asynchronous commits
// a snapshot sees transactions whose WAL is not on disk yet. Called before a marker commits.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { Session } from '../postgres/connections.ts';
import { sleep } from '../postgres/task-scope.ts';
import type { Waits } from './waits.ts';

const POLL_MS = 50;
const DEADLINE_MS = 60_000;

/**
 * Resolves when the source has flushed its WAL up to `horizonLsn`. `session` is outside a transaction.
 * Errors: `deadline_exceeded` after a minute, `aborted`, and the session's own.
 */
export async function waitForFlush(
  session: Session,
  horizonLsn: Lsn,
  waits: Waits,
  signal: AbortSignal,
): Promise<void> {
  const { client } = session;
  const isFlushed = async (): Promise<boolean> => {
    const { rows } = await client.query<{ flushed: boolean }>(
      'select pg_current_wal_flush_lsn() >= $1::pg_lsn as flushed',
      [horizonLsn],
    );
    return rows[0]?.flushed === true;
  };
  if (await isFlushed()) return;
  // On an idle server nothing flushes the tail of a page for up to 15 s (XLogBackgroundFlush stops at page ends unless a
  // commit waits there). A synchronous commit flushes everything before it; the message makes it write one. `local`,
  // because the source's own standbys need not have it.
  await client.query('begin');
  await client.query('set local synchronous_commit = local');
  await client.query(`select pg_logical_emit_message(true, 'dts.flush', '')`);
  await client.query('commit');
  const key = `flush ${session.pid}`;
  try {
    for (const deadline = Date.now() + DEADLINE_MS; !(await isFlushed()); ) {
      if (Date.now() > deadline)
        throw new MigrationError(
          'deadline_exceeded',
          `source: WAL was not flushed up to ${horizonLsn} in time`,
          {
            hint: 'look at the disk of the source; the part is copied again',
            details: { horizonLsn },
          },
        );
      waits.set(key, `the source has not flushed its WAL up to ${horizonLsn} yet`);
      await sleep(POLL_MS, signal);
    }
  } finally {
    waits.set(key, null);
  }
}
