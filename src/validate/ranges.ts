// Compares one range of a table's key on both servers: its digests, and where those differ the keys that do. Called by
// online.ts while the stream runs, so what differs here may only be late: keys.ts decides.
import { isDeepStrictEqual } from 'node:util';
import type { Role } from '../model/endpoint.ts';
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import type { KeyRange } from '../model/validation.ts';
import { relationKey } from '../model/relation.ts';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import {
  keyOf,
  rowHashesSql,
  stripsSql,
  sumsSql,
  type ComparedTable,
  type KeyTexts,
  type RangeStatement,
} from './range-sql.ts';
import type { RowForm } from './row-hash.ts';
import { closePair, type SidePair } from './sessions.ts';

/**
 * Long enough that our own delay between two ranges counts for little, short enough that the target reads what the source
 * has read a moment ago: about as long as the stream takes, so that little differs that is only late.
 */
const RANGE_ROWS = 50_000;
const MIN_RANGE_ROWS = 200;
const RANGE_BYTES = 32 * 1024 * 1024;
/** Rows of one strip. */
const STRIP_ROWS = 1_000;
const MIN_STRIP_ROWS = 125;
/** Strips whose rows are held in memory. */
const STRIPS_AT_ONCE = 20;
/** Ranges that the source may be ahead of the target: of more, the rows are older when the target reads them. */
const AHEAD = 3;
/** Ranges that both may be ahead of whoever notes them: what was read and not noted is read again after a crash. */
const UNNOTED = 100;
/** Keys that differ, in what both are ahead. */
const UNNOTED_KEYS = 50_000;

/** One table as both sides know it. */
export interface TablePair {
  readonly name: string;
  readonly plan: PlannedTable;
  readonly source: ComparedTable;
  readonly target: ComparedTable;
  /** Rows of one range. */
  readonly rangeRows: number;
}

/** `maxRows`: of one range. */
export function tablePair(plan: PlannedTable, form: RowForm, maxRows = RANGE_ROWS): TablePair {
  const shared = { columns: plan.columns, key: keyOf(plan), form };
  const rowBytes = plan.rowsEstimated > 0 ? plan.bytesEstimated / plan.rowsEstimated : 0;
  const fitting = rowBytes > 0 ? Math.floor(RANGE_BYTES / rowBytes) : RANGE_ROWS;
  return {
    name: relationKey(plan.source),
    plan,
    source: { ...shared, relation: plan.source, where: plan.where ?? null },
    target: { ...shared, relation: plan.target, where: null },
    rangeRows: Math.max(MIN_RANGE_ROWS, Math.min(RANGE_ROWS, maxRows, fitting)),
  };
}

export interface RangeVerdict {
  /** Key of the range's last row on the source; null when it is the table's last range. */
  readonly upTo: KeyTexts | null;
  /** Of the source. */
  readonly rows: number;
  /** Position of the source behind its read. */
  readonly lsn: Lsn;
  /** Keys whose rows were not the same when they were read. */
  readonly keys: readonly KeyTexts[];
}

/** What the source has in a range. */
interface SourceRange extends Omit<RangeVerdict, 'keys'> {
  readonly strips: readonly (KeyRange & StripSum)[];
}

interface StripSum {
  readonly rows: string;
  readonly sum: string | null;
}

interface Reading {
  readonly after: KeyTexts | null;
  /** Undefined until the source has been read. */
  source: SourceRange | undefined;
  /** Whether the target has been read, too. */
  isOver: boolean;
  /** Keys that were not the same. */
  differing: number;
  readonly verdict: Promise<RangeVerdict>;
}

/**
 * Compares ranges of a table in their order. While the target reads a range the source reads the next ones, and the caller
 * notes the last: neither server waits for the other, or for us.
 */
export class RangeReader {
  readonly #pair: SidePair;
  #table: TablePair | null = null;
  #goOn = false;
  /** What is read or being read, in order. */
  #ahead: Reading[] = [];
  /** Rows of a strip, by table. */
  readonly #stripRows = new Map<string, number>();

  constructor(pair: SidePair) {
    this.#pair = pair;
  }

  /** The range that begins behind `after`. `goOn`: whether others are read meanwhile. Errors: those of the servers. */
  async read(table: TablePair, after: KeyTexts | null, goOn: boolean): Promise<RangeVerdict> {
    this.#goOn = goOn;
    const [next] = this.#ahead;
    // whoever begins a table again gets nothing that was read before
    if (this.#table !== table || !next || !isDeepStrictEqual(next.after, after)) {
      this.#table = table;
      this.#ahead = [];
      this.#begin(table, after);
    }
    const ahead = this.#ahead;
    const verdict = await ahead[0]?.verdict;
    if (!verdict) throw new MigrationError('internal', 'no range is being read');
    ahead.shift();
    this.#readOn(table);
    return verdict;
  }

