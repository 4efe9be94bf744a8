// Where a new slot may begin, so that nothing is lost and all is decoded under the right catalog. A slot that had to wait for
// write transactions (any busy source) is not good from its consistent point on:
//
//   1 running until then, may be neither streamed nor seen by a snapshot    the first barrier: it has ended
//   2 changed the catalog while the slot was being made                     touched: the server's picture is made anew
//   3 changed rows before that, commits behind the consistent point         the beginning: not streamed
//   4 COMMIT is before the beginning, still running for a snapshot          the second barrier: it has ended
//
// Of 2: the server builds its picture of the catalog in phases, and passes over what commits in the first one
// (SNAPBUILD_BUILDING_SNAPSHOT, all majors up to 18). The picture of the next phase is kept until a transaction that changes
// the catalog commits, however long that takes: rows of a table that was truncated or rewritten meanwhile end the decoding
// with `could not map filenumber`, and those of a table that got a column arrive without it. Who begins behind the touch
// is decoded right; who began before it (3) has ended behind the first barrier, and is in every copy.
import { ZERO_LSN, type Lsn } from '../model/lsn.ts';
import { flushAtCommit } from './flush-wal.ts';
import { sourceVersion } from './marker.ts';
import { touchPublication } from './publication.ts';
import { mayAdvance } from './slot-advance.ts';
import { sleep, type TaskScope } from './task-scope.ts';
import { allEndedBelow, newTransactionId } from './writers.ts';

const POLL_MS = 250;
/** The server reads what was written while the slot was being made. */
const ADVANCE_TIMEOUT_MS = 600_000;

/**
 * Every transaction that commits behind the result is to be streamed from the new slot; every other is in each snapshot that is
 * taken from now on. It is durable on the source. Errors: as query, `lock_timeout`; aborted with `signal`.
 */
export async function beginSlot(scope: TaskScope, name: string, signal: AbortSignal): Promise<Lsn> {
  await touchPublication(scope);
  await barrier(scope, signal);
  const lsn = await durableEnd(scope);
  await barrier(scope, signal);
  await moveSlot(scope, name, lsn, signal);
  return lsn;
}

/** Waits until all write transactions that run now have ended for every snapshot that is taken from then on. */
async function barrier(scope: TaskScope, signal: AbortSignal): Promise<void> {
  const id = await newTransactionId(scope.source);
  while (!(await allEndedBelow(scope.source, id))) await sleep(POLL_MS, signal);
}

/** Of the WAL, and on disk: a source that crashed would write other transactions where asynchronous commits had been. */
async function durableEnd(scope: TaskScope): Promise<Lsn> {
  return scope.source.transaction(async (client) => {
    const { rows } = await client.query<{ lsn: Lsn }>('select pg_current_wal_insert_lsn()::text as lsn');
    await flushAtCommit(client, 'local');
    return rows[0]?.lsn ?? ZERO_LSN;
  });
}

/**
 * For the slot functions, which begin where the slot is; the walsender begins where it is told. Where it is not permitted or
 * not sound, the stream asks the walsender first (`shouldCatchUp`).
 */
async function moveSlot(scope: TaskScope, name: string, lsn: Lsn, signal: AbortSignal): Promise<void> {
  if (!mayAdvance(await sourceVersion(scope))) return;
  signal.throwIfAborted();
  try {
    await scope.source.query('select pg_replication_slot_advance($1, $2::pg_lsn)', [name, lsn], {
      timeoutMs: ADVANCE_TIMEOUT_MS,
    });
  } catch (error) {
    signal.throwIfAborted();
    scope.log.info(
      { err: error, slot: name },
      'the new slot stays behind its beginning until it is acknowledged',
    );
  }
}
