// Key values in the order of the server, without asking it.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  formatRange,
  isTextEqual,
  parseRange,
  positionOf,
  rangeTypeOf,
  type PartRange,
} from '../../src/model/part-range.ts';

describe('the position of a value', () => {
  it('orders what JavaScript can order by itself', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), (value) => {
        expect(positionOf('integer', String(value))).toBe(value);
      }),
    );
    const year = (n: number): number => Date.UTC(2000, 0, 1) + n * 365.25 * 86_400_000;
    fc.assert(
      fc.property(fc.integer({ min: year(-1_990), max: year(7_900) }), (milliseconds) => {
        const text = new Date(milliseconds).toISOString().replace('T', ' ').replace('Z', '');
        expect(positionOf('timestamp', text)).toBe(BigInt(milliseconds) * 1_000n);
        expect(positionOf('timestamptz', `${text}+00`)).toBe(BigInt(milliseconds) * 1_000n);
        expect(positionOf('date', text.slice(0, 10))).toBe(
          BigInt(Math.floor(milliseconds / 86_400_000)) * 86_400_000_000n,
        );
      }),
    );
  });

  it.each([
    [
      'date',
      [
        '-infinity',
        '4714-11-24 BC',
        '0001-12-31 BC',
        '0001-01-01',
        '1969-12-31',
        '5874897-12-31',
        'infinity',
      ],
    ],
    [
      'timestamptz',
      [
        '-infinity',
        '0044-03-15 12:00:00+00 BC',
        '0044-03-15 12:00:00.000001+00 BC',
        '2024-02-29 23:59:59.9+00',
        '2024-02-29 22:00:00-02:30',
        '294276-12-31 23:59:59.999999+00',
        'infinity',
      ],
    ],
    [
      'uuid',
      [
        '00000000-0000-0000-0000-000000000000',
        '0a000000-0000-0000-0000-000000000000',
        'a0000000-0000-0000-0000-000000000000',
        'ffffffff-ffff-ffff-ffff-ffffffffffff',
      ],
    ],
  ] as const)('orders %s as the server does', (type, ascending) => {
    const positions = ascending.map((text) => positionOf(type, text));
    expect(positions).toEqual([...positions].sort((a, b) => (a < b ? -1 : 1)));
    expect(new Set(positions).size).toBe(ascending.length);
  });

  it.each([
    ['integer', '1.0'],
    ['integer', ''],
    ['uuid', 'A0000000-0000-0000-0000-000000000000'],
    ['date', '24.12.2024'],
    ['timestamp', 'now'],
  ] as const)('refuses what a server does not print: %s %j', (type, text) => {
    expect(() => positionOf(type, text)).toThrow(RangeError);
  });
});

it.each([
  ['bigint', 'integer', true],
  ['timestamp(3) with time zone', 'timestamptz', true],
  ['timestamp without time zone', 'timestamp', true],
  ['date', 'date', true],
  ['uuid', 'uuid', true],
  ['text', null, true],
  ['character varying(20)', null, true],
  ['numeric(10,0)', null, false],
  ['public.citext', null, false],
  ['bigint[]', null, false],
] as const)('%s can be cut as %s, texts tell its values apart: %s', (type, range, equal) => {
  expect(rangeTypeOf(type)).toBe(range);
  expect(isTextEqual(type)).toBe(equal);
});

it('a range is read back as it was written, and nothing else is', () => {
  const ranges: readonly (PartRange | null)[] = [
    null,
    { kind: 'key', column: 'a "b', type: 'integer', from: null, to: '7' },
    { kind: 'ctid', from: 0, to: null },
    { kind: 'row', key: { id: '7' } },
  ];
  for (const range of ranges) expect(parseRange(formatRange(range))).toEqual(range);
  for (const text of ['', '{}', '[1,2)']) expect(() => parseRange(text)).toThrow(RangeError);
});
