// How large the calls of the catch-up feed are.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  catchUpIsCheap,
  catchUpSizes,
  GOOD_RESULT_BYTES,
  nextCallBytes,
  type CallResult,
} from '../../src/postgres/call-size.ts';

const MEGABYTE = 1024 * 1024;

/** The calls for a backlog, of which a byte of WAL returns `share` bytes. */
function callsFor(backlogBytes: number, share: number): CallResult[] {
  const calls: CallResult[] = [];
  for (let left = backlogBytes; left > 0; ) {
    const walBytes = Math.min(left, nextCallBytes(calls.at(-1) ?? null, catchUpSizes));
    calls.push({ walBytes, resultBytes: Math.round(walBytes * share) });
    left -= walBytes;
  }
  return calls;
}

describe('the calls of a catch-up', () => {
  it('begin small and grow to a bound', () => {
    expect(callsFor(600 * MEGABYTE, 0.5).map(({ walBytes }) => walBytes / MEGABYTE)).toEqual([
      8, 16, 32, 64, 128, 128, 128, 96,
    ]);
  });

  it('decode a backlog of one call at most three times over, although each begins where the first did', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: catchUpSizes.mostCallBytes * 2 }), (backlogBytes) => {
        let reached = 0;
        let decoded = 0;
        for (const { walBytes } of callsFor(backlogBytes, 0.5)) decoded += reached += walBytes;
        return decoded <= 3 * backlogBytes;
      }),
    );
  });

  it('return no more than the source holds in memory, where a byte of WAL becomes many', () => {
    for (const { walBytes, resultBytes } of callsFor(600 * MEGABYTE, 4).slice(1)) {
      expect(resultBytes).toBeLessThanOrEqual(GOOD_RESULT_BYTES + 4);
      expect(walBytes).toBeGreaterThan(8 * MEGABYTE);
    }
  });

  it('are not worth it where the slot has to decode much that is applied already', () => {
    expect(catchUpIsCheap(3 * MEGABYTE, 8 * MEGABYTE, catchUpSizes)).toBe(true);
    expect(catchUpIsCheap(4 * MEGABYTE, 8 * MEGABYTE, catchUpSizes)).toBe(false);
    expect(catchUpIsCheap(63 * MEGABYTE, 4_000 * MEGABYTE, catchUpSizes)).toBe(true);
    expect(catchUpIsCheap(64 * MEGABYTE, 4_000 * MEGABYTE, catchUpSizes)).toBe(false);
  });
});
