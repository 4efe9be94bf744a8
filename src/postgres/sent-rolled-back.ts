// A server that sends transactions in progress does not tell of every rollback. Of a sub-transaction that had been written
// to its disk (memory ran out in the middle of a large value or of an INSERT … ON CONFLICT) and was then sent, no Stream
// Abort follows when it had more than 4,096 changes: its last ones were read from the disk, and only a sub-transaction with
// changes in memory is noted as sent (14 to 18, RBTXN_IS_STREAMED in reorderbuffer.c). What it wrote would be applied.
//
// pg_xact knows better. A sub-transaction is marked there as rolled back before the commit record of its transaction is
// written, and never otherwise: whoever has been sent that record may ask. Asked by transactions-in-progress.ts.
import type { Lsn } from '../model/lsn.ts';
import type { Side } from './connections.ts';

/** The transaction that commits at `until` has to be sent whole: where it is spilled, the server leaves out what was rolled back. */
export class SentRolledBack extends Error {
  /** Start of its commit record. */
  readonly until: Lsn;

  constructor(until: Lsn) {
    super(`source: it sent rolled-back changes of the transaction that commits at ${until}`);
    this.until = until;
  }
}

/**
 * Whether one of the ids was rolled back, or is so old that the source does not know any more. Low 32 bits each, of
 * transactions whose end has been sent.
 */
export async function wasRolledBack(source: Side, xids: readonly number[]): Promise<boolean> {
  const { rows } = await source.query<{ found: boolean }>(
    `select exists (
       select from unnest($1::int8[]) as u(xid),
         (select pg_snapshot_xmax(pg_current_snapshot())::text::int8 as next) n
       where coalesce(pg_xact_status((next - ((next - xid) & 4294967295))::text::xid8), 'aborted') = 'aborted') as found`,
    [xids],
  );
  return rows[0]?.found !== false;
}
