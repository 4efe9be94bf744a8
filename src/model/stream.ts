// What the stream tells the statechart. It is the one long-lived activity: it owns the slot and the walsender, from
// before the first part is read until the marker is applied.
import type { ErrorReport } from './errors.ts';

export type StreamEvent =
  /** Publication, slot and barrier stand: parts may be read. */
  | { readonly type: 'SLOT_READY' }
  /** The target is within the cutover gate of the source; repeated when it becomes true again. */
  | { readonly type: 'CAUGHT_UP' }
  | { readonly type: 'FELL_BEHIND' }
  /** A batch was committed after an error: the retry budget starts afresh. */
  | { readonly type: 'STREAM_PROGRESS' }
  | { readonly type: 'STREAM_FAILED'; readonly error: ErrorReport };
