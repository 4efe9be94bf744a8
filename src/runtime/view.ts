// A task as clients see it: the committed row, with the live figures of whoever works on it.
import type { SnapshotFrom } from 'xstate';
import type { TaskNotes } from '../../db/notes.ts';
import type { TaskRow } from '../../db/tasks.ts';
import { initialContext, type TaskContext } from '../../machines/task-context.ts';
import { taskMachine } from '../../machines/task.ts';
import { cutoverNotes } from '../model/cutover-notes.ts';
import type { ErrorReport } from '../model/errors.ts';
import { reverseNotes, type ReverseNote } from '../model/reverse.ts';
import { isEnded, taskCommands, type TaskCommandType } from '../model/task-state.ts';
import type { TaskProgress } from '../model/progress.ts';
import type { TaskOptions } from '../model/task-options.ts';
import type { TaskView } from '../model/task.ts';
import { restingSlotOf } from './slot-watch.ts';
import { persistedSnapshotOf } from './restore.ts';
import { progressPercent } from './telemetry.ts';

export type TaskSnapshot = SnapshotFrom<typeof taskMachine>;

/** The row's snapshot without its children: for guards, tags and context, not for running. */
export function restingSnapshot(row: TaskRow): TaskSnapshot {
  const { value, context, status } = persistedSnapshotOf(row) as unknown as {
    value: never;
    context: TaskContext;
    status: 'active' | 'done';
  };
  return taskMachine.resolveState({ value, context, status });
}

export function acceptedCommands(snapshot: TaskSnapshot): readonly TaskCommandType[] {
  return taskCommands.filter((type) => snapshot.can(type === 'RECOPY' ? { type, tables: [] } : { type }));
}

/** Null for a row that cannot be restored: it must still be listed, with the error that says so. */
function readableSnapshot(row: TaskRow): TaskSnapshot | null {
  try {
    return restingSnapshot(row);
  } catch {
    return null;
  }
}

interface WriteStop {
  readonly armedAt?: string;
  readonly liftedAt?: string | null;
  readonly openedAt?: string | null;
}

/** What the cutover noted about the source's fence. */
export function writeStopOf(
  notes: TaskNotes,
  taskId: string,
): { fenced: boolean; writeStopMs: number | null } {
  const noted = notes.checkpoint(taskId, 'writeStop') as WriteStop | undefined;
  if (noted?.armedAt === undefined) return { fenced: false, writeStopMs: null };
  const end = noted.openedAt ?? noted.liftedAt ?? null;
  return {
    fenced: (noted.liftedAt ?? null) === null,
    writeStopMs: end === null ? null : Math.max(0, Date.parse(end) - Date.parse(noted.armedAt)),
  };
}

/** The id of the task that this one's cutover has made. */
export function reverseTaskOf(notes: TaskNotes, taskId: string): string | null {
  const note = notes.checkpoint(taskId, reverseNotes.reverse) as ReverseNote | undefined;
  return note?.handedOver === true ? note.taskId : null;
}

/** Of a task that was given up on purpose or is completed, what matters is why it has left something on a server. */
function leftoverOf(row: TaskRow, notes: TaskNotes): ErrorReport | undefined {
  if (!row.cleanupPending || row.state === 'failed') return undefined;
  return notes.checkpoint(row.id, cutoverNotes.leftover) as ErrorReport | undefined;
}

/** The tables whose copy beside the stream has not ended, as they were asked for; null when there are none. */
function copyDueOf({ copyDue, addTables, recopyTables }: TaskContext): readonly string[] | null {
  if (copyDue === 'add') return addTables;
  return copyDue === 'recopy' ? recopyTables : null;
}

/** The copy beside the stream that has not ended, in words; null when there is none. */
export function copyingOf(context: TaskContext): string | null {
  const tables = copyDueOf(context);
  if (tables === null) return null;
  const more = tables.length > 3 ? ` and ${tables.length - 3} more` : '';
  return `the copy of ${tables.slice(0, 3).join(', ')}${more}`;
}

const notBegun = {
  rowsCopied: 0,
  rowsEstimated: 0,
  bytesCopied: 0,
  bytesEstimated: 0,
  etaSeconds: null,
  heldBytes: 0,
} as const;

/** As the statechart knows it: also before the copy begins, or while the task rests. */
function withCopying(detail: TaskProgress, context: TaskContext): TaskProgress {
  const tables = copyDueOf(context);
  return { ...detail, copying: tables === null ? null : (detail.copying ?? { tables, ...notBegun }) };
}

/** The guards of the cutover in words, those that are closed. `lagBytes`: null when nothing was sampled yet. */
export function closedGates(
  snapshot: TaskSnapshot,
  { cutoverMaxLagBytes, cutoverMaxValidationAgeMs }: TaskOptions,
  lagBytes: number | null,
): string[] {
  const { context } = snapshot;
  const isAt = (step: 'installing' | 'installingLater' | 'spacing'): boolean =>
    snapshot.matches({ replicating: { flow: { syncingWal: step } } });
  // installed again after a copy beside the stream
  const installs = !context.fenceInstalled || isAt('installing') || isAt('installingLater');
  const lag = lagBytes === null ? 'is not known yet' : `is ${lagBytes} bytes`;
  const copying = copyingOf(context);
  return [
    ...(copying === null ? [] : [`${copying} to be done`]),
    ...(installs ? ['the write fence to be installed'] : []),
    ...(isAt('spacing') ? [`the pause after a failed cutover, until ${context.deadlineAt}`] : []),
    ...(context.caughtUp ? [] : [`the lag, which ${lag}, to be at most ${cutoverMaxLagBytes} bytes`]),
    ...(!context.needsValidation || context.validationClean
      ? []
      : [
          `the online validation to find everything equal within ${cutoverMaxValidationAgeMs} ms${
            context.validatesOnline || context.validationPass > 0 ? '' : ': POST …/validate begins it'
          }`,
        ]),
  ];
}

export function taskView(
  row: TaskRow,
  detail: TaskProgress,
  connections: number,
  notes: TaskNotes,
): TaskView {
  const snapshot = readableSnapshot(row);
  const context = snapshot?.context ?? initialContext({ taskId: row.id, spec: row.spec });
  const ended = isEnded(row.state);
  const lagBytes = detail.sync?.lagBytes ?? null;
  const waits = row.state === 'paused' || row.state === 'retrying';
  return {
    id: row.id,
    state: row.state,
    resumesAt: waits ? context.resumesAt : null,
    progress: progressPercent(row.state, detail.tables),
    spec: row.spec,
    findings: context.findings,
    error: row.crash ?? leftoverOf(row, notes) ?? context.error,
    retryAt: row.state === 'retrying' ? context.retryAt : null,
    lagBytes,
    connections,
    detail: withCopying(detail, context),
    restingSlot: restingSlotOf(notes, row.id, row.state),
    allowedCommands: row.crash || ended || !snapshot ? [] : acceptedCommands(snapshot),
    cutoverWaitsFor:
      snapshot && row.state === 'syncingWal' ? closedGates(snapshot, row.spec.options, lagBytes) : [],
    ...writeStopOf(notes, row.id),
    cleanupPending: row.cleanupPending,
    reverseTask: reverseTaskOf(notes, row.id),
    certificate: context.certificate,
    createdAt: row.createdAt,
    startedAt: context.startedAt,
    endedAt: ended ? (context.endedAt ?? row.updatedAt) : null,
  };
}
