// What a task says when its stream may not, or cannot, read by the slot functions while far behind: the walsender feeds it
// alone, correctly and more slowly.
import type { MigrationError } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';

export const CATCH_UP_REFUSED = 'catch_up_refused';

/** By the SQLSTATE of the refusal: 42501 a right, 53400 a limit that is configured (slots, temp_file_limit), 53* no room. */
export function catchUpRefused({ message, details }: MigrationError): Finding {
  const sqlstate = typeof details?.['sqlstate'] === 'string' ? details['sqlstate'] : '';
  return {
    code: CATCH_UP_REFUSED,
    severity: 'warning',
    object: 'source',
    message: `${message}: the slot functions, by which the stream catches up faster, are not to be had; it goes on by its walsender alone`,
    remedy: remedyOf(sqlstate),
  };
}

function remedyOf(sqlstate: string): string | null {
  const renewed = 'then pause and resume the task';
  if (sqlstate === '42501')
    return `grant the role execute on pg_copy_logical_replication_slot, pg_logical_slot_get_binary_changes and pg_replication_slot_advance; ${renewed}`;
  if (sqlstate.startsWith('53'))
    return `raise max_replication_slots, of which a second one is needed, or temp_file_limit, whichever is exhausted, or make room on the source's disk; ${renewed}`;
  return null;
}
