// The answer of a cutover's dry run. JSON only.
import type { ErrorReport } from './errors.ts';

export interface ForecastStep {
  /**
   * `copy`: unlogged tables and large objects, where there are any. `reverse`: with options.reverse, the slot of the way back.
   * `before_open`: the hook, where there is one; how long it takes is its own business, so its `ms` are 0.
   */
  readonly step:
    | 'fence'
    | 'drain'
    | 'copy'
    | 'compare'
    | 'sequences'
    | 'statements'
    | 'reverse'
    | 'before_open';
  readonly ms: number;
  readonly detail: string;
}

/** What the comparison under the fence would have to read. Sizes are those of the source's disk. */
export interface ComparisonForecast {
  readonly keys: number;
  readonly wholeTables: number;
  readonly wholeRows: number;
  /** Copied under the fence, then compared as a whole; not among the tables above. */
  readonly unlogged: { readonly tables: number; readonly rows: number; readonly bytes: number };
  /** Copied under the fence, then compared. */
  readonly largeObjects: { readonly objects: number; readonly bytes: number };
  /** Tables in which the online validation knows of differences. */
  readonly differing: readonly string[];
}

/** A transaction that the fence would wait for. */
export interface Blocker {
  /** Null for a prepared transaction. */
  readonly pid: number | null;
  readonly gid: string | null;
  readonly user: string | null;
  readonly state: string | null;
  readonly ageSeconds: number;
  readonly query: string | null;
  readonly relation: string;
}

export interface TargetBlocker {
  /** Null for a prepared transaction. */
  readonly pid: number | null;
  readonly gid: string | null;
  readonly user: string | null;
  readonly database: string | null;
  readonly ageSeconds: number;
  readonly query: string;
}

export interface CutoverForecast {
  readonly steps: readonly ForecastStep[];
  /** The steps together, without what the blockers and the hook take. */
  readonly writeStopMs: number;
  readonly blockers: readonly Blocker[];
  /**
   * With `reverse`: write transactions on the target, of any database, that have run for two seconds: the slot of the way
   * back is made under the write stop, and waits until they have ended.
   */
  readonly targetBlockers: readonly TargetBlocker[];
  /** What the cutover would wait for before it stops anybody, as `cutover_waits_for` of the task. */
  readonly waitsFor: readonly string[];
  /** What would make the cutover fail; empty when nothing is known. */
  readonly problems: readonly ErrorReport[];
}
