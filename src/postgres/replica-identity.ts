// `options.replica_identity: full`: tables of the source that identify no row get REPLICA IDENTITY FULL before they are
// published, and what they had back when the task ends. The old value is noted before the change, so a kill at any
// moment leaves nothing that the clean-up does not know.
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { TaskOptions } from '../model/task-options.ts';
import type { CatalogTable } from './catalog.ts';
import { ALL_MODES } from './lock-holders.ts';
import { onePerTransaction } from './one-per-transaction.ts';
import { identRelation, taskObjectName } from './sql.ts';
import { schemaPlanOf, type TaskScope } from './task-scope.ts';

/** Checkpoint key. */
export const identitiesNote = 'replicaIdentities';
const RESTORE_PATIENCE_MS = 60_000;

/** What a table had; found again by its OID, whatever its name is by then. */
export interface IdentityNote extends RelationName {
  readonly oid: number;
  /** As relreplident. */
  readonly previous: 'd' | 'n' | 'i';
  /** A publication had it already, under which it could not be updated: then it is given back all the same. */
  readonly wasPublished: boolean;
}

/** By what the rows of a table are found. */
export type RowIdentity = Pick<CatalogTable, 'kind' | 'keyColumns' | 'replicaIdentity'>;

/** Without a usable key, and not full: publishing it would make UPDATE and DELETE fail on the source. */
export function isKeyless({ replicaIdentity, keyColumns }: RowIdentity): boolean {
  return replicaIdentity !== 'full' && keyColumns.length === 0;
}

/** Whether the task makes it full for its time. */
export function becomesFull(
  table: RowIdentity,
  { replicaIdentity }: Pick<TaskOptions, 'replicaIdentity'>,
): boolean {
  return replicaIdentity === 'full' && table.kind !== 'partitioned' && isKeyless(table);
}

/** What the task has changed and not yet given back; `prefix`: of another task's notes among its own. */
export function identityNotes(
  { checkpoints }: Pick<TaskScope, 'checkpoints'>,
  prefix = '',
): readonly IdentityNote[] {
  return checkpoints.get<readonly IdentityNote[]>(prefix + identitiesNote) ?? [];
}

/** Whether a publication needs `c` to have an identity. Leaves are checked whatever root is published. */
const neededBy = (which: string): string =>
  `exists (select from pg_publication p, pg_get_publication_tables(p.pubname) t
    where ${which} and (p.pubupdate or p.pubdelete)
      and (t.relid = c.oid or t.relid in (select relid from pg_partition_ancestors(c.oid))))`;

/**
 * Before the publication is made, and before a slot: what is decoded later must have been written under FULL. Takes ACCESS
 * EXCLUSIVE, one table a transaction. Idempotent. Errors: `lock_timeout` naming who is in the way, `insufficient_privilege`.
 */
export async function makeIdentitiesFull(scope: TaskScope): Promise<void> {
  if (scope.spec.options.replicaIdentity !== 'full') return;
  const full = schemaPlanOf(scope).tables.filter((table) => table.replicaIdentity === 'full');
  const { rows } = await scope.source.query<IdentityNote>(
    `select n.nspname::text as schema, c.relname::text as name, c.oid::int8::float8 as oid,
       c.relreplident::text as previous, ${neededBy('p.pubname <> $2')} as "wasPublished"
     from unnest($1::text[], $3::text[]) as w(schema, name)
       join pg_namespace n on n.nspname = w.schema
       join pg_class c on c.relnamespace = n.oid and c.relname = w.name
     where c.relkind = 'r' and c.relreplident <> 'f'`,
    [
      full.map(({ source }) => source.schema),
      taskObjectName(scope.taskId),
      full.map(({ source }) => source.name),
    ],
  );
  if (rows.length === 0) return;
  const noted = identityNotes(scope);
  const known = new Set(noted.map(({ oid }) => oid));
  scope.checkpoints.set(identitiesNote, [...noted, ...rows.filter(({ oid }) => !known.has(oid))]);
  const work = rows.map(({ schema, name }) => ({
    relation: { schema, name },
    sql: `alter table only ${identRelation({ schema, name })} replica identity full;`,
  }));
  await onePerTransaction(
    scope,
    work,
    'setting replica identity full',
    ALL_MODES,
    scope.spec.options.slotTimeoutMs,
  );
  scope.failpoint('identity.full');
}

