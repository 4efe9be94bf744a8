// `options.table` put onto the selection: which columns of a table are migrated and which rows. Pure; called by catalog.ts,
// so that preflight, planning and the final comparison see the same tables. What cannot be done is a fault, which
// preflight reports; filters are read by preflight/row-filters.ts.
import { parseRelationName, relationKey } from '../model/relation.ts';
import type { TableOption, TaskOptions } from '../model/task-options.ts';
import type { CatalogTable } from './catalog.ts';

export interface OptionFault {
  /** As the request spells it: `options.table["public.orders"].columns`. */
  readonly field: string;
  readonly message: string;
  readonly remedy: string;
}

/** `options.table["public.orders"].where` */
export function optionField(name: string, part?: keyof TableOption): string {
  return `options.table[${JSON.stringify(name)}]${part === undefined ? '' : `.${part}`}`;
}

export function applyTableOptions(
  tables: readonly CatalogTable[],
  options: Pick<TaskOptions, 'table'>,
): { readonly tables: readonly CatalogTable[]; readonly faults: readonly OptionFault[] } {
  const given = Object.entries(options.table ?? {});
  if (given.length === 0) return { tables, faults: [] };
  const faults: OptionFault[] = [];
  const byKey = new Map(tables.map((table) => [relationKey(table.relation), table]));
  const wanted = new Map<string, { readonly name: string; readonly option: TableOption }>();
  for (const [name, option] of given) {
    const key = relationKey(parseRelationName(name));
    const table = byKey.get(key);
    const root = table && rootOf(table, byKey);
    if (!table || !root)
      faults.push({
        field: optionField(name),
        message: `${key} is no table of this migration`,
        remedy: 'name a table that `tables` selects',
      });
    else if (root !== table)
      faults.push({
        field: optionField(name),
        message: `${key} is a partition: rows would come and go as they move between partitions`,
        remedy: `name its root: ${JSON.stringify(relationKey(root.relation))}`,
      });
    else if (wanted.has(key))
      faults.push({ field: optionField(name), message: `${key} is named twice`, remedy: 'name it once' });
    else wanted.set(key, { name, option });
  }
  const applied = tables.map((table): CatalogTable => {
    const found = wanted.get(relationKey(rootOf(table, byKey).relation));
    if (!found) return table;
    const { where, columns } = found.option;
    const limited = where === null ? table : { ...table, where };
    return columns === null ? limited : withColumns(limited, found.name, columns, faults);
  });
  return { tables: applied, faults };
}

function rootOf(table: CatalogTable, byKey: ReadonlyMap<string, CatalogTable>): CatalogTable {
  const parent = table.parent && byKey.get(relationKey(table.parent));
  return parent ? rootOf(parent, byKey) : table;
}

function withColumns(
  table: CatalogTable,
  name: string,
  names: readonly string[],
  faults: OptionFault[],
): CatalogTable {
  const field = optionField(name, 'columns');
  const wanted = new Set(names);
  const key = relationKey(table.relation);
  const has = new Set(table.columns.map((column) => column.name));
  const unknown = names.filter((column) => !has.has(column));
  if (unknown.length > 0)
    faults.push({
      field,
      message: `${key} has no column ${unknown.join(', ')}`,
      remedy: `its columns are ${[...has].join(', ')}`,
    });
  const lacking = table.keyColumns.filter((column) => !wanted.has(column));
  if (lacking.length > 0)
    faults.push({
      field,
      message: `${key} is identified by (${table.keyColumns.join(', ')}): changes could not be matched to their rows`,
      remedy: `add ${lacking.join(', ')}`,
    });
  const leftOut = table.columns.filter((column) => !wanted.has(column.name)).map((column) => column.name);
  if (leftOut.length === 0) return table;
  if (table.kind !== 'partitioned' && table.persistence === 'permanent' && table.keyColumns.length === 0)
    faults.push({
      field,
      message: `${key} has no key: all of its columns identify a row, and PostgreSQL publishes no list of them then`,
      remedy: 'add a primary key to it, or migrate all of its columns',
    });
  return { ...table, columns: table.columns.filter((column) => wanted.has(column.name)), leftOut };
}
