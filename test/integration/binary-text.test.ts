// What a key that arrived in binary form is called: exactly what the server prints, for random values and the odd ones.
import { expect, test } from 'vitest';
import { hasEasyText, textOf } from '../../src/sync/binary-text.ts';
import { makePair } from '../support/databases.ts';
import { seeded } from '../support/random-writers.ts';
import { makeScope } from '../support/scope.ts';

const random = seeded(20_240_229);
const COUNT = 2_000;
const many = <T>(make: (n: number) => T): T[] => Array.from({ length: COUNT }, (_, n) => make(n));
const within = (low: number, high: number): number => low + random(high - low + 1);

const oddDays = [-1, 0, 58, 59, 60, 365, 366, -10_957, -730_119, -730_120, -730_485, -730_486];
/** Days since 2000-01-01 between the ends of the type, and thick around what calendars stumble over. */
const days = (first: number, last: number): number[] => [
  ...oddDays,
  first,
  last,
  ...many((n) => (n % 2 === 0 ? within(first, last) : within(-740_000, 150_000))),
];
/** Down to the microsecond, most with zeros behind. */
const microseconds = (count: number): number[] =>
  Array.from({ length: count }, (_, n) => {
    const unit = 10 ** (n % 8);
    return n === 0 ? 0 : n === 1 ? 86_399_999_999 : random(86_400_000_000 / unit) * unit;
  });
const digits = (count: number): string => Array.from({ length: count }, () => random(10)).join('');

const dates = days(-2_451_545, 2_145_031_948);
const moments = days(-2_451_545, 106_751_982);
const words = ['', ' ', 'a\\b', 'ä€🙂', `it's "quoted"`, 'tab\tnew\nline', ...many(() => digits(random(9)))];
const infinite = ['infinity', '-infinity'];
const numerics = [
  ...'NaN 0 0.000 -0 10000 9999 -10000.0001 0.00010000 1e100 1e-60 1.10 -.5'.split(' '),
  ...many(() => {
    const sign = random(2) === 0 ? '-' : '';
    return `${sign}${digits(random(30))}0.${digits(random(20))}${'0'.repeat(random(7))}`;
  }),
];

/** Type, its send function, and its values: as text, or by an expression of days `d` and microseconds `u`. */
const families: readonly (readonly [
  string,
  string,
  readonly string[] | readonly [string, readonly number[]],
])[] = [
  ['smallint', 'int2send', ['0', '-1', '32767', '-32768']],
  ['integer', 'int4send', ['0', '-1', '2147483647', '-2147483648']],
  ['bigint', 'int8send', ['0', '-1', '9223372036854775807', '-9223372036854775808']],
  ['oid', 'oidsend', ['0', '1', '4294967295']],
  ['boolean', 'boolsend', ['true', 'false']],
  ['uuid', 'uuid_send', many(() => `${digits(8)}-abcd-${digits(4)}-${digits(4)}-${digits(6)}ffff00`)],
  ['text', 'textsend', words],
  ['character varying(30)', 'varcharsend', words],
  ['character(30)', 'bpcharsend', words],
  ['name', 'namesend', words],
  ['bytea', 'byteasend', ['', '\\x00', '\\x00ff5c', ...many(() => `\\x${digits(2 * random(20))}`)]],
  ['numeric', 'numeric_send', numerics],
  ['numeric(60,8)', 'numeric_send', numerics.filter((text) => !text.includes('e100'))],
  ['date', 'date_send', infinite],
  ['date', 'date_send', [`date '2000-01-01' + d`, dates]],
  ['timestamp without time zone', 'timestamp_send', infinite],
  ['timestamp without time zone', 'timestamp_send', [`date '2000-01-01' + d + u * interval '1 us'`, moments]],
  [
    'timestamp(3) without time zone',
    'timestamp_send',
    [`date '2000-01-01' + d + u * interval '1 us'`, moments],
  ],
  ['timestamp with time zone', 'timestamptz_send', infinite],
  [
    'timestamp with time zone',
    'timestamptz_send',
    [`(date '2000-01-01' + d + u * interval '1 us') at time zone 'UTC'`, moments],
  ],
];

test.each([13, 18] as const)('the text of a binary key is what a server %i prints', async (major) => {
  const { source } = makeScope(await makePair({ source: major }));
  for (const [type, send, values] of families) {
    const [expression, numbers] = values;
    const byNumber = typeof numbers === 'object';
    const { rows } = await source.query<{ text: string; bytes: Buffer }>(
      `select concat(v) as text, ${send}(v) as bytes
       from (select (${byNumber ? expression : 's'})::${type} as v
             from unnest($1::${byNumber ? 'int' : 'text'}[], $2::int8[]) as s(${byNumber ? 'd' : 's'}, u)) s`,
      byNumber ? [numbers, microseconds(numbers.length)] : [values, []],
    );
    expect(rows.length).toBe(byNumber ? numbers.length : values.length);
    const differing = rows.filter(({ text, bytes }) => textOf(type, bytes) !== text);
    expect(differing.map(({ text, bytes }) => [type, text, textOf(type, bytes)])).toEqual([]);
  }
});

test('a type whose text is not known stays as it is', () => {
  const bytes = Buffer.from('x');
  for (const type of ['interval', 'public."date"', 'date[]', '"char"', 'double precision', 'public.text']) {
    expect(hasEasyText(type)).toBe(false);
    expect(textOf(type, bytes)).toBe(bytes);
  }
  expect(textOf('date', null)).toBeNull();
  expect(textOf('date', '2000-01-01')).toBe('2000-01-01');
});