/**
 * That every table of the plan with a key, or that is to have a full identity, sends by what its rows are found: an identity
 * index may have been dropped since. Published like that, its UPDATE and DELETE would fail. Errors: `source_ddl`.
 */
export async function checkIdentities(scope: TaskScope): Promise<void> {
  const wanted = schemaPlanOf(scope).tables.filter(
    ({ keyColumns, replicaIdentity }) => keyColumns.length > 0 || replicaIdentity === 'full',
  );
  const { rows } = await scope.source.query<RelationName>(
    `select n.nspname::text as schema, c.relname::text as name
     from unnest($1::text[], $2::text[]) as w(schema, name)
       join pg_namespace n on n.nspname = w.schema
       join pg_class c on c.relnamespace = n.oid and c.relname = w.name
     where c.relkind = 'r' and c.relpersistence = 'p' and c.relreplident <> 'f' and not exists (
       select from pg_index x where x.indrelid = c.oid and x.indisvalid
         and case c.relreplident when 'd' then x.indisprimary when 'i' then x.indisreplident else false end)
     order by 1, 2`,
    [wanted.map(({ source }) => source.schema), wanted.map(({ source }) => source.name)],
  );
  if (rows.length === 0) return;
  const names = rows.map((row) => relationKey(row));
  throw new MigrationError(
    'source_ddl',
    `source: rows of ${names.slice(0, 5).join(', ')} have no replica identity any more`,
    {
      hint: 'give each its primary key, or: alter table … replica identity using index …',
      details: { role: 'source', relations: names },
    },
  );
}

/**
 * Gives back what the tables had. A table that somebody has altered since is left alone, and one that a publication needs,
 * also ours where it could not be dropped yet, keeps FULL until that is gone: its updates would fail otherwise. Idempotent.
 * Errors: `lock_timeout` naming who is in the way, `replica_identity_in_use`.
 */
export async function restoreIdentities(
  scope: TaskScope,
  patienceMs: number = RESTORE_PATIENCE_MS,
): Promise<void> {
  const noted = identityNotes(scope);
  if (noted.length === 0) return;
  const { rows } = await scope.source.query<RelationName & { oid: number; needed: boolean }>(
    `select n.nspname::text as schema, c.relname::text as name, c.oid::int8::float8 as oid, ${neededBy('true')} as needed
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = any ($1::oid[]) and c.relkind = 'r' and c.relreplident = 'f'`,
    [noted.map(({ oid }) => oid)],
  );
  const notes = new Map(noted.map((note) => [note.oid, note]));
  const kept = rows.filter((row) => row.needed && notes.get(row.oid)?.wasPublished === false);
  const work = rows
    .filter((row) => !kept.includes(row))
    .map(({ schema, name, oid }) => {
      // an identity index that was dropped identifies as little as NOTHING, and cannot be named again
      const previous = notes.get(oid)?.previous === 'd' ? 'default' : 'nothing';
      return {
        relation: { schema, name },
        sql: `alter table only ${identRelation({ schema, name })} replica identity ${previous};`,
      };
    });
  await onePerTransaction(scope, work, 'restoring replica identities', ALL_MODES, patienceMs);
  if (kept.length === 0) return scope.checkpoints.delete(identitiesNote);
  scope.checkpoints.set(
    identitiesNote,
    noted.filter(({ oid }) => kept.some((row) => row.oid === oid)),
  );
  const names = kept.map((row) => relationKey(row));
  throw new MigrationError(
    'replica_identity_in_use',
    `source: ${names.join(', ')} keeps replica identity full: a publication has it, and its updates would fail without`,
    {
      hint: 'it is tried again from time to time; or give the table a primary key and: alter table … replica identity default',
      details: { role: 'source', relations: names },
    },
  );
}
