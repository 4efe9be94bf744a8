// The task's publication on the source, with the marker table of a source of version 13. Made before the slot: pgoutput
// looks it up in the catalog as of the change that it decodes. Leaves are published as themselves
// (publish_via_partition_root = false); roots are not listed: TRUNCATE of a root arrives as truncates of its leaves.
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import { dropSchemaIfEmpty, lockBookkeeping } from './bookkeeping.ts';
import { fromPostgres } from './errors.ts';
import { CREATE_TRIGGER_CONFLICTS } from './lock-holders.ts';
import { hasLogicalMessages, markerTable, sourceVersion } from './marker.ts';
import { DTS_SCHEMA, ident, identRelation, literal, taskObjectName } from './sql.ts';
import { onePerTransaction } from './one-per-transaction.ts';
import { recopyRemedy } from './slot-record.ts';
import { schemaPlanOf, type TaskScope } from './task-scope.ts';

/** The remedy for DDL that cannot be followed. */
export const undoDdl =
  'DDL is not replicated: undo it on the source and resume, or cancel this migration and start a new one';

/** Checkpoint that says whether the task has its publication. */
export const publicationNote = 'publication';
/** CREATE PUBLICATION waits for VACUUM, ANALYZE and DDL on the tables; queued lock requests would stall nobody else's DML. */
const LOCK_TIMEOUT_MS = 10_000;

/** Checkpoint `publication`. `creating` is written first, so that one that a kill left behind is looked for and dropped. */
interface PublicationRecord {
  readonly state: 'creating' | 'created' | 'dropped';
  /** Number of the last addition that is published; absent: none. */
  readonly addition?: number;
  /** Row filters and column lists as the source prints them, by table. Absent: there are none. */
  readonly limits?: Readonly<Record<string, string>>;
}

/** Its comment, made in the same transaction: the name alone does not tell ours from somebody else's. */
function signature(scope: TaskScope): string {
  return `publication of migration ${scope.taskId}, ${scope.incarnation}`;
}

function signSql(scope: TaskScope): string {
  return `comment on publication ${ident(taskObjectName(scope.taskId))} is ${literal(signature(scope))}`;
}

interface FoundPublication {
  readonly isOurs: boolean;
  readonly tables: readonly string[];
  /** Publishes every operation of leaves as themselves. */
  readonly complete: boolean;
  /** As of PublicationRecord. */
  readonly limits: Readonly<Record<string, string>>;
}

async function findPublication(scope: TaskScope, name: string): Promise<FoundPublication | null> {
  const { rows } = await scope.source.query<{ complete: boolean; comment: string | null }>(
    `select obj_description(oid, 'pg_publication') as comment,
       pubinsert and pubupdate and pubdelete and pubtruncate and not puballtables and not pubviaroot as complete
     from pg_publication where pubname = $1`,
    [name],
  );
  const publication = rows[0];
  if (!publication) return null;
  // a node tree is a value of its own type: no text becomes one
  const qual = (await sourceVersion(scope)) >= 150_000 ? 'pg_get_expr(r.prqual, c.oid)' : 'null';
  // to_jsonb: row filters and column lists exist from 15 on
  const members = await scope.source.query<RelationName & { limits: string | null }>(
    `select n.nspname as schema, c.relname as name,
       nullif(concat_ws(' where ', to_jsonb(r) ->> 'prattrs', ${qual}), '') as limits
     from pg_publication p join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid
       join pg_namespace n on n.oid = c.relnamespace
     where p.pubname = $1`,
    [name],
  );
  return {
    isOurs: publication.comment === signature(scope),
    tables: members.rows.map((row) => relationKey(row)),
    complete: publication.complete,
    limits: Object.fromEntries(
      members.rows.flatMap((row) => (row.limits === null ? [] : [[relationKey(row), row.limits]])),
    ),
  };
}

