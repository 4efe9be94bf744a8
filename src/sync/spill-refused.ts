// What a task says when our disk has no room for transactions that the source has not committed: it goes on, but such a
// transaction is then written to the source's disk, and comes when it has committed.
import type { Finding } from '../model/finding.ts';
import type { SpillFailed } from '../postgres/spill-file.ts';

export const SPILL_REFUSED = 'spill_refused';

export function spillRefused({ message }: SpillFailed): Finding {
  return {
    code: SPILL_REFUSED,
    severity: 'warning',
    object: 'service',
    message: `${message}: large transactions are not kept here while they are written; the source sends them when they have committed, which takes it longer, and writes them to its disk`,
    remedy: 'make room in the data folder of DTS, or let it write there; then pause and resume the task',
  };
}
