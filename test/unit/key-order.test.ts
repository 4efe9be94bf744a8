// The order in which a set's rows leave.
import { describe, expect, it } from 'vitest';
import { inKeyOrder } from '../../src/sync/key-order.ts';

describe('rows of a set', () => {
  const ordered = (
    keys: readonly (number | string)[],
    entries = keys.map((_, at) => at),
  ): (number | string)[] => inKeyOrder(entries, (entry) => keys[entry] ?? 0).map((entry) => keys[entry] ?? 0);

  it('come in the order of their keys, each once', () => {
    expect(ordered([5, -3, 0, 7, -3_000_000_000])).toEqual([-3_000_000_000, -3, 0, 5, 7]);
    const keys = Array.from({ length: 10_007 }, (_, n) => (n * 7_919) % 10_007);
    expect(ordered(keys)).toEqual([...keys].sort((a, b) => a - b));
  });

  it('are only those that were given', () =>
    expect(inKeyOrder([3, 1], (entry) => 10 - entry)).toEqual([3, 1]));

  it('stay as they are where they are in order, and where a key is no number', () => {
    const entries = [0, 1, 2];
    expect(inKeyOrder(entries, (entry) => entry * 2)).toBe(entries);
    expect(inKeyOrder(entries, (entry) => (entry === 1 ? 'b' : 9 - entry))).toBe(entries);
    expect(inKeyOrder([], () => 0)).toEqual([]);
  });

  it('come near enough, and all of them, where keys are as far apart as they can be', () => {
    const far = 2 ** 53 - 1;
    expect(ordered([far, 0, -far, 1_000_000_000_000_000])).toEqual([-far, 0, 1_000_000_000_000_000, far]);
    const close = [far, 2, 1, 3, -far];
    expect(new Set(ordered(close))).toEqual(new Set(close));
  });
});
