// What the online validation knows of each table: kept as one checkpoint a table by src/validate, shown by the API, and
// what the comparison under the fence relies on. JSON only.
import type { Role } from './endpoint.ts';
import type { ErrorReport } from './errors.ts';
import type { Lsn } from './lsn.ts';

/** Checkpoint keys. */
export const validationNotes = {
  /** `ValidationRun`. */
  run: 'validation',
  /** `TableValidation` of one table, by its `relationKey`. */
  table: (relation: string): string => `validation/${relation}`,
  /** `Repair[]`, the last ones. */
  repairs: 'validationRepairs',
} as const;

/** One run: while it stands, every change since is written down on the target. */
export interface ValidationRun {
  /** Of the slot whose stream writes the changes down; another one has another history. */
  readonly slotIncarnation: string;
  /** How often a person has asked for a new run. */
  readonly pass: number;
  /** ISO 8601. */
  readonly startedAt: string;
  /** Keys that differed when they were last looked at, and may only have been late. */
  readonly keysInDoubt: number;
  /** About how many changed keys the last look has left for the next; absent in notes of older versions. */
  readonly keysWaiting?: number;
  /** When everything was last settled: every table compared, no key pending. ISO 8601. */
  readonly settledAt: string | null;
  /** Of the last look that had all keys before it and all tables read; absent before, and in notes of older versions. */
  readonly verified?: VerifiedUpTo;
  /** Why it stands still; it goes on by itself. */
  readonly error: ErrorReport | null;
}

/** Of all tables in one note: a look moves thousands that nobody writes to. */
export interface VerifiedUpTo {
  /** Every change of the source up to here was compared in tables that are `verified`. */
  readonly lsn: Lsn;
  /** Tables of which that is not known, because rows differed, perhaps only late: their own notes tell how far they were equal. */
  readonly except: readonly string[];
}

/**
 * - `pending`: not begun, or to be read again (TRUNCATE, DDL)
 * - `scanning`: read up to the cursor
 * - `verified`: read to the end; since then only the keys that changed have to be compared
 * - `atCutover`: without a key, and changed since it was last compared (`verifiedLsn`), if ever; compared as a whole, under the
 *   fence if need be
 * - `differs`: so many keys differ that they are not counted further; or the table has none
 */
export type ValidationState = 'pending' | 'scanning' | 'verified' | 'atCutover' | 'differs';

export interface TableValidation {
  readonly state: ValidationState;
  /** The source's columns before the first range was read (table-forms.ts); absent: nothing was read. */
  readonly form?: string;
  /** Key of the last row compared, as texts; null at the beginning. */
  readonly cursor: readonly string[] | null;
  /** Of the source. */
  readonly rows: number;
  readonly ranges: number;
  /** Position of the source behind the last range's read; `verifiedUpTo` tells what looks at keys have added. */
  readonly verifiedLsn: Lsn | null;
  readonly differences: readonly RowDifference[];
}

/** `missing` and `extra` are said of the target. */
export type DifferenceKind = 'missing' | 'extra' | 'changed';

export interface RowDifference {
  /** Key as texts, in the order of the table's key. */
  readonly key: readonly string[];
  readonly kind: DifferenceKind;
  /** Columns whose values differ; only of `changed`, and only of the first ones of a table. */
  readonly columns?: readonly string[];
}

/** Keys between two, in the order of the key's index. */
export interface KeyRange {
  /** Exclusive; null: from the first. */
  readonly after: readonly string[] | null;
  /** Inclusive; null: to the last. */
  readonly upTo: readonly string[] | null;
}

/** Rows of the target to be made what the source has. Without keys and ranges: those that are known to differ. */
export interface RepairRequest {
  readonly table: string;
  /** Keys as texts, in the order of the table's key. */
  readonly keys?: readonly (readonly string[])[] | undefined;
  readonly ranges?: readonly KeyRange[] | undefined;
}

/** How far a repair of ranges has come. */
export interface RepairPosition {
  /** Position in `ranges`. */
  readonly range: number;
  /** Whose keys are walked. */
  readonly role: Role;
  /** The last one that was put right. */
  readonly after: readonly string[] | null;
}

export interface Repair {
  readonly id: number;
  readonly table: string;
  readonly keys: readonly (readonly string[])[] | null;
  readonly ranges: readonly KeyRange[] | null;
  readonly state: 'pending' | 'done' | 'failed';
  readonly rowsWritten: number;
  readonly rowsRemoved: number;
  /** Keys that changed at every attempt; the validation says whether they differ. */
  readonly keysUnsettled: number;
  /** Absent before its first batch, and of keys. */
  readonly position?: RepairPosition;
  readonly error: ErrorReport | null;
  readonly requestedAt: string;
  readonly endedAt: string | null;
}

/** What the API shows of a repair: how many keys were named, not which. */
export interface RepairView extends Omit<Repair, 'keys' | 'ranges' | 'position'> {
  readonly keysNamed: number | null;
  readonly rangesNamed: number | null;
}

/** The API's answer. */
export interface ValidationView {
  readonly startedAt: string | null;
  readonly settledAt: string | null;
  readonly keysInDoubt: number;
  readonly keysWaiting: number;
  /** Every table is compared or left for the cutover, and nothing differs. */
  readonly clean: boolean;
  readonly error: ErrorReport | null;
  readonly tables: readonly TableValidationView[];
  /** The last ones, newest first. */
  readonly repairs: readonly RepairView[];
}

export interface TableValidationView {
  readonly table: string;
  readonly target: string;
  readonly state: ValidationState;
  readonly rows: number;
  readonly rowsEstimated: number;
  readonly ranges: number;
  /** While it is read, the position behind the last range; then up to where every change was compared and nothing differed. */
  readonly verifiedLsn: Lsn | null;
  readonly differences: {
    readonly missing: number;
    readonly extra: number;
    readonly changed: number;
    /** At most 20; `key` by column name. */
    readonly samples: readonly {
      readonly key: Readonly<Record<string, string>>;
      readonly kind: DifferenceKind;
      readonly columns: readonly string[] | null;
    }[];
  };
}
