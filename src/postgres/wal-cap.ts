// `max_retained_wal_bytes`: the source's disk is worth more than this migration, if its owner said so. Asked by the stream's
// sampler while it runs, and by the runtime for tasks whose stream does not.
import { cutoverNotes, type WriteStop } from '../model/cutover-notes.ts';
import { MigrationError } from '../model/errors.ts';
import { dropSlot } from './slot-removal.ts';
import { recopyRemedy, type SlotRecord } from './slot-record.ts';
import type { TaskScope } from './task-scope.ts';

/**
 * Drops the slot when the source keeps more WAL for it than the task may cost, and throws `slot_lost` then. Not under the
 * fence: the source hardly writes there, the stop has a deadline, and without the slot all its refused writes were for nothing.
 */
export async function enforceWalCap(
  scope: TaskScope,
  slot: SlotRecord,
  retainedBytes: number,
): Promise<void> {
  const cap = scope.spec.options.maxRetainedWalBytes;
  if (cap === null || retainedBytes <= cap || isFenced(scope)) return;
  await dropSlot(scope);
  const error = new MigrationError(
    'slot_lost',
    `source: replication slot ${slot.name} was dropped: it kept ${retainedBytes} bytes of WAL, more than max_retained_wal_bytes (${cap})`,
    {
      hint: `changes since then cannot be read any more: ${recopyRemedy(scope)}; raise the cap first: PATCH …/options`,
      details: { slot: slot.name, retainedBytes, maxRetainedWalBytes: cap },
    },
  );
  scope.log.error({ err: error }, 'the slot was dropped to save the disk of the source');
  throw error;
}

function isFenced(scope: TaskScope): boolean {
  const stop = scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop);
  return stop !== undefined && stop.liftedAt === null;
}
