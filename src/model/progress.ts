// Live figures of a task: what is copied, where the stream stands, how its slot fares. Kept in memory and sent by SSE.
import type { Lsn } from './lsn.ts';

export type TableState = 'pending' | 'copying' | 'copied' | 'indexing' | 'ready';

export interface IndexProgress {
  /** `INDEX public.users_email`. */
  readonly object: string;
  /** PostgreSQL's words: `building index: scanning table` … */
  readonly phase: string;
  /** 0–1 of the phase, from blocks or tuples; null where the phase counts nothing. */
  readonly share: number | null;
}

/** Progress of one table; rows and bytes are counted, the estimates come from the source's statistics and from finished parts. */
export interface TableProgress {
  /** `relationKey` of the source table. */
  readonly table: string;
  readonly target: string;
  readonly state: TableState;
  readonly rowsCopied: number;
  readonly rowsEstimated: number;
  /** Bytes as COPY sent them. */
  readonly bytesCopied: number;
  /** Of COPY, too: `bytesOnDisk` until a part is finished, which tells better; what was copied when all are. */
  readonly bytesEstimated: number;
  /** Heap and TOAST on the source's disk; absent in what an older version has saved. */
  readonly bytesOnDisk?: number;
  readonly partsDone: number;
  readonly partsTotal: number;
  /** `binary` or `text`, with the reason; null until the copy has chosen. */
  readonly format: 'binary' | 'text' | null;
  readonly formatReason: string | null;
  /** The index that is being built, as the target's `pg_stat_progress_create_index` tells; absent when none is. */
  readonly indexProgress?: IndexProgress | null;
}

/** Large transactions that the source has sent and not committed, and their size. */
export interface InProgress {
  readonly transactions: number;
  readonly bytes: number;
  /** Of these, on our disk. */
  readonly spilledBytes: number;
}

/** The stream's position. Every lag is between two named positions. */
export interface SyncStatus {
  /** `live`: the walsender; `catch-up`: the slot functions, while far behind; null while nothing is streamed. */
  readonly feed: 'live' | 'catch-up' | null;
  /** `pg_current_wal_lsn()` of the source at `sampledAt`. */
  readonly sourceLsn: Lsn;
  /** What the source has sent; null while its slot functions feed the stream, or nothing does. */
  readonly sentLsn: Lsn | null;
  /** Last WAL end that the walsender told us. */
  readonly receivedLsn: Lsn;
  /** End LSN of the last source transaction committed on the target. */
  readonly appliedLsn: Lsn;
  /** What the slot has been told: durable on the target, and noted there; null without a slot. */
  readonly flushedLsn: Lsn | null;
  /** sourceLsn − appliedLsn. */
  readonly lagBytes: number;
  /** How long ago the source stood at appliedLsn, to half a second; at least, where that was before we looked first. */
  readonly lagSeconds: number;
  /** The same of sentLsn, receivedLsn and flushedLsn; null where they are. */
  readonly sentLagSeconds: number | null;
  readonly receivedLagSeconds: number;
  readonly flushedLagSeconds: number | null;
  /** WAL that the source writes, and that is applied, a second; over the last minute at most. */
  readonly sourceBytesPerSecond: number;
  readonly appliedBytesPerSecond: number;
  /** Seconds until appliedLsn meets sourceLsn at these rates; null: never, or nothing is known yet. */
  readonly catchUpSeconds: number | null;
  /** While behind: the side that is waited for. */
  readonly limitedBy: 'source' | 'target' | null;
  /** Changes applied a second, over the last sampling interval. */
  readonly changesPerSecond: number;
  readonly transactionsApplied: number;
  readonly changesApplied: number;
  /**
   * Null where large transactions come when they have committed (PostgreSQL 13, `catch-up`, no disk, a sub-transaction of
   * one was rolled back).
   */
  readonly inProgress: InProgress | null;
  readonly slot: {
    readonly walStatus: string | null;
    readonly retainedBytes: number;
    readonly confirmedFlushLsn: Lsn | null;
    readonly restartLsn: Lsn | null;
    /** WAL that may still be written before the slot is lost; null: no limit (max_slot_wal_keep_size). */
    readonly safeWalBytes: number | null;
    /** Seconds until then at the present rate; null: never. */
    readonly secondsUntilLost: number | null;
    /** Written to disk by decoding on the source; null before PostgreSQL 14. */
    readonly spillBytes: number | null;
    /** What endangers it, and the remedy, in words. */
    readonly warning: string | null;
  } | null;
  /** ISO 8601. */
  readonly sampledAt: string;
}

/** The slot of a task whose stream does not run, as it was looked at last. */
export interface RestingSlot {
  readonly walStatus: string | null;
  /** WAL that the source keeps for it; null: it could not be looked at yet. */
  readonly retainedBytes: number | null;
  readonly safeWalBytes: number | null;
  /** WAL that the source writes a second, since the look before. */
  readonly sourceBytesPerSecond: number;
  /** Seconds until it is lost or dropped at that rate; null: never. */
  readonly secondsUntilLost: number | null;
  /** What endangers it, and the remedy, in words. */
  readonly warning: string | null;
  /** Why the last look failed; the figures are older then. */
  readonly error: string | null;
  /** ISO 8601. */
  readonly sampledAt: string;
}

/** The copy of some tables beside the stream. */
export interface CopyingBeside {
  /** `relationKey`s of the source; of an addition empty until it is planned. */
  readonly tables: readonly string[];
  readonly rowsCopied: number;
  readonly rowsEstimated: number;
  readonly bytesCopied: number;
  readonly bytesEstimated: number;
  /** Seconds until the rows are copied at the present rate; null when unknown. */
  readonly etaSeconds: number | null;
  /** On the target: changes of these tables that are applied when their copy is complete. */
  readonly heldBytes: number;
}

/** Live figures of a task; kept in memory, sent by SSE, the lasting part saved per table. */
export interface TaskProgress {
  readonly tables: readonly TableProgress[];
  readonly bytesCopied: number;
  readonly bytesEstimated: number;
  readonly rowsCopied: number;
  readonly bytesPerSecond: number;
  /** Seconds until the copy is done at the present rate; null when unknown or not copying. */
  readonly etaSeconds: number | null;
  /** Of tables that are added, or copied again, while the stream goes on; null when none is. */
  readonly copying: CopyingBeside | null;
  readonly sync: SyncStatus | null;
  /** What the task waits for right now, in words; null when it does not wait. */
  readonly waitingFor: string | null;
}
