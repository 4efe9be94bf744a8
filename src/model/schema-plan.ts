// The schema work of a task as data: made once from the dump (src/schema), kept as a checkpoint, executed in phases by
// creatingTables (pre-data), migratingData (keys, indexes) and finalizing (the rest). JSON only.
import type { Finding } from './finding.ts';
import type { Lsn } from './lsn.ts';
import type { TableMapping } from './relation.ts';

/**
 * When a statement runs:
 * - `pre-data`: before the copy: schemas, types, sequences, tables, defaults
 * - `key`: primary key or identity index, as soon as its table is copied
 * - `index`: other indexes, unique and exclusion constraints, statistics; beside the index of the table's key where that
 *   is a statement of its own, else after the key
 * - `foreign-key`: finalizing, added NOT VALID; `sql` is complete, NOT VALID included
 * - `final`: finalizing, before the target opens: triggers, rules, policies, comments, grants …; and what a whole
 *   database has besides its tables and what those need: views, functions, operators, casts …
 * - `refresh`: after the target has opened: materialized views
 * - `validate`: after the point of no return: VALIDATE CONSTRAINT
 */
export type StatementPhase = 'pre-data' | 'key' | 'index' | 'foreign-key' | 'final' | 'refresh' | 'validate';

export interface PlannedStatement {
  /** Position in the plan, from 0; the key of the statement journal. */
  readonly n: number;
  readonly phase: StatementPhase;
  /**
   * Original text of the dump, names spliced; no trailing semicolon. One statement, or, with `unlessExists`, one object
   * with what belongs to it (its comment).
   */
  readonly sql: string;
  /** For people: `TABLE public.users_migrated`. */
  readonly object: string;
  /**
   * `relationKey` of the source table that it belongs to; null when none (types, schemas …). Key and index statements of
   * a partitioned parent (its own on ONLY, then ATTACH of the children's) have a higher `n` than those of all its
   * partitions, and must run after them; in order of `n` everything is right.
   */
  readonly table: string | null;
  /** Target relation that it creates (CREATE TABLE only): what `drop_target` may remove. */
  readonly creates: { readonly schema: string; readonly name: string } | null;
  /** Relation names that it takes on the target, the created table's included; absent: none. */
  readonly takes?: readonly { readonly schema: string; readonly name: string }[];
  /** Foreign keys: `relationKey` of the source table that they reference, when it is another one. */
  readonly references?: string;
  /** ATTACH PARTITION of a table: `relationKey` of the source's partition. */
  readonly attaches?: string;
  /** An object that tables share (type, function, schema, extension): left alone where the target has it. */
  readonly unlessExists?: ObjectAddress;
  /** `object` of an earlier statement: where that was left alone, this is, too (the query of a view, its refresh). */
  readonly completes?: string;
}

/** What `pg_identify_object_as_address` gives and `pg_get_object_address` takes. */
export interface ObjectAddress {
  readonly type: string;
  readonly names: readonly string[];
  readonly args: readonly string[];
  /**
   * Of types: one without its definition (a shell) counts as there. A base type is made in three steps: its shell, the
   * functions that read and print it, then the type itself.
   */
  readonly shellCounts?: true;
}

export interface PlannedColumn {
  readonly name: string;
  /** `format_type` text, e.g. `numeric(12,2)`. */
  readonly type: string;
  /** Generated columns are neither copied nor streamed. */
  readonly generated: boolean;
  /** GENERATED ALWAYS AS IDENTITY: inserts need OVERRIDING SYSTEM VALUE, updates of it are refused. */
  readonly identityAlways: boolean;
  readonly notNull: boolean;
  /** The source got it during the migration: messages from before do not have it. Absent: planned. */
  readonly added?: true;
  /**
   * The source widened its type during the migration: what committed before this position may come under the narrower ones.
   * Absent: it did not.
   */
  readonly widenedUntil?: Lsn;
}

