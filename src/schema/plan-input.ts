// Used by plan.ts and compare.ts: what the source's catalog and its dump say about a request, and which entries of the
// dump are migrated under which names. Only reads.
import { relationKey, type RelationName } from '../model/relation.ts';
import type { TaskOptions } from '../model/task-options.ts';
import { readSelection, type TableSelection } from '../postgres/catalog.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { readDependencies, type Dependencies } from './dependencies.ts';
import { objectKey } from './dependency-graph.ts';
import { chooseDumper, dumpSchema, type DumpRequest, type Dumper } from './dump.ts';
import { concernsLeftOut, limitTables, type SchemaLimits } from './limited-tables.ts';
import { Renaming } from './rename.ts';
import type { DumpEntry } from './split.ts';
import { holdsSecret, wantedObjects, type OptIn } from './whole-database.ts';

export interface PlanInput {
  readonly selection: TableSelection;
  readonly dependencies: Dependencies;
  readonly entries: readonly DumpEntry[];
  readonly limits: SchemaLimits;
  readonly suffix: string;
  readonly options: TaskOptions;
  /** The request was `*`: whatever the database has is migrated or reported. */
  readonly everything: boolean;
  /** server_version_num of the target. */
  readonly targetVersion: number;
  /** OIDs of materialized views that have rows on the source. */
  readonly populated: ReadonlySet<number>;
  /** Names of the source's subscriptions: these columns anybody may read, while pg_dump tells only superusers. */
  readonly subscriptions: readonly string[];
}

/** Errors: as of planSchema. */
export async function readPlanInput(scope: TaskScope): Promise<PlanInput> {
  const { tables: requested, tableSuffix: suffix, options } = scope.spec;
  const everything = requested.length === 1 && requested[0] === '*';
  const [dumper, selection] = await Promise.all([
    chooseDumper(scope),
    readSelection(scope.source, requested, options),
  ]);
  const material = everything
    ? await readWhole(scope, dumper, selection)
    : await readSubset(scope, dumper, selection);
  const { rows } = await scope.target.query<{ version: number }>(
    `select current_setting('server_version_num')::int as version`,
  );
  const populated = await scope.source.query<{ oid: number }>(
    `select oid from pg_class where relkind = 'm' and relispopulated`,
  );
  const subscriptions = await scope.source.query<{ name: string }>(
    `select subname::text as name from pg_subscription
     where subdbid = (select oid from pg_database where datname = current_database()) order by 1`,
  );
  const { dependencies, drops, findings } = await limitTables(scope.source, selection, material.dependencies);
  return {
    selection,
    dependencies,
    limits: { drops, findings },
    entries: material.entries,
    suffix,
    options,
    everything,
    targetVersion: rows[0]?.version ?? 0,
    subscriptions: subscriptions.rows.map(({ name }) => name),
    populated: new Set(populated.rows.map(({ oid }) => oid)),
  };
}

type Material = Pick<PlanInput, 'entries' | 'dependencies'>;

async function readWhole(scope: TaskScope, dumper: Dumper, selection: TableSelection): Promise<Material> {
  const besides = besidesOf(scope.spec.options);
  const entries = await dumpSchema(scope, dumper, { role: 'source', schemas: null, extensions: [], besides });
  const wanted = wantedObjects(entries, optedIn(scope.spec.options));
  return { entries, dependencies: await readDependencies(scope.source, selection, wanted) };
}

/** pg_dump locks every table that it dumps: look only into the schemas concerned, unless what is needed lies in none. */
async function readSubset(scope: TaskScope, dumper: Dumper, selection: TableSelection): Promise<Material> {
  const dependencies = await readDependencies(scope.source, selection, null);
  const { schemas, extensions, beyondSchemas } = dependencies;
  const narrow = !beyondSchemas && schemas.length > 0;
  const besides = besidesOf(scope.spec.options);
  const request = { role: 'source', schemas: narrow ? schemas : null, extensions, besides } as const;
  return { dependencies, entries: await dumpSchema(scope, dumper, request) };
}

/** Both sides are dumped with what the options ask for. */
export function besidesOf({ owners, privileges, tablespaces }: TaskOptions): DumpRequest['besides'] & object {
  return { owners: owners !== 'none', privileges, tablespaces: tablespaces !== 'none' };
}

function mapOf(option: string | Readonly<Record<string, string>>): ReadonlyMap<string, string> {
  return new Map(typeof option === 'string' ? [] : Object.entries(option));
}

function optedIn(options: TaskOptions): ReadonlySet<OptIn> {
  const optIns: readonly OptIn[] = ['foreignTables', 'eventTriggers', 'publications', 'subscriptions'];
  return new Set(optIns.filter((name) => options[name]));
}

export interface KeptEntries {
  readonly kept: readonly DumpEntry[];
  readonly renaming: Renaming;
  /** `relationKey` of tables, sequences and indexes that are migrated. */
  readonly present: ReadonlySet<string>;
}

/** Pure. */
export function keepEntries({ selection, dependencies, entries, suffix, options }: PlanInput): KeptEntries {
  const isLeftOut = concernsLeftOut(selection);
  const members = [...dependencies.members.values()];
  const relationsOf = (kind: 'index' | 'statistics'): RelationName[] =>
    members.filter((member) => member.kind === kind).map((member) => member.relation);
  const tables = selection.tables.map((table) => table.relation);
  const renamed = [...tables, ...dependencies.sequences, ...relationsOf('index')];
  const present = new Set(renamed.map(relationKey));
  return {
    kept: keptEntries(entries, dependencies, present).filter(
      (entry) => !isSkipped(entry, options) && !isLeftOut(entry),
    ),
    renaming: new Renaming(suffix, renamed, relationsOf('statistics'), mapOf(options.owners)),
    present,
  };
}

/** An extension that the options leave to the target, or its comment. */
export function isSkipped({ kind, tag }: DumpEntry, { extensions }: TaskOptions): boolean {
  const name =
    kind === 'EXTENSION' ? tag : kind === 'COMMENT' && tag.startsWith('EXTENSION ') ? tag.slice(10) : null;
  if (name === null) return false;
  return (typeof extensions === 'string' ? extensions : extensions[name.replaceAll('"', '')]) === 'skip';
}

/** The shell of a base type belongs to the type, which comes later and which pg_dump does not name. */
export function typeOfShell(shell: DumpEntry, entries: readonly DumpEntry[]): DumpEntry | undefined {
  return entries.find(
    ({ kind, schema, tag }) => kind === 'TYPE' && schema === shell.schema && tag === shell.tag,
  );
}

/**
 * Entries to migrate: (1) made from a catalog row: when the closure has it; (2) properties of other entries: when none
 * of those is dropped; (3) ATTACH, for which pg_dump prints neither: when both its relations are migrated.
 */
function keptEntries(
  entries: readonly DumpEntry[],
  { keep }: Dependencies,
  present: ReadonlySet<string>,
): DumpEntry[] {
  const verdicts = new Map<number, boolean>();
  return entries.filter((entry) => {
    const known = entry.dependencies.map((id) => verdicts.get(id)).filter((verdict) => verdict !== undefined);
    const names = entry.statements.flatMap((statement) => statement.names);
    const row = entry.kind === 'SHELL TYPE' ? (typeOfShell(entry, entries) ?? entry) : entry;
    const verdict = holdsSecret(entry)
      ? false
      : row.classId !== 0
        ? keep.has(objectKey(row.classId, row.objectId))
        : known.length > 0
          ? known.every(Boolean)
          : names.length > 0 && names.every((name) => present.has(relationKey(name)));
    verdicts.set(entry.dumpId, verdict);
    return verdict;
  });
}
