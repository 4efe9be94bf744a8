// Used by statement.ts: every place in a statement's text where a name stands that a suffix may change. The parser's tree
// tells what a name is and mostly where; where it does not (lists of strings have no location), the reader of the kind of
// statement knows the fixed spelling of pg_dump and says what to look behind.
import type { RelationName } from '../model/relation.ts';
import { readName, readQualifiedName, unquoteName, type NameSpan } from './sql-name.ts';

/** A name in the text: `[from, to)` in UTF-16 units. */
export interface PlacedName {
  readonly from: number;
  readonly to: number;
  /**
   * - `relation`: a table, index, sequence (or the row type of a table)
   * - `literal`: the same inside a string constant, `'shop.orders_id_seq'::regclass`
   * - `statistics`: an extended statistics object
   * - `constraint`: of `table`; renamed with it
   * - `role`: an owner, a grantee, whom a policy is for; no schema
   * - `qualifier`: `table` in front of a column or of `.*`, without its schema
   */
  readonly kind: 'relation' | 'literal' | 'statistics' | 'constraint' | 'qualifier' | 'role';
  readonly schema: string;
  readonly name: string;
  /** The table that a constraint or qualifier belongs to. */
  readonly table: RelationName | null;
  /**
   * A table in a query without an alias: columns around it are qualified by its old name, so a new one needs it as alias.
   * With the spelling that the server prints, which has AS only behind INSERT INTO. Null: none is needed.
   */
  readonly alias: ' ' | ' AS ' | null;
}

/** The parser's output as it is: JSON objects, one key naming the node's type. */
export type Tree = { readonly [key: string]: unknown };

export interface StatementSource {
  readonly text: string;
  readonly bytes: Buffer;
  readonly byteStart: number;
  readonly tree: unknown;
}

/** Throws when a name is not where pg_dump always writes it: then the text is not pg_dump's. */
export class StatementNames {
  readonly text: string;
  readonly names: PlacedName[] = [];
  readonly qualifiers: [number, number][] = [];
  readonly #source: StatementSource;
  readonly #isAscii: boolean;
  #subject: RelationName | null = null;

  constructor(source: StatementSource) {
    this.#source = source;
    this.text = source.text;
    this.#isAscii = source.text.length === Buffer.byteLength(source.text);
  }

  /** Everything that has a location. `subject`: table whose constraints are named; `own`: whose columns may be qualified. */
  findAll(node: Tree, subject: RelationName | null, own: RelationName | null): void {
    this.#subject = subject;
    this.#walk(node, own, false);
    this.names.sort((a, b) => a.from - b.from);
    this.qualifiers.sort(([a], [b]) => a - b);
  }