/** Null when the publication is as we made it, else what is different, in words. `coming`: being added to it. */
function difference(
  found: FoundPublication,
  wanted: readonly string[],
  coming: ReadonlySet<string>,
  limits: PublicationRecord['limits'] = {},
): string | null {
  if (!found.complete) return 'it no longer publishes every change of its tables';
  const has = new Set(found.tables);
  const wants = new Set(wanted);
  const missing = wanted.filter((table) => !has.has(table) && !coming.has(table));
  const surplus = found.tables.filter((table) => !wants.has(table));
  if (missing.length > 0) return `it lacks ${missing.join(', ')}`;
  if (surplus.length > 0) return `it has also ${surplus.join(', ')}`;
  const tables = new Set([...Object.keys(limits), ...Object.keys(found.limits)]);
  const limited = [...tables].filter((table) => limits[table] !== found.limits[table]);
  if (limited.length > 0) return `it has another row filter or column list for ${limited.join(', ')}`;
  return null;
}

/**
 * Makes the publication, or checks the one that is there:
 *
 *   checkpoint        publication        result
 *   1 none, creating  absent             created
 *   2 none, creating  not signed by us   `slot_stranger`; also when it appears while ours is made
 *   3 none, creating  signed by us       unused (no slot yet): kept if its tables are right, else made again
 *   4 created         as we made it      nothing to do
 *   5 created         absent or changed  `publication_lost`: changes since then were not decoded
 *   6 dropped         any                `publication_lost`
 */
export async function ensurePublication(scope: TaskScope): Promise<void> {
  const name = taskObjectName(scope.taskId);
  const record = scope.checkpoints.get<PublicationRecord>(publicationNote);
  const needsMarkerTable = !hasLogicalMessages(await sourceVersion(scope));
  const members: PublishedTable[] = [...schemaPlanOf(scope).tables];
  if (needsMarkerTable) members.push({ source: markerTable(scope.taskId), columns: [] });
  const wanted = members.map(({ source }) => relationKey(source));
  const found = await findPublication(scope, name);
  const { addition } = schemaPlanOf(scope);
  const isGrowing = addition !== undefined && addition.pass > (record?.addition ?? 0);
  const coming = new Set(isGrowing && record?.state === 'created' ? addition.relations : []);
  const changed = found === null ? 'it is gone' : difference(found, wanted, coming, record?.limits);
  if (record?.state === 'created' || record?.state === 'dropped') {
    if (record.state === 'created' && changed === null) return;
    if (record.state === 'created' && found !== null)
      await refuseRenames(scope, found.tables, wanted, coming);
    throw new MigrationError(
      'publication_lost',
      `source: publication ${name}: ${changed ?? 'it was dropped by this task'}`,
      {
        hint: `changes may be missing from the stream: ${recopyRemedy(scope)}`,
        details: { publication: name, tables: wanted.length },
      },
    );
  }
  if (found !== null && !found.isOurs) throw stranger(name);
  scope.checkpoints.set(publicationNote, { state: 'creating' } satisfies PublicationRecord);
  // one with limits that a kill left behind is made again: they are what changed
  if (changed !== null) await createPublication(scope, name, members, needsMarkerTable, found !== null);
  const isLimited = members.some(({ where, leftOut }) => where !== undefined || leftOut !== undefined);
  const limits = isLimited ? (await findPublication(scope, name))?.limits : undefined;
  scope.checkpoints.set(publicationNote, {
    state: 'created',
    addition: schemaPlanOf(scope).addition?.pass ?? 0,
    ...(limits === undefined ? {} : { limits }),
  } satisfies PublicationRecord);
}

/**
 * A publication names its tables by OID: one that was renamed is still published. Nothing is missing from the stream then,
 * and renaming it back makes all of it good. Errors: `source_ddl`.
 */
