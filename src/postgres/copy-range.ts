// The rows of a part as SQL, for reading them on the source and for removing them on the target: src/copy and src/sync
// must never differ about which rows a part has.
import type { PartRange, RangeType } from '../model/part-range.ts';
import { ident, literal } from './sql.ts';

/** Types as SQL names them; `integer` columns of every width compare with bigint. */
const sqlTypes: Readonly<Record<RangeType, string>> = {
  integer: 'bigint',
  date: 'date',
  timestamp: 'timestamp',
  timestamptz: 'timestamptz',
  uuid: 'uuid',
};

/** A boolean expression over the table's columns; `true` for the whole table. `types` are the key columns' own. */
export function rangeCondition(range: PartRange | null, types: ReadonlyMap<string, string>): string {
  if (range === null) return 'true';
  const conditions: string[] = [];
  switch (range.kind) {
    case 'key': {
      const bound = (value: string): string => `${literal(value)}::${sqlTypes[range.type]}`;
      if (range.from !== null) conditions.push(`${ident(range.column)} >= ${bound(range.from)}`);
      if (range.to !== null) conditions.push(`${ident(range.column)} < ${bound(range.to)}`);
      break;
    }
    case 'ctid':
      if (range.from > 0) conditions.push(`ctid >= '(${range.from},0)'::tid`);
      if (range.to !== null) conditions.push(`ctid < '(${range.to},0)'::tid`);
      break;
    case 'row':
      for (const [name, value] of Object.entries(range.key))
        conditions.push(`${ident(name)} = ${literal(value)}::${types.get(name) ?? 'text'}`);
      break;
  }
  return conditions.length === 0 ? 'true' : conditions.join(' and ');
}
