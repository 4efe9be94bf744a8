// What is to be copied, as data: every table cut into parts, in the order in which they are taken. Pure; plan-read.ts
// asks the source for the facts and keeps the cuts, because a part must mean the same rows after a restart.
import { positionOf, type PartRange, type RangeType } from '../model/part-range.ts';
import { relationKey } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';

export interface CopyPart {
  readonly table: PlannedTable;
  /** `relationKey` of the source table: what markers, progress and errors name. */
  readonly relation: string;
  readonly part: number;
  /** Null is the whole table. */
  readonly range: PartRange | null;
}

/** A marker as `dts.part` holds it: the part's rows are committed on the target. */
export interface Marker {
  readonly relation: string;
  readonly part: number;
  readonly rows: number;
  /** As COPY sent them. */
  readonly bytes: number;
  /** Number of the generation that copied it, from 1. */
  readonly generation: number;
}

/** Identifies a part among the task's parts. */
export function partKey(part: { readonly relation: string; readonly part: number }): string {
  return `${part.relation}#${part.part}`;
}

/**
 * Size of a part where nobody says otherwise. What a crash costs is a part a job; smaller ones cost the copy: the source
 * reads a range of keys through the index, and parts side by side leave the heap in disorder for the index builds.
 */
const PART_BYTES = 256 * 1024 ** 2;
/**
 * Up to here a table is small, and is copied whole: the source reads it without an index, and the target writes its rows
 * once, frozen (part.ts). That is worth more than what a crash may cost, which is some seconds of copying.
 */
const SMALL_BYTES = 1024 ** 3;

/** Of a table: each is a row of dts.part, and looked at whenever progress is shown. */
const MOST_PARTS = 10_000;

/** Parts that a table of so many bytes should have; `partBytes` is the option, null its default. */
export function partsWanted(bytes: number, partBytes: number | null): number {
  if (bytes <= (partBytes ?? SMALL_BYTES)) return 1;
  return Math.min(MOST_PARTS, Math.ceil(bytes / (partBytes ?? PART_BYTES)));
}

/** What decides how a table is cut. */
export interface TableFacts {
  readonly blocks: number;
  /** 14 and later read a range of blocks alone; 13 reads the whole table for each. */
  readonly hasTidRangeScan: boolean;
  /**
   * Leading column of the primary key, where its order is exactly ours and the key is told by every change: with the
   * statistics' correlation of heap and key, and its histogram's bounds as text, ascending.
   */
  readonly key: {
    readonly column: string;
    readonly type: RangeType;
    readonly correlation: number;
    readonly bounds: readonly string[];
  } | null;
}

/** From here on the heap follows the key: a range of keys is a range of blocks, near enough. */
const FOLLOWS = 0.9;

/**
 * Pure: the parts of one table, in order; null leaves it whole.
 *
 *   wanted  key                        blocks readable   cut by
 *   1 1     any                        any               –
 *   2 n     the heap follows it        any               ranges of the key: parts of any generation go together
 *   3 n     none, or heap in disorder  yes               ranges of blocks: all in one generation
 *   4 n     none, or heap in disorder  no (13)           –
 */
export function cutTable(wanted: number, facts: TableFacts): PartRange[] | null {
  if (wanted <= 1) return null;
  const { key, blocks } = facts;
  if (key !== null && Math.abs(key.correlation) >= FOLLOWS) {
    const bounds = innerBounds(key.type, key.bounds, wanted);
    if (bounds.length > 0)
      return [null, ...bounds].map((from, at) => ({
        kind: 'key',
        column: key.column,
        type: key.type,
        from,
        to: bounds[at] ?? null,
      }));
  }
  const count = Math.min(wanted, blocks);
  if (!facts.hasTidRangeScan || count <= 1) return null;
  const start = (at: number): number => Math.floor((at * blocks) / count);
  // the last range is open: the table may have grown by the time it is read
  return Array.from({ length: count }, (_, at) => ({
    kind: 'ctid',
    from: start(at),
    to: at === count - 1 ? null : start(at + 1),
  }));
}

/**
 * At most `wanted - 1` bounds between equal shares of the histogram, strictly ascending. A histogram has a hundred buckets
 * unless somebody asked for more: of whole numbers a bucket is cut further, as if they were spread evenly in it.
 */
function innerBounds(type: RangeType, histogram: readonly string[], wanted: number): string[] {
  const buckets = histogram.length - 1;
  const count = type === 'integer' ? wanted : Math.min(wanted, buckets);
  const bounds: string[] = [];
  for (let at = 1; at < count; at++) {
    const bound =
      type === 'integer'
        ? between(histogram, (at * buckets) / count)
        : histogram[Math.round((at * buckets) / count)];
    const last = bounds.at(-1) ?? histogram[0];
    if (bound === undefined || last === undefined) continue;
    if (positionOf(type, bound) > positionOf(type, last)) bounds.push(bound);
  }
  return bounds;
}

/** The number at a place of the histogram, 0 to its last bucket's end. */
function between(histogram: readonly string[], place: number): string | undefined {
  const from = Math.floor(place);
  const [low, high] = [histogram[from], histogram[from + 1] ?? histogram[from]];
  if (low === undefined || high === undefined) return undefined;
  const width = Number(BigInt(high) - BigInt(low));
  return (BigInt(low) + BigInt(Math.floor(width * (place - from)))).toString();
}

/**
 * Every part of the plan: largest table first, because the longest work decides when the copy ends, and the parts of a
 * table behind each other, so that its indexes begin early. `cuts` by `relationKey`; a table without is one part.
 */
export function planParts(
  tables: readonly PlannedTable[],
  cuts: ReadonlyMap<string, readonly PartRange[]>,
): CopyPart[] {
  return [...tables]
    .sort((a, b) => b.bytesEstimated - a.bytesEstimated)
    .flatMap((table) => {
      const relation = relationKey(table.source);
      return (cuts.get(relation) ?? [null]).map((range, part) => ({ table, relation, part, range }));
    });
}