async function refuseRenames(
  scope: TaskScope,
  found: readonly string[],
  wanted: readonly string[],
  coming: ReadonlySet<string>,
): Promise<void> {
  const missing = wanted.filter((table) => !found.includes(table) && !coming.has(table));
  const surplus = found.filter((table) => !wanted.includes(table));
  if (missing.length === 0 || missing.length !== surplus.length) return;
  const names = schemaPlanOf(scope).tables.map(({ source }) => source);
  const gone = names.filter((name) => missing.includes(relationKey(name))).map(identRelation);
  const { rows } = await scope.source.query<{ exists: boolean }>(
    'select to_regclass(name) is not null as exists from unnest($1::text[]) as w(name)',
    [gone],
  );
  if (gone.length !== missing.length || rows.some(({ exists }) => exists)) return;
  throw new MigrationError(
    'source_ddl',
    `source: ${missing.join(', ')} was renamed, or moved to another schema: ${surplus.join(', ')} is published in its place`,
    {
      hint: undoDdl,
      details: { object: missing[0], change: 'renamed' },
    },
  );
}

/** Commits a change of the catalog that changes nothing: the publication's comment, again. Not durable on standbys. Errors: as query. */
export async function touchPublication(scope: TaskScope): Promise<void> {
  await scope.source.transaction(async (client) => {
    await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}; set local synchronous_commit = local`);
    await client.query(signSql(scope));
  });
}

/** While no slot relies on it: a publication that is gone or was changed is made anew by `ensurePublication`. */
export function publishAgain(scope: TaskScope): void {
  if (scope.checkpoints.get<PublicationRecord>(publicationNote)?.state === 'created')
    scope.checkpoints.set(publicationNote, { state: 'creating' } satisfies PublicationRecord);
}

/**
 * Publishes what was added to the plan since. A stream may run meanwhile: pgoutput looks the publication up as of each
 * change, and forgets what it knows of a relation where the decoded transaction that added it ends. Idempotent. Errors: `lock_timeout` naming the writers that it waits for, `publication_lost`.
 *
 * Each table is locked against writers when it enters, so no transaction has changes to it both before and behind:
 *
 *   1 it wrote the table before    → it has ended, so every snapshot that a part is read under sees it whole
 *   2 it writes the table later    → all of its changes are streamed
 *
 * A barrier without the lock would cover half of it: pgoutput remembers for each relation whether it is published, and
 * before 13.21, 14.18, 15.13, 16.9 and 17.5 a transaction with changes on both sides leaves it convinced that it is not,
 * for all transactions that follow.
 */
export async function extendPublication(scope: TaskScope): Promise<void> {
  const record = scope.checkpoints.get<PublicationRecord>(publicationNote);
  const { tables, addition } = schemaPlanOf(scope);
  if (record?.state !== 'created' || !addition || addition.pass <= (record.addition ?? 0)) return;
  const name = taskObjectName(scope.taskId);
  const added = new Set(addition.relations);
  const found = await findPublication(scope, name);
  const has = new Set(found?.tables);
  const work = tables
    .filter(({ source }) => added.has(relationKey(source)) && !has.has(relationKey(source)))
    .map((table) => ({
      relation: table.source,
      sql: `lock table only ${identRelation(table.source)} in share row exclusive mode;
            alter publication ${ident(name)} add table ${publishedTable(table)};`,
    }));
  // one that is gone is not made again: ensurePublication reports it
  if (found !== null)
    await onePerTransaction(
      scope,
      work,
      'the publication',
      CREATE_TRIGGER_CONFLICTS,
      scope.spec.options.slotTimeoutMs,
      () => scope.failpoint('add.published'),
    );
  // a partition that came later has the limits of its root
  const isLimited = tables.some(
    ({ source, where, leftOut }) =>
      added.has(relationKey(source)) && (where !== undefined || leftOut !== undefined),
  );
  const limits = isLimited ? (await findPublication(scope, name))?.limits : record.limits;
  scope.checkpoints.set(publicationNote, {
    ...record,
    addition: addition.pass,
    ...(limits === undefined ? {} : { limits }),
  } satisfies PublicationRecord);
}

type PublishedTable = Pick<PlannedTable, 'source' | 'columns' | 'where' | 'leftOut'>;

/** As CREATE PUBLICATION takes it. ONLY: a table with classic inheritance would bring its children along. */
export function publishedTable({ source, columns, where, leftOut }: PublishedTable): string {
  const sent = columns.filter(({ generated }) => !generated).map(({ name }) => ident(name));
  const list = leftOut === undefined ? '' : ` (${sent.join(', ')})`;
  return `only ${identRelation(source)}${list}${where === undefined ? '' : ` where (${where})`}`;
}

function stranger(name: string): MigrationError {
  return new MigrationError('slot_stranger', `source: a publication ${name} exists that is not ours`, {
    hint: `choose another id, or, if nobody uses it: drop publication ${ident(name)}`,
    details: { publication: name },
  });
}

/** Without `again` nothing is dropped: what bears the name by then appeared after we had looked. */
async function createPublication(
  scope: TaskScope,
  name: string,
  members: readonly PublishedTable[],
  needsMarkerTable: boolean,
  again: boolean,
): Promise<void> {
  const deadline = Date.now() + scope.spec.options.slotTimeoutMs;
  for (;;) {
    try {
      await scope.source.transaction(async (client) => {
        await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`);
        if (again) await client.query(`drop publication if exists ${ident(name)}`);
        if (needsMarkerTable) {
          await lockBookkeeping(client);
          await client.query(`create schema if not exists ${ident(DTS_SCHEMA)}`);
          await client.query(
            `create table if not exists ${identRelation(markerTable(scope.taskId))} (id text primary key)`,
          );
        }
        const list = members.map(publishedTable).join(', ');
        await client.query(
          `create publication ${ident(name)}${list === '' ? '' : ` for table ${list}`}
           with (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)`,
        );
        await client.query(signSql(scope));
      });
      scope.progress.setWaitingFor(null);
      return;
    } catch (error) {
      scope.signal.throwIfAborted();
      const failure = fromPostgres(error, { role: 'source' });
      // 42710 duplicate_object, or 23505 unique_violation of pg_publication: it was being made at the same time. A
      // COMMIT of ours, sent by a process that was killed, may be what made it.
      const sqlstate = failure.details?.['sqlstate'];
      if (sqlstate === '42710' || sqlstate === '23505') {
        const found = await findPublication(scope, name);
        if (found?.isOurs === false) throw stranger(name);
        if (Date.now() > deadline) throw failure;
        again = found !== null;
        continue;
      }
      const waits = failure.code === 'lock_timeout';
      if (!waits || Date.now() > deadline) throw failure;
      scope.progress.setWaitingFor('the publication waits for DDL or VACUUM on the source tables');
    }
  }
}

