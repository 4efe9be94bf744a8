// What a task's statechart remembers and hears. JSON only: it is persisted with every transition.
import type { ErrorReport } from '../src/model/errors.ts';
import type { Finding } from '../src/model/finding.ts';
import type { StreamEvent } from '../src/model/stream.ts';
import type { Certificate } from '../src/model/certificate.ts';
import type { TaskSpec } from '../src/model/task.ts';
import type { TaskState } from '../src/model/task-state.ts';

/** Where a paused or retrying task goes on. Never under the fence: un-fencing comes first. */
export type ResumePoint = Extract<
  TaskState,
  'init' | 'creatingTables' | 'migratingData' | 'syncingWal' | 'finalizing'
>;

export interface TaskContext {
  readonly taskId: string;
  /** Streams back what another task has moved: begins at syncingWal and can be finished. Absent in older rows: no. */
  readonly isReverse?: boolean;
  readonly auto: boolean;
  readonly cutoverTimeoutMs: number;
  readonly validationTimeoutMs: number;
  readonly findings: readonly Finding[];
  /** The last error; stays visible until a later step succeeds. */
  readonly error: ErrorReport | null;
  readonly resumesAt: ResumePoint;
  /** Failed attempts since the last progress. */
  readonly attempt: number;
  /** ISO 8601; the deadline actor of `retrying` waits for it. */
  readonly retryAt: string | null;
  readonly startedAt: string | null;
  readonly endedAt: string | null;
  /** Gates of the cutover. */
  readonly caughtUp: boolean;
  readonly fenceInstalled: boolean;
  readonly cutoverRequested: boolean;
  /** The online validation: begun by itself, how often asked for, whether the cutover waits for it, what it says. */
  readonly validatesOnline: boolean;
  readonly validationPass: number;
  readonly needsValidation: boolean;
  readonly validationClean: boolean;
  /** Tables are copied beside the stream: those of `addTables` or `recopyTables`. Absent in older rows: none. */
  readonly copyDue?: 'add' | 'recopy' | null;
  /** How often they were. Absent in older rows: never. */
  readonly copyPass?: number;
  /** Tables that are copied again: the last request, and how many lost slots were answered so. */
  readonly recopyPass: number;
  readonly recopyTables: readonly string[];
  /** Of the last request: the slot is lost, another one is made. */
  readonly recopyRenewsSlot: boolean;
  /** Tables that are added: the last request, exact names, and how many there were. */
  readonly addPass: number;
  readonly addTables: readonly string[];
  /** Failed cutovers since the last request; spaces the tries of `cutover: auto`. */
  readonly cutoverFailures: number;
  /** End of the wait that is running: write stop, validation or the pause between automatic cutovers. ISO 8601. */
  readonly deadlineAt: string | null;
  readonly afterUnfencing: 'syncingWal' | 'paused' | 'retrying' | 'cancelling' | 'failing';
  /** From here on only forward: the fence stays and PAUSE and CANCEL are refused. */
  readonly pastPointOfNoReturn: boolean;
  readonly dropTarget: boolean;
  readonly cleanupPending: boolean;
  readonly certificate: Certificate | null;
}

/** What of the options the chart's guards and deadlines need; it follows the options, which may change. */
export function optionsOf({ options }: TaskSpec) {
  return {
    auto: options.cutover === 'auto',
    cutoverTimeoutMs: options.cutoverTimeoutMs,
    validationTimeoutMs: options.validationTimeoutMs,
    validatesOnline: options.validation === 'online',
    needsValidation: options.cutoverMaxValidationAgeMs !== null,
  } satisfies Partial<TaskContext>;
}

export interface TaskInput {
  readonly taskId: string;
  readonly spec: TaskSpec;
}

/** What people ask for. */
export type TaskCommand =
  | { readonly type: 'START' }
  | { readonly type: 'PAUSE' }
  | { readonly type: 'RESUME' }
  | { readonly type: 'CUTOVER' }
  /** Begin the online validation anew. */
  | { readonly type: 'VALIDATE' }
  /** Copy these tables again; `relationKey`s of the source. Of a task paused as lost: all of them, behind a new slot. */
  | { readonly type: 'RECOPY'; readonly tables: readonly string[] }
  /** End a reverse task: nothing of its stays, the old source keeps its fence. */
  | { readonly type: 'FINISH' }
  /** Add these tables, by exact names; `findings` of their preflight. */
  | { readonly type: 'ADD'; readonly tables: readonly string[]; readonly findings: readonly Finding[] }
  | { readonly type: 'CANCEL'; readonly dropTarget?: boolean }
  | { readonly type: 'ABANDON'; readonly dropTarget?: boolean };

export type TaskMachineEvent =
  | TaskCommand
  /** Capacity is there: the manager lets a queued task in. */
  | { readonly type: 'ADMIT' }
  /** First event after a restart of the service. */
  | { readonly type: 'RESTORED' }
  | StreamEvent
  /** The slot was lost, or dropped because of `max_retained_wal_bytes`, while no stream ran. */
  | { readonly type: 'SLOT_LOST'; readonly error: ErrorReport }
  /** The task's options are others now. */
  | { readonly type: 'OPTIONS_CHANGED'; readonly options: ReturnType<typeof optionsOf> }
  /** A part was finished after an error: the retry budget starts afresh. */
  | { readonly type: 'PART_DONE' }
  /** Between the regions: flow asks, copy and verify answer. */
  | { readonly type: 'COPY_DUE' }
  | { readonly type: 'COPY_DONE' }
  | { readonly type: 'VALIDATION_DUE' }
  | { readonly type: 'VALIDATION_CLEAN' }
  | { readonly type: 'VALIDATION_NOT_CLEAN' }
  | { readonly type: 'FENCE_COMING' }
  | { readonly type: 'VERIFY_REQUESTED' }
  | { readonly type: 'VERIFY_ENDED' }
  | { readonly type: 'VERIFIED'; readonly equal: boolean; readonly tables: readonly string[] }
  | { readonly type: 'VERIFY_FAILED'; readonly error: ErrorReport };

export function initialContext({ taskId, spec }: TaskInput): TaskContext {
  return {
    taskId,
    isReverse: spec.origin !== undefined,
    ...optionsOf(spec),
    findings: [],
    error: null,
    resumesAt: spec.origin ? 'syncingWal' : 'init',
    attempt: 0,
    retryAt: null,
    startedAt: null,
    endedAt: null,
    caughtUp: false,
    fenceInstalled: false,
    cutoverRequested: false,
    validationPass: 0,
    validationClean: false,
    copyDue: null,
    copyPass: 0,
    recopyPass: 0,
    recopyTables: [],
    recopyRenewsSlot: false,
    addPass: 0,
    addTables: [],
    cutoverFailures: 0,
    deadlineAt: null,
    afterUnfencing: 'syncingWal',
    pastPointOfNoReturn: false,
    dropTarget: false,
    cleanupPending: false,
    certificate: null,
  };
}
