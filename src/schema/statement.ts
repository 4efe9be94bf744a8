// Used by split.ts: one parsed statement of a dump → its original text, what it does, and every place in the text where
// a name stands that a suffix may change. The parser's tree tells what a name is and mostly where; where it does not
// (lists of strings have no location), the fixed spelling of pg_dump does. Text is never made from the tree.
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

export type StatementDeed =
  | 'create table'
  | 'add primary key'
  | 'add foreign key'
  | 'add other constraint'
  | 'identify by index'
  | 'force row security'
  | 'attach index'
  | 'replace view'
  | 'set owner'
  | 'other';

export interface DumpStatement {
  /** As pg_dump wrote it, without comment before and semicolon after. */
  readonly text: string;
  readonly deed: StatementDeed;
  /** Constraints and foreign keys: added NOT VALID or NOT ENFORCED. */
  readonly notValid: boolean;
  /** The table it is about; for `attach index` the parent's index, and `attached` the child's. */
  readonly subject: RelationName | null;
  readonly attached: RelationName | null;
  readonly constraint: string | null;
  /** Relation names that come into being: table, sequence, index. */
  readonly takes: readonly RelationName[];
  readonly names: readonly PlacedName[];
  /** `x.` in front of columns, `[from, to)`: majors differ in where they print it. */
  readonly qualifiers: readonly (readonly [from: number, to: number])[];
  /** Body of a function that is a string: what it mentions cannot be renamed. */
  readonly stringBody: string | null;
}

/** The parser's output as it is: JSON objects, one key naming the node's type. */
type Tree = { readonly [key: string]: unknown };

interface Source {
  readonly text: string;
  readonly bytes: Buffer;
  readonly byteStart: number;
  readonly tree: unknown;
}

/** Throws when a name is not where pg_dump always writes it: then the text is not pg_dump's. */
export function readStatement(source: Source): DumpStatement {
  return new StatementReader(source).read();
}

class StatementReader {
  readonly #source: Source;
  readonly #isAscii: boolean;
  readonly #names: PlacedName[] = [];
  readonly #takes: RelationName[] = [];
  readonly #qualifiers: [number, number][] = [];
  #deed: StatementDeed = 'other';
  #notValid = false;
  #subject: RelationName | null = null;
  #attached: RelationName | null = null;
  #constraint: string | null = null;
  #stringBody: string | null = null;

  constructor(source: Source) {
    this.#source = source;
    this.#isAscii = source.text.length === Buffer.byteLength(source.text);
  }

