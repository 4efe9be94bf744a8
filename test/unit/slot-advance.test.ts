// Old minors of the source are not asked to advance a slot.
import { expect, it } from 'vitest';
import { mayAdvance } from '../../src/postgres/slot-advance.ts';

it.each([
  [130_020, false],
  [130_021, true],
  [140_017, false],
  [140_018, true],
  [150_012, false],
  [150_013, true],
  [160_008, false],
  [160_009, true],
  [170_004, false],
  [170_005, true],
  [180_000, true],
])('a slot of %i may be advanced: %s', (version, expected) => {
  expect(mayAdvance(version)).toBe(expected);
});