  #walk(value: unknown, own: RelationName | null, inQuery: boolean): void {
    if (Array.isArray(value)) {
      for (const item of value) this.#walk(item, own, inQuery);
      return;
    }
    if (typeof value !== 'object' || value === null) return;
    const node = value as Tree;
    if (typeof node['relname'] === 'string') return this.#readRangeVar(node, inQuery);
    if (node['roletype'] === 'ROLESPEC_CSTRING')
      this.place(readName(this.text, this.offset(node['location'])), 'role', '', null);
    if (Array.isArray(node['names']) && node['typemod'] !== undefined) this.#readTypeName(node);
    for (const [key, child] of Object.entries(node)) {
      if (key === 'ColumnRef') this.#readColumnRef(asTree(child), own);
      else if (key === 'TypeCast') this.#readCast(asTree(child));
      else if (key === 'Constraint') this.#readConstraintName(asTree(child));
      else if (key === 'InsertStmt') this.#readConflictTarget(asTree(child));
      const opensQuery = /^(?:Select|Insert|Update|Delete|Merge)Stmt$/.test(key);
      this.#walk(child, own, opensQuery || (inQuery && key !== 'lockedRels'));
    }
  }

  #readRangeVar(node: Tree, inQuery: boolean): void {
    if (typeof node['schemaname'] !== 'string') return; // a common table expression or an alias
    const at = this.offset(node['location']);
    const spelling = /\bINTO $/.test(this.text.slice(Math.max(0, at - 6), at)) ? ' AS ' : ' ';
    const placed = this.placeQualified(
      at,
      'relation',
      inQuery && node['alias'] === undefined ? spelling : null,
    );
    if (placed.name !== node['relname']) throw this.#misplaced();
  }

  #readTypeName(node: Tree): void {
    const names = list(node['names']);
    if (names.length !== 2 || stringOf(names[0]) === 'pg_catalog') return;
    const at = this.offset(node['location']);
    const span = readQualifiedName(this.text, at);
    // CREATE TYPE and COMMENT ON TYPE have type names too; whether it is a table's row type, the renaming knows.
    if (span?.name === stringOf(names[1])) this.placeQualified(at, 'relation');
  }

  #readColumnRef(node: Tree, own: RelationName | null): void {
    const fields = list(node['fields']);
    if (fields.length !== 2) return;
    const span = readName(this.text, this.offset(node['location']));
    if (this.text[span.to] === '.') this.qualifiers.push([span.from, span.to + 1]);
    if (own !== null && stringOf(fields[0]) === own.name) this.place(span, 'qualifier', own.schema, own);
  }

  #readCast(node: Tree): void {
    const type = asTree(node['typeName']);
    const names = list(type['names']).map(stringOf);
    // nextval(('s.q'::text)::regclass) is how a default names a sequence without depending on it
    const inner = asTree(asTree(node['arg'])['TypeCast']);
    const constant = asTree(asTree(inner['arg'] ?? node['arg'])['A_Const']);
    const value = asTree(constant['sval'])['sval'];
    if (names.at(-1) !== 'regclass' || typeof value !== 'string') return;
    const name = unquoteName(value);
    if (name === null) return;
    const from = this.offset(constant['location']);
    const length = /^'(?:[^']|'')*'/.exec(this.text.slice(from))?.[0].length;
    if (length === undefined) throw this.#misplaced();
    this.names.push({ from, to: from + length, kind: 'literal', ...name, table: null, alias: null });
  }

  #readConstraintName(node: Tree): void {
    if (typeof node['conname'] !== 'string' || this.#subject === null) return;
    const at = this.expect(/^CONSTRAINT /, this.offset(node['location']));
    const type = node['contype'];
    const isIndex = type === 'CONSTR_PRIMARY' || type === 'CONSTR_UNIQUE' || type === 'CONSTR_EXCLUSION';
    const span = readName(this.text, at);
    this.place(span, isIndex ? 'relation' : 'constraint', this.#subject.schema, this.#subject);
  }

  #readConflictTarget(node: Tree): void {
    const infer = asTree(asTree(node['onConflictClause'])['infer']);
    const table = relationOf(node['relation']);
    if (typeof infer['conname'] !== 'string' || table === null) return;
    const at = this.expect(/^ON CONSTRAINT /, this.offset(infer['location']));
    this.place(readName(this.text, at), 'constraint', table.schema, table);
  }

  place(span: NameSpan, kind: PlacedName['kind'], schema: string, table: RelationName | null): void {
    const { from, to, name } = span;
    this.names.push({ from, to, kind, schema, name, table, alias: null });
  }

  placeQualified(
    at: number,
    kind: 'relation' | 'statistics',
    alias: PlacedName['alias'] = null,
  ): RelationName {
    const span = readQualifiedName(this.text, at);
    if (span === null) throw this.#misplaced();
    const { from, to, schema, name } = span;
    this.names.push({ from, to, kind, schema, name, table: null, alias });
    return { schema, name };
  }

  /** An index's name, which stands without its schema. */
  nameAfter(lead: RegExp, schema: string, at = 0): NameSpan {
    const span = readName(this.text, this.expect(lead, at));
    this.place(span, 'relation', schema, null);
    return span;
  }

  qualifiedAfter(lead: RegExp, kind: 'relation' | 'statistics'): void {
    this.placeQualified(this.expect(lead, 0), kind);
  }

  /** Position behind `lead`, searched from `at`. */
  expect(lead: RegExp, at: number): number {
    const match = lead.exec(this.text.slice(at));
    if (!match) throw this.#misplaced();
    return at + match.index + match[0].length;
  }

  /** The parser counts bytes from the beginning of what it was given; a location of 0 is left out. */
  offset(location: unknown): number {
    const bytes = (typeof location === 'number' ? location : 0) - this.#source.byteStart;
    if (this.#isAscii) return bytes;
    return this.#source.bytes.toString('utf8', this.#source.byteStart, this.#source.byteStart + bytes).length;
  }

  #misplaced(): Error {
    return new Error(`a name is not where it should be in: ${this.text.slice(0, 200)}`);
  }
}

export function asTree(value: unknown): Tree {
  return typeof value === 'object' && value !== null ? (value as Tree) : {};
}

export function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? (value as unknown[]) : [];
}

export function stringOf(value: unknown): string | undefined {
  const text = asTree(asTree(value)['String'])['sval'];
  return typeof text === 'string' ? text : undefined;
}

export function relationOf(value: unknown): RelationName | null {
  const { schemaname, relname } = asTree(value);
  return typeof schemaname === 'string' && typeof relname === 'string'
    ? { schema: schemaname, name: relname }
    : null;
}
