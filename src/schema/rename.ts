// Used by plan.ts: puts the task's suffix into statements by splicing new names into the original text. What is renamed
// are the selected tables and everything that shares a schema's name space with them: indexes, sequences, statistics,
// and the constraints of the tables. Pure.
import { relationKey, suffixedName, type RelationName } from '../model/relation.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import type { PlacedName } from './statement-names.ts';
import type { DumpStatement } from './statement.ts';

export class Renaming {
  readonly #suffix: string;
  readonly #roles: ReadonlyMap<string, string>;
  readonly #relations: ReadonlySet<string>;
  readonly #statistics: ReadonlySet<string>;

  /** `relations` and `statistics` are what gets the suffix; with an empty one nothing changes. */
  constructor(
    suffix: string,
    relations: readonly RelationName[],
    statistics: readonly RelationName[],
    roles: ReadonlyMap<string, string> = new Map(),
  ) {
    this.#roles = roles;
    this.#suffix = suffix;
    this.#relations = new Set(relations.map(relationKey));
    this.#statistics = new Set(statistics.map(relationKey));
  }

  role(name: string): string {
    return this.#roles.get(name) ?? name;
  }

  relation(relation: RelationName): RelationName {
    if (!this.#relations.has(relationKey(relation))) return relation;
    return { schema: relation.schema, name: suffixedName(relation.name, this.#suffix) };
  }

  /** A constraint's name on `table`. */
  constraint(name: string, table: RelationName): string {
    return this.#relations.has(relationKey(table)) ? suffixedName(name, this.#suffix) : name;
  }

  /** The statement's text with new names. */
  text(statement: DumpStatement): string {
    if (this.#suffix === '' && this.#roles.size === 0) return statement.text;
    return splice(
      statement.text,
      statement.names.flatMap((placed): [number, number, string][] => {
        const replacement = this.#replacement(placed, ' AS ');
        return replacement === null ? [] : [[placed.from, placed.to, replacement]];
      }),
    );
  }

  /**
   * The statement as the target would print it. `loosely`: without what stands in front of columns, which a major prints
   * and another does not.
   */
  printed(statement: DumpStatement, loosely: boolean): string {
    const edits = statement.names.flatMap((placed): [number, number, string][] => {
      const replacement = this.#replacement(placed, placed.alias);
      return replacement === null ? [] : [[placed.from, placed.to, replacement]];
    });
    if (loosely) for (const [from, to] of statement.qualifiers) edits.push([from, to, '']);
    // of two that begin at one place the longer takes both
    edits.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    return splice(statement.text, edits);
  }

  /** Relations among those renamed whose name stands as a word in `body`. */
  mentionedIn(body: string, candidates: readonly RelationName[]): RelationName[] {
    if (this.#suffix === '') return [];
    const words = new Set(body.toLowerCase().match(/[\p{L}_][\p{L}\p{N}_$]*/gu));
    return candidates.filter(
      ({ name }) => words.has(name.toLowerCase()) || body.includes(`"${name.replaceAll('"', '""')}"`),
    );
  }

  #replacement(placed: PlacedName, as: PlacedName['alias']): string | null {
    const { kind, schema, name, table } = placed;
    switch (kind) {
      case 'relation': {
        const renamed = this.relation({ schema, name });
        if (renamed.name === name) return null;
        return placed.alias === null ? ident(renamed.name) : `${ident(renamed.name)}${as}${ident(name)}`;
      }
      case 'literal': {
        const renamed = this.relation({ schema, name });
        return renamed.name === name ? null : literal(identRelation(renamed));
      }
      case 'role':
        return this.role(name) === name ? null : ident(this.role(name));
      case 'statistics':
        return this.#statistics.has(relationKey({ schema, name }))
          ? ident(suffixedName(name, this.#suffix))
          : null;
      case 'constraint':
        return table === null || this.constraint(name, table) === name
          ? null
          : ident(this.constraint(name, table));
      case 'qualifier':
        return table === null || this.relation(table).name === table.name
          ? null
          : ident(this.relation(table).name);
    }
  }
}

/** Edits in order of their beginning; what overlaps the edit before is left alone. */
function splice(text: string, edits: readonly (readonly [from: number, to: number, by: string])[]): string {
  let result = '';
  let at = 0;
  for (const [from, to, by] of edits) {
    if (from < at) continue;
    result += text.slice(at, from) + by;
    at = to;
  }
  return result + text.slice(at);
}
