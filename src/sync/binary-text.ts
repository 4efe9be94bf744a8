// The text of values that arrived in binary form, of the types whose text is easy: for keys that are written down
// (changed-keys.ts), compared with the parts of the copy (filter.ts) or shown in errors. A table whose key has another type
// is streamed as text. Pure.
//
// The forms are those of the types' send functions, the texts those of their output functions under session-settings.ts
// (datestyle ISO, timezone UTC, bytea_output hex), the same from 13 to 18.
import type { ColumnValue } from '../postgres/pgoutput-messages.ts';

const utf8 = (value: Buffer): string => value.toString('utf8');

/** By format_type's text without its modifier. */
const printers: ReadonlyMap<string, (value: Buffer) => string> = new Map([
  ['smallint', (value) => String(value.readInt16BE())],
  ['integer', (value) => String(value.readInt32BE())],
  ['bigint', (value) => String(value.readBigInt64BE())],
  ['oid', (value) => String(value.readUInt32BE())],
  ['boolean', (value) => (value[0] === 1 ? 't' : 'f')],
  ['uuid', (value) => value.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')],
  ['text', utf8],
  ['name', utf8],
  ['character varying', utf8],
  ['character', utf8],
  ['bytea', (value) => `\\x${value.toString('hex')}`],
  ['numeric', numericText],
  ['date', dateText],
  ['timestamp without time zone', (value) => timestampText(value, '')],
  ['timestamp with time zone', (value) => timestampText(value, '+00')],
]);

function printerOf(type: string): ((value: Buffer) => string) | undefined {
  return printers.get(type.replace(/\([\d,-]+\)/, ''));
}

/** Whether `textOf` knows the type (format_type's text). */
export function hasEasyText(type: string): boolean {
  return printerOf(type) !== undefined;
}

/** The value as the type's output function prints it; bytes of other types stay bytes. */
export function textOf(type: string, value: ColumnValue): ColumnValue {
  return Buffer.isBuffer(value) ? (printerOf(type)?.(value) ?? value) : value;
}

const NUMERIC_SIGNS: Readonly<Record<number, string>> = {
  0xc000: 'NaN',
  0xd000: 'Infinity',
  0xf000: '-Infinity',
};

/** int16 each: digits, weight of the first, sign, decimals shown; then the digits, to the base of 10,000. */
function numericText(value: Buffer): string {
  const [count, weight, sign, scale] = [
    value.readInt16BE(0),
    value.readInt16BE(2),
    value.readUInt16BE(4),
    value.readUInt16BE(6),
  ];
  const special = NUMERIC_SIGNS[sign];
  if (special !== undefined) return special;
  // leading and trailing zeros are not sent
  const digit = (power: number): string => {
    const at = weight - power;
    return String(at >= 0 && at < count ? value.readInt16BE(8 + 2 * at) : 0).padStart(4, '0');
  };
  let text = '';
  for (let power = Math.max(weight, 0); power >= 0; power--) text += digit(power);
  text = text.replace(/^0{1,3}(?=\d)/, '');
  let decimals = '';
  for (let power = -1; decimals.length < scale; power--) decimals += digit(power);
  return `${sign === 0x4000 ? '-' : ''}${text}${scale > 0 ? `.${decimals.slice(0, scale)}` : ''}`;
}

/** The calendar repeats after 400 years: JavaScript's ends before PostgreSQL's. */
const ERA_DAYS = 146_097;
const ERA_MICROSECONDS = BigInt(ERA_DAYS) * 86_400_000_000n;
const ERA_YEARS = 400;

/** Days since 2000-01-01. */
function dateText(value: Buffer): string {
  const days = value.readInt32BE();
  if (days === 0x7fff_ffff) return 'infinity';
  if (days === -0x8000_0000) return '-infinity';
  const era = Math.floor(days / ERA_DAYS);
  const { date, bc } = partsOf(era, (days - era * ERA_DAYS) * 86_400_000);
  return date + bc;
}

/** Microseconds since 2000-01-01. */
function timestampText(value: Buffer, zone: string): string {
  const micros = value.readBigInt64BE();
  if (micros === 0x7fff_ffff_ffff_ffffn) return 'infinity';
  if (micros === -0x8000_0000_0000_0000n) return '-infinity';
  const ofEra = ((micros % ERA_MICROSECONDS) + ERA_MICROSECONDS) % ERA_MICROSECONDS;
  const era = Number((micros - ofEra) / ERA_MICROSECONDS);
  const { date, time, bc } = partsOf(era, Number(ofEra / 1_000n));
  const exact = time + String(ofEra % 1_000n).padStart(3, '0');
  return `${date} ${exact.replace(/\.?0*$/, '')}${zone}${bc}`;
}

/** `date` and `time` (with milliseconds) so long after the beginning of an era; 0 is the one that begins in 2000. */
function partsOf(era: number, milliseconds: number): { date: string; time: string; bc: string } {
  const moment = new Date(Date.UTC(2000, 0) + milliseconds);
  const year = moment.getUTCFullYear() + era * ERA_YEARS;
  const iso = moment.toISOString(); // 2024-02-29T12:00:00.000Z
  const shown = String(year > 0 ? year : 1 - year).padStart(4, '0'); // the year 0 is 1 BC
  return { date: shown + iso.slice(4, 10), time: iso.slice(11, 23), bc: year > 0 ? '' : ' BC' };
}
