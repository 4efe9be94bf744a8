// The actor behind every wait of the statechart. An absolute time, because xstate's own `after` never fires again after
// a restart.
import { fromPromise } from 'xstate';
import { sleep } from '../postgres/task-scope.ts';

/** Longest delay that setTimeout takes. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** Resolves at `at` (ISO 8601), at once when it has passed or is null. */
export const deadline = fromPromise<null, { readonly at: string | null }>(async ({ input, signal }) => {
  for (;;) {
    const leftMs = input.at === null ? 0 : Date.parse(input.at) - Date.now();
    if (leftMs <= 0) return null;
    await sleep(Math.min(leftMs, MAX_TIMEOUT_MS), signal);
  }
});
