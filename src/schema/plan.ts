// Used by createTables and preflight: from a request to a SchemaPlan. The catalog says what belongs to the selected
// tables (dependencies.ts), pg_dump says how it is written (dump.ts), phases.ts when each statement runs, rename.ts
// under which name. No statement is generated here but VALIDATE CONSTRAINT and REFRESH. Nothing is left out without a
// finding.
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName, type TableMapping } from '../model/relation.ts';
import type { PlannedTable, SchemaPlan } from '../model/schema-plan.ts';
import type { TaskOptions } from '../model/task-options.ts';
import type { CatalogTable } from '../postgres/catalog.ts';
import { becomesFull } from '../postgres/replica-identity.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { collisionFindings } from './collisions.ts';
import { draftStatements, dropDraft, numbered } from './drafts.ts';
import { existingFindings, existingSequences, uniqueBefore } from './existing.ts';
import { planLargeObjects, type LargeObjectsPlan } from './large-objects.ts';
import {
  hiddenSubscriptionsFindings,
  notMigratedFindings,
  restFindings,
  selectionFindings,
  skippedFindings,
  textFindings,
} from './plan-findings.ts';
import { isSkipped, keepEntries, readPlanInput, type PlanInput } from './plan-input.ts';
import { createRole, missingRoles, roleFindings } from './roles.ts';
import type { DumpEntry } from './split.ts';
import { holdsSecret } from './whole-database.ts';

/**
 * Plans the schema work of a task from the source's present schema. Writes nothing.
 * Errors: those of a query, `schema_unsupported`, `schema_failed` (pg_dump), `source_ddl`, `lock_timeout`,
 * `deadline_exceeded`.
 */
export async function planSchema(scope: TaskScope): Promise<SchemaPlan> {
  const input = await readPlanInput(scope);
  const { kept, renaming } = keepEntries(input);
  const largeObjects = await planLargeObjects(scope, input);
  if (input.options.schema === 'existing') return planExisting(scope, input, largeObjects);
  const roles = await missingRoles(scope.target, kept, renaming, largeObjects.roles);
  return buildPlan(input, roles, largeObjects);
}

/** The tables stand already: nothing of the schema is run, but what it would have filled in the end is told. */
async function planExisting(
  scope: TaskScope,
  input: PlanInput,
  largeObjects: LargeObjectsPlan,
): Promise<SchemaPlan> {
  const plan = buildPlan(input, [], largeObjects);
  // no statement is run that would make them
  const roles = await missingRoles(scope.target, [], keepEntries(input).renaming, largeObjects.roles);
  const { sequences, findings } = await existingSequences(scope, plan.sequences, [
    ...plan.tables,
    ...(plan.unlogged ?? []),
    ...plan.roots,
  ]);
  const refreshed = plan.statements.filter(({ phase }) => phase === 'refresh');
  return {
    ...plan,
    sequences,
    statements: [],
    uniqueBefore: await uniqueBefore(scope, [...plan.tables, ...(plan.unlogged ?? [])]),
    findings: [
      ...selectionFindings(input.selection, input.dependencies),
      ...largeObjects.findings,
      ...roleFindings(roles, 'existing'),
      ...existingFindings(refreshed),
      ...findings,
    ],
  };
}

/** The pure half of planSchema. */
function buildPlan(
  input: PlanInput,
  lackingRoles: readonly string[],
  largeObjects: LargeObjectsPlan,
): SchemaPlan {
  const { selection, dependencies, entries, everything, limits } = input;
  const tables = selection.tables.map((table) => table.relation);
  const { kept, renaming, present } = keepEntries(input);
  requireTables(kept, tables);

  const { drafts, unsupported } = draftStatements(kept, input, renaming);
  const keptSet = new Set(kept);
  const withRows = selection.tables.filter(({ kind }) => kind !== 'partitioned');
  const mapping = (source: RelationName): TableMapping => ({ source, target: renaming.relation(source) });
  return {
    tables: withRows
      .filter(({ persistence }) => persistence === 'permanent')
      .map((table) => plannedTable(table, mapping(table.relation), input.options)),
    unlogged: withRows
      .filter(({ persistence }) => persistence === 'unlogged')
      .map((table) => plannedTable(table, mapping(table.relation), input.options)),
    largeObjects: largeObjects.copied,
    roots: selection.tables
      .filter(({ kind }) => kind === 'partitioned')
      .map(({ relation }) => mapping(relation)),
    sequences: dependencies.sequences.map(mapping),
    statements: numbered([
      ...(input.options.roles === 'create'
        ? lackingRoles.map((name) => ({ ...createRole(name), rank: 0 }))
        : []),
      ...drafts,
      ...limits.drops.map((dropped) => dropDraft(dropped, renaming)),
    ]),
    findings: [
      ...limits.findings,
      ...selectionFindings(selection, dependencies),
      ...textFindings(kept, renaming, [...tables, ...dependencies.sequences], present),
      ...collisionFindings(kept, renaming),
      ...skippedFindings(entries.filter((entry) => isSkipped(entry, input.options))),
      ...roleFindings(lackingRoles, input.options.roles),
      ...notMigratedFindings(unsupported),
      ...largeObjects.findings,
      ...(everything ? hiddenSubscriptionsFindings(input.subscriptions, entries) : []),
      ...(everything
        ? restFindings(
            entries.filter(
              (entry) =>
                (entry.classId !== 0 || holdsSecret(entry)) &&
                !keptSet.has(entry) &&
                !isSkipped(entry, input.options),
            ),
            dependencies,
            selection,
          )
        : []),
    ],
  };
}

function plannedTable(table: CatalogTable, mapping: TableMapping, options: TaskOptions): PlannedTable {
  return {
    ...mapping,
    columns: table.columns,
    keyColumns: table.keyColumns,
    // `nothing` identifies as little as `default` without a primary key: no key columns
    replicaIdentity: becomesFull(table, options)
      ? 'full'
      : table.replicaIdentity === 'nothing'
        ? 'default'
        : table.replicaIdentity,
    ...(table.where === undefined ? {} : { where: table.where }),
    ...(table.leftOut === undefined ? {} : { leftOut: table.leftOut }),
    rowsEstimated: table.rowsEstimated,
    bytesEstimated: table.bytesEstimated,
  };
}

/** The catalog was read before pg_dump ran: a table dropped or renamed in between is missing. */
function requireTables(kept: readonly DumpEntry[], tables: readonly RelationName[]): void {
  const created = new Set(
    kept.flatMap(({ statements }) =>
      statements.flatMap(({ deed, subject }) =>
        deed === 'create table' && subject !== null ? [relationKey(subject)] : [],
      ),
    ),
  );
  const missing = tables.map(relationKey).filter((key) => !created.has(key));
  if (missing.length > 0)
    throw new MigrationError(
      'source_ddl',
      `the schema changed while it was read: ${missing.join(', ')} is gone`,
      {
        kind: 'transient',
        details: { missing },
      },
    );
}
