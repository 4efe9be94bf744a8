// How much WAL a call of the catch-up feed covers. Pure; slot-feed.ts asks before every call.
//
// A call decodes again from restart_lsn, which moves only at the source's running-transactions records (every 15 s, and at
// checkpoints): calls of one size would decode a backlog that was written in between quadratically. So each is twice as
// large as the last. The first one is small, because nothing is applied while it decodes. What a call returns is held on
// the source: where a little WAL becomes many bytes (values that are compressed in it), calls stay smaller.

export interface CatchUpSizes {
  /** Worth it from so much WAL on. */
  readonly fromBytes: number;
  /** It ends when so little is left. */
  readonly toBytes: number;
  /** WAL of the first call. */
  readonly firstCallBytes: number;
  /** WAL of the largest. */
  readonly mostCallBytes: number;
}

export const catchUpSizes: CatchUpSizes = {
  fromBytes: 8 * 1024 * 1024,
  toBytes: 4 * 1024 * 1024,
  firstCallBytes: 8 * 1024 * 1024,
  mostCallBytes: 128 * 1024 * 1024,
};

/** A call is to return about so much at most: work_mem of its session, so that the source writes no temporary file. */
export const GOOD_RESULT_BYTES = 96 * 1024 * 1024;

/** Beyond it (one huge transaction, say) the source holds too much: the feed is not for this backlog. */
export const HUGE_RESULT_BYTES = 192 * 1024 * 1024;

/** A call that has been answered: the WAL that it covered, and what it returned. */
export interface CallResult {
  readonly walBytes: number;
  readonly resultBytes: number;
}

/** WAL of the next call; `last`: null before the first. */
export function nextCallBytes(last: CallResult | null, sizes: CatchUpSizes): number {
  if (last === null) return sizes.firstCallBytes;
  const twice = Math.min(last.walBytes * 2, sizes.mostCallBytes);
  const good = (last.walBytes * GOOD_RESULT_BYTES) / Math.max(1, last.resultBytes);
  return Math.max(1, Math.floor(Math.min(twice, good)));
}

/** Whether calls for `lag` bytes of WAL would decode little more than they return; `before`: WAL from restart_lsn on. */
export function catchUpIsCheap(before: number, lag: number, sizes: CatchUpSizes): boolean {
  return before < Math.min(lag, sizes.mostCallBytes) / 2;
}
