// Large objects of a whole database, whose changes are not in the WAL: copied under the fence with their OIDs, which
// columns hold. No trigger fences them; but who stores one puts its OID into a row, and that is refused. What changes in
// spite of it is found by the comparison, which reads them again. Every cutover begins anew.
//
// Their rows (pg_largeobject) may be read by superusers only: lo_get reads what a role has been granted.
import { MigrationError } from '../model/errors.ts';
import type { TaskOptions } from '../model/task-options.ts';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { hasNoLargeObjects, unlinkLargeObjects } from '../postgres/large-objects.ts';
import { ident, literal } from '../postgres/sql.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { readingDeadline, underFence } from '../postgres/under-fence.ts';

/** Objects of one transaction. */
const BATCH = 64;
/** What is read of each at once; the rest of a larger one comes in chunks. In memory: BATCH × FIRST_BYTES, or a chunk. */
const FIRST_BYTES = 64 * 1024;
const CHUNK_BYTES = 1024 * 1024;

interface Grant {
  /** Null: PUBLIC. */
  readonly grantee: string | null;
  readonly privilege: string;
  readonly grantable: boolean;
}

interface LargeObject {
  readonly oid: string;
  readonly owner: string;
  readonly comment: string | null;
  /** Null: the default, all to the owner. */
  readonly grants: readonly Grant[] | null;
  readonly data: Buffer;
}

/**
 * Removes those that an earlier attempt has made and copies all. Errors: `target_conflict` with the OID in use,
 * `insufficient_privilege`, those of the servers, `deadline_exceeded` at `at`, ms since the epoch.
 */
export async function copyLargeObjects(scope: TaskScope, at = readingDeadline(scope)): Promise<void> {
  if (schemaPlanOf(scope).largeObjects !== true || (await hasNoLargeObjects(scope))) return;
  const limit = {
    what: 'the copy of the large objects',
    remedy: 'begin anew with options.large_objects false',
  };
  await underFence(scope, at, limit, async (signal) => {
    scope.progress.setWaitingFor('the removal of large objects of an earlier attempt');
    await unlinkLargeObjects(scope, signal);
    const source = await scope.source.session({ purpose: 'copy', signal });
    try {
      const target = await scope.target.session({ purpose: 'copy', signal });
      try {
        await copyAll(scope, source, target);
      } finally {
        await target.close(); // after an error this is the rollback
      }
    } finally {
      await source.close();
    }
  });
}

async function copyAll(scope: TaskScope, source: Session, target: Session): Promise<void> {
  await source.client.query('begin isolation level repeatable read read only');
  let copied = 0;
  for (let after = '0'; ; ) {
    scope.progress.setWaitingFor(`the copy of large objects, ${copied} done`);
    const objects = await readBatch(source, after);
    const last = objects.at(-1);
    if (!last) break;
    await target.client.query('begin');
    await create(scope, target, objects);
    for (const { oid, data } of objects) if (data.length === FIRST_BYTES) await copyRest(source, target, oid);
    const properties = objects.flatMap((object) => propertiesOf(object, scope.spec.options));
    if (properties.length > 0) await onTarget(() => target.client.query(properties.join('; ')));
    await onTarget(() => target.client.query('commit'));
    scope.failpoint('copy.mid-large-objects');
    copied += objects.length;
    after = last.oid;
  }
  await source.client.query('commit');
}

async function readBatch(source: Session, after: string): Promise<readonly LargeObject[]> {
  try {
    const { rows } = await source.client.query<LargeObject>(
      `select m.oid::text, pg_get_userbyid(m.lomowner)::text as owner,
         obj_description(m.oid, 'pg_largeobject') as comment,
         case when m.lomacl is not null then (
           select coalesce(json_agg(json_build_object('privilege', a.privilege_type, 'grantable', a.is_grantable,
             'grantee', case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end)), '[]')
           from aclexplode(m.lomacl) a) end as grants,
         lo_get(m.oid, 0, $2) as data
       from (select * from pg_largeobject_metadata where oid > $1::oid order by oid limit $3) m order by m.oid`,
      [after, FIRST_BYTES, BATCH],
    );
    return rows;
  } catch (error) {
    throw fromPostgres(error, { role: 'source', object: 'large objects' });
  }
}

async function create(scope: TaskScope, target: Session, objects: readonly LargeObject[]): Promise<void> {
  const oids = objects.map(({ oid }) => oid);
  const { rows } = await onTarget(() =>
    target.client.query<{ oid: string }>(
      'select oid::text from pg_largeobject_metadata where oid = any ($1::oid[]) order by oid',
      [oids],
    ),
  );
  if (rows.length > 0)
    throw new MigrationError(
      'target_conflict',
      `target: ${rows.length} large objects of the source’s OIDs are there already, the first is ${rows[0]?.oid}`,
      {
        hint: 'remove them (lo_unlink), or set options.large_objects to false',
        details: { role: 'target', oids: rows.map(({ oid }) => oid) },
      },
    );
  await onTarget(() =>
    target.client.query('insert into dts.large_object (task_id, oid) select $1, unnest($2::oid[])', [
      scope.taskId,
      oids,
    ]),
  );
  await onTarget(() =>
    target.client.query(
      'select lo_from_bytea(o.oid, o.data) from unnest($1::oid[], $2::bytea[]) as o(oid, data)',
      [oids, objects.map(({ data }) => data)],
    ),
  );
}

async function copyRest(source: Session, target: Session, oid: string): Promise<void> {
  for (let at = FIRST_BYTES; ; at += CHUNK_BYTES) {
    const { rows } = await source.client.query<{ data: Buffer }>(
      'select lo_get($1::oid, $2::bigint, $3) as data',
      [oid, at, CHUNK_BYTES],
    );
    const data = rows[0]?.data ?? Buffer.alloc(0);
    if (data.length > 0)
      await onTarget(() =>
        target.client.query('select lo_put($1::oid, $2::bigint, $3::bytea)', [oid, at, data]),
      );
    if (data.length < CHUNK_BYTES) return;
  }
}

async function onTarget<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw fromPostgres(error, { role: 'target', object: 'large objects' });
  }
}

/** Statements for owner, privileges and comment, as far as the options ask for them. */
function propertiesOf(
  { oid, owner, comment, grants }: Omit<LargeObject, 'data'>,
  { owners, privileges }: Pick<TaskOptions, 'owners' | 'privileges'>,
): string[] {
  const renamed = (role: string): string => ident(typeof owners === 'string' ? role : (owners[role] ?? role));
  const object = `large object ${oid}`;
  const statements: string[] = [];
  if (comment !== null) statements.push(`comment on ${object} is ${literal(comment)}`);
  if (owners !== 'none') statements.push(`alter ${object} owner to ${renamed(owner)}`);
  if (!privileges || grants === null) return statements;
  const ownersOwn = grants.filter(({ grantee }) => grantee === owner).length;
  const others = grants.filter(({ grantee }) => grantee !== owner);
  // an owner may have given up rights; with another owner that says nothing
  if (owners !== 'none' && ownersOwn < 2) {
    statements.push(`revoke all on ${object} from ${renamed(owner)}`);
    others.push(...grants.filter(({ grantee }) => grantee === owner));
  }
  for (const { grantee, privilege, grantable } of others) {
    const to = grantee === null ? 'public' : renamed(grantee);
    statements.push(`grant ${privilege} on ${object} to ${to}${grantable ? ' with grant option' : ''}`);
  }
  return statements;
}
