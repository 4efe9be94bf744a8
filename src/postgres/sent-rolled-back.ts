// A server that sends transactions in progress cannot be trusted with one once a sub-transaction of it is rolled back (14 to
// 18, reorderbuffer.c):
//
//   1 Where it notices the rollback in the middle of decoding, it throws away what it had queued of the whole transaction, the
//     catalog changes of others among it. What the transaction writes then is decoded with the catalog of before, up to the next
//     change of it: rows without a column, none of a table that was published meanwhile, `could not map filenumber` for one that
//     was rewritten.
//   2 It does not tell of all: of a sub-transaction that had been written to its disk (memory ran out in the middle of a large
//     value or of an INSERT … ON CONFLICT, or it lies before where the stream begins) and had more than 4,096 changes, no Stream
//     Abort follows. Its last ones were read from the disk, and only one with changes in memory is noted as sent
//     (RBTXN_IS_STREAMED).
//
// What was sent of the transaction is then forgotten, and read again as it is sent at its commit (stream.ts): rolled-back
// sub-transactions are known then, and left out. Both by transactions-in-progress.ts. What the server tells of it tells before
// it decodes more of the transaction, so the stream ends before any of that is looked at. For the rest pg_xact is asked, where a
// sub-transaction is marked as rolled back before the commit record of its transaction is written: whoever has been sent that
// record may ask.
import type { Side } from './connections.ts';

/** A transaction of which parts were sent has to be sent at its commit. */
export class SentRolledBack extends Error {
  constructor(xid: number) {
    super(`source: it sent changes of the transaction ${xid} that were rolled back`);
  }
}

/**
 * Whether one of the ids was rolled back, or is so old that the source does not know any more. Low 32 bits each, of
 * transactions whose end has been sent.
 */
export async function wasRolledBack(source: Side, xids: readonly number[]): Promise<boolean> {
  // Ids on both sides of the snapshot's end: the commit record is sent before its transaction has left the snapshots. A standby
  // may not have got so far.
  const { rows } = await source.query<{ found: boolean }>(
    `select pg_is_in_recovery() or exists (
       select from unnest($1::int8[]) as u(xid),
         (select pg_snapshot_xmax(pg_current_snapshot())::text::int8 as near) n
       where coalesce(pg_xact_status(
           (near - (((near - xid + 2147483648) & 4294967295) - 2147483648))::text::xid8), 'aborted') = 'aborted') as found`,
    [xids],
  );
  return rows[0]?.found !== false;
}
