// Used by split.ts: one parsed statement of a dump → its original text, what it does, and the places of names in it. Here
// is what each kind of statement says, and the names that the tree has without a location (lists of strings), which the
// fixed spelling of pg_dump finds; statement-names.ts finds the rest. Text is never made from the tree.
import type { RelationName } from '../model/relation.ts';
import { readName, readQualifiedName } from './sql-name.ts';
import {
  asTree,
  list,
  relationOf,
  StatementNames,
  stringOf,
  type PlacedName,
  type StatementSource,
  type Tree,
} from './statement-names.ts';

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
  /** The table it is about; of ATTACH PARTITION the parent, table or index, and `attached` the child. */
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

/** Throws when a name is not where pg_dump always writes it: then the text is not pg_dump's. */
export function readStatement(source: StatementSource): DumpStatement {
  return new StatementReader(source).read();
}

class StatementReader {
  readonly #source: StatementSource;
  readonly #names: StatementNames;
  readonly #takes: RelationName[] = [];
  #deed: StatementDeed = 'other';
  #notValid = false;
  #subject: RelationName | null = null;
  #attached: RelationName | null = null;
  #constraint: string | null = null;
  #stringBody: string | null = null;

  constructor(source: StatementSource) {
    this.#source = source;
    this.#names = new StatementNames(source);
  }

  read(): DumpStatement {
    const [type, value] = Object.entries(asTree(this.#source.tree))[0] ?? ['', {}];
    const node = asTree(value);
    this.#readTop(type, node);
    // rules and triggers call the table's row OLD and NEW
    this.#names.findAll(
      node,
      this.#subject,
      type === 'RuleStmt' || type === 'CreateTrigStmt' ? null : this.#subject,
    );
    return {
      text: type === 'CreateSubscriptionStmt' ? withoutConnection(this.#source.text) : this.#source.text,
      deed: this.#deed,
      notValid: this.#notValid,
      subject: this.#subject,
      attached: this.#attached,
      constraint: this.#constraint,
      takes: this.#takes,
      names: this.#names.names,
      qualifiers: this.#names.qualifiers,
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
        const index = this.#names.nameAfter(/^CREATE (?:UNIQUE )?INDEX /, schema);
        this.#takes.push({ schema, name: index.name });
        return;
      }
      case 'AlterTableStmt':
        this.#readAlterTable(node);
        return;
      case 'CreateStatsStmt':
      case 'AlterStatsStmt':
        this.#subject = relationOf(asTree(list(node['relations'])[0])['RangeVar']);
        this.#names.qualifiedAfter(/^(?:CREATE|ALTER) STATISTICS /, 'statistics');
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
      readQualifiedName(this.#source.text, this.#names.offset(asTree(node['relation'])['location']))?.to ?? 0;
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
          this.#names.nameAfter(/^ REPLICA IDENTITY USING INDEX /, subject.schema, behindSubject());
          break;
        case 'AT_ClusterOn':
          this.#names.nameAfter(/^ CLUSTER ON /, subject.schema, behindSubject());
          break;
        case 'AT_ChangeOwner':
          this.#deed = 'set owner';
          break;
        case 'AT_ForceRowSecurity':
          this.#deed = 'force row security';
          break;
        case 'AT_AttachPartition':
          if (node['objtype'] === 'OBJECT_INDEX') this.#deed = 'attach index';
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
      const at = this.#names.expect(/^SEQUENCE NAME /, this.#names.offset(option['location']));
      const { schema, name } = this.#names.placeQualified(at, 'relation');
      this.#takes.push({ schema, name });
    }
  }

  #readOwner(node: Tree): void {
    for (const item of list(node['options'])) {
      const option = asTree(asTree(item)['DefElem']);
      if (option['defname'] === 'owned_by')
        this.#names.placeQualified(
          this.#names.expect(/^OWNED BY /, this.#names.offset(option['location'])),
          'relation',
        );
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
        this.#names.qualifiedAfter(
          /^COMMENT ON (?:TABLE|INDEX|SEQUENCE|VIEW|MATERIALIZED VIEW|FOREIGN TABLE|COLUMN) /,
          'relation',
        );
        return;
      case 'OBJECT_STATISTIC_EXT':
        this.#names.qualifiedAfter(/^COMMENT ON STATISTICS /, 'statistics');
        return;
      case 'OBJECT_TABCONSTRAINT':
      case 'OBJECT_TRIGGER':
      case 'OBJECT_POLICY':
      case 'OBJECT_RULE': {
        const member = readName(
          this.#source.text,
          this.#names.expect(/^COMMENT ON (?:CONSTRAINT|TRIGGER|POLICY|RULE) /, 0),
        );
        const table = this.#names.placeQualified(this.#names.expect(/^ ON /, member.to), 'relation');
        if (node['objtype'] === 'OBJECT_TABCONSTRAINT')
          this.#names.place(member, 'constraint', table.schema, { schema: table.schema, name: table.name });
        return;
      }
    }
  }
}

/** A subscription's connection may hold a password, which no plan and no comparison may show. */
function withoutConnection(text: string): string {
  const { to } = readName(text, 'CREATE SUBSCRIPTION '.length);
  return text.slice(0, to) + text.slice(to).replace(/^( CONNECTION ) ?E?'(?:[^']|'')*'/, "$1''");
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
