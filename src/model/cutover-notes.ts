// What the steps of a cutover note as checkpoints for each other: fence, drain, comparison, settling, and the API, which
// shows the write stop. A note of the fence holds for that write stop only; un-fencing deletes it.
import type { Lsn } from './lsn.ts';
import type { LargeObjectsVerdict, TableVerdict } from './certificate.ts';

/** Checkpoint keys. */
export const cutoverNotes = {
  fence: 'fence',
  drain: 'drain',
  /** What `fence: database-read-only` has to restore. */
  databaseFence: 'databaseFence',
  /** Names of roles whose own setting wins over that. */
  rolesPastFence: 'rolesPastFence',
  verdicts: 'verdicts',
  sequences: 'sequences',
  /** ISO 8601: nothing was left to do before the point of no return. */
  prepared: 'prepared',
  /** The write stop that the last dry run has predicted, in ms. */
  forecast: 'forecast',
  certificate: 'certificate',
  /** Keys of the target's tables that have statistics; `true`: all have. */
  analyzed: 'analyzed',
  writeStop: 'writeStop',
  /** ErrorReport: why the last clean-up left something on a server; absent when it left nothing. */
  leftover: 'leftover',
} as const;

/** Written when no writer is left. */
export interface FenceNote {
  /** ISO 8601. */
  readonly armedAt: string;
  /** Every change to the tables lies before it. */
  readonly fenceLsn: Lsn;
  /** `server_version`, so that the certificate does not depend on a source that may be gone by then. */
  readonly sourceVersion: string;
  /** ISO 8601: no writer was left. */
  readonly provedAt?: string;
}

/** The database's own `default_transaction_read_only` before the arming; null: it had none. */
export interface DatabaseFenceNote {
  readonly previous: string | null;
}

export interface DrainNote {
  readonly markerId: string;
  /** Null until the marker has been applied. */
  readonly markerLsn: Lsn | null;
  /** ISO 8601. */
  readonly appliedAt?: string;
}

export interface VerdictsNote {
  /** ISO 8601. */
  readonly validatedAt: string;
  readonly tables: readonly TableVerdict[];
  readonly largeObjects?: LargeObjectsVerdict;
}

/** The last write stop; times are ISO 8601. The source refuses writes from `armedAt` until `liftedAt` is set. */
export interface WriteStop {
  readonly armedAt: string;
  /** Writes to the source were allowed again. */
  readonly liftedAt: string | null;
  /** The target was ready to take writes. */
  readonly openedAt: string | null;
}