  read(): DumpStatement {
    const [type, value] = Object.entries(asTree(this.#source.tree))[0] ?? ['', {}];
    const node = asTree(value);
    this.#readTop(type, node);
    // rules and triggers call the table's row OLD and NEW
    this.#walk(node, type === 'RuleStmt' || type === 'CreateTrigStmt' ? null : this.#subject, false);
    this.#names.sort((a, b) => a.from - b.from);
    return {
      text: type === 'CreateSubscriptionStmt' ? withoutConnection(this.#source.text) : this.#source.text,
      deed: this.#deed,
      notValid: this.#notValid,
      subject: this.#subject,
      attached: this.#attached,
      constraint: this.#constraint,
      takes: this.#takes,
      names: this.#names,
      qualifiers: this.#qualifiers.sort(([a], [b]) => a - b),
      stringBody: this.#stringBody,
    };
  }

  /** What the kind of statement says, and names that the tree has without a location. */
  #readTop(type: string, node: Tree): void {
    switch (type) {
      case 'CreateStmt':
        this.#deed = 'create table';
        this.#subject = relationOf(node['relation']);
        if (this.#subject) this.#takes.push(this.#subject);
        return;
      case 'CreateSeqStmt':
        this.#take(relationOf(node['sequence']));
        return;
      case 'IndexStmt': {
        this.#subject = relationOf(node['relation']);
        const schema = this.#subject?.schema ?? '';
        const index = this.#nameAfter(/^CREATE (?:UNIQUE )?INDEX /, schema);
        this.#takes.push({ schema, name: index.name });
        return;
      }
      case 'AlterTableStmt':
        this.#readAlterTable(node);
        return;
      case 'CreateStatsStmt':
      case 'AlterStatsStmt':
        this.#subject = relationOf(asTree(list(node['relations'])[0])['RangeVar']);
        this.#qualifiedAfter(/^(?:CREATE|ALTER) STATISTICS /, 'statistics');
        return;
      case 'CommentStmt':
        this.#readComment(node);
        return;
      case 'CreatePolicyStmt':
        this.#subject = relationOf(node['table']);
        return;
      case 'CreateTrigStmt':
      case 'RuleStmt':
        this.#subject = relationOf(node['relation']);
        return;
      case 'AlterSeqStmt':
        this.#readOwner(node);
        return;
      case 'ViewStmt':
        if (node['replace'] === true) this.#deed = 'replace view';
        return;
      case 'CreateFunctionStmt':
        this.#stringBody = bodyOf(node);
        return;
    }
  }

  #take(relation: RelationName | null): void {
    if (relation) this.#takes.push(relation);
  }

  #readAlterTable(node: Tree): void {
    const subject = relationOf(node['relation']);
    this.#subject = subject;
    if (subject === null) return;
    const behindSubject = (): number =>
      readQualifiedName(this.#source.text, this.#offset(asTree(node['relation'])['location']))?.to ?? 0;
    for (const item of list(node['cmds'])) {
      const command = asTree(asTree(item)['AlterTableCmd']);
      const definition = asTree(command['def']);
      switch (command['subtype']) {
        case 'AT_AddConstraint':
          this.#readAddConstraint(asTree(definition['Constraint']), subject);
          break;
        case 'AT_AddIdentity':
          this.#readIdentity(asTree(definition['Constraint']));
          break;
        case 'AT_ReplicaIdentity':
          if (asTree(definition['ReplicaIdentityStmt'])['name'] === undefined) break;
          this.#deed = 'identify by index';
          this.#nameAfter(/^ REPLICA IDENTITY USING INDEX /, subject.schema, behindSubject());
          break;
        case 'AT_ClusterOn':
          this.#nameAfter(/^ CLUSTER ON /, subject.schema, behindSubject());
          break;
        case 'AT_ChangeOwner':
          this.#deed = 'set owner';
          break;
        case 'AT_ForceRowSecurity':
          this.#deed = 'force row security';
          break;
        case 'AT_AttachPartition':
          if (node['objtype'] !== 'OBJECT_INDEX') break;
          this.#deed = 'attach index';
          this.#attached = relationOf(asTree(definition['PartitionCmd'])['name']);
          break;
      }
    }
  }

  #readAddConstraint(constraint: Tree, table: RelationName): void {
    const type = constraint['contype'];
    const name = constraint['conname'];
    this.#constraint = typeof name === 'string' ? name : null;
    this.#notValid = constraint['skip_validation'] === true;
    this.#deed =
      type === 'CONSTR_PRIMARY'
        ? 'add primary key'
        : type === 'CONSTR_FOREIGN'
          ? 'add foreign key'
          : 'add other constraint';
    // their index carries the constraint's name and is a relation of the table's schema
    if (
      this.#constraint !== null &&
      (type === 'CONSTR_PRIMARY' || type === 'CONSTR_UNIQUE' || type === 'CONSTR_EXCLUSION')
    )
      this.#takes.push({ schema: table.schema, name: this.#constraint });
  }

  #readIdentity(constraint: Tree): void {
    for (const item of list(constraint['options'])) {
      const option = asTree(asTree(item)['DefElem']);
      if (option['defname'] !== 'sequence_name') continue;
      const at = this.#expect(/^SEQUENCE NAME /, this.#offset(option['location']));
      const { schema, name } = this.#placeQualified(at, 'relation');
      this.#takes.push({ schema, name });
    }
  }

