// Removes things step by step, each tried on its own: a slot that cannot be dropped must not keep the fence up, nor a
// dead source our bookkeeping on the target. Used by settle and cleanUp.
import { cutoverNotes } from '../model/cutover-notes.ts';
import { MigrationError, type ErrorCode, type ErrorReport } from '../model/errors.ts';
import type { Role } from '../model/endpoint.ts';
import { fromPostgres } from '../postgres/errors.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

/** The server does not let us in: the next step would only wait for its own connect timeout. */
const unreachable: ReadonlySet<ErrorCode> = new Set([
  'connection_failed',
  'authentication_failed',
  'tls_failed',
  'secret_unavailable',
]);

export class Attempts {
  readonly #errors: MigrationError[] = [];
  readonly #scope: TaskScope;
  readonly #lost = new Set<Role>();

  constructor(scope: TaskScope) {
    this.#scope = scope;
  }

  /** Runs one step; false when it failed, or was not tried because its server is out of reach. Throws only `aborted`. */
  async run(role: Role, step: string, work: () => Promise<void>): Promise<boolean> {
    if (this.#scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request');
    if (this.#lost.has(role)) return false;
    try {
      await work();
      return true;
    } catch (error) {
      if (this.#scope.signal.aborted)
        throw new MigrationError('aborted', 'stopped on request', { cause: error });
      const known = fromPostgres(error, { role });
      if (unreachable.has(known.code)) this.#lost.add(role);
      this.#errors.push(known);
      this.#scope.log.warn({ err: known, step }, 'clean-up is not complete; it will be tried again');
      return false;
    }
  }

  /** Notes the first failure for the API, or that nothing is left, and returns it. */
  conclude(): ErrorReport | null {
    const first = this.#errors[0]?.toReport();
    if (first === undefined) {
      this.#scope.checkpoints.delete(cutoverNotes.leftover);
      return null;
    }
    const leftover: ErrorReport = {
      ...first,
      hint: first.hint ?? 'the clean-up is tried again by itself from time to time',
    };
    this.#scope.checkpoints.set(cutoverNotes.leftover, leftover);
    return leftover;
  }
}
