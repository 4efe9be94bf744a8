// The map of pending rows holds what was put in, whatever the keys are.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { KeyMap } from '../../src/sync/key-map.ts';

const key = fc.oneof(
  fc.integer({ min: -20, max: 20 }),
  fc.maxSafeInteger(),
  // that differ in their upper halves only
  fc.integer({ min: -50, max: 50 }).map((n) => n * 0x1_0000_0000),
  fc.string({ maxLength: 3 }),
);

test('it finds for every key what was set last, as a Map does, and nothing else', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(key, fc.nat(1_000_000)), { maxLength: 2_000 }),
      fc.array(key),
      (sets, others) => {
        const map = new KeyMap();
        for (let round = 0; round < 2; round++) {
          const wanted = new Map<number | string, number>();
          for (const [each, entry] of sets) {
            map.set(each, entry);
            wanted.set(each, entry);
          }
          expect(map.size).toBe(wanted.size);
          for (const each of [...wanted.keys(), ...others]) expect(map.get(each)).toBe(wanted.get(each));
          map.clear(); // it keeps its memory
          expect(map.size).toBe(0);
          for (const each of wanted.keys()) expect(map.get(each)).toBeUndefined();
        }
      },
    ),
    { numRuns: 200 },
  );
});

test('two hundred thousand keys a power of two apart are all found', () => {
  const map = new KeyMap();
  for (let n = 0; n < 200_000; n++) map.set(n * 64, n);
  for (let n = 0; n < 200_000; n += 97) expect(map.get(n * 64)).toBe(n);
  expect(map.size).toBe(200_000);
});

test('its memory stays for batches of one size, and falls behind smaller ones', () => {
  const map = new KeyMap();
  const slotsAfter = (keys: number): number => {
    for (let n = 0; n < keys; n++) map.set(n, n);
    map.clear();
    return map.slots;
  };
  const large = slotsAfter(100_000);
  // a batch of another size now and then is no reason, either
  for (const keys of [100_000, 100_000, 20_000, 100_000]) expect(slotsAfter(keys)).toBe(large);
  const small = Array.from({ length: 20 }, () => slotsAfter(100));
  expect(small[0]).toBe(large / 2);
  expect(small.slice(0, 8)).toEqual([...new Set(small.slice(0, 8))]);
  expect(small.at(-1)).toBeLessThanOrEqual(1_600);
  const next = slotsAfter(100);
  expect(slotsAfter(100)).toBe(next);
  for (let n = 0; n < 500; n++) map.set(n * 7, n);
  for (let n = 0; n < 500; n++) expect(map.get(n * 7)).toBe(n);
});
