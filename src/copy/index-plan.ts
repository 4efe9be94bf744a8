// Which key and index statements run when, as data (src/copy/indexes.ts runs them). The order of the dump is kept
// wherever one statement may need another.
import type { PlannedStatement } from '../model/schema-plan.ts';

/** Statements that may run at the same time. */
export type StatementGroup = readonly PlannedStatement[];

export interface IndexPlan {
  /** By `relationKey` of the source table: groups in order, keys in front. Run when that table is complete. */
  readonly byTable: ReadonlyMap<string, readonly StatementGroup[]>;
  /** In plan order, one by one, when all of the above is done: indexes of partitioned roots and what attaches to them. */
  readonly last: readonly PlannedStatement[];
}

// As drafts.ts puts it in front.
const placed = String.raw`^\s*(?:set local default_tablespace = .*;\n)?`;
// CREATE INDEX takes SHARE, which does not conflict with itself: several may run on one table. Constraints, ALTER INDEX,
// CLUSTER ON, REPLICA IDENTITY … take more, and name indexes made before them.
const createsIndex = new RegExp(String.raw`${placed}create\s+(?:unique\s+)?index\s`, 'i');
const attaches = /\battach\s+partition\b/i;

// A secondary unique or exclusion constraint: two snapshots may hold one value in two rows, which no state of the source
// ever did. The primary key is none of these: its value decides which part, hence which snapshot, a row is of.
const isUnique = new RegExp(
  String.raw`${placed}create\s+unique\s+index\s|\badd\s+constraint\b[\s\S]*?\b(?:unique|exclude)\b`,
  'i',
);

/** Whether the table has unique or exclusion constraints beside its primary key. */
export function hasUnique(statements: readonly PlannedStatement[], table: string): boolean {
  return statements.some(
    (statement) => statement.table === table && statement.phase === 'index' && isUnique.test(statement.sql),
  );
}

/**
 * Splits a table's groups for one whose parts were read under several snapshots: what must wait until the stream has
 * passed the last horizon, and, behind it, what may name it.
 */
export function splitUnique(groups: readonly StatementGroup[]): {
  readonly now: readonly StatementGroup[];
  readonly later: readonly PlannedStatement[];
} {
  const now: StatementGroup[] = [];
  const later: PlannedStatement[] = [];
  for (const group of groups) {
    const waits = (statement: PlannedStatement): boolean =>
      statement.phase === 'index' &&
      (isUnique.test(statement.sql) || (later.length > 0 && !createsIndex.test(statement.sql)));
    const first = group.filter((statement) => !waits(statement));
    later.push(...group.filter(waits));
    if (first.length > 0) now.push(first);
  }
  return { now, later };
}

/** Pure. `leaves`: keys of the tables that hold rows; `done`: numbers in the statement journal. */
export function planIndexes(
  statements: readonly PlannedStatement[],
  leaves: ReadonlySet<string>,
  done: ReadonlySet<number>,
): IndexPlan {
  const work = statements
    .filter(({ phase, n }) => (phase === 'key' || phase === 'index') && !done.has(n))
    .sort((a, b) => a.n - b.n);
  const last: PlannedStatement[] = [];
  const byTable = new Map<string, PlannedStatement[][]>();
  for (const phase of ['key', 'index'] as const) {
    for (const statement of work) {
      if (statement.phase !== phase) continue;
      const { table, sql } = statement;
      if (table === null || !leaves.has(table) || attaches.test(sql)) {
        last.push(statement);
        continue;
      }
      const groups = byTable.get(table) ?? [];
      byTable.set(table, groups);
      // a group is of these alone, or of one other statement
      const beside = createsIndex.test(sql) && groups.find(([first]) => createsIndex.test(first?.sql ?? ''));
      if (beside) beside.push(statement);
      else groups.push([statement]);
    }
  }
  return { byTable, last: last.sort((a, b) => a.n - b.n) };
}
