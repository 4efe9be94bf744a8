// Used by plan.ts for `schema: existing`: what of the plan depends on what the target has already: which of its sequences
// continue the source's, and which tables have constraints that the copy must mind.
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName, type TableMapping } from '../model/relation.ts';
import type { PlannedSequence, PlannedStatement } from '../model/schema-plan.ts';
import type { Side } from '../postgres/connections.ts';
import { ident, identRelation } from '../postgres/sql.ts';
import { readTableFacts } from '../postgres/table-facts.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

export interface SequenceFacts extends RelationName {
  /** The column that owns it: an identity's or a serial's. */
  readonly ownedBy: { readonly table: RelationName; readonly column: string } | null;
  readonly min: string;
  readonly max: string;
  readonly increment: string;
  readonly maySet: boolean;
}

/** Of every sequence, also of those of extensions. */
async function readSequences(side: Side): Promise<SequenceFacts[]> {
  const { rows } = await side.query<SequenceFacts>(
    `select n.nspname::text as schema, c.relname::text as name, s.seqmin::text as min, s.seqmax::text as max,
       s.seqincrement::text as increment,
       has_schema_privilege(n.oid, 'usage') and has_sequence_privilege(c.oid, 'select')
         and has_sequence_privilege(c.oid, 'update') as "maySet",
       (select json_build_object('table', json_build_object('schema', tn.nspname, 'name', t.relname), 'column', a.attname)
        from pg_depend d join pg_class t on t.oid = d.refobjid join pg_namespace tn on tn.oid = t.relnamespace
          join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.refclassid = 'pg_class'::regclass
          and d.refobjsubid > 0 and d.deptype in ('a', 'i')) as "ownedBy"
     from pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace`,
  );
  return rows;
}

/** Sequences of the target under the names that they have there, and what cannot be continued. */
export async function existingSequences(
  scope: TaskScope,
  planned: readonly PlannedSequence[],
  tables: readonly TableMapping[],
): Promise<{ sequences: PlannedSequence[]; findings: Finding[] }> {
  const [source, target] = await Promise.all([readSequences(scope.source), readSequences(scope.target)]);
  const { rows } = await scope.target.query<{ user: string }>(`select current_user::text as "user"`);
  return matchSequences({ planned, tables, source, target, user: rows[0]?.user ?? '' });
}

/** Pure. The sequence of the same column, else the one of the same name. */
export function matchSequences(facts: {
  readonly planned: readonly PlannedSequence[];
  readonly tables: readonly TableMapping[];
  readonly source: readonly SequenceFacts[];
  readonly target: readonly SequenceFacts[];
  readonly user: string;
}): { sequences: PlannedSequence[]; findings: Finding[] } {
  const targetOf = new Map(
    facts.tables.map(({ source, target }) => [relationKey(source), relationKey(target)]),
  );
  const sources = new Map(facts.source.map((sequence) => [relationKey(sequence), sequence]));
  const byName = new Map(facts.target.map((sequence) => [relationKey(sequence), sequence]));
  const columnOf = (table: string, column: string): string => JSON.stringify([table, column]);
  const byColumn = new Map(
    facts.target.flatMap((sequence) =>
      sequence.ownedBy === null
        ? []
        : [[columnOf(relationKey(sequence.ownedBy.table), sequence.ownedBy.column), sequence] as const],
    ),
  );
  const sequences: PlannedSequence[] = [];
  const findings: Finding[] = [];
  for (const mapping of facts.planned) {
    const own = sources.get(relationKey(mapping.source));
    if (!own) continue; // dropped since: the comparison of the source's catalog says so
    const table = own.ownedBy && targetOf.get(relationKey(own.ownedBy.table));
    const found =
      (own.ownedBy && table ? byColumn.get(columnOf(table, own.ownedBy.column)) : undefined) ??
      byName.get(relationKey(mapping.target));
    const object = relationKey(found ?? mapping.target);
    const say = (code: string, severity: Finding['severity'], message: string, remedy: string): void =>
      void findings.push({ code, severity, object, message: `target: ${message}`, remedy });
    if (!found) {
      say(
        'target_sequence_missing',
        'warning',
        `there is no sequence for ${relationKey(mapping.source)} of the source: its position is not kept`,
        `create sequence ${identRelation(mapping.target)}`,
      );
      continue;
    }
    if (!found.maySet)
      say(
        'target_sequence_denied',
        'blocking',
        `role ${facts.user} may not set the sequence ${object}`,
        `grant select, update on sequence ${identRelation(found)} to ${ident(facts.user)}`,
      );
    if (BigInt(found.min) > BigInt(own.min) || BigInt(found.max) < BigInt(own.max))
      say(
        'target_sequence_narrower',
        'blocking',
        `the sequence ${object} ends at ${found.min} and ${found.max}, on the source at ${own.min} and ${own.max}`,
        `alter sequence ${identRelation(found)} minvalue ${own.min} maxvalue ${own.max}`,
      );
    if (found.increment !== own.increment)
      say(
        'target_sequence_differs',
        'warning',
        `the sequence ${object} goes on by ${found.increment}, on the source by ${own.increment}`,
        `alter sequence ${identRelation(found)} increment ${own.increment}`,
      );
    sequences.push({ source: mapping.source, target: { schema: found.schema, name: found.name } });
  }
  return { sequences, findings };
}

/** Tables with unique or exclusion constraints on the target besides the one over their key. */
export async function uniqueBefore(
  scope: TaskScope,
  tables: readonly (TableMapping & { readonly keyColumns: readonly string[] })[],
): Promise<string[]> {
  const facts = await readTableFacts(
    scope.target,
    tables.map(({ target }) => target),
  );
  const byKey = new Map(facts.map((one) => [relationKey(one), one]));
  return tables
    .filter(({ target, keyColumns }) => {
      const isKey = (columns: readonly string[] | null): boolean =>
        columns?.length === keyColumns.length && columns.every((column) => keyColumns.includes(column));
      return byKey.get(relationKey(target))?.uniques.some(({ columns }) => !isKey(columns)) ?? false;
    })
    .map(({ source }) => relationKey(source));
}

export function existingFindings(refreshed: readonly PlannedStatement[]): Finding[] {
  return [
    {
      code: 'schema_existing',
      severity: 'info',
      object: 'target',
      message:
        'options.schema is existing: nothing of the schema is created or changed on the target; what it lacks besides tables is up to you',
      remedy: null,
    },
    ...refreshed.map(
      ({ object, sql }): Finding => ({
        code: 'materialized_view_not_refreshed',
        severity: 'warning',
        object,
        message: `${object} is not refreshed on the target, if it is there`,
        remedy: `after the cutover: ${sql}`,
      }),
    ),
  ];
}
