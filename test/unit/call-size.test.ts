// How large the calls of the catch-up feed are.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  catchUpIsCheap,
  catchUpSizes,
  firstCallBytes,
  GOOD_RESULT_BYTES,
  isForWalsender,
  isTooLarge,
  nextCallBytes,
  secondCallBytes,
  type CallResult,
} from '../../src/postgres/call-size.ts';

const MEGABYTE = 1024 * 1024;

/**
 * The calls for a backlog, of which a byte of WAL returns `share` bytes, with a running-transactions record every
 * `recordEvery` bytes, by default nowhere.
 */
function callsFor(backlogBytes: number, share: number, recordEvery = Infinity): CallResult[] {
  const calls: CallResult[] = [];
  for (let reached = 0; reached < backlogBytes; ) {
    const lag = backlogBytes - reached;
    const again = Number.isFinite(recordEvery) ? reached % recordEvery : reached;
    const last = calls.at(-1);
    const wanted = last
      ? nextCallBytes(last, { lag, again }, catchUpSizes)
      : firstCallBytes(lag, false, catchUpSizes);
    const walBytes = Math.min(lag, wanted);
    calls.push({ walBytes, resultBytes: Math.round(walBytes * share) });
    reached += walBytes;
  }
  return calls;
}
const megabytes = (calls: readonly CallResult[]): number[] =>
  calls.map(({ walBytes }) => Math.round(walBytes / MEGABYTE));

describe('the calls of a catch-up', () => {
  it('are few, and the first of them is not large', () => {
    expect(megabytes(callsFor(10 * MEGABYTE, 0.5))).toEqual([10]);
    expect(megabytes(callsFor(100 * MEGABYTE, 0.5))).toEqual([50, 50]);
    expect(megabytes(callsFor(300 * MEGABYTE, 0.5))).toEqual([128, 172]);
    expect(megabytes(callsFor(2_000 * MEGABYTE, 0.2))).toEqual([128, 512, 512, 512, 336]);
  });

  it('are two at once at first, which are all of a small backlog', () => {
    const pairFor = (lag: number): [number, number] => {
      const first = firstCallBytes(lag, true, catchUpSizes);
      return [first, secondCallBytes(first, lag - first, catchUpSizes)];
    };
    const inMegabytes = (lag: number): number[] =>
      pairFor(lag * MEGABYTE).map((bytes) => Math.round(bytes / MEGABYTE));
    expect(inMegabytes(10)).toEqual([10, 0]);
    expect(inMegabytes(100)).toEqual([32, 68]);
    expect(inMegabytes(350)).toEqual([112, 238]); // a small rest is taken along
    expect(inMegabytes(2_000)).toEqual([128, 256]);
    fc.assert(
      fc.property(fc.integer({ min: 17 * MEGABYTE, max: 375 * MEGABYTE }), (lag) => {
        const [first, second] = pairFor(lag);
        return first + second === lag && first < second;
      }),
    );
  });

  it('are given up where the first one returned so much that the second would be too large', () => {
    const first = { walBytes: 100 * MEGABYTE, resultBytes: 200 * MEGABYTE };
    expect(isTooLarge(first, 150 * MEGABYTE)).toBe(false);
    expect(isTooLarge(first, 200 * MEGABYTE)).toBe(true);
    expect(isTooLarge({ ...first, resultBytes: 0 }, 500 * MEGABYTE)).toBe(false);
  });

  it('decode a backlog at most twice over, although each begins where the first did', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: catchUpSizes.mostCallBytes }), (backlogBytes) => {
        let reached = 0;
        let decoded = 0;
        for (const { walBytes } of callsFor(backlogBytes, 0.3)) decoded += reached += walBytes;
        return decoded <= 2 * backlogBytes;
      }),
    );
  });

  it('are as large as one that is cheap, where little is decoded again', () => {
    const calls = callsFor(2_000 * MEGABYTE, 0.2, 10 * MEGABYTE);
    expect(megabytes(calls).slice(0, 3)).toEqual([128, 64, 64]);
    expect(calls.length).toBeLessThan(32);
  });

  it('return no more than the source holds in memory, where a byte of WAL becomes many', () => {
    for (const { walBytes, resultBytes } of callsFor(600 * MEGABYTE, 4).slice(1)) {
      expect(resultBytes).toBeLessThanOrEqual(GOOD_RESULT_BYTES + 4);
      expect(walBytes).toBeGreaterThan(8 * MEGABYTE);
    }
  });

  it('that end in a transaction are followed by the largest, and that by the walsender', () => {
    const call = (resultBytes: number): CallResult => ({ walBytes: 8 * MEGABYTE, resultBytes });
    expect(nextCallBytes(call(0), { lag: 100 * MEGABYTE, again: 0 }, catchUpSizes)).toBe(
      catchUpSizes.mostCallBytes,
    );
    expect(isForWalsender(null, call(0))).toBe(false);
    expect(isForWalsender(call(1), call(0))).toBe(false);
    expect(isForWalsender(call(0), call(1))).toBe(false);
    expect(isForWalsender(call(0), call(0))).toBe(true);
    expect(isForWalsender(null, call(500 * MEGABYTE))).toBe(true);
  });

  it('are not worth it where the slot has to decode much that is applied already', () => {
    expect(catchUpIsCheap(3 * MEGABYTE, 8 * MEGABYTE, catchUpSizes)).toBe(true);
    expect(catchUpIsCheap(4 * MEGABYTE, 8 * MEGABYTE, catchUpSizes)).toBe(false);
    expect(catchUpIsCheap(63 * MEGABYTE, 4_000 * MEGABYTE, catchUpSizes)).toBe(true);
    expect(catchUpIsCheap(64 * MEGABYTE, 4_000 * MEGABYTE, catchUpSizes)).toBe(false);
  });
});