/** From here on the publication is made anew, or taken as it is found: the slot that needed it unchanged is lost. */
export function abandonPublication(scope: TaskScope): void {
  scope.checkpoints.set(publicationNote, { state: 'creating' } satisfies PublicationRecord);
}

/** Drops the publication and the marker table, and the source's schema `dts` when that leaves it empty. Idempotent. */
export async function dropPublication(scope: TaskScope): Promise<void> {
  const record = scope.checkpoints.get<PublicationRecord>(publicationNote);
  if (record === undefined || record.state === 'dropped') return; // a publication of our name is somebody else's
  const name = taskObjectName(scope.taskId);
  const drops = record.state === 'created' || (await findPublication(scope, name))?.isOurs === true;
  await scope.source.transaction(async (client) => {
    await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`);
    await lockBookkeeping(client);
    if (drops) await client.query(`drop publication if exists ${ident(name)}`);
    const { rows } = await client.query<{ present: boolean }>(
      'select to_regnamespace($1) is not null as present',
      [DTS_SCHEMA],
    );
    if (!rows[0]?.present) return;
    await client.query(`drop table if exists ${identRelation(markerTable(scope.taskId))}`);
    await dropSchemaIfEmpty(client);
  });
  scope.checkpoints.set(publicationNote, { state: 'dropped' } satisfies PublicationRecord);
}
