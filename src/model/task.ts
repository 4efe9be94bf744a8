// A migration task as everybody sees it: library, HTTP, statechart, store. JSON only, no secrets.
import type { Certificate } from './certificate.ts';
import type { Endpoint } from './endpoint.ts';
import type { ErrorReport } from './errors.ts';
import type { Finding } from './finding.ts';
import type { RestingSlot, TaskProgress } from './progress.ts';
import type { TaskOptions } from './task-options.ts';
import type { TaskCommandType, TaskState } from './task-state.ts';

/** Of a reverse task: whose cutover it can undo. */
export interface ReverseOrigin {
  readonly taskId: string;
  readonly incarnation: string;
  /** The task that all of this began with. */
  readonly firstTaskId: string;
  /** 2: the reverse of the first task, 3: forward again … */
  readonly leg: number;
}

/** What the user asked for: the create request, validated, defaults filled in, secrets removed. */
export interface TaskSpec {
  readonly sourceDb: Endpoint;
  readonly targetDb: Endpoint;
  /** As given; `['*']` is every user table. Resolved to relations by `schema/select`. */
  readonly tables: readonly string[];
  /** Of a reverse task: the suffix that is undone, or, forward again, done. */
  readonly tableSuffix: string;
  readonly options: TaskOptions;
  /** Made by another task's cutover; absent when a request made it. */
  readonly origin?: ReverseOrigin;
}

/** A task in answers of the library and of HTTP. */
export interface TaskView {
  readonly id: string;
  readonly state: TaskState;
  /** Where a paused or retrying task goes on. */
  readonly resumesAt: TaskState | null;
  /** 0–100 from bytes copied; at most 99 until completed. */
  readonly progress: number;
  readonly spec: TaskSpec;
  readonly findings: readonly Finding[];
  readonly error: ErrorReport | null;
  /** The next attempt of a retrying task, ISO 8601. */
  readonly retryAt: string | null;
  readonly lagBytes: number | null;
  readonly connections: number;
  readonly detail: TaskProgress;
  /** While the stream does not run and a slot stands; null otherwise. */
  readonly restingSlot: RestingSlot | null;
  /** Commands that the present state accepts. */
  readonly allowedCommands: readonly TaskCommandType[];
  /** Whether the source's tables refuse writes because of this task. */
  readonly fenced: boolean;
  /** Why a requested, or the next, cutover would have to wait; empty when every gate is open. */
  readonly cutoverWaitsFor: readonly string[];
  /** Length of the last write stop in ms, from arming the fence to the point of no return or un-fencing. */
  readonly writeStopMs: number | null;
  /** Objects of ours could not be removed yet; retried by the periodic cleanup. */
  readonly cleanupPending: boolean;
  /** The task that streams back since this one's cutover; null: none was made. */
  readonly reverseTask: string | null;
  readonly certificate: Certificate | null;
  readonly createdAt: string;
  readonly startedAt: string | null;
  readonly endedAt: string | null;
}
