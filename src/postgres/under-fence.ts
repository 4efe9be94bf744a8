// Bounds a step that reads while the source refuses writes.
import { MigrationError } from '../model/errors.ts';
import { fromPostgres } from './errors.ts';
import type { TaskScope } from './task-scope.ts';

/**
 * Runs `work` until `validationTimeoutMs`, the deadline of all reading under the fence; `what` is for the error, `remedy`
 * the other way out. Errors: `deadline_exceeded`, `aborted`, what the work throws as of `fromPostgres`.
 */
export async function underFence<T>(
  scope: TaskScope,
  { what, remedy }: { readonly what: string; readonly remedy: string },
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const { validationTimeoutMs } = scope.spec.options;
  const deadline = AbortSignal.timeout(Math.min(validationTimeoutMs, 2 ** 31 - 1));
  try {
    return await work(AbortSignal.any([scope.signal, deadline]));
  } catch (error) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    if (deadline.aborted)
      throw new MigrationError('deadline_exceeded', `${what} took longer than ${validationTimeoutMs} ms`, {
        hint: `raise validation_timeout_ms, or ${remedy}`,
        cause: error,
      });
    throw fromPostgres(error);
  } finally {
    scope.progress.setWaitingFor(null);
  }
}
