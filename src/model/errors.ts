// The one error class, its kinds and its codes. `kind` decides what the statechart does (model/retry.ts); `code` is
// what an operator searches for; `hint` is what to do next.

/**
 * - `transient`: trying again can help (lost connection, deadlock, serialization, server starting)
 * - `operator`: a person can fix it, then RESUME continues (disk full, missing right, name taken)
 * - `lost`: what the task relied on is gone (slot, publication, marker)
 * - `divergence`: source and target disagree where they must not
 * - `ambiguous`: we cannot know whether an effect happened; ask the servers before going on
 * - `aborted`: we stopped it ourselves (pause, cancel, deadline)
 * - `bug`: an invariant of ours is broken
 */
export type ErrorKind = 'transient' | 'operator' | 'lost' | 'divergence' | 'ambiguous' | 'aborted' | 'bug';

/** Every code with its kind and meaning. This table is the operators' documentation (README links here). */
export const errorCodes = {
  // requests
  invalid_request: ['operator', 'a field of the request is malformed; `details.fields` names it'],
  invalid_table_name: ['operator', 'a table name cannot be parsed'],
  task_not_found: ['operator', 'no task has this id'],
  task_exists: ['operator', 'a task with this id exists with another body'],
  task_already_running: ['operator', 'the task is queued or running'],
  task_ended: ['operator', 'the task is completed, cancelled or failed'],
  task_live: ['operator', 'the task has not ended; cancel it first'],
  table_in_task: ['operator', 'a table that is to be added is in the task already'],
  event_not_accepted: ['operator', 'the state of the task does not accept this command'],
  secret_unavailable: ['operator', 'a stored or referenced password cannot be read'],
  service_stopped: ['aborted', 'the service is shutting down'],
  store_in_use: ['operator', 'another service is at work in this data directory'],
  store_failed: ['transient', 'our own SQLite store cannot be written or read: its disk is full, or fails'],
  // connections
  connection_failed: ['transient', 'the server cannot be reached or dropped the connection'],
  authentication_failed: ['operator', 'user, password or pg_hba.conf refuse the connection'],
  tls_failed: ['operator', 'TLS could not be established as sslmode demands'],
  too_many_connections: ['transient', 'the server has no free connection slot'],
  insufficient_privilege: ['operator', 'the role lacks a right'],
  disk_full: ['operator', 'a server has no space left'],
  sql_failed: ['operator', 'a statement failed; `details` has SQLSTATE and statement'],
  lock_timeout: ['transient', 'a lock was not granted in time'],
  // work
  preflight_blocked: ['operator', 'preflight found something that must be changed first; see findings'],
  schema_unsupported: ['operator', 'the schema has something that cannot be migrated yet'],
  schema_failed: ['operator', 'a statement of the schema failed on the target'],
  target_conflict: ['operator', 'an object on the target is in the way'],
  slot_creation_timeout: [
    'transient',
    'the slot could not be created in time; the hint names the transactions it waits for',
  ],
  slot_lost: ['lost', 'the replication slot is gone or invalidated: changes since then cannot be read'],
  slot_stranger: ['lost', 'a slot of our name exists that is not ours or was moved by somebody else'],
  source_replaced: [
    'operator',
    'another cluster, or another timeline of it, answers at the source’s address: failover, restore or clone',
  ],
  publication_lost: ['lost', 'the publication is gone or was changed'],
  copy_failed: ['operator', 'COPY of a table failed; `details` has relation and part'],
  source_ddl: ['operator', 'the structure of a source table changed during the migration'],
  unexpected_row: ['divergence', 'a change met a row that should, or should not, be there'],
  validation_failed: ['divergence', 'source and target differ after the drain'],
  cutover_timeout: ['transient', 'the cutover did not finish before its deadline; writes were allowed again'],
  cutover_interrupted: [
    'transient',
    'a pause, restart or error ended the cutover; writes were allowed again',
  ],
  hook_failed: [
    'transient',
    'a hook of the cutover failed: not reached, not answered with 2xx, exit code not 0, or too late',
  ],
  already_opened: [
    'operator',
    'the source says that the target was opened already: this store is older than the cutover',
  ],
  fence_failed: ['operator', 'the write fence could not be installed or armed'],
  replica_identity_in_use: [
    'operator',
    'a table cannot get its replica identity back yet: another publication needs it',
  ],
  deadline_exceeded: ['transient', 'a wait reached its deadline'],
  aborted: ['aborted', 'stopped on request'],
  internal: ['bug', 'an invariant of DTS is broken; please report it'],
} as const satisfies Record<string, readonly [ErrorKind, string]>;

export type ErrorCode = keyof typeof errorCodes;

/** JSON form of an error: what contexts, journals, logs and the API carry. */
export interface ErrorReport {
  readonly code: ErrorCode;
  readonly kind: ErrorKind;
  readonly message: string;
  readonly hint?: string;
  readonly details?: Readonly<Record<string, unknown>>;
}

export interface MigrationErrorOptions {
  /** Overrides the code's usual kind. */
  readonly kind?: ErrorKind;
  /** What the operator can do next. */
  readonly hint?: string;
  /** JSON only. */
  readonly details?: Readonly<Record<string, unknown>>;
  readonly cause?: unknown;
}

export class MigrationError extends Error {
  readonly code: ErrorCode;
  readonly kind: ErrorKind;
  readonly hint: string | undefined;
  readonly details: Readonly<Record<string, unknown>> | undefined;

  constructor(code: ErrorCode, message: string, options: MigrationErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'MigrationError';
    this.code = code;
    this.kind = options.kind ?? errorCodes[code][0];
    this.hint = options.hint;
    this.details = options.details;
  }

  toReport(): ErrorReport {
    return {
      code: this.code,
      kind: this.kind,
      message: this.message,
      ...(this.hint === undefined ? {} : { hint: this.hint }),
      ...(this.details === undefined ? {} : { details: this.details }),
    };
  }
}

/** Any thrown value as a MigrationError; what we did not classify is a bug of ours and keeps its cause. */
export function asMigrationError(error: unknown): MigrationError {
  if (error instanceof MigrationError) return error;
  const message = error instanceof Error ? error.message : String(error);
  if (isStoreFailure(error))
    return new MigrationError('store_failed', `the store of DTS: ${message}`, {
      hint: 'look at the disk of the data directory',
      cause: error,
    });
  return new MigrationError('internal', message, { cause: error });
}

/** Of better-sqlite3: its codes are SQLite's result codes by name. A note that cannot be written fails no migration. */
export function isStoreFailure(error: unknown): boolean {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' && code.startsWith('SQLITE_');
}
