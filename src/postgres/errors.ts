// SQLSTATE and socket errors → MigrationError. Never the message text: it is translated and changes between majors.
import { DatabaseError } from 'pg';
import { asMigrationError, isStoreFailure, MigrationError, type ErrorCode } from '../model/errors.ts';

interface Classified {
  readonly code: ErrorCode;
  readonly hint?: string;
}

// Exact states first, then classes (first two characters); appendix A of the PostgreSQL manual.
const byState: Readonly<Record<string, Classified>> = {
  '28000': { code: 'authentication_failed', hint: 'check user and pg_hba.conf' },
  '28P01': { code: 'authentication_failed', hint: 'check the password' },
  '3D000': { code: 'connection_failed', hint: 'the database does not exist' },
  '42501': { code: 'insufficient_privilege' },
  '53100': { code: 'disk_full', hint: 'free space on the server, then resume' },
  '53300': { code: 'too_many_connections', hint: 'raise max_connections or lower copy_jobs' },
  '55P03': { code: 'lock_timeout' },
  '57P01': { code: 'connection_failed' }, // admin_shutdown
  '57P02': { code: 'connection_failed' }, // crash_shutdown
  '57P03': { code: 'connection_failed' }, // cannot_connect_now
  '57P05': { code: 'connection_failed' }, // idle_session_timeout
  '40001': { code: 'connection_failed' }, // serialization_failure: the statement may be run again
  '40P01': { code: 'lock_timeout' }, // deadlock_detected
  '25P03': { code: 'connection_failed' }, // idle_in_transaction_session_timeout
};
const permanent = new Set(['3D000']);
const byClass: Readonly<Record<string, Classified>> = {
  '08': { code: 'connection_failed' },
};

const socketCodes = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ENOENT', // no Unix socket there
  'EACCES',
]);

/** What the caller knows about the failed step; goes into `details`. */
export interface ErrorContext {
  readonly role?: 'source' | 'target';
  readonly relation?: string;
  readonly statement?: string;
  readonly [key: string]: unknown;
}

/** Classifies an error from `pg`, a socket or our own code; a MigrationError passes unchanged. */
export function fromPostgres(error: unknown, context: ErrorContext = {}): MigrationError {
  if (error instanceof MigrationError) return error;
  if (isStoreFailure(error)) return asMigrationError(error); // of a checkpoint, between two statements
  const message = error instanceof Error ? error.message : String(error);
  const where = context.role ? `${context.role}: ` : '';
  if (error instanceof DatabaseError && error.code !== undefined) {
    const found = byState[error.code] ?? byClass[error.code.slice(0, 2)] ?? { code: 'sql_failed' as const };
    const hint = found.hint ?? error.hint;
    return new MigrationError(found.code, where + message, {
      ...(permanent.has(error.code) ? { kind: 'operator' as const } : {}),
      ...(hint === undefined ? {} : { hint }),
      details: {
        sqlstate: error.code,
        ...(error.detail ? { detail: error.detail } : {}),
        ...(error.where ? { where: error.where } : {}),
        ...context,
      },
      cause: error,
    });
  }
  const socketCode = (error as { code?: unknown } | null)?.code;
  if (typeof socketCode === 'string' && socketCodes.has(socketCode)) {
    return new MigrationError('connection_failed', where + message, {
      details: { ...context, socket: socketCode },
      cause: error,
    });
  }
  if (isConnectionLoss(error)) {
    return new MigrationError('connection_failed', where + message, {
      details: { ...context },
      cause: error,
    });
  }
  return new MigrationError('internal', where + message, { details: { ...context }, cause: error });
}

// `pg` raises plain Errors without a code when a socket closes under a query; there is nothing else to go by.
const connectionLossMessages = new Set([
  'Connection terminated unexpectedly',
  'Connection terminated',
  'Client has encountered a connection error and is not queryable',
  'Client was closed and is not queryable',
  'timeout expired',
  'timeout exceeded when trying to connect',
  'Connection terminated due to connection timeout',
  'Cannot use a pool after calling end on the pool',
]);

function isConnectionLoss(error: unknown): boolean {
  return error instanceof Error && connectionLossMessages.has(error.message);
}
