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

/** Our objects' name for a task: `dts_<taskId>`; slots allow only `[a-z0-9_]`, which task ids are made of. */
export function taskObjectName(taskId: string): string {
  return `dts_${taskId}`;
}

/** The schema that holds every object of ours, on the source and on the target. */
export const DTS_SCHEMA = 'dts';
