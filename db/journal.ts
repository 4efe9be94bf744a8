// Reading the journal: history of a task and the replay of server-sent events.
import { and, asc, eq, gt } from 'drizzle-orm';
import { journal } from './schema.ts';
import type { Store } from './open.ts';
import type { JournalRow } from './tasks.ts';

const PAGE = 500;

/** Rows after `sinceSeq`, oldest first, at most 500; of every task when `taskId` is undefined. */
export function readJournal(store: Store, sinceSeq: number, taskId?: string): JournalRow[] {
  const after = gt(journal.seq, sinceSeq);
  return store.orm
    .select()
    .from(journal)
    .where(taskId === undefined ? after : and(after, eq(journal.taskId, taskId)))
    .orderBy(asc(journal.seq))
    .limit(PAGE)
    .all();
}
