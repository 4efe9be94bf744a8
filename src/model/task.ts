// A migration task as everybody sees it: library, HTTP, statechart, store. JSON only, no secrets.
import type { ErrorReport } from './errors.ts';
import type { Finding } from './finding.ts';
import type { Lsn } from './lsn.ts';

/** State keys of the statechart, the `state` in the API and the words of the docs. */
export const taskStates = [
  'created',
  'queued',
  'init',
  'creatingTables',
  'migratingData',
  'syncingWal',
  'stoppingWrites',
  'validating',
  'finalizing',
  'paused',
  'retrying',
  'cancelling',
  'failing',
  'finishing',
  'completed',
  'cancelled',
  'failed',
] as const;
export type TaskState = (typeof taskStates)[number];

const endedStates: ReadonlySet<TaskState> = new Set(['completed', 'cancelled', 'failed']);

/** Ended tasks are rows only: no actor, no connection, nothing left to do but DELETE (and unfence). */
export function isEnded(state: TaskState): boolean {
  return endedStates.has(state);
}

export const sslModes = ['disable', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;
export type SslMode = (typeof sslModes)[number];

export type Role = 'source' | 'target';

/** Where a password comes from. `stored`: encrypted in our SQLite; it is never part of this document. */
export type PasswordSource =
  | { readonly from: 'stored' | 'none' }
  | { readonly from: 'env'; readonly name: string }
  | { readonly from: 'file'; readonly path: string };

/** How to reach one database; everything but the secrets. */
export interface Endpoint {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly dbname: string;
  readonly sslmode: SslMode;
  /** PEM text or a file's path. */
  readonly sslrootcert?: string;
  readonly sslcert?: string;
  /** A file's path; PEM text of a key is a secret and lies with the password. */
  readonly sslkeyPath?: string;
  readonly password: PasswordSource;
}

/** The secret half of an endpoint, as the store hands it to `postgres/connect` and to nobody else. */
export interface EndpointSecrets {
  readonly password?: string;
  readonly sslkey?: string;
}

/** An HTTP call at a moment of the cutover. Values of headers are read when it is made and stored nowhere. */
export interface Hook {
  readonly url: string;
  readonly timeoutMs: number;
  readonly headers: readonly {
    readonly name: string;
    /** A variable of the service. */
    readonly env?: string | undefined;
    /** A file on its machine. */
    readonly file?: string | undefined;
  }[];
}
/** `beforeOpen`: under the fence, a failure lifts it; `afterOpen`: the target takes writes. */
export type HookName = keyof TaskOptions['hooks'];

/** Null: all of them. */
export interface TableOption {
  /** A boolean SQL expression over columns that identify the row. */
  readonly where: string | null;
  readonly columns: readonly string[] | null;
}

export interface TaskOptions {
  /** `manual`: waits for CUTOVER; `auto`: cuts over when every gate is open. */
  readonly cutover: 'manual' | 'auto';
  /**
   * How writes to the source are stopped. `triggers`: on every table, proven. `database-read-only`: new sessions begin
   * read-only and the old ones must end; a session may override it. `none`: the application stops by itself.
   */
  readonly fence: 'triggers' | 'database-read-only' | 'none';
  /** End the sessions that hold the fence up, a moment after the arming. */
  readonly terminateBlockers: boolean;
  /** Values that the target's sequences are set ahead by: nextval on the source is not fenced. */
  readonly sequenceMargin: number;
  readonly hooks: { readonly beforeOpen: Hook | null; readonly afterOpen: Hook | null };
  /** Keep the write fence on the source after completion. */
  readonly keepFence: boolean;
  /** From arming the fence to the applied marker; then writes are allowed again. */
  readonly cutoverTimeoutMs: number;
  /** Longest comparison under the fence; then writes are allowed again. */
  readonly validationTimeoutMs: number;
  /** Cutover starts only while the target is at most this far behind. */
  readonly cutoverMaxLagBytes: number;
  /** `online`: tables are compared while the stream runs; `cutover`: as a whole under the fence. */
  readonly validation: 'online' | 'cutover';
  /** Limit of the online validation; null: none. */
  readonly validationMaxRowsPerSecond: number | null;
  /** Cutover starts only when the online validation found everything equal this recently; null: it need not. */
  readonly cutoverMaxValidationAgeMs: number | null;
  /** Longest wait for write transactions when the slot is created and at the copy barrier. */
  readonly slotTimeoutMs: number;
  /** More WAL than this the source never keeps for the task, at work or at rest: its slot is dropped then. Null: no cap. */
  readonly maxRetainedWalBytes: number | null;
  /**
   * `full`: tables of the source without a usable key get REPLICA IDENTITY FULL for the task's time, and back what they had.
   * `keep`: such tables are a blocking finding.
   */
  readonly replicaIdentity: 'keep' | 'full';
  /**
   * What becomes of DDL on the source. `apply-additive`: new columns whose old rows are known, and new enum values, are
   * carried out on the target; `ignore`: new columns are not carried. Everything else pauses. Changeable while it runs.
   */
  readonly onDdl: 'pause' | 'apply-additive' | 'ignore';
  /** Parts copied at once; null: by the cores of both machines. */
  readonly copyJobs: number | null;
  /** Indexes built at once; null: by the cores of the target. */
  readonly indexJobs: number | null;
  /** `existing`: the tables stand on the target already and are empty; no statement of the schema is run. */
  readonly schema: 'create' | 'existing';
  /**
   * `none`: everything belongs to the role of `targetDb`. `same`: owners as on the source. A map renames roles, in owners,
   * grants and policies; roles that it does not name keep theirs.
   */
  readonly owners: 'none' | 'same' | Readonly<Record<string, string>>;
  /** Grants come along. */
  readonly privileges: boolean;
  /** What happens with roles that are needed and that the target lacks. */
  readonly roles: 'existing' | 'create';
  /** A map says `skip` or a version for the extensions that it names. */
  readonly extensions: 'create' | 'skip' | Readonly<Record<string, string>>;
  /** `none`: the target's default. A map renames them. */
  readonly tablespaces: 'none' | 'same' | Readonly<Record<string, string>>;
  /** Rows and columns of single tables, by name as in `tables` (no globs); of a partitioned table for all its partitions. */
  readonly table: Readonly<Record<string, TableOption>>;
  /** Relations that are left out: names as in `tables`, with globs. */
  readonly exclude: readonly string[];
  /** Of a whole database: foreign tables, their servers and wrappers (without user mappings) come along. */
  readonly foreignTables: boolean;
  readonly eventTriggers: boolean;
  readonly publications: boolean;
  /** Disabled, and without passwords. */
  readonly subscriptions: boolean;
  /** Of a whole database: large objects come along, copied under the fence. */
  readonly largeObjects: boolean;
  /** Size of a part; null: 256 MB, and large tables in at least 16. Read when the copy begins. */
  readonly partBytes: number | null;
  /** Limit of the whole copy; null: none. Changeable while the task runs, like the two below. */
  readonly maxBytesPerSecond: number | null;
  /** The copy waits while a standby of the source lies further behind; null: it does not look. */
  readonly maxSourceLagBytes: number | null;
  /** No part is begun under a snapshot that is older: bounds how long the copy holds back VACUUM on the source. */
  readonly maxSnapshotAgeMs: number;
  /** After the cutover a task of its own streams target → source, until a rollback or `finish`. */
  readonly reverse: boolean;
}

/** Of a reverse task: whose cutover it can undo. */
export interface ReverseOrigin {
  readonly taskId: string;
  readonly incarnation: string;
  /** The task that all of this began with. */
  readonly firstTaskId: string;
  /** 2: the reverse of the first task, 3: forward again … */
  readonly leg: number;
}

/** What the user asked for: the create request, validated, defaults filled in, secrets removed. */
export interface TaskSpec {
  readonly sourceDb: Endpoint;
  readonly targetDb: Endpoint;
  /** As given; `['*']` is every user table. Resolved to relations by `schema/select`. */
  readonly tables: readonly string[];
  /** Of a reverse task: the suffix that is undone, or, forward again, done. */
  readonly tableSuffix: string;
  readonly options: TaskOptions;
  /** Made by another task's cutover; absent when a request made it. */
  readonly origin?: ReverseOrigin;
}

export type TableState = 'pending' | 'copying' | 'copied' | 'indexing' | 'ready';

export interface IndexProgress {
  /** `INDEX public.users_email`. */
  readonly object: string;
  /** PostgreSQL's words: `building index: scanning table` … */
  readonly phase: string;
  /** 0–1 of the phase, from blocks or tuples; null where the phase counts nothing. */
  readonly share: number | null;
}

/** Progress of one table; rows and bytes are counted, the estimates come from the source's statistics. */
export interface TableProgress {
  /** `relationKey` of the source table. */
  readonly table: string;
  readonly target: string;
  readonly state: TableState;
  readonly rowsCopied: number;
  readonly rowsEstimated: number;
  /** Bytes as COPY sent them. */
  readonly bytesCopied: number;
  /** Heap and TOAST on the source's disk. */
  readonly bytesEstimated: number;
  readonly partsDone: number;
  readonly partsTotal: number;
  /** `binary` or `text`, with the reason; null until the copy has chosen. */
  readonly format: 'binary' | 'text' | null;
  readonly formatReason: string | null;
  /** The index that is being built, as the target's `pg_stat_progress_create_index` tells; absent when none is. */
  readonly indexProgress?: IndexProgress | null;
}

/** The stream's position. Every lag is between two named positions. */
export interface SyncStatus {
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

/** Live figures of a task; kept in memory, sent by SSE, the lasting part saved per table. */
export interface TaskProgress {
  readonly tables: readonly TableProgress[];
  readonly bytesCopied: number;
  readonly bytesEstimated: number;
  readonly rowsCopied: number;
  readonly bytesPerSecond: number;
  /** Seconds until the copy is done at the present rate; null when unknown or not copying. */
  readonly etaSeconds: number | null;
  readonly sync: SyncStatus | null;
  /** What the task waits for right now, in words; null when it does not wait. */
  readonly waitingFor: string | null;
}

/** A task in answers of the library and of HTTP. */
export interface TaskView {
  readonly id: string;
  readonly state: TaskState;
  /** Where a paused or retrying task goes on. */
  readonly resumesAt: TaskState | null;
  /** 0–100 from bytes copied; at most 99 until completed. */
  readonly progress: number;
  readonly spec: TaskSpec;
  readonly findings: readonly Finding[];
  readonly error: ErrorReport | null;
  /** The next attempt of a retrying task, ISO 8601. */
  readonly retryAt: string | null;
  readonly lagBytes: number | null;
  readonly connections: number;
  readonly detail: TaskProgress;
  /** While the stream does not run and a slot stands; null otherwise. */
  readonly restingSlot: RestingSlot | null;
  /** Commands that the present state accepts. */
  readonly allowedCommands: readonly TaskCommandType[];
  /** Whether the source's tables refuse writes because of this task. */
  readonly fenced: boolean;
  /** Why a requested, or the next, cutover would have to wait; empty when every gate is open. */
  readonly cutoverWaitsFor: readonly string[];
  /** Length of the last write stop in ms, from arming the fence to the point of no return or un-fencing. */
  readonly writeStopMs: number | null;
  /** Objects of ours could not be removed yet; retried by the periodic cleanup. */
  readonly cleanupPending: boolean;
  /** The task that streams back since this one's cutover; null: none was made. */
  readonly reverseTask: string | null;
  readonly certificate: Certificate | null;
  readonly createdAt: string;
  readonly startedAt: string | null;
  readonly endedAt: string | null;
}

export const taskCommands = [
  'START',
  'PAUSE',
  'RESUME',
  'CANCEL',
  'ABANDON',
  'CUTOVER',
  'VALIDATE',
  'FINISH',
  'RECOPY',
] as const;
export type TaskCommandType = (typeof taskCommands)[number];

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
  /** Of the online validation; null when it has not read the table. */
  readonly verifiedLsn: Lsn | null;
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

/** What was compared, at which position, with what result. Kept with the task until DELETE. */
export interface Certificate {
  readonly taskId: string;
  /** What kept the source from being written; only `triggers` is proven. */
  readonly fence: TaskOptions['fence'];
  /** With `database-read-only`: roles whose own setting let them write all the same. */
  readonly rolesPastFence?: readonly string[];
  readonly sourceVersion: string;
  readonly targetVersion: string;
  /** Source position after the last writer was gone. */
  readonly fenceLsn: Lsn;
  /** Commit of the drain marker, applied on the target. */
  readonly markerLsn: Lsn;
  readonly tables: readonly TableVerdict[];
  readonly sequences: readonly SequenceVerdict[];
  readonly validatedAt: string;
  /** Source writes were refused from here on; with `fence: none` they were not. ISO 8601. */
  readonly armedAt: string;
  /** The target was ready to take writes. */
  readonly openedAt: string;
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
