// Looks at the slots of tasks whose stream does not run (paused, waiting for a place or for a retry, or unable to reach its
// target): the source keeps WAL for them, and nobody else would notice. Called by the supervisor's timer.
import type { TaskNotes } from '../../db/notes.ts';
import { MigrationError, type ErrorReport } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import { lagBytes, type Lsn } from '../model/lsn.ts';
import type { RestingSlot } from '../model/progress.ts';
import type { TaskState } from '../model/task-state.ts';
import { sampleSlot } from '../postgres/lag.ts';
import { slotNote, type SlotRecord } from '../postgres/slot-record.ts';
import { verifySlot } from '../postgres/slot.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { enforceWalCap } from '../postgres/wal-cap.ts';
import { slotFinding, slotOutlook } from '../sync/lag-clock.ts';

/** The task is at rest: its slot is looked at every time. */
const RESTING: readonly TaskState[] = ['paused', 'queued', 'retrying'];
/** Its stream has a sampler of its own, unless it cannot connect. */
const STREAMING: readonly TaskState[] = ['migratingData', 'syncingWal'];
/** A sampler that has said nothing for so long is not at work. */
const SAMPLER_SILENT_MS = 30_000;

const RESTING_SLOT = 'restingSlot';

/** Checkpoint: the last look. */
interface Look extends RestingSlot {
  readonly sourceLsn: Lsn | null;
  /** Ms since 1970: when the slot was in danger last, or was looked at first. Absent in older notes. */
  readonly dangerAtMs?: number;
}

export const watchedStates: readonly TaskState[] = [...RESTING, ...STREAMING];

/** What the API shows of a task at rest. */
export function restingSlotOf(notes: TaskNotes, taskId: string, state: TaskState): RestingSlot | null {
  if (!RESTING.includes(state)) return null;
  const look = notes.checkpoint(taskId, RESTING_SLOT) as Look | undefined;
  if (!look) return null;
  const { sourceLsn: _position, dangerAtMs: _danger, ...shown } = look;
  return shown;
}

/** Whether there is a slot that nobody watches. `sampledAt`: of the sampler's last figures. */
export function needsWatch(
  notes: TaskNotes,
  task: { readonly id: string; readonly state: TaskState; readonly error: ErrorReport | null },
  sampledAt: string | null,
): boolean {
  const slot = notes.checkpoint(task.id, slotNote) as SlotRecord | undefined;
  if (!slot || slot.dropped === true || task.error?.kind === 'lost') return false;
  if (RESTING.includes(task.state)) return true;
  return sampledAt === null || Date.now() - Date.parse(sampledAt) > SAMPLER_SILENT_MS;
}

/**
 * Looks once and notes what it saw; what is to be said of the slot, as slotFinding has it. Errors: `slot_lost`, also when it was dropped here, `source_replaced`, `slot_stranger`,
 * and what a connection says.
 */
export async function lookAtSlot(scope: TaskScope): Promise<Finding | null | undefined> {
  const record = scope.checkpoints.get<SlotRecord>(slotNote);
  if (!record || record.dropped === true) return undefined;
  const { checkpoints, log } = scope;
  const last = checkpoints.get<Look>(RESTING_SLOT);
  const sampledAt = new Date().toISOString();
  try {
    const { slot, sourceLsn } = await sampleSlot(scope, record.name);
    if (slot === null || slot.walStatus === 'lost') {
      await verifySlot(scope, record);
      throw new MigrationError('internal', 'source: the slot was lost and is back');
    }
    await enforceWalCap(scope, record, slot.retainedBytes);
    const seconds = last ? (Date.parse(sampledAt) - Date.parse(last.sampledAt)) / 1_000 : 0;
    const rate =
      last?.sourceLsn && seconds > 0 ? Math.max(0, lagBytes(sourceLsn, last.sourceLsn) / seconds) : 0;
    const { walStatus, retainedBytes, safeWalBytes } = slot;
    const cap = scope.spec.options.maxRetainedWalBytes;
    const outlook = slotOutlook(slot, rate, cap);
    const atMs = Date.parse(sampledAt);
    const dangerAtMs = last?.dangerAtMs ?? atMs;
    if (outlook.warning !== null && outlook.warning !== last?.warning)
      log.warn({ slot: record.name, ...slot }, outlook.warning);
    checkpoints.set(RESTING_SLOT, {
      walStatus,
      retainedBytes,
      safeWalBytes,
      sourceBytesPerSecond: Math.round(rate),
      ...outlook,
      error: null,
      sourceLsn,
      sampledAt,
      dangerAtMs: outlook.warning === null ? dangerAtMs : atMs,
    } satisfies Look);
    return slotFinding(slot, outlook, cap, { atMs, dangerAtMs });
  } catch (error) {
    if (!(error instanceof MigrationError) || error.kind !== 'lost') {
      const message = error instanceof Error ? error.message : String(error);
      const unknown = { walStatus: null, retainedBytes: null, safeWalBytes: null, sourceLsn: null };
      checkpoints.set(RESTING_SLOT, {
        ...(last ?? {
          ...unknown,
          sourceBytesPerSecond: 0,
          secondsUntilLost: null,
          warning: null,
          sampledAt,
        }),
        error: `the slot could not be looked at: ${message}`,
      } satisfies Look);
    }
    throw error;
  }
}
