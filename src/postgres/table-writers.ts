// Whether whoever had written into a table has ended, for every snapshot that is taken from now on. The stream may have
// applied a transaction that snapshots do not show yet: its commit record is in the WAL while its backend waits for a
// synchronous standby, say. Rows that are read then lack it, and the stream will not bring it again.
//
// Such a transaction has an id below one that is assigned now, and keeps its lock on the table until it is shown. So
// nobody else is waited for, and nobody waits for us.
import { MigrationError } from '../model/errors.ts';
import type { RelationName } from '../model/relation.ts';
import { describeHolders, lockHolders, relationOids, remedyFor, WRITING_MODES } from './lock-holders.ts';
import { sleep, type TaskScope } from './task-scope.ts';
import { newTransactionId } from './writers.ts';

const POLL_MS = 100;

/**
 * Resolves when every transaction that wrote into one of `tables` before the call has ended. `waiting` is told for whom it
 * waits, and null at the end. Errors: `lock_timeout` after `slotTimeoutMs`, naming them.
 */
export async function writersEnded(
  scope: TaskScope,
  tables: readonly RelationName[],
  waiting: (reason: string | null) => void,
): Promise<void> {
  const { source, signal, spec } = scope;
  const oids = (await relationOids(source, tables)).flatMap((oid) => oid ?? []);
  const barrier = await newTransactionId(source);
  const deadline = Date.now() + spec.options.slotTimeoutMs;
  try {
    for (;;) {
      const { rows } = await source.query<{ vxid: string }>(
        `select distinct l.virtualtransaction as vxid from pg_locks l
           join pg_locks x on x.virtualtransaction = l.virtualtransaction and x.pid is not distinct from l.pid
            and x.locktype = 'transactionid' and x.granted and x.mode = 'ExclusiveLock'
          where l.locktype = 'relation' and l.granted and l.relation = any ($1::oid[]) and l.mode = any ($2::text[])
            and l.database = (select oid from pg_database where datname = current_database())
            and age(x.transactionid) > age(xid($3::xid8))`,
        [oids, WRITING_MODES, barrier],
      );
      if (rows.length === 0) return;
      const old = new Set(rows.map(({ vxid }) => vxid));
      const holders = (await lockHolders(source, oids, WRITING_MODES)).filter(({ virtualTransaction }) =>
        old.has(virtualTransaction),
      );
      const reason = `the copy waits for ${describeHolders(holders)}`;
      waiting(reason);
      if (Date.now() > deadline)
        throw new MigrationError('lock_timeout', `source: ${reason}`, {
          hint: remedyFor(holders),
          details: { role: 'source', blockers: holders },
        });
      await sleep(POLL_MS, signal);
    }
  } finally {
    waiting(null);
  }
}
