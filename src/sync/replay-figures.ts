// What a replay has done so far, over all of its connections: filled by replay.ts, read by the sampler.

/** Counters that the sampler shows. */
export interface ReplayFigures {
  transactionsApplied: number;
  changesApplied: number;
  /** Batches that had to be sent again in source order. */
  batchesInOrder: number;
  /** Time spent waiting for more changes, and for the target to carry out a batch. */
  feedWaitMs: number;
  targetWaitMs: number;
}

export function newFigures(): ReplayFigures {
  return { transactionsApplied: 0, changesApplied: 0, batchesInOrder: 0, feedWaitMs: 0, targetWaitMs: 0 };
}
