// What a part of a table is: a range of its leading key, a range of heap blocks, one row, or (null) the whole table. Kept
// as JSON in dts.part.range, because the copy that reads a part and the stream that asks what was read must agree on it
// for ever. Keys are compared here exactly as the server orders them, so only types are cut whose order we can compute.

/** Types of a key column that parts may be cut by. */
export type RangeType = 'integer' | 'date' | 'timestamp' | 'timestamptz' | 'uuid';

/** `from ≤ key < to`, both as the server prints the value; null is open. */
export interface KeyRange {
  readonly kind: 'key';
  readonly column: string;
  readonly type: RangeType;
  readonly from: string | null;
  readonly to: string | null;
}

/** Heap blocks `from ≤ block < to`; null is open. Rows move between blocks: all of a table's share one snapshot. */
export interface BlockRange {
  readonly kind: 'ctid';
  readonly from: number;
  readonly to: number | null;
}

/** One row, by the values of its replica identity as the server prints them: read again because a change lacked values. */
export interface RowRange {
  readonly kind: 'row';
  readonly key: Readonly<Record<string, string>>;
}

export type PartRange = KeyRange | BlockRange | RowRange;

export function formatRange(range: PartRange | null): string | null {
  return range === null ? null : JSON.stringify(range);
}

/** Throws `RangeError` for what {@link formatRange} cannot have written. */
export function parseRange(text: string | null): PartRange | null {
  if (text === null) return null;
  try {
    const value = JSON.parse(text) as { readonly kind?: unknown };
    if (value.kind === 'key' || value.kind === 'ctid' || value.kind === 'row') return value as PartRange;
  } catch {
    // told below
  }
  throw new RangeError(`not the range of a part: ${text}`);
}

const rangeTypes: readonly (readonly [RegExp, RangeType])[] = [
  [/^(smallint|integer|bigint)$/, 'integer'],
  [/^date$/, 'date'],
  [/^timestamp(\(\d\))? without time zone$/, 'timestamp'],
  [/^timestamp(\(\d\))? with time zone$/, 'timestamptz'],
  [/^uuid$/, 'uuid'],
];

/** Of a column by its `format_type` text; null where we cannot order its values. */
export function rangeTypeOf(type: string): RangeType | null {
  return rangeTypes.find(([pattern]) => pattern.test(type))?.[1] ?? null;
}

/** Whether two values of the type are equal for the server exactly when their texts are (timezone UTC, datestyle ISO). */
export function isTextEqual(type: string): boolean {
  return (
    rangeTypeOf(type) !== null ||
    /^(boolean|oid|bytea|name|"char"|text|character varying(\(\d+\))?|character(\(\d+\))?)$/.test(type)
  );
}

const INFINITY = 1n << 80n;
const MICROSECONDS_A_DAY = 86_400_000_000n;

/**
 * The value's place in the server's order of the type: smaller text position, smaller value. Exact, also for infinities
 * and years before Christ. Throws `RangeError` for text that the type's output function does not write under
 * datestyle ISO.
 */
export function positionOf(type: RangeType, text: string): bigint {
  switch (type) {
    case 'integer':
      if (!/^-?\d{1,19}$/.test(text)) break;
      return BigInt(text);
    case 'uuid':
      if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text)) break;
      return BigInt(`0x${text.replaceAll('-', '')}`); // uuid_cmp is memcmp
    case 'date':
    case 'timestamp':
    case 'timestamptz':
      if (text === 'infinity') return INFINITY;
      if (text === '-infinity') return -INFINITY;
      return microsecondsOf(text);
  }
  throw new RangeError(`not a value of type ${type}: ${text}`);
}

/** Microseconds since 1970-01-01 in UTC, of what date_out and timestamp(tz)_out write. */
function microsecondsOf(text: string): bigint {
  const match =
    /^(\d{4,7})-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?( BC)?$/.exec(
      text,
    );
  if (!match) throw new RangeError(`not a date or timestamp: ${text}`);
  const part = (at: number): bigint => BigInt(match[at] ?? '0');
  const year = match[12] === undefined ? part(1) : 1n - part(1); // 1 BC is the year 0
  const days = daysOf(year, part(2), part(3));
  const seconds = part(4) * 3_600n + part(5) * 60n + part(6);
  const offset = part(9) * 3_600n + part(10) * 60n + part(11);
  const micros = BigInt((match[7] ?? '').padEnd(6, '0'));
  const utc = match[8] === '-' ? seconds + offset : seconds - offset;
  return days * MICROSECONDS_A_DAY + utc * 1_000_000n + micros;
}

/** Days since 1970-01-01 in the proleptic Gregorian calendar, counted from March, so that leap days end a year. */
function daysOf(year: bigint, month: bigint, day: bigint): bigint {
  const y = month <= 2n ? year - 1n : year;
  const era = (y >= 0n ? y : y - 399n) / 400n;
  const yearOfEra = y - era * 400n;
  const dayOfYear = (153n * (month > 2n ? month - 3n : month + 9n) + 2n) / 5n + day - 1n;
  const dayOfEra = yearOfEra * 365n + yearOfEra / 4n - yearOfEra / 100n + dayOfYear;
  return era * 146_097n + dayOfEra - 719_468n;
}
