// Names of tables as users write them and as PostgreSQL keeps them.
import { createHash } from 'node:crypto';
import { MigrationError } from './errors.ts';

/** A schema-qualified relation name, exactly as the catalog holds it (no quotes, case kept). */
export interface RelationName {
  readonly schema: string;
  readonly name: string;
}

/** A selected table: where it is read and where it is written. */
export interface TableMapping {
  readonly source: RelationName;
  readonly target: RelationName;
}

/** Stable key for maps, journals and the API: `schema.name`, parts quoted as SQL does only where a dot or quote needs it. */
export function relationKey(relation: RelationName): string {
  const part = (text: string): string => (/["."]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return `${part(relation.schema)}.${part(relation.name)}`;
}

/** The name as a request may write it, so that it means this relation and is no pattern. */
export function exactName(relation: RelationName): string {
  const part = (text: string): string => (/["*?.]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return `${part(relation.schema)}.${part(relation.name)}`;
}

/**
 * Parses `table` or `schema.table`. Taken literally: case kept, split at the first dot; either part may be
 * double-quoted as in SQL (`"Sp ace"."T""q.t"`). Without a schema: `public`.
 * Throws `invalid_table_name` for an empty part, an unbalanced quote or text after a closing quote.
 */
export function parseRelationName(text: string): RelationName {
  const invalid = (reason: string): MigrationError =>
    new MigrationError('invalid_table_name', `table name ${JSON.stringify(text)}: ${reason}`, {
      hint: 'write table or schema.table; double-quote a part that contains a dot or a quote',
    });
  const readPart = (from: number): { value: string; end: number } => {
    if (text[from] !== '"') {
      const dot = text.indexOf('.', from);
      const end = from === 0 && dot !== -1 ? dot : text.length;
      return { value: text.slice(from, end), end };
    }
    let value = '';
    for (let at = from + 1; at < text.length; at++) {
      if (text[at] !== '"') value += text[at];
      else if (text[at + 1] === '"') value += text[at++];
      else return { value, end: at + 1 };
    }
    throw invalid('a double quote is not closed');
  };
  const first = readPart(0);
  if (first.end === text.length) {
    if (first.value === '') throw invalid('it is empty');
    return { schema: 'public', name: first.value };
  }
  if (text[first.end] !== '.') throw invalid('text follows a closing double quote');
  const second = readPart(first.end + 1);
  if (second.end !== text.length) throw invalid('text follows a closing double quote');
  if (first.value === '' || second.value === '') throw invalid('a part is empty');
  return { schema: first.value, name: second.value };
}

/** Whether a requested name has a wildcard, `*` or `?`, outside of double quotes. */
export function isGlob(text: string): boolean {
  return /[*?]/.test(text.replaceAll(/"(?:[^"]|"")*"/g, ''));
}

/**
 * What `schema.name` matches, read as `parseRelationName` reads it; `*` stands for any characters of a part and `?` for
 * one, unless the part is quoted. Throws `invalid_table_name` as that does.
 */
export function matcherOf(pattern: string): (relation: RelationName) => boolean {
  const parsed = parseRelationName(pattern);
  const isQuoted = pattern.startsWith('"');
  const rest = isQuoted ? pattern.replace(/^"(?:[^"]|"")*"/, '') : pattern;
  const dot = rest.indexOf('.');
  const nameIsQuoted = dot === -1 ? isQuoted : rest.startsWith('"', dot + 1);
  const schemaMatches = partMatcher(parsed.schema, isQuoted || dot === -1);
  const nameMatches = partMatcher(parsed.name, nameIsQuoted);
  return ({ schema, name }) => schemaMatches(schema) && nameMatches(name);
}

function partMatcher(part: string, isLiteral: boolean): (text: string) => boolean {
  if (isLiteral || !/[*?]/.test(part)) return (text) => text === part;
  const source = part
    .replaceAll(/[\\^$.|+()[\]{}]/g, '\\$&')
    .replaceAll('*', '.*')
    .replaceAll('?', '.');
  const whole = new RegExp(`^${source}$`, 'su');
  return (text) => whole.test(text);
}

/** PostgreSQL's limit for identifiers (NAMEDATALEN − 1). */
export const MAX_IDENTIFIER_BYTES = 63;

/**
 * `name` under the task's suffix, at most 63 bytes. A name that would be longer keeps its beginning and gets a hash of
 * the whole, so that two long names never fall together and a rerun finds the same name.
 */
export function suffixedName(name: string, suffix: string): string {
  if (suffix === '') return name;
  if (Buffer.byteLength(name + suffix) <= MAX_IDENTIFIER_BYTES) return name + suffix;
  const tail = `_${createHash('sha256').update(name).digest('hex').slice(0, 8)}${suffix}`;
  const room = MAX_IDENTIFIER_BYTES - Buffer.byteLength(tail);
  let head = '';
  for (const character of name) {
    if (Buffer.byteLength(head + character) > room) break;
    head += character;
  }
  return head + tail;
}
