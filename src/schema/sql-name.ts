// Used by statement.ts and rename.ts: names in SQL text as PostgreSQL prints them (quote_identifier in ruleutils.c):
// quoted, or plain lower case. Pure.
import type { RelationName } from '../model/relation.ts';

/** A name token: `[from, to)` of the text; `name` without quotes. */
export interface NameSpan {
  readonly from: number;
  readonly to: number;
  readonly name: string;
}

const quoted = /"((?:[^"]|"")*)"/y;
const plain = /[\p{L}_][\p{L}\p{N}_$]*/uy;

/** The name that begins at `at`. Throws when none does. */
export function readName(text: string, at: number): NameSpan {
  quoted.lastIndex = at;
  const inQuotes = quoted.exec(text);
  if (inQuotes) return { from: at, to: quoted.lastIndex, name: (inQuotes[1] ?? '').replaceAll('""', '"') };
  plain.lastIndex = at;
  const word = plain.exec(text);
  if (!word) throw new Error(`no name at ${at} of: ${text.slice(0, 200)}`);
  return { from: at, to: plain.lastIndex, name: word[0].toLowerCase() };
}

/** `schema.name` at `at`; the span is that of the last part. Null when the name has no schema. */
export function readQualifiedName(text: string, at: number): (NameSpan & RelationName) | null {
  const schema = readName(text, at);
  if (text[schema.to] !== '.') return null;
  return { ...readName(text, schema.to + 1), schema: schema.name };
}

/** The relation that a text like `shop."Ünit"` names; null when it is no qualified name. */
export function unquoteName(text: string): RelationName | null {
  if (!/^["\p{L}_]/u.test(text)) return null;
  const found = readQualifiedName(text, 0);
  return found !== null && found.to === text.length ? { schema: found.schema, name: found.name } : null;
}
