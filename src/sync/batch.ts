// What the replay remembers of the source transaction that it reads, and of the batch that becomes one target transaction.
import { bigintToLsn, type Lsn } from '../model/lsn.ts';
import type { Gulp } from '../postgres/wal-walker.ts';
import type { AppliedMarker } from './apply.ts';
import type { SourceTransaction } from './filter.ts';

export class OpenTransaction implements SourceTransaction {
  readonly commit: bigint;
  readonly xid: number;
  /** On the target already: sent again after a lost acknowledgement. */
  readonly applied: boolean;
  /** Commits before the last horizon: the copies may have seen it. */
  filtered = false;
  changes = 0;
  markerId: string | null = null;

  constructor(commit: bigint, xid: number, applied: boolean) {
    this.commit = commit;
    this.xid = xid;
    this.applied = applied;
  }

  get commitLsn(): Lsn {
    return bigintToLsn(this.commit);
  }
}

/** Messages of a gulp that belong to one batch: `bounds` from `from` to `to`. */
interface Segment {
  readonly gulp: Gulp;
  readonly from: number;
  readonly to: number;
}

/** What becomes one target transaction. */
export interface Batch {
  changes: number;
  transactions: number;
  /** Commit of its last transaction that has changes. */
  lastCommit: bigint;
  marker: AppliedMarker | null;
  /** Sent change by change. */
  ordered: boolean;
  /** Its messages, for sending them again in order; null once a part of a large transaction has left. */
  log: Segment[] | null;
  bytes: number;
}

export function newBatch(position: bigint): Batch {
  return {
    changes: 0,
    transactions: 0,
    lastCommit: position,
    marker: null,
    ordered: false,
    log: [],
    bytes: 0,
  };
}
