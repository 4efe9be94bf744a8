// The facts that decide how tables are cut, from the source's catalog and statistics, and the cuts as a checkpoint: they
// are made once for a slot, because markers and stream rely on them. Called by copy-tables.ts.
import { isTextEqual, rangeTypeOf, type PartRange } from '../model/part-range.ts';
import { relationKey } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import { sourceVersion } from '../postgres/marker.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { cutTable, partsWanted, type TableFacts } from './plan.ts';

const COPY_CUTS = 'copyCuts';

interface StoredCuts {
  readonly slotIncarnation: string;
  /** Only tables that are cut. */
  readonly cuts: Readonly<Record<string, readonly PartRange[]>>;
  /** Number of the last addition to the plan that they know; absent: none. */
  readonly addition?: number;
}

/**
 * The cuts of every table of the plan, by `relationKey`; made at the first call for a slot, of added tables then.
 * `constrained`: tables that have unique constraints already.
 */
export async function ensureCuts(
  scope: TaskScope,
  tables: readonly PlannedTable[],
  slotIncarnation: string,
  constrained: readonly string[],
): Promise<ReadonlyMap<string, readonly PartRange[]>> {
  const stored = scope.checkpoints.get<StoredCuts>(COPY_CUTS);
  const { pass, relations } = schemaPlanOf(scope).addition ?? { pass: 0, relations: [] };
  const known = stored?.slotIncarnation === slotIncarnation ? stored : null;
  if (known !== null && (known.addition ?? 0) >= pass) return new Map(Object.entries(known.cuts));
  const added = new Set(relations);
  const uncut = known === null ? tables : tables.filter(({ source }) => added.has(relationKey(source)));
  const cuts = { ...known?.cuts, ...Object.fromEntries(await readCuts(scope, uncut, constrained)) };
  scope.checkpoints.set(COPY_CUTS, { slotIncarnation, cuts, addition: pass } satisfies StoredCuts);
  return new Map(Object.entries(cuts));
}

/** From now on the table is one part. Only while it has no marker. */
export function leaveWhole(scope: TaskScope, relation: string): void {
  const stored = scope.checkpoints.get<StoredCuts>(COPY_CUTS);
  if (!stored) return;
  const { [relation]: _cut, ...cuts } = stored.cuts;
  scope.checkpoints.set(COPY_CUTS, { ...stored, cuts } satisfies StoredCuts);
}

async function readCuts(
  scope: TaskScope,
  tables: readonly PlannedTable[],
  constrained: readonly string[],
): Promise<Map<string, readonly PartRange[]>> {
  const wanted = (table: PlannedTable): number =>
    partsWanted(table.bytesEstimated, scope.spec.options.partBytes);
  const large = tables.filter((table) => wanted(table) > 1);
  const cuts = new Map<string, readonly PartRange[]>();
  const uniqueBefore = new Set([...constrained, ...(schemaPlanOf(scope).uniqueBefore ?? [])]);
  if (large.length === 0) return cuts;
  const hasTidRangeScan = (await sourceVersion(scope)) >= 140_000;
  const rows = await readFacts(scope, large);
  for (const table of large) {
    const relation = relationKey(table.source);
    const row = rows.get(relation);
    if (!row) continue;
    const facts = factsOf(table, row);
    // ranges of the key may be read under several snapshots, which may hold one value of another constraint twice
    const key = uniqueBefore.has(relation) ? null : facts.key;
    const cut = cutTable(wanted(table), { ...facts, key, hasTidRangeScan });
    if (cut) cuts.set(relation, cut);
  }
  return cuts;
}

interface FactsRow {
  readonly schema: string;
  readonly name: string;
  readonly blocks: number;
  /** Of the primary key, in its order. */
  readonly columns: readonly string[] | null;
  /** A collation under which different texts may be equal. */
  readonly loose: boolean;
  readonly correlation: number | null;
  readonly bounds: readonly string[] | null;
}

async function readFacts(scope: TaskScope, tables: readonly PlannedTable[]): Promise<Map<string, FactsRow>> {
  const { rows } = await scope.source.query<FactsRow>(
    `select w.schema, w.name, (pg_relation_size(c.oid) / current_setting('block_size')::int)::float8 as blocks,
            k.columns, coalesce(k.loose, false) as loose, s.correlation::float8 as correlation,
            s.histogram_bounds::text::text[] as bounds
       from unnest($1::text[], $2::text[]) as w(schema, name)
       join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name
       left join lateral (
         select array_agg(a.attname::text order by p.n) as columns, bool_or(not l.collisdeterministic) as loose
           from pg_index i cross join unnest(i.indkey) with ordinality as p(attnum, n)
           join pg_attribute a on a.attrelid = i.indrelid and a.attnum = p.attnum
           left join pg_collation l on l.oid = a.attcollation
          where i.indrelid = c.oid and i.indisprimary and p.n <= i.indnkeyatts) as k on true
       left join pg_stats s on s.schemaname = w.schema and s.tablename = w.name and s.attname = k.columns[1] and not s.inherited`,
    [tables.map(({ source }) => source.schema), tables.map(({ source }) => source.name)],
  );
  return new Map(rows.map((row) => [relationKey(row), row]));
}

function factsOf(table: PlannedTable, row: FactsRow): Omit<TableFacts, 'hasTidRangeScan'> {
  const typeOf = (name: string): string => table.columns.find((column) => column.name === name)?.type ?? '';
  const { blocks, columns, correlation, bounds } = row;
  const [column] = columns ?? [];
  const type = column === undefined ? null : rangeTypeOf(typeOf(column));
  // A change must tell the column, before and after: it is part of the identity, or the identity is the whole row. Under
  // an identity by another index the primary key would have to wait like every unique constraint.
  const isTold =
    table.replicaIdentity === 'full' ||
    (table.replicaIdentity === 'default' && table.keyColumns.join('\0') === (columns ?? []).join('\0'));
  // a row that is read again is found by the text of its key
  const exact = !row.loose && (columns ?? []).every((name) => isTextEqual(typeOf(name)));
  const usable = column !== undefined && type !== null && isTold && exact;
  return {
    blocks,
    key: usable && correlation !== null && bounds !== null ? { column, type, correlation, bounds } : null,
  };
}