  async close(): Promise<void> {
    await closePair(this.#pair);
  }

  #begin(table: TablePair, after: KeyTexts | null): void {
    const source = readSource(this.#pair, table, after, this.#stripRows.get(table.name) ?? STRIP_ROWS);
    const ahead = this.#ahead;
    const goOn = (): void => {
      if (this.#ahead === ahead) this.#readOn(table);
    };
    const compared = source.then(async (range) => {
      reading.source = range;
      goOn();
      const found = await this.#compare(table, range);
      reading.differing = found.keys.length;
      return found;
    });
    const verdict = compared.finally(() => {
      reading.isOver = true;
      goOn();
    });
    const reading: Reading = { after, source: undefined, isOver: false, differing: 0, verdict };
    verdict.catch(() => undefined); // told to who asks for it
    ahead.push(reading);
  }

  #readOn(table: TablePair): void {
    const last = this.#ahead.at(-1);
    if (!this.#goOn || !last?.source || last.source.upTo === null) return;
    const keys = this.#ahead.reduce((sum, { differing }) => sum + differing, 0);
    const reading = this.#ahead.filter(({ isOver }) => !isOver).length;
    const isFull = reading >= AHEAD || this.#ahead.length >= UNNOTED || keys >= UNNOTED_KEYS;
    if (!isFull) this.#begin(table, last.source.upTo);
  }

  async #compare(table: TablePair, { strips, ...range }: SourceRange): Promise<RangeVerdict> {
    const sums = await ask<StripSum & { n: number }>(
      this.#pair.target,
      sumsSql(table.target, strips),
      table,
      'target',
    );
    const byStrip = new Map(sums.map((each) => [each.n, each]));
    const differing = strips.filter(({ rows, sum }, n) => {
      const target = byStrip.get(n);
      return target?.rows !== rows || target.sum !== sum;
    });
    this.#chooseStrips(table, strips.length, differing.length);
    const keys = new Map<string, KeyTexts>();
    for (let from = 0; from < differing.length; from += STRIPS_AT_ONCE)
      for (const key of await differingKeys(this.#pair, table, differing.slice(from, from + STRIPS_AT_ONCE)))
        keys.set(JSON.stringify(key), key);
    return { ...range, keys: [...keys.values()] };
  }

  /** Every differing strip is read again, every strip costs a descent: between both lies the best. */
  #chooseStrips(table: TablePair, strips: number, differing: number): void {
    const rows = this.#stripRows.get(table.name) ?? STRIP_ROWS;
    if (differing * 8 > strips) this.#stripRows.set(table.name, Math.max(MIN_STRIP_ROWS, rows / 2));
    else if (differing * 50 < strips) this.#stripRows.set(table.name, Math.min(STRIP_ROWS, rows * 2));
  }
}

async function readSource(
  pair: SidePair,
  table: TablePair,
  after: KeyTexts | null,
  wantedRows: number,
): Promise<SourceRange> {
  const stripRows = Math.min(wantedRows, table.rangeRows);
  const size = { strips: Math.ceil(table.rangeRows / stripRows), stripRows };
  const found = await ask<StripSum & { key: string[]; lsn: Lsn }>(
    pair.source,
    stripsSql(table.source, after, size),
    table,
    'source',
  );
  const last = found.at(-1);
  const isEnd = Number(last?.rows ?? 0) < stripRows;
  return {
    upTo: isEnd ? null : (last?.key ?? null),
    rows: found.reduce((sum, { rows }) => sum + Number(rows), 0),
    lsn: last?.lsn ?? '0/0',
    strips: found.map(({ rows, sum, key }, n) => ({
      after: n === 0 ? after : (found[n - 1]?.key ?? null),
      upTo: isEnd && n === found.length - 1 ? null : key,
      rows,
      sum,
    })),
  };
}

/** Keys whose rows are not the same in the ranges. */
async function differingKeys(
  pair: SidePair,
  table: TablePair,
  ranges: readonly KeyRange[],
): Promise<KeyTexts[]> {
  const [source, target] = await onBoth<{ key: string[]; hash: string }>(pair, table, (side) =>
    rowHashesSql(side, ranges),
  );
  const hashes = (rows: readonly { key: string[]; hash: string }[]): Map<string, string> =>
    new Map(rows.map(({ key, hash }) => [JSON.stringify(key), hash]));
  const [left, right] = [hashes(source), hashes(target)];
  const found = [...left].filter(([key, hash]) => right.get(key) !== hash).map(([key]) => key);
  for (const key of right.keys()) if (!left.has(key)) found.push(key);
  return found.map((key) => JSON.parse(key) as string[]);
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
