// What a cutover proves: everything that was compared, at which position, with what result. JSON, kept with the task and
// downloadable as a file that `dts verify` reads.
import type { ErrorReport } from './errors.ts';
import type { Lsn } from './lsn.ts';
import type { TaskOptions } from './task-options.ts';

/** Counts and digests of one table, read from both servers under the fence. */
export interface TableVerdict {
  readonly table: string;
  readonly target: string;
  readonly sourceRows: number;
  readonly targetRows: number;
  /** Order-free, equal across majors; decimal text. */
  readonly sourceDigest: string;
  readonly targetDigest: string;
  readonly equal: boolean;
  /**
   * `full`: every row. `changes`: rows and digests are of the keys that changed since the online validation read them;
   * the others were equal then.
   */
  readonly method: 'full' | 'changes';
  /** `options.table`: only these rows of the source were migrated and compared; absent: all. */
  readonly where?: string;
  /** `options.table`: only these columns; absent: all. */
  readonly columns?: readonly string[];
  /** How far the online validation had come before the write stop; null when it has not read the table. */
  readonly verifiedLsn: Lsn | null;
}

/** Fingerprints; equal as long as that part of the table is what it was, under the same major. */
export interface TableStructure {
  /** Names, types, NOT NULL, defaults, identities, collations, in their order. */
  readonly columns: string;
  /** Keys, unique, exclusion, CHECK and foreign key constraints. */
  readonly constraints: string;
  /** Those that belong to no constraint. */
  readonly indexes: string;
  /** And whether they fire. */
  readonly triggers: string;
}

export interface CertifiedTable extends TableVerdict {
  /** When the certificate was made; null for a side that could not be asked. Absent in older certificates. */
  readonly structure?: { readonly source: TableStructure | null; readonly target: TableStructure | null };
}

/** Of all together; each was compared by itself. */
export interface LargeObjectsVerdict {
  readonly count: number;
  /** Decimal text. */
  readonly bytes: string;
  /** SHA-256 of OID, length and digest of each, in the order of OIDs. */
  readonly digest: string;
}

export interface SequenceVerdict {
  readonly source: string;
  readonly target: string;
  /** Of the source, under the fence. */
  readonly sourceLastValue: string;
  /** What the target was set to: the same, and the margin. */
  readonly lastValue: string;
  readonly isCalled: boolean;
}

export interface SchemaSummary {
  readonly equal: boolean;
  /** Statements of the source that were looked for. */
  readonly statements: number;
  readonly differencesTotal: number;
  /** The first objects that differ. */
  readonly differences: readonly string[];
  /** Why it could not be compared; null when it was. */
  readonly error: string | null;
}

/** Where the time between arming and opening went, in ms. */
export interface WriteStopReport {
  readonly ms: number;
  /** Of the last dry run; null when there was none. */
  readonly predictedMs: number | null;
  readonly steps: {
    /** Until the last writer was gone. */
    readonly fenceMs: number;
    /** Until the marker was applied. */
    readonly drainMs: number;
    readonly compareMs: number;
    /** Sequences, rehearsal, the way back, the hook before_open. */
    readonly prepareMs: number;
    /** Foreign keys, triggers … */
    readonly openMs: number;
  };
}

/** One side: how it was reached, and what it was. */
export interface CertifiedServer {
  readonly host: string;
  readonly port: number;
  readonly dbname: string;
  /** Of initdb, shared by physical copies; decimal text. Null: the server did not tell. */
  readonly systemIdentifier: string | null;
}

/** What was compared, at which position, with what result. Kept with the task until DELETE. */
export interface Certificate {
  readonly taskId: string;
  /** What kept the source from being written; only `triggers` is proven. */
  readonly fence: TaskOptions['fence'];
  /** With `database-read-only`: roles whose own setting let them write all the same. */
  readonly rolesPastFence?: readonly string[];
  /** Absent in older certificates. */
  readonly servers?: { readonly source: CertifiedServer; readonly target: CertifiedServer };
  readonly sourceVersion: string;
  readonly targetVersion: string;
  /** Source position after the last writer was gone. */
  readonly fenceLsn: Lsn;
  /** Commit of the drain marker, applied on the target. */
  readonly markerLsn: Lsn;
  readonly tables: readonly CertifiedTable[];
  /**
   * `whole`: digests of all tables are of every row. `changes`: those of some (their `method`) are of the last changes only, and
   * `reason` tells why: what `dts verify` finds on the source later cannot be told from what was there. Absent in older
   * certificates.
   */
  readonly digests?: { readonly extent: 'whole' | 'changes'; readonly reason: string | null };
  readonly sequences: readonly SequenceVerdict[];
  readonly validatedAt: string;
  /** Source writes were refused from here on; with `fence: none` they were not. ISO 8601. */
  readonly armedAt: string;
  /** The target was ready to take writes. */
  readonly openedAt: string;
  /** Absent where a step has not noted its time. */
  readonly writeStop?: WriteStopReport;
  readonly completedAt: string;
  /** Every table was equal. */
  readonly equal: boolean;
  /** What the hook `after_open` answered in the end; absent when there is none. */
  readonly afterOpen?: 'done' | ErrorReport;
  /** SHA-256 of all the rest. */
  readonly hash: string;
  /** Both schemas when the target was complete. A difference stops nothing: the target is open by then. */
  readonly schema?: SchemaSummary;
  /** Read from both servers under the fence, and equal; absent when the migration is not one of large objects. */
  readonly largeObjects?: LargeObjectsVerdict;
  /** Constraints that existing rows violate, on the source as well; they stay NOT VALID. Absent when there are none. */
  readonly unvalidatedConstraints?: readonly string[];
}
