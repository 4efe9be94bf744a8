// What the runtime binds for the last step of a cutover, for tests that call it directly.
import type { Certificate } from '../../src/model/certificate.ts';
import { settle, type HoldSnapshots } from '../../src/cutover/settle.ts';
import type { TaskScope } from '../../src/postgres/task-scope.ts';
import { compareTables } from '../../src/validate/compare.ts';

export async function settleTask(
  scope: TaskScope,
  hold?: HoldSnapshots,
): Promise<{ certificate: Certificate; cleanupPending: boolean }> {
  return settle(scope, {
    compareAgain: async () => (await compareTables(scope, { whole: true })).tables,
    ...(hold && { hold }),
  });
}
