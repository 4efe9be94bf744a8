// Tables that are added to a running task: which ones a request means, and the task's plan with their part of the schema
// behind what it has already. Planned together with the tables of the task, so that foreign keys between both and what
// they share are known, and only what is new is taken. Used by the service before it accepts a request, and by
// create-tables.ts. Only reads.
import { MigrationError } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import {
  exactName,
  isGlob,
  matcherOf,
  parseRelationName,
  relationKey,
  type RelationName,
} from '../model/relation.ts';
import { invalidRequest, type FieldFault } from '../model/request-faults.ts';
import type { PlannedStatement, SchemaPlan } from '../model/schema-plan.ts';
import { readSelection, type TableSelection } from '../postgres/catalog.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { planSchema } from './plan.ts';

/** What the statechart remembers of the requests so far. */
export interface AdditionRequest {
  /** Number of the last request; 0: none yet. */
  readonly pass: number;
  /** As in `tables` of the request, every name exact. */
  readonly tables: readonly string[];
}

function relationsOf({ roots, tables, unlogged = [] }: SchemaPlan): RelationName[] {
  return [...roots, ...tables, ...unlogged].map(({ source }) => source);
}

/** `relationKey` of every table of the task, partitioned ones included. */
export function keysOf(plan: SchemaPlan): ReadonlySet<string> {
  return new Set(relationsOf(plan).map(relationKey));
}

/** The scope with the tables of the plan and `added` selected, and nothing else. */
export function scopeWith(scope: TaskScope, plan: SchemaPlan, added: readonly string[]): TaskScope {
  const tables = [...relationsOf(plan).map(exactName), ...added];
  return { ...scope, spec: { ...scope.spec, tables } };
}

/**
 * The exact names that `requested` (names, patterns) adds to the task; partitions come with their roots and are not
 * named. Errors: `table_in_task`; `invalid_request` naming the place in `add` of what cannot be selected.
 */
export async function resolveAddition(
  scope: TaskScope,
  plan: SchemaPlan,
  requested: readonly string[],
): Promise<readonly string[]> {
  const known = keysOf(plan);
  const keys = requested.map((name) => (isGlob(name) ? null : relationKey(parseRelationName(name))));
  const present = keys.filter((key) => key !== null && known.has(key));
  if (present.length > 0)
    throw new MigrationError('table_in_task', `${present.join(', ')}: in the task already`, {
      hint: 'leave it out; POST …/tables/{name}/recopy copies a table again',
      details: { tables: present },
    });
  const { spec, source } = scopeWith(scope, plan, requested);
  const selection = await readSelection(source, spec.tables, spec.options);
  const faults = keys.flatMap((key, at): FieldFault[] => {
    const message = faultOf(selection, known, requested[at] ?? '', key);
    return message === null ? [] : [{ field: `add.${at}`, message }];
  });
  if (faults.length > 0) throw invalidRequest(faults);
  const added = selection.tables.filter(({ relation }) => !known.has(relationKey(relation)));
  const addedKeys = new Set(added.map(({ relation }) => relationKey(relation)));
  return added
    .filter(({ parent }) => parent === null || !addedKeys.has(relationKey(parent)))
    .map(({ relation }) => exactName(relation));
}

function faultOf(
  { unusable, excluded, tables }: TableSelection,
  known: ReadonlySet<string>,
  name: string,
  key: string | null,
): string | null {
  const refused = unusable.find(({ requested }) => requested === name || requested === key);
  if (refused) return `${name} ${refused.reason}`;
  if (key === null) {
    const matches = matching(name, tables, known);
    return matches ? null : `${name} matches no table that is not in the task already`;
  }
  if (excluded.some((relation) => relationKey(relation) === key))
    return `${name} is left out by options.exclude`;
  return null;
}

function matching(glob: string, tables: TableSelection['tables'], known: ReadonlySet<string>): boolean {
  const matches = matcherOf(glob);
  return tables.some(({ relation }) => matches(relation) && !known.has(relationKey(relation)));
}

/** The plan that the task has, and behind it what the request adds. Errors: as of planSchema. */
export async function planAddition(
  scope: TaskScope,
  plan: SchemaPlan,
  request: AdditionRequest,
): Promise<SchemaPlan> {
  return mergeAddition(plan, await planSchema(scopeWith(scope, plan, request.tables)), request.pass);
}

/** Pure. `whole`: the plan of all tables as if nothing had been made yet. Numbers that the journal knows are not used again. */
function mergeAddition(plan: SchemaPlan, whole: SchemaPlan, pass: number): SchemaPlan {
  const known = keysOf(plan);
  const added = new Set([...keysOf(whole)].filter((key) => !known.has(key)));
  const isNew = ({ source }: { readonly source: RelationName }): boolean => added.has(relationKey(source));
  const objects = new Set(plan.statements.map(({ object }) => object));
  // A partition of a table that the task has: once it has its rows and indexes, for ATTACH would make those that it lacks,
  // under other names; what it has becomes part of the parent's.
  const joins = ({ table, attaches }: PlannedStatement): boolean =>
    attaches !== undefined && table !== null && added.has(attaches) && !added.has(table);
  const isWanted = ({ table, object, references = '' }: PlannedStatement): boolean => {
    if (table === null) return !objects.has(object);
    // a foreign key of the task's own table had to be left out while the other one was not selected
    return added.has(table) || (added.has(references) && !objects.has(object));
  };
  const first = 1 + Math.max(-1, ...plan.statements.map(({ n }) => n));
  const sequences = new Set(plan.sequences.map(({ source }) => relationKey(source)));
  return {
    ...plan,
    tables: [...plan.tables, ...whole.tables.filter(isNew)],
    unlogged: [...(plan.unlogged ?? []), ...(whole.unlogged ?? []).filter(isNew)],
    roots: [...plan.roots, ...whole.roots.filter(isNew)],
    sequences: [
      ...plan.sequences,
      ...whole.sequences.filter(({ source }) => !sequences.has(relationKey(source))),
    ],
    statements: [
      ...plan.statements,
      ...[
        ...whole.statements.filter(isWanted),
        ...whole.statements
          .filter(joins)
          .map((statement) => ({ ...statement, phase: 'index' as const, table: statement.attaches ?? null })),
      ].map((statement, at) => ({ ...statement, n: first + at })),
    ],
    ...(whole.uniqueBefore === undefined ? {} : { uniqueBefore: whole.uniqueBefore }),
    findings: mergeFindings(plan.findings, whole.findings),
    addition: { pass, relations: [...added] },
  };
}

/** What was left out for want of a table may have it now. */
function mergeFindings(before: readonly Finding[], now: readonly Finding[]): Finding[] {
  const keyOf = ({ code, message }: Finding): string => `${code} ${message}`;
  const stillTrue = new Set(now.map(keyOf));
  const kept = before.filter(
    (finding) => !finding.code.endsWith('_left_out') || stillTrue.has(keyOf(finding)),
  );
  const known = new Set(kept.map(keyOf));
  return [...kept, ...now.filter((finding) => !known.has(keyOf(finding)))];
}
