// What a copy has already seen of the stream (DESIGN: "every copied part remembers the snapshot it was read under").
// Pure; the replay asks it for every change that commits before the last horizon, and for none behind it.
//
// A change by top-level transaction X to a row of part P is skipped iff X's commit LSN lies before P's horizon AND X is
// visible in P's pg_snapshot. Both are needed: xids alone repeat after 2^32 transactions, and a commit record may lie
// before the horizon while its transaction was still in the proc array, hence invisible, when the snapshot was taken.
import { MigrationError } from '../model/errors.ts';
import { lsnToBigint, type Lsn } from '../model/lsn.ts';
import { positionOf, type KeyRange, type PartRange } from '../model/part-range.ts';
import { isVisible, widenXid, type PgSnapshot } from '../model/pg-snapshot.ts';
import type { ColumnValue, Tuple } from '../postgres/pgoutput-messages.ts';
import { textOf } from './binary-text.ts';
import type { StreamedTable } from './relations.ts';

/** A part that stands on the target: its row of dts.part. */
export interface CopiedPart {
  /** `relationKey` of the source table. */
  readonly relation: string;
  readonly part: number;
  /** Null: the whole table. */
  readonly range: PartRange | null;
  readonly pgSnapshot: PgSnapshot;
  /** pg_current_wal_insert_lsn() right after the snapshot was taken. */
  readonly horizonLsn: Lsn;
}

/** The transaction that a change belongs to, as its Begin message tells. */
export interface SourceTransaction {
  /** Low 32 bits of the top-level id. */
  readonly xid: number;
  /** Start of the commit record. */
  readonly commitLsn: Lsn;
}

/** What the filter has to know of a table of the stream. */
export type FilteredTable = Pick<StreamedTable, 'key' | 'keyPositions'> & {
  readonly columns: readonly { readonly name: string; readonly type: string }[];
};

/**
 * What to do with an update whose old and new row may lie in different parts: a delete in the old part and an insert in
 * the new one, each with its own test.
 */
export type UpdateVerdict = 'apply' | 'skip' | 'delete-old' | 'insert-new';

/** `sawOld`: the old row's part was read after the change; `sawNew`: the new row's part was. */
export function decideUpdate(sawOld: boolean, sawNew: boolean): UpdateVerdict {
  if (sawOld && sawNew) return 'skip';
  if (sawOld) return 'insert-new';
  if (sawNew) return 'delete-old';
  return 'apply';
}

/** Whether the part's rows were read with the transaction's effects in them. */
export function sawTransaction(
  part: Pick<CopiedPart, 'horizonLsn' | 'pgSnapshot'>,
  transaction: SourceTransaction,
): boolean {
  if (lsnToBigint(transaction.commitLsn) >= lsnToBigint(part.horizonLsn)) return false;
  return isVisible(part.pgSnapshot, widenXid(transaction.xid, part.pgSnapshot.xmax));
}

/** What a truncate has left to do: nothing, the whole table, or the rows of `unseen` that are not of `seenRows`. */
export type TruncateVerdict =
  | { readonly kind: 'skip' | 'apply' }
  | {
      readonly kind: 'some';
      readonly unseen: readonly (PartRange | null)[];
      readonly seenRows: readonly PartRange[];
    };

/** The parts of one table, so that a row's is found at once. Throws `internal` when they do not make up the table. */
class TableParts {
  readonly #relation: string;
  /** Everything but single rows. */
  readonly #parts: CopiedPart[] = [];
  readonly #rows = new Map<string, CopiedPart>();
  /** Of parts by key range: lower bounds, ascending; the first is open. */
  #bounds: readonly bigint[] = [];
  #range: KeyRange | null = null;

  constructor(relation: string, parts: readonly CopiedPart[]) {
    this.#relation = relation;
    for (const part of parts) {
      if (part.range?.kind === 'row') this.addRow(part);
      else this.#parts.push(part);
    }
    const first = this.#parts[0];
    if (!first) throw this.#broken('it has no part');
    if (first.range === null) {
      if (this.#parts.length > 1) throw this.#broken('one part is the whole table and there are others');
    } else if (first.range.kind === 'ctid') this.#checkBlocks();
    else this.#orderKeys(first.range as KeyRange);
  }

  /** All rows of one snapshot: a row's block is unknown here and need not be known. */
  #checkBlocks(): void {
    const ranges = this.#parts.flatMap(({ range }) => (range?.kind === 'ctid' ? [range] : []));
    ranges.sort((a, b) => a.from - b.from);
    const gapless = ranges.every((range, at) => range.from === (at === 0 ? 0 : ranges[at - 1]?.to));
    if (ranges.length !== this.#parts.length || !gapless || ranges.at(-1)?.to !== null)
      throw this.#broken('its blocks are not covered once each');
    const [first] = this.#parts;
    const horizon = first?.horizonLsn;
    if (
      this.#parts.some(
        (part) => part.horizonLsn !== horizon || part.pgSnapshot.xmax !== first?.pgSnapshot.xmax,
      )
    )
      throw this.#broken('its block ranges were read under different snapshots');
  }

