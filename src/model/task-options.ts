// Everything that a create request may choose, with its defaults filled in (model/request-options.ts has them).

/** At a moment of the cutover: an HTTP call to `url`, or a `command` of the service's hooks folder; exactly one of them. */
export interface Hook {
  readonly url?: string | undefined;
  /** A file name. */
  readonly command?: string | undefined;
  readonly timeoutMs: number;
  /** Of the call. Values are read when it is made and stored nowhere. */
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
   * What becomes of DDL on the source. `apply-additive`: new columns whose old rows are known, new enum values and wider types are
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
  /** Size of a part; null: 256 MiB, and tables of up to 1 GiB are one. Read when the copy begins. */
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
