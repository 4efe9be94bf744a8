// Bounds the steps of a cutover, during which the source refuses writes.
import { MigrationError } from '../model/errors.ts';
import { fromPostgres } from './errors.ts';
import type { TaskScope } from './task-scope.ts';

/** The end of a step that does not read tables, ms since the epoch, for a caller that the statechart gives none. */
export function cutoverDeadline(scope: TaskScope): number {
  return Date.now() + scope.spec.options.cutoverTimeoutMs;
}

/** The end of all reading under the fence, ms since the epoch, for a caller that the statechart gives none. */
export function readingDeadline(scope: TaskScope): number {
  return Date.now() + scope.spec.options.validationTimeoutMs;
}

function abortAt(deadline: number): AbortSignal {
  return AbortSignal.timeout(Math.min(Math.max(0, Math.floor(deadline - Date.now())), 2 ** 31 - 1));
}

/** `what` was not done at the deadline; `remedy`: another way out. */
export function tookTooLong(
  scope: TaskScope,
  { what, remedy }: { readonly what: string; readonly remedy?: string },
  details?: Readonly<Record<string, unknown>>,
  cause?: unknown,
): MigrationError {
  const { validationTimeoutMs } = scope.spec.options;
  const other = remedy === undefined ? '' : `; or ${remedy}`;
  return new MigrationError(
    'deadline_exceeded',
    `${what} was not done when the comparison had taken validation_timeout_ms (${validationTimeoutMs})`,
    {
      hint: `raise validation_timeout_ms: PATCH …/options${other}`,
      ...(details === undefined ? {} : { details }),
      ...(cause === undefined ? {} : { cause }),
    },
  );
}

/**
 * Runs `work` until `at`, ms since the epoch; `limit` is for the error. Errors: `deadline_exceeded`, `aborted`, what the work
 * throws as of `fromPostgres`.
 */
export async function underFence<T>(
  scope: TaskScope,
  at: number,
  limit: { readonly what: string; readonly remedy?: string },
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const deadline = abortAt(at);
  try {
    return await work(AbortSignal.any([scope.signal, deadline]));
  } catch (error) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    if (deadline.aborted) throw tookTooLong(scope, limit, undefined, error);
    throw fromPostgres(error);
  } finally {
    scope.progress.setWaitingFor(null);
  }
}
