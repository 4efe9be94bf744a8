// Compares one range of a table's key on both servers: its digest, and where that differs the keys that do. Called by
// online.ts while the stream runs, so what differs here may only be late: keys.ts decides.
import type { Role } from '../model/endpoint.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import type { KeyRange } from '../model/validation.ts';
import { relationKey } from '../model/relation.ts';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import type { RowForm } from './digest.ts';
import {
  boundarySql,
  bucketRowsSql,
  bucketsSql,
  keyOf,
  rangeSql,
  type ComparedTable,
  type KeyTexts,
  type RangeStatement,
} from './range-sql.ts';
import type { SidePair } from './sessions.ts';

/** A range is read in a moment, and what differs in it is little. */
const RANGE_ROWS = 20_000;
const MIN_RANGE_ROWS = 200;
const RANGE_BYTES = 32 * 1024 * 1024;

/** One table as both sides know it. */
export interface TablePair {
  readonly name: string;
  readonly plan: PlannedTable;
  readonly source: ComparedTable;
  readonly target: ComparedTable;
  /** Rows of one range. */
  readonly rangeRows: number;
}

export function tablePair(plan: PlannedTable, form: RowForm): TablePair {
  const shared = { columns: plan.columns, key: keyOf(plan), form };
  const rowBytes = plan.rowsEstimated > 0 ? plan.bytesEstimated / plan.rowsEstimated : 0;
  const fitting = rowBytes > 0 ? Math.floor(RANGE_BYTES / rowBytes) : RANGE_ROWS;
  return {
    name: relationKey(plan.source),
    plan,
    source: { ...shared, relation: plan.source, where: plan.where ?? null },
    target: { ...shared, relation: plan.target, where: null },
    rangeRows: Math.max(MIN_RANGE_ROWS, Math.min(RANGE_ROWS, fitting)),
  };
}

export interface RangeVerdict {
  /** Key of the range's last row on the source; null when it is the table's last range. */
  readonly upTo: KeyTexts | null;
  /** Of the source. */
  readonly rows: number;
  /** Keys whose rows were not the same when they were read. */
  readonly keys: readonly KeyTexts[];
}

/**
 * Compares the range that begins behind `after`. `changing`: something in it is likely to differ, so that its parts are
 * read at once. Errors: those of the servers, with role and relation.
 */
async function compareRange(
  pair: SidePair,
  table: TablePair,
  after: KeyTexts | null,
  changing: boolean,
): Promise<RangeVerdict> {
  const boundary = await ask<string[]>(
    pair.source,
    boundarySql(table.source, after, table.rangeRows),
    table,
    'source',
    'array',
  );
  const upTo = boundary[0] ?? null;
  const range: KeyRange = { after, upTo };
  if (!changing) {
    const [[source], [target]] = await onBoth<RangeDigest>(pair, table, (side) => rangeSql(side, range));
    if (source && source.rows === target?.rows && source.sum === target.sum)
      return { upTo, rows: Number(source.rows), keys: [] };
  }
  const [source, target] = await onBoth<Bucket>(pair, table, (side) => bucketsSql(side, range));
  const rows = source.reduce((sum, each) => sum + Number(each.rows), 0);
  const digests = (buckets: readonly Bucket[]): Map<number, string> =>
    new Map(buckets.map((each) => [each.bucket, `${each.rows}/${each.sum}`]));
  const buckets = differing(digests(source), digests(target));
  return { upTo, rows, keys: buckets.length === 0 ? [] : await differingKeys(pair, table, range, buckets) };
}

/** Compares ranges in their order; while the caller notes what one has brought, the servers read the next. */
export class RangeReader {
  readonly #pair: SidePair;
  #ahead: {
    readonly table: TablePair;
    readonly after: string;
    readonly verdict: Promise<RangeVerdict>;
  } | null = null;
  /** Names of tables whose last range differed. */
  readonly #changing = new Set<string>();

  constructor(pair: SidePair) {
    this.#pair = pair;
  }

  /** The range that begins behind `after`. `goOn`: whether the next one is read at once. Errors: those of the servers. */
  async read(table: TablePair, after: KeyTexts | null, goOn: boolean): Promise<RangeVerdict> {
    const ahead = this.#ahead;
    this.#ahead = null;
    // whoever begins a table again gets nothing that was read before
    const isNext = ahead?.table === table && ahead.after === JSON.stringify(after);
    const verdict = await (isNext ? ahead.verdict : this.#compare(table, after));
    if (verdict.keys.length > 0) this.#changing.add(table.name);
    else this.#changing.delete(table.name);
    if (goOn && verdict.upTo !== null) {
      const next = this.#compare(table, verdict.upTo);
      next.catch(() => undefined); // told to who asks for it
      this.#ahead = { table, after: JSON.stringify(verdict.upTo), verdict: next };
    }
    return verdict;
  }

  #compare(table: TablePair, after: KeyTexts | null): Promise<RangeVerdict> {
    return compareRange(this.#pair, table, after, this.#changing.has(table.name));
  }
}

interface RangeDigest {
  readonly rows: string;
  readonly sum: string | null;
}

interface Bucket {
  readonly bucket: number;
  readonly rows: string;
  readonly sum: string;
}

async function differingKeys(
  pair: SidePair,
  table: TablePair,
  range: KeyRange,
  buckets: readonly number[],
): Promise<KeyTexts[]> {
  const [source, target] = await onBoth<{ key: string[]; hash: string }>(pair, table, (side) =>
    bucketRowsSql(side, range, buckets),
  );
  const hashes = (rows: readonly { key: string[]; hash: string }[]): Map<string, string> =>
    new Map(rows.map(({ key, hash }) => [JSON.stringify(key), hash]));
  return differing(hashes(source), hashes(target)).map((key) => JSON.parse(key) as string[]);
}

/** Keys of either map whose values are not the same. */
function differing<K>(left: ReadonlyMap<K, string>, right: ReadonlyMap<K, string>): K[] {
  const found = [...left].filter(([key, value]) => right.get(key) !== value).map(([key]) => key);
  for (const key of right.keys()) if (!left.has(key)) found.push(key);
  return found;
}

/** Runs the statement of each side at the same time. */
export async function onBoth<R extends object>(
  pair: SidePair,
  table: TablePair,
  statement: (side: ComparedTable) => RangeStatement,
): Promise<[R[], R[]]> {
  return Promise.all([
    ask<R>(pair.source, statement(table.source), table, 'source'),
    ask<R>(pair.target, statement(table.target), table, 'target'),
  ]);
}

export async function ask<R extends object>(
  session: Session,
  statement: RangeStatement,
  table: TablePair,
  role: Role,
  rowMode?: 'array',
): Promise<R[]> {
  try {
    const { rows } = await session.client.query<R>({
      text: statement.text,
      values: [...statement.values],
      ...(rowMode === undefined ? {} : { rowMode }),
    });
    return rows;
  } catch (error) {
    throw fromPostgres(error, { role, relation: table.name });
  }
}
