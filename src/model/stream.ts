// What the stream tells the statechart. It is the one long-lived activity: it owns the slot and the walsender, from
// before the first part is read until the marker is applied.
import type { ErrorReport } from './errors.ts';
import type { Finding } from './finding.ts';

export type StreamEvent =
  /** Publication, slot and barrier stand: parts may be read. */
  | { readonly type: 'SLOT_READY' }
  /** The target is within the cutover gate of the source; repeated when it becomes true again. */
  | { readonly type: 'CAUGHT_UP' }
  | { readonly type: 'FELL_BEHIND' }
  /** A batch was committed after an error: the retry budget starts afresh. */
  | { readonly type: 'STREAM_PROGRESS' }
  /** DDL of the source was followed: the plan has changed, and what was compared is compared again. */
  | { readonly type: 'SCHEMA_CHANGED'; readonly findings: readonly Finding[] }
  /** What is so now under this code, instead of what was said under it; null: nothing any more. */
  | { readonly type: 'FINDING'; readonly code: string; readonly finding: Finding | null }
  | { readonly type: 'STREAM_FAILED'; readonly error: ErrorReport };