/** A relation that holds rows: an ordinary table or a leaf partition (partitioned parents hold none). */
export interface PlannedTable extends TableMapping {
  readonly columns: readonly PlannedColumn[];
  /** Columns of the replica identity (primary key or identity index), in index order; empty for identity full. */
  readonly keyColumns: readonly string[];
  readonly replicaIdentity: 'default' | 'index' | 'full';
  /** `options.table`: only these rows are copied, streamed and compared. A checked SQL expression; absent: all. */
  readonly where?: string;
  /** `options.table`: columns of the source that are not migrated; not among `columns`. Absent: none. */
  readonly leftOut?: readonly string[];
  /** Columns that the source got during the migration and that are not carried (`on_ddl: ignore`). Absent: none. */
  readonly ignored?: readonly string[];
  /** From the source's statistics. */
  readonly rowsEstimated: number;
  readonly bytesEstimated: number;
}

/** Whether a column of the source is not migrated. What the source gets later is on no column list. */
export function isLeftOut(
  { columns, leftOut, ignored }: Pick<PlannedTable, 'columns' | 'leftOut' | 'ignored'>,
  name: string,
): boolean {
  if (leftOut !== undefined) return columns.every((column) => column.name !== name);
  return ignored?.includes(name) === true;
}

export interface PlannedSequence {
  readonly source: { readonly schema: string; readonly name: string };
  readonly target: { readonly schema: string; readonly name: string };
}

export interface SchemaPlan {
  readonly tables: readonly PlannedTable[];
  /**
   * Unlogged tables and leaves. Their changes are not in the WAL: neither published nor streamed, but fenced, copied
   * under the fence and compared. Absent: none.
   */
  readonly unlogged?: readonly PlannedTable[];
  /** All large objects of the source are copied under the fence and compared. Absent: none. */
  readonly largeObjects?: boolean;
  /** Partitioned parents: no rows of their own, but TRUNCATE and the fence name them. */
  readonly roots: readonly TableMapping[];
  readonly sequences: readonly PlannedSequence[];
  readonly statements: readonly PlannedStatement[];
  /**
   * `relationKey` of source tables that have, on the target before the copy, unique or exclusion constraints beside their
   * key (`schema: existing`): one snapshot must read all of their rows. Absent: none.
   */
  readonly uniqueBefore?: readonly string[];
  readonly findings: readonly Finding[];
  /** The last tables that were added to the running task. Absent: none. */
  readonly addition?: {
    /** Number of the request, from 1. */
    readonly pass: number;
    /** `relationKey` of its source tables, partitioned ones and their partitions included. */
    readonly relations: readonly string[];
  };
}

/** A statement of pg_dump that one side prints and the other does not, or not so. */
export interface SchemaDifference {
  /** `TABLE public.users_migrated`. */
  readonly object: string;
  /** Text of the source under the names of the target; null: only the target has it. */
  readonly source: string | null;
  /** Null: only the source has it. */
  readonly target: string | null;
}

/** Both schemas, dumped by the same pg_dump, statement by statement, as far as they are migrated. */
export interface SchemaVerdict {
  /** No difference but spelling; false also when the comparison failed. */
  readonly equal: boolean;
  /** ISO 8601. */
  readonly comparedAt: string;
  /** Statements of the source that were looked for. */
  readonly statements: number;
  /** The first ones; `differencesTotal` counts all. */
  readonly differences: readonly SchemaDifference[];
  readonly differencesTotal: number;
  /** The same in other words: servers of different majors print some things differently. */
  readonly spelling: readonly SchemaDifference[];
  /** Objects of the target that have nothing to do with the migration. */
  readonly targetOnly: readonly string[];
  /** Why it could not be compared; null when it was. */
  readonly error: string | null;
}

/** `GET /api/v1/migrations/{id}/schema`. */
export interface SchemaView {
  /** False until creatingTables has planned: everything else is empty then. */
  readonly planned: boolean;
  readonly tables: readonly TableMapping[];
  readonly roots: readonly TableMapping[];
  readonly sequences: readonly PlannedSequence[];
  readonly findings: readonly Finding[];
  /** In the order of the plan. */
  readonly statements: readonly {
    readonly n: number;
    readonly phase: StatementPhase;
    readonly object: string;
    readonly table: string | null;
    readonly state: 'pending' | 'done';
    readonly sql: string;
  }[];
  /** Null until the target is complete. */
  readonly comparison: SchemaVerdict | null;
}
