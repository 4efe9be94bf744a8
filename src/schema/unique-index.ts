// Used by drafts.ts: a primary key or unique constraint taken apart into its index and what makes a constraint of it. ADD
// CONSTRAINT shuts everybody out of the table while it builds, CREATE INDEX does not: the table's other indexes can be
// built beside it. Not of constraints that are DEFERRABLE, which their index alone is not: the stream may go on between the
// two. Pure.

/** Both end as the constraint alone would have. */
export interface ApartConstraint {
  readonly index: string;
  readonly constraint: string;
}

const name = String.raw`(?:"(?:[^"]|"")+"|[a-z_][a-z0-9_]*)`;
const columnList = String.raw`\(${name}(?:, ${name})*\)`;
// dumpConstraint in pg_dump.c. Not the temporal ones (WITHOUT OVERLAPS), which are exclusion constraints.
const printed = new RegExp(
  String.raw`^ALTER TABLE ONLY (?<table>${name}\.${name})\s+ADD CONSTRAINT (?<constraint>${name}) ` +
    String.raw`(?<kind>PRIMARY KEY|UNIQUE)(?<nulls> NULLS NOT DISTINCT)? (?<columns>${columnList})(?<include> INCLUDE ${columnList})?` +
    String.raw`(?<options> WITH \((?:[^()']|'[^']*')*\))?$`,
);

/** Of a statement as pg_dump prints it, without semicolon; null: no such constraint. */
export function takeApart(sql: string): ApartConstraint | null {
  const parts = printed.exec(sql)?.groups;
  if (!parts) return null;
  const { table = '', constraint = '', kind = '', columns = '', include = '' } = parts;
  const { nulls = '', options = '' } = parts;
  return {
    index: `CREATE UNIQUE INDEX ${constraint} ON ${table} USING btree ${columns}${include}${nulls}${options}`,
    constraint: `ALTER TABLE ONLY ${table} ADD CONSTRAINT ${constraint} ${kind} USING INDEX ${constraint}`,
  };
}