  #readOwner(node: Tree): void {
    for (const item of list(node['options'])) {
      const option = asTree(asTree(item)['DefElem']);
      if (option['defname'] === 'owned_by')
        this.#placeQualified(this.#expect(/^OWNED BY /, this.#offset(option['location'])), 'relation');
    }
  }

  #readComment(node: Tree): void {
    switch (node['objtype']) {
      case 'OBJECT_TABLE':
      case 'OBJECT_INDEX':
      case 'OBJECT_SEQUENCE':
      case 'OBJECT_VIEW':
      case 'OBJECT_MATVIEW':
      case 'OBJECT_FOREIGN_TABLE':
      case 'OBJECT_COLUMN':
        this.#qualifiedAfter(
          /^COMMENT ON (?:TABLE|INDEX|SEQUENCE|VIEW|MATERIALIZED VIEW|FOREIGN TABLE|COLUMN) /,
          'relation',
        );
        return;
      case 'OBJECT_STATISTIC_EXT':
        this.#qualifiedAfter(/^COMMENT ON STATISTICS /, 'statistics');
        return;
      case 'OBJECT_TABCONSTRAINT':
      case 'OBJECT_TRIGGER':
      case 'OBJECT_POLICY':
      case 'OBJECT_RULE': {
        const member = readName(
          this.#source.text,
          this.#expect(/^COMMENT ON (?:CONSTRAINT|TRIGGER|POLICY|RULE) /, 0),
        );
        const table = this.#placeQualified(this.#expect(/^ ON /, member.to), 'relation');
        if (node['objtype'] === 'OBJECT_TABCONSTRAINT')
          this.#place(member, 'constraint', table.schema, { schema: table.schema, name: table.name });
        return;
      }
    }
  }

  /** Everything that has a location. `own`: table whose columns may be qualified by its name. */
  #walk(value: unknown, own: RelationName | null, inQuery: boolean): void {
    if (Array.isArray(value)) {
      for (const item of value) this.#walk(item, own, inQuery);
      return;
    }
    if (typeof value !== 'object' || value === null) return;
    const node = value as Tree;
    if (typeof node['relname'] === 'string') return this.#readRangeVar(node, inQuery);
    if (node['roletype'] === 'ROLESPEC_CSTRING')
      this.#place(readName(this.#source.text, this.#offset(node['location'])), 'role', '', null);
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
    const at = this.#offset(node['location']);
    const spelling = /\bINTO $/.test(this.#source.text.slice(Math.max(0, at - 6), at)) ? ' AS ' : ' ';
    const placed = this.#placeQualified(
      at,
      'relation',
      inQuery && node['alias'] === undefined ? spelling : null,
    );
    if (placed.name !== node['relname']) throw this.#misplaced();
  }

  #readTypeName(node: Tree): void {
    const names = list(node['names']);
    if (names.length !== 2 || stringOf(names[0]) === 'pg_catalog') return;
    const at = this.#offset(node['location']);
    const span = readQualifiedName(this.#source.text, at);
    // CREATE TYPE and COMMENT ON TYPE have type names too; whether it is a table's row type, the renaming knows.
    if (span?.name === stringOf(names[1])) this.#placeQualified(at, 'relation');
  }

  #readColumnRef(node: Tree, own: RelationName | null): void {
    const fields = list(node['fields']);
    if (fields.length !== 2) return;
    const span = readName(this.#source.text, this.#offset(node['location']));
    if (this.#source.text[span.to] === '.') this.#qualifiers.push([span.from, span.to + 1]);
    if (own !== null && stringOf(fields[0]) === own.name) this.#place(span, 'qualifier', own.schema, own);
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
    const from = this.#offset(constant['location']);
    const length = /^'(?:[^']|'')*'/.exec(this.#source.text.slice(from))?.[0].length;
    if (length === undefined) throw this.#misplaced();
    this.#names.push({ from, to: from + length, kind: 'literal', ...name, table: null, alias: null });
  }

  #readConstraintName(node: Tree): void {
    if (typeof node['conname'] !== 'string' || this.#subject === null) return;
    const at = this.#expect(/^CONSTRAINT /, this.#offset(node['location']));
    const type = node['contype'];
    const isIndex = type === 'CONSTR_PRIMARY' || type === 'CONSTR_UNIQUE' || type === 'CONSTR_EXCLUSION';
    const span = readName(this.#source.text, at);
    this.#place(span, isIndex ? 'relation' : 'constraint', this.#subject.schema, this.#subject);
  }

  #readConflictTarget(node: Tree): void {
    const infer = asTree(asTree(node['onConflictClause'])['infer']);
    const table = relationOf(node['relation']);
    if (typeof infer['conname'] !== 'string' || table === null) return;
    const at = this.#expect(/^ON CONSTRAINT /, this.#offset(infer['location']));
    this.#place(readName(this.#source.text, at), 'constraint', table.schema, table);
  }

  #place(span: NameSpan, kind: PlacedName['kind'], schema: string, table: RelationName | null): void {
    const { from, to, name } = span;
    this.#names.push({ from, to, kind, schema, name, table, alias: null });
  }

  #placeQualified(
    at: number,
    kind: 'relation' | 'statistics',
    alias: PlacedName['alias'] = null,
  ): RelationName {
    const span = readQualifiedName(this.#source.text, at);
    if (span === null) throw this.#misplaced();
    const { from, to, schema, name } = span;
    this.#names.push({ from, to, kind, schema, name, table: null, alias });
    return { schema, name };
  }

  /** An index's name, which stands without its schema. */
  #nameAfter(lead: RegExp, schema: string, at = 0): NameSpan {
    const span = readName(this.#source.text, this.#expect(lead, at));
    this.#place(span, 'relation', schema, null);
    return span;
  }

  #qualifiedAfter(lead: RegExp, kind: 'relation' | 'statistics'): void {
    this.#placeQualified(this.#expect(lead, 0), kind);
  }

  /** Position behind `lead`, searched from `at`. */
  #expect(lead: RegExp, at: number): number {
    const match = lead.exec(this.#source.text.slice(at));
    if (!match) throw this.#misplaced();
    return at + match.index + match[0].length;
  }

  /** The parser counts bytes from the beginning of what it was given; a location of 0 is left out. */
  #offset(location: unknown): number {
    const bytes = (typeof location === 'number' ? location : 0) - this.#source.byteStart;
    if (this.#isAscii) return bytes;
    return this.#source.bytes.toString('utf8', this.#source.byteStart, this.#source.byteStart + bytes).length;
  }

  #misplaced(): Error {
    return new Error(`a name is not where it should be in: ${this.#source.text.slice(0, 200)}`);
  }
}

/** A subscription's connection may hold a password, which no plan and no comparison may show. */
function withoutConnection(text: string): string {
  const { to } = readName(text, 'CREATE SUBSCRIPTION '.length);
  return text.slice(0, to) + text.slice(to).replace(/^( CONNECTION ) ?E?'(?:[^']|'')*'/, "$1''");
}

function asTree(value: unknown): Tree {
  return typeof value === 'object' && value !== null ? (value as Tree) : {};
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? (value as unknown[]) : [];
}

function stringOf(value: unknown): string | undefined {
  const text = asTree(asTree(value)['String'])['sval'];
  return typeof text === 'string' ? text : undefined;
}

function relationOf(value: unknown): RelationName | null {
  const { schemaname, relname } = asTree(value);
  return typeof schemaname === 'string' && typeof relname === 'string'
    ? { schema: schemaname, name: relname }
    : null;
}

function bodyOf(node: Tree): string | null {
  for (const item of list(node['options'])) {
    const option = asTree(asTree(item)['DefElem']);
    if (option['defname'] !== 'as') continue;
    return list(asTree(asTree(option['arg'])['List'])['items'])
      .map(stringOf)
      .join('\n');
  }
  return null;
}
