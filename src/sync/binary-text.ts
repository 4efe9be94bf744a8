// The text of values that arrived in binary form, of the types whose text is easy: for keys that are written down
// (changed-keys.ts) or shown in errors. A table whose key has another type is streamed as text. Pure.
import type { ColumnValue } from '../postgres/pgoutput-messages.ts';

const easy = /^(smallint|integer|bigint|boolean|uuid|text|name|character varying(\(\d+\))?)$/;

/** Whether `textOf` knows the type (format_type's text). */
export function hasEasyText(type: string): boolean {
  return easy.test(type);
}

/** The value as the type's output function prints it; bytes of other types stay bytes. */
export function textOf(type: string, value: ColumnValue): ColumnValue {
  if (!Buffer.isBuffer(value) || !easy.test(type)) return value;
  if (type === 'smallint') return String(value.readInt16BE());
  if (type === 'integer') return String(value.readInt32BE());
  if (type === 'bigint') return String(value.readBigInt64BE());
  if (type === 'boolean') return value[0] === 1 ? 't' : 'f';
  if (type === 'uuid')
    return value.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
  return value.toString('utf8');
}