  #orderKeys(range: KeyRange): void {
    const { type, column } = range;
    const key = (part: CopiedPart): KeyRange => {
      if (part.range?.kind !== 'key' || part.range.column !== column || part.range.type !== type)
        throw this.#broken('its parts are not cut by one column');
      return part.range;
    };
    const lower = (part: CopiedPart): bigint | null => {
      const { from } = key(part);
      return from === null ? null : positionOf(type, from);
    };
    this.#parts.sort((a, b) => {
      const [x, y] = [lower(a), lower(b)];
      return x === y ? 0 : x === null || (y !== null && x < y) ? -1 : 1;
    });
    const gapless = this.#parts.every((part, at) => {
      const before = this.#parts[at - 1];
      return key(part).from === (before === undefined ? null : key(before).to);
    });
    const last = this.#parts.at(-1);
    if (!gapless || last === undefined || key(last).to !== null)
      throw this.#broken('its keys are not covered once each');
    this.#range = range;
    this.#bounds = this.#parts.slice(1).map((part) => lower(part) ?? 0n);
  }

  addRow(part: CopiedPart): void {
    if (part.range?.kind === 'row') this.#rows.set(JSON.stringify(part.range.key), part);
  }

  partOf(table: FilteredTable, row: Tuple): CopiedPart {
    if (this.#rows.size > 0) {
      const single = this.#rows.get(JSON.stringify(keyOf(table, row)));
      if (single) return single;
    }
    const part = this.#parts[this.#range === null ? 0 : this.#indexOf(this.#range, table, row)];
    if (!part) throw this.#broken('a row belongs to none of its parts');
    return part;
  }

  #indexOf({ column, type }: KeyRange, table: FilteredTable, row: Tuple): number {
    const value = textAt(
      table,
      row,
      table.columns.findIndex(({ name }) => name === column),
    );
    if (typeof value !== 'string') throw this.#broken(`a change does not tell its ${column}`);
    const position = positionOf(type, value);
    let low = 0;
    for (let high = this.#bounds.length; low < high; ) {
      const middle = (low + high) >>> 1;
      if ((this.#bounds[middle] ?? 0n) <= position) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  truncate(transaction: SourceTransaction): TruncateVerdict {
    const all = [...this.#parts, ...this.#rows.values()];
    const unseen = all.filter((part) => !sawTransaction(part, transaction));
    if (unseen.length === 0) return { kind: 'skip' };
    if (unseen.length === all.length) return { kind: 'apply' };
    const seenRows = [...this.#rows.values()].filter((part) => sawTransaction(part, transaction));
    return {
      kind: 'some',
      unseen: unseen.map(({ range }) => range),
      seenRows: seenRows.flatMap(({ range }) => range ?? []),
    };
  }

  #broken(reason: string): MigrationError {
    return new MigrationError('internal', `${this.#relation}: the copied parts: ${reason}`, {
      details: { relation: this.#relation },
    });
  }
}

/** Parts are described by texts; a binary stream sends bytes. */
function textAt({ columns }: FilteredTable, row: Tuple, position: number): ColumnValue {
  return textOf(columns[position]?.type ?? '', row[position] ?? null);
}

/** The row's identity as a part of one row names it; values that the change lacks are left out and match nothing. */
export function keyOf(table: FilteredTable, row: Tuple): Record<string, string> {
  const key: Record<string, string> = {};
  for (const position of table.keyPositions) {
    const value = textAt(table, row, position);
    const name = table.columns[position]?.name;
    if (typeof value === 'string' && name !== undefined) key[name] = value;
  }
  return key;
}

export class CopyFilter {
  readonly #tables = new Map<string, TableParts>();
  #lastHorizon = 0n;

  constructor(parts: readonly CopiedPart[]) {
    const byTable = new Map<string, CopiedPart[]>();
    for (const part of parts) {
      const known = byTable.get(part.relation);
      if (known) known.push(part);
      else byTable.set(part.relation, [part]);
      this.#reach(part);
    }
    for (const [relation, all] of byTable) this.#tables.set(relation, new TableParts(relation, all));
  }

  /** False once a transaction commits at or behind every horizon: then nothing has to be asked. */
  concerns(transaction: SourceTransaction): boolean {
    return lsnToBigint(transaction.commitLsn) < this.#lastHorizon;
  }

  /** Whether a row of the table (its key for a delete) was copied with the transaction's effects. */
  sawRow(table: FilteredTable, row: Tuple, transaction: SourceTransaction): boolean {
    return sawTransaction(this.#partsOf(table.key).partOf(table, row), transaction);
  }

  /** `oldRow` is null when the update changed no key: the new row then tells where the old one was. */
  update(
    table: FilteredTable,
    oldRow: Tuple | null,
    newRow: Tuple,
    transaction: SourceTransaction,
  ): UpdateVerdict {
    const sawNew = this.sawRow(table, newRow, transaction);
    return decideUpdate(oldRow === null ? sawNew : this.sawRow(table, oldRow, transaction), sawNew);
  }

  /** Part by part: only those that still hold rows from before the truncate are emptied. */
  truncate(relation: string, transaction: SourceTransaction): TruncateVerdict {
    return this.#partsOf(relation).truncate(transaction);
  }

  /** A row that was read again and is now on the target with a marker of its own. */
  addRow(part: CopiedPart): void {
    this.#partsOf(part.relation).addRow(part);
    this.#reach(part);
  }

  #reach(part: CopiedPart): void {
    const horizon = lsnToBigint(part.horizonLsn);
    if (horizon > this.#lastHorizon) this.#lastHorizon = horizon;
  }

  #partsOf(relation: string): TableParts {
    const parts = this.#tables.get(relation);
    if (!parts)
      throw new MigrationError('internal', `${relation}: the stream began before the table was copied`);
    return parts;
  }
}
