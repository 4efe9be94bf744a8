// What is to be copied, as data: parts in the order in which they are taken. One part per table in this version; the
// structures carry ranges and part numbers because markers on the target do.
import type { PartRange } from '../model/part-range.ts';
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

/** Every part of the plan, largest table first: the longest work decides when the copy ends. */
export function planParts(tables: readonly PlannedTable[]): CopyPart[] {
  return [...tables]
    .sort((a, b) => b.bytesEstimated - a.bytesEstimated)
    .map((table) => ({ table, relation: relationKey(table.source), part: 0, range: null }));
}
