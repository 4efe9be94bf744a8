// How far a sequence is set ahead.
import { expect, test } from 'vitest';
import { advance } from '../../src/cutover/sequences.ts';

const at = (last_value: string, increment: string, over: object = {}) => ({
  last_value,
  is_called: true,
  increment,
  min: '-100',
  max: '9223372036854775807',
  ...over,
});

test('the margin counts values, up or down, beyond what a double can hold', () => {
  expect(advance(at('10', '1'), 0).last_value).toBe('10');
  expect(advance(at('9007199254740993', '5'), 1000).last_value).toBe('9007199254745993');
  expect(advance(at('50', '-3'), 10).last_value).toBe('20');
});

test('a sequence that ends before the margin stays where it is, so that no value is lost', () => {
  expect(advance(at('9223372036854775807', '1'), 1).last_value).toBe('9223372036854775807');
  expect(advance(at('-99', '-3'), 1).last_value).toBe('-99');
  expect(advance(at('90', '1', { max: '100' }), 10).last_value).toBe('100');
});
