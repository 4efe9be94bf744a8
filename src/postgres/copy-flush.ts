// Rows that a crash of the source could still take back must not become final on the target: with asynchronous commits
// a snapshot sees transactions whose WAL is not on disk yet. Called before a marker commits.
import { MigrationError } from '../model/errors.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import { flushAtCommit } from './flush-wal.ts';
import { sleep, type TaskScope } from './task-scope.ts';

const POLL_MS = 50;
const DEADLINE_MS = 60_000;

/**
 * Resolves when the source has flushed its WAL up to `horizonLsn`. `waiting` is told why it takes time, and null at the end.
 * Errors: `deadline_exceeded` after a minute, `aborted`, and the connection's own.
 */
export async function waitForFlush(
  { source }: Pick<TaskScope, 'source'>,
  horizonLsn: Lsn,
  waiting: (reason: string | null) => void,
  signal: AbortSignal,
): Promise<void> {
  const isFlushed = async (): Promise<boolean> => {
    const { rows } = await source.query<{ flushed: Lsn }>(
      'select pg_current_wal_flush_lsn()::text as flushed',
    );
    return rows[0] !== undefined && compareLsn(rows[0].flushed, horizonLsn) >= 0;
  };
  if (await isFlushed()) return;
  // On an idle server nothing flushes the tail of a page for up to 15 s (XLogBackgroundFlush stops at page ends unless a
  // commit waits there). `local`, because the source's own standbys need not have it.
  await source.transaction((client) => flushAtCommit(client, 'local'));
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
      waiting(`the source has not flushed its WAL up to ${horizonLsn} yet`);
      await sleep(POLL_MS, signal);
    }
  } finally {
    waiting(null);
  }
}
