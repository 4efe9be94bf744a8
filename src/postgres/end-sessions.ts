// Ends sessions of ours that outlived their process or their connection. A backend goes on with what it has been sent after
// its client has left, and holds its locks until it notices.
import { MigrationError } from '../model/errors.ts';
import type { Side } from './connections.ts';
import { sleep, type TaskScope } from './task-scope.ts';

const POLL_MS = 50;
const TIMEOUT_MS = 30_000;

/**
 * Resolves when no session of the task with one of these purposes is left on `side`. Errors: `deadline_exceeded` naming
 * those that stay.
 */
export async function endSessions(scope: TaskScope, side: Side, purposes: readonly string[]): Promise<void> {
  const names = purposes.map((purpose) => `dts/${scope.taskId}/${side.role}/${purpose}`);
  for (const deadline = Date.now() + TIMEOUT_MS; ; ) {
    const { rows } = await side.query<{ pid: number; name: string }>(
      `select pid, application_name as name, pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and application_name = any ($1::text[])`,
      [names],
    );
    if (rows.length === 0) return;
    if (Date.now() > deadline)
      throw new MigrationError(
        'deadline_exceeded',
        `${side.role}: sessions of this task do not end: ${rows.map(({ pid, name }) => `pid ${pid} (${name})`).join(', ')}`,
      );
    await sleep(POLL_MS, scope.signal);
  }
}
