// The only place that turns names and values into SQL text. Everything else is a parameter.
import type { RelationName } from '../model/relation.ts';

/** A quoted identifier; always quoted, so that keywords and case need no table. */
export function ident(name: string): string {
  if (name.includes('\0')) throw new RangeError('an identifier cannot contain NUL');
  return `"${name.replaceAll('"', '""')}"`;
}

/** A schema-qualified, quoted relation. */
export function identRelation(relation: RelationName): string {
  return `${ident(relation.schema)}.${ident(relation.name)}`;
}

/** A string literal for statements that take no parameters (COPY, CREATE …, replication commands). */
export function literal(value: string): string {
  if (value.includes('\0')) throw new RangeError('a literal cannot contain NUL');
  const quoted = `'${value.replaceAll("'", "''")}'`;
  return value.includes('\\') ? ` E${quoted.replaceAll('\\', '\\\\')}` : quoted;
}

/**
 * The text that the value's output function gives; null for null. Not a cast to text: that takes the blanks of char(n)
 * away, and whoever owns a type may define its cast as anything. Not IS NULL: a row of nulls is no null.
 */
export function outputText(value: string): string {
  return `case when ${value} is distinct from null then concat(${value}) end`;
}

/** Our objects' name for a task: `dts_<taskId>`; slots allow only `[a-z0-9_]`, which task ids are made of. */
export function taskObjectName(taskId: string): string {
  return `dts_${taskId}`;
}

/** The schema that holds every object of ours, on the source and on the target. */
export const DTS_SCHEMA = 'dts';
