// Contracts of everything a task invokes: names, inputs, outputs. No code: `src/runtime/activities.ts` binds them to
// functions. Every activity is idempotent, takes nothing but the task's id and a deadline, and reads its own checkpoints, because a
// restored invoke gets the input of its first start again.
import type { ErrorReport } from '../src/model/errors.ts';
import type { Finding } from '../src/model/finding.ts';
import type { Certificate, TableVerdict } from '../src/model/certificate.ts';

export interface TaskRef {
  readonly taskId: string;
  /** Of a step of the cutover: when the chart gives it up. ISO 8601. */
  readonly deadlineAt?: string | null;
}

export interface Activities {
  /** Connects both sides and reports findings; never throws for what a finding can say. */
  readonly preflight: { readonly output: { readonly findings: readonly Finding[] } };
  /** Plans the schema and runs its pre-data statements on the target. */
  readonly createTables: { readonly output: { readonly findings: readonly Finding[] } };
  /** Copies every part that has no marker, then builds keys and indexes. Needs the slot (SLOT_READY). */
  readonly copyTables: { readonly output: null };
  /** Makes and copies tables that are added, or copies tables again, while the stream goes on; the plan's findings, or null. */
  readonly copyBeside: { readonly output: { readonly findings: readonly Finding[] | null } };
  /** Installs the disarmed fence triggers, one table a transaction. */
  readonly installFence: { readonly output: null };
  /** Arms the fence and proves that no writer is left. */
  readonly armFence: { readonly output: { readonly fenceLsn: string } };
  /** Emits the marker and waits until it has been applied. */
  readonly drain: { readonly output: { readonly markerLsn: string } };
  /** Allows writes again. Also right when nothing was armed. */
  readonly disarmFence: { readonly output: null };
  /** Compares range by range, then what changes, while the stream runs; ends only when it is stopped. */
  readonly validateOnline: { readonly output: never };
  /** Compares every table on both sides, under the fence. */
  readonly compareTables: { readonly output: { readonly tables: readonly TableVerdict[] } };
  /** Sequences, foreign keys NOT VALID, triggers: what the target needs before it opens. */
  readonly prepareTarget: { readonly output: null };
  /** After the point of no return: VALIDATE, ANALYZE, certificate; then slot, publication, bookkeeping go. */
  readonly settle: {
    readonly output: { readonly certificate: Certificate; readonly cleanupPending: boolean };
  };
  /** Removes everything of ours from the source and our bookkeeping from the target; tolerates a dead source. */
  readonly cleanUp: {
    readonly output: { readonly cleanupPending: boolean; readonly error: ErrorReport | null };
  };
  /** Waits until every aborted activity of the task has really ended, then closes its connections. */
  readonly release: { readonly output: null };
}
export type ActivityName = keyof Activities;
