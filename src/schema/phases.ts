// Used by plan.ts: when a statement about a selected table runs. Pure. By pg_dump's word for the entry:
//
//   TABLE, SEQUENCE, SEQUENCE OWNED BY, DEFAULT, TABLE ATTACH   pre-data (FORCE ROW LEVEL SECURITY: final, or the copy
//                                                               would be subject to it)
//   CHECK CONSTRAINT                                            pre-data; final when NOT VALID, since rows of before it
//                                                               must still be copied
//   CONSTRAINT, INDEX                                           key when it is the primary key or the replica identity
//   INDEX ATTACH                                                key when both indexes are
//   STATISTICS                                                  index
//   FK CONSTRAINT                                               foreign-key, and validate; final where NOT VALID is refused
//   TRIGGER, RULE, POLICY, ROW SECURITY, COMMENT, ACL, SECURITY LABEL   final
//
// What is no part of a table: pre-data when a table needs it, and what others are put into or sequences, whose positions
// are set before the target opens; else final, so that a cancelled task can drop its tables without meeting a view of its
// own that depends on them.
import { relationKey, type RelationName } from '../model/relation.ts';
import type { StatementPhase } from '../model/schema-plan.ts';
import type { DumpEntry } from './split.ts';
import type { DumpStatement } from './statement.ts';

export const phaseOrder: readonly StatementPhase[] = [
  'pre-data',
  'key',
  'index',
  'foreign-key',
  'final',
  'refresh',
  'validate',
];

/** Indexes that identify rows: of primary keys and replica identities, by `relationKey`. */
export function keyIndexesOf(entries: readonly DumpEntry[]): ReadonlySet<string> {
  return new Set(
    entries
      .filter(({ statements }) =>
        statements.some(({ deed }) => deed === 'add primary key' || deed === 'identify by index'),
      )
      .flatMap(({ statements }) => statements.flatMap(({ takes }) => takes.map(relationKey))),
  );
}

/** Null: not migrated in this version. `mayBeNotValid`: the target accepts a foreign key of this table NOT VALID. */
export function phaseOf(
  entry: DumpEntry,
  statement: DumpStatement,
  keyIndexes: ReadonlySet<string>,
  mayBeNotValid: boolean,
): StatementPhase | null {
  const isKey = (index: RelationName | null): boolean => index !== null && keyIndexes.has(relationKey(index));
  // only its owner may copy into it and add to it
  if (statement.deed === 'set owner') return 'final';
  switch (entry.kind) {
    case 'TABLE':
      return statement.deed === 'force row security' ? 'final' : 'pre-data';
    case 'SEQUENCE':
    case 'SEQUENCE OWNED BY':
    case 'DEFAULT':
    case 'TABLE ATTACH':
      return 'pre-data';
    case 'CHECK CONSTRAINT':
      return statement.notValid ? 'final' : 'pre-data';
    case 'CONSTRAINT':
    case 'INDEX':
      return entry.statements.some(({ takes }) => takes.some(isKey)) ? 'key' : 'index';
    case 'INDEX ATTACH':
      return isKey(statement.subject) && isKey(statement.attached) ? 'key' : 'index';
    case 'STATISTICS':
      return 'index';
    case 'FK CONSTRAINT':
      return mayBeNotValid || statement.notValid ? 'foreign-key' : 'final';
    case 'TRIGGER':
    case 'RULE':
    case 'POLICY':
    case 'ROW SECURITY':
    case 'COMMENT':
    case 'ACL':
    case 'SECURITY LABEL':
      return 'final';
    default:
      return null;
  }
}

const earlyKinds: ReadonlySet<string> = new Set(['SCHEMA', 'EXTENSION', 'SEQUENCE']);

/** Of an entry that is no part of a selected table. `isCore`: a selected table needs it. */
export function phaseOfShared({ kind }: DumpEntry, isCore: boolean): StatementPhase {
  return isCore || earlyKinds.has(kind) ? 'pre-data' : 'final';
}

/** Order within key and index: partitions, then their parents on ONLY, then ATTACH, which may validate a parent's. */
export function rankOf(statement: DumpStatement, isPartitioned: boolean): number {
  if (statement.deed === 'attach index') return 2;
  return isPartitioned ? 1 : 0;
}
