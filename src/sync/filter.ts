// What a copy has already seen of the stream (DESIGN: "every copied part remembers the snapshot it was read under").
// Pure; the replay asks it for every change that commits before the last horizon, and for none behind it.
//
// A change by top-level transaction X to a row of part P is skipped iff X's commit LSN lies before P's horizon AND X is
// visible in P's pg_snapshot. Both are needed: xids alone repeat after 2^32 transactions, and a commit record may lie
// before the horizon while its transaction was still in the proc array, hence invisible, when the snapshot was taken.
import { MigrationError } from '../model/errors.ts';
import { lsnToBigint, type Lsn } from '../model/lsn.ts';
import { isVisible, widenXid, type PgSnapshot } from '../model/pg-snapshot.ts';
import type { Tuple } from '../postgres/pgoutput.ts';

/** A part that stands on the target: its row of dts.part. */
export interface CopiedPart {
  /** `relationKey` of the source table. */
  readonly relation: string;
  readonly part: number;
  /** Null: the whole table. */
  readonly range: string | null;
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
export function sawTransaction(part: CopiedPart, transaction: SourceTransaction): boolean {
  if (lsnToBigint(transaction.commitLsn) >= lsnToBigint(part.horizonLsn)) return false;
  return isVisible(part.pgSnapshot, widenXid(transaction.xid, part.pgSnapshot.xmax));
}

export class CopyFilter {
  readonly #parts = new Map<string, CopiedPart[]>();
  readonly #lastHorizon: bigint;

  constructor(parts: readonly CopiedPart[]) {
    let last = 0n;
    for (const part of parts) {
      const known = this.#parts.get(part.relation);
      if (known) known.push(part);
      else this.#parts.set(part.relation, [part]);
      const horizon = lsnToBigint(part.horizonLsn);
      if (horizon > last) last = horizon;
    }
    this.#lastHorizon = last;
  }

  /** False once a transaction commits at or behind every horizon: then nothing has to be asked. */
  concerns(transaction: SourceTransaction): boolean {
    return lsnToBigint(transaction.commitLsn) < this.#lastHorizon;
  }

  /** Whether a row of the table (its key for a delete) was copied with the transaction's effects. */
  sawRow(relation: string, row: Tuple, transaction: SourceTransaction): boolean {
    return sawTransaction(this.#partOf(relation, row), transaction);
  }

  /**
   * `delete-old` and `insert-new` need two parts of one table. An insert that lacks values of the row (unchanged TOAST)
   * can therefore not occur while every table is one part: its update passes or is skipped as a whole.
   */
  update(
    relation: string,
    oldRow: Tuple | null,
    newRow: Tuple,
    transaction: SourceTransaction,
  ): UpdateVerdict {
    const sawNew = this.sawRow(relation, newRow, transaction);
    return decideUpdate(oldRow === null ? sawNew : this.sawRow(relation, oldRow, transaction), sawNew);
  }

  /** The table's parts that still hold rows from before the truncate; all of them: truncate the table itself. */
  partsToTruncate(
    relation: string,
    transaction: SourceTransaction,
  ): { readonly parts: readonly CopiedPart[]; readonly all: boolean } {
    const parts = this.#partsOf(relation);
    const unseen = parts.filter((part) => !sawTransaction(part, transaction));
    return { parts: unseen, all: unseen.length === parts.length };
  }

  #partsOf(relation: string): readonly CopiedPart[] {
    const parts = this.#parts.get(relation);
    if (!parts)
      throw new MigrationError('internal', `${relation}: the stream began before the table was copied`);
    return parts;
  }

  #partOf(relation: string, _row: Tuple): CopiedPart {
    const [part, ...others] = this.#partsOf(relation);
    if (!part || others.length > 0 || part.range !== null)
      throw new MigrationError('internal', `${relation}: the stream cannot tell the table's parts apart`);
    return part;
  }
}
