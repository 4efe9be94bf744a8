// Where a new slot begins: not at its consistent point, but behind everything that the server may not decode, or decode under
// the wrong catalog. What is not streamed for it has ended before a part is read, and is in every copy.
//
//   1 the touch       a change of the catalog is committed
//   2 a barrier       every transaction that has changed anything before the touch has ended
//   3 the beginning   the end of the WAL, made durable
//   4 a barrier       every transaction whose COMMIT lies before the beginning has ended for every snapshot, too: it may be in
//                     the WAL, and still running in the proc array (waiting for a standby)
//
// The touch, because the server builds a slot's picture of the catalog in phases and passes over what commits in the first one
// (SNAPBUILD_BUILDING_SNAPSHOT; all majors up to 18). The picture of the next phase is kept until a transaction that changes
// the catalog commits, however long that takes: changes of a table that was truncated or rewritten meanwhile end the
// decoding with `could not map filenumber`, and rows of a table that got a column come without it. Whoever begins
// behind the touch is decoded right.
import { ZERO_LSN, type Lsn } from '../model/lsn.ts';
import { flushAtCommit } from './flush-wal.ts';
import { sourceVersion } from './marker.ts';
import { touchPublication } from './publication.ts';
import { mayAdvance } from './slot-advance.ts';
import type { SlotRecord } from './slot-record.ts';
import { sleep, type TaskScope } from './task-scope.ts';
import { passBarrier } from './writers.ts';

const POLL_MS = 50;
/** The server reads what was written while the slot was being made. */
const MOVE_TIMEOUT_MS = 60_000;

/**
 * Every transaction that commits behind the result is to be streamed from the new slot; every other is in each snapshot that is
 * taken from now on. It is durable on the source. Errors: as query, `lock_timeout`; aborted with `signal`.
 */
export async function findBeginning(scope: TaskScope, signal: AbortSignal): Promise<Lsn> {
  const barrier = (): Promise<void> => passBarrier(scope.source, () => sleep(POLL_MS, signal));
  await touchPublication(scope);
  await barrier();
  const lsn = await durableEnd(scope);
  await barrier();
  return lsn;
}

/** A source that crashed would write other transactions where commits had been that were not on its disk yet. */
async function durableEnd(scope: TaskScope): Promise<Lsn> {
  return scope.source.transaction(async (client) => {
    const { rows } = await client.query<{ lsn: Lsn }>('select pg_current_wal_insert_lsn()::text as lsn');
    await flushAtCommit(client, 'local');
    return rows[0]?.lsn ?? ZERO_LSN;
  });
}

/**
 * For the slot functions, which begin where the slot is; the walsender begins where it is told. Does what it can: while the slot
 * is before its beginning, the stream asks the walsender (`shouldCatchUp`). Not where the slot functions are not used, as for
 * slots with FAILOVER, of which the server would wait for the standbys, nor on the way back, whose slot is made under
 * the write stop.
 */
export async function moveToBeginning(scope: TaskScope, slot: SlotRecord): Promise<void> {
  if (slot.failover === true || scope.spec.origin || !mayAdvance(await sourceVersion(scope))) return;
  scope.progress.setWaitingFor('the new slot is moved to its beginning');
  try {
    const session = await scope.source.session({ purpose: 'slot', signal: scope.signal });
    try {
      await session.client.query(`set statement_timeout = ${MOVE_TIMEOUT_MS}`);
      await session.client.query('select pg_replication_slot_advance($1, $2::pg_lsn)', [
        slot.name,
        slot.consistentLsn,
      ]);
    } finally {
      await session.close();
    }
  } catch (error) {
    scope.signal.throwIfAborted();
    scope.log.info(
      { err: error, slot: slot.name },
      'the new slot stays behind its beginning until it is acknowledged',
    );
  } finally {
    scope.progress.setWaitingFor(null);
  }
}
