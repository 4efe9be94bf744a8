// How much WAL a call of the catch-up feed covers. Pure; slot-feed.ts asks before every call.
//
// A call decodes again from restart_lsn, which moves only at the source's running-transactions records (every 15 s, and at
// checkpoints), and what is decoded again costs nearly as much as what is new. So calls are few while there is no such
// record: the first two cover all of a small backlog, others a third of what is left or more. Behind one, calls are as
// large as the target needs to be kept busy. The first one is not large, because nothing is applied while it decodes; the
// second begins beside it, so that its result is there when the target has applied the first one's. What a call returns is
// held on the source: where a little WAL becomes many bytes (values that are compressed in it), calls stay smaller, and the
// second, of whose result nothing was known when it began, is given up.
//
//   returned nothing   it ended in the middle of a transaction: the next one covers as much as any may, to hold all of it
//   nothing again      the transaction is larger than any call: it is the walsender's

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
  mostCallBytes: 512 * 1024 * 1024,
};

/** A call is to return about so much at most: the source holds it in a temporary file. */
export const GOOD_RESULT_BYTES = 128 * 1024 * 1024;

/** Beyond it (one huge transaction, say) the source holds too much: the rest of the backlog is the walsender's. */
const HUGE_RESULT_BYTES = 384 * 1024 * 1024;
/** So little is decoded in one go: cheaper than to decode a part of it twice, and the target waits for a second at most. */
const ONE_CALL_BYTES = 64 * 1024 * 1024;
/** What the first call covers at most, of the largest: nothing is known of the backlog. */
const FIRST_CALL_SHARE = 1 / 4;
/** What the second covers at most. */
const SECOND_CALL_SHARE = 1 / 2;
/** Where a second call begins beside the first, only so many first ones are: a second session costs as much. */
const ONE_OF_TWO = 2;
/**
 * The first call's share, where a second begins beside it: about the time for decoding to that for decoding and applying,
 * so that the second one's result is there when the target has applied the first one's.
 */
const FIRST_OF_TWO = 0.32;

/** What is decoded again costs little, where it is so much of what the call covers. */
const SMALL_SHARE = 1 / 4;

/** A call that has been answered: the WAL that it covered, and what it returned. */
export interface CallResult {
  readonly walBytes: number;
  readonly resultBytes: number;
}

/** A page of WAL begins with a header of up to 40 bytes; the sizes of other builds are multiples or parts of this. */
const PAGE_BYTES = 8_192n;

/** Where a call that is to end behind `lsn` ends: not within the header of a page. */
export function callEnd(lsn: bigint): bigint {
  return ((lsn + PAGE_BYTES - 1n) / PAGE_BYTES) * PAGE_BYTES;
}

/** WAL of the first call. */
export function firstCallBytes(lag: number, hasSecond: boolean, sizes: CatchUpSizes): number {
  const oneBytes = hasSecond ? sizes.firstCallBytes * ONE_OF_TWO : ONE_CALL_BYTES;
  // alone, the half: the target takes about as long for it as the source to decode all
  const wanted = lag <= oneBytes ? lag : Math.ceil(lag * (hasSecond ? FIRST_OF_TWO : 1 / 2));
  return Math.max(sizes.firstCallBytes, Math.min(wanted, Math.ceil(sizes.mostCallBytes * FIRST_CALL_SHARE)));
}

/** WAL of the call that begins beside the first one of `first` bytes, which leaves `rest`; 0: there is none. */
export function secondCallBytes(
  first: number,
  rest: number,
  { toBytes, mostCallBytes }: CatchUpSizes,
): number {
  if (rest < toBytes) return 0;
  const wanted = (first * (1 - FIRST_OF_TWO)) / FIRST_OF_TWO;
  return Math.min(withSmallRest(wanted, rest), Math.ceil(mostCallBytes * SECOND_CALL_SHARE));
}

/** Whether a call for `walBytes` that has begun is likely to return more than the source should hold, by what `last` did. */
export function isTooLarge(last: CallResult, walBytes: number): boolean {
  return (last.resultBytes / last.walBytes) * walBytes > HUGE_RESULT_BYTES;
}

/** WAL of any other call; bytes of WAL: `lag` is left, and `again` decoded again. */
export function nextCallBytes(
  last: CallResult,
  { lag, again }: { readonly lag: number; readonly again: number },
  sizes: CatchUpSizes,
): number {
  const good = goodBytes(last, sizes);
  if (last.resultBytes === 0) return good;
  const isCheap = again < ONE_CALL_BYTES * SMALL_SHARE;
  const wanted = isCheap ? ONE_CALL_BYTES : Math.max(last.walBytes * 2, Math.ceil(lag / 3));
  return Math.min(withSmallRest(wanted, lag), good);
}

function withSmallRest(wanted: number, lag: number): number {
  return lag <= wanted * 1.5 ? lag : Math.ceil(wanted);
}

/** WAL that returns as much as a call should. */
function goodBytes({ walBytes, resultBytes }: CallResult, { mostCallBytes }: CatchUpSizes): number {
  if (resultBytes === 0) return mostCallBytes;
  return Math.min(mostCallBytes, Math.ceil((walBytes * GOOD_RESULT_BYTES) / resultBytes));
}

/** Whether what is left should come from the walsender, by the last two calls. */
export function isForWalsender(before: CallResult | null, last: CallResult): boolean {
  return last.resultBytes > HUGE_RESULT_BYTES || (before?.resultBytes === 0 && last.resultBytes === 0);
}

/** Whether calls for `lag` bytes of WAL would decode little more than they return; `before`: WAL from restart_lsn on. */
export function catchUpIsCheap(before: number, lag: number, sizes: CatchUpSizes): boolean {
  return before < Math.min(lag, sizes.mostCallBytes * FIRST_CALL_SHARE) / 2;
}
