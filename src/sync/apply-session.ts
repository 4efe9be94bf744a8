// The session on the target that applies the stream: what it needs beyond every session of ours (connections.ts). Opened
// by stream.ts for every connection of the walsender.
import { isUniqueLater } from '../postgres/copy-state.ts';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { silenceTriggers } from '../postgres/existing-tables.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

const LOCK_TIMEOUT_MS = 30_000;

// Index scans only: a plan made while a table was small would otherwise scan it for every row when it has grown.
// 'on' makes a commit durable before we acknowledge it, whatever the target's default is; the replay says when it need not be.
const applySettings = (lockTimeoutMs: number): string => `
  select set_config(name, value, false) from (values ('synchronous_commit', 'on'), ('enable_seqscan', 'off'),
    ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'),
    ('plan_cache_mode', 'force_generic_plan'), ('lock_timeout', '${lockTimeoutMs}')) as s(name, value)`;

/** Opens the session that applies. */
export async function openApplySession(scope: TaskScope, signal: AbortSignal): Promise<Session> {
  const session = await scope.target.session({ purpose: 'apply', signal });
  try {
    // An index build of our own is no lock to give up on; the sampler names who holds it.
    await session.client.query(applySettings(isUniqueLater(scope) ? 0 : LOCK_TIMEOUT_MS));
    await silenceTriggers(session.client);
    return session;
  } catch (error) {
    await session.close();
    throw fromPostgres(error, { role: 'target' });
  }
}
