// Used by plan.ts: whether the large objects of the source come along (a whole database's do), what stands in the way, and
// what has to be said of them. copy/large-objects.ts copies them under the fence.
import type { Finding } from '../model/finding.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { literal } from '../postgres/sql.ts';
import type { PlanInput } from './plan-input.ts';

const PAGE = 10_000;

export interface LargeObjectsPlan {
  readonly copied: boolean;
  readonly findings: readonly Finding[];
  /** Of owners and grants, as the source calls them, as far as the options ask for those. */
  readonly roles: readonly string[];
}

interface Facts {
  readonly count: number;
  /** Of all on the source's disk. */
  readonly megabytes: number;
  /** Those that our role may not read. */
  readonly denied: number;
  readonly user: string;
}

/** Errors: those of a query. */
export async function planLargeObjects(scope: TaskScope, input: PlanInput): Promise<LargeObjectsPlan> {
  const { options, sourceDb, targetDb } = scope.spec;
  const same =
    sourceDb.host === targetDb.host && sourceDb.port === targetDb.port && sourceDb.dbname === targetDb.dbname;
  // also when there are none yet
  const copied = input.everything && options.largeObjects && !same;
  const facts = await readFacts(scope);
  if (facts.count === 0) return { copied, findings: [], roles: [] };
  if (!copied) return { copied, findings: same ? [] : [leftBehind(facts.count, input)], roles: [] };
  const findings = [comeAlong(facts)];
  if (facts.denied > 0) findings.push(selectDenied(facts));
  const taken = await takenOnTarget(scope);
  if (taken.length > 0) findings.push(conflict(taken));
  return { copied, findings, roles: await rolesOf(scope) };
}

/** pg_largeobject is for superusers: what a role may read by lo_get is told by the ACLs. */
async function readFacts(scope: TaskScope): Promise<Facts> {
  const { rows } = await scope.source.query<Facts>(
    `select count(*)::int as count, ceil(pg_table_size('pg_largeobject') / 1048576.0)::int as megabytes,
       current_user::text as user, count(*) filter (where not (
         (select rolsuper from pg_roles where rolname = current_user)
         or current_setting('lo_compat_privileges')::bool
         or (lomacl is null and pg_has_role(lomowner, 'usage'))
         or exists (select from aclexplode(lomacl) a where a.privilege_type = 'SELECT'
                    and (a.grantee = 0 or pg_has_role(a.grantee, 'usage')))))::int as denied
     from pg_largeobject_metadata`,
  );
  return rows[0] ?? { count: 0, megabytes: 0, denied: 0, user: '' };
}

/** OIDs of the source that the target has given to others, a page of the first ones at most. */
async function takenOnTarget(scope: TaskScope): Promise<string[]> {
  for (let after = '0'; ; ) {
    const page = await scope.source.query<{ oid: string }>(
      'select oid::text from pg_largeobject_metadata m where oid > $1::oid order by m.oid limit $2',
      [after, PAGE],
    );
    const last = page.rows.at(-1);
    if (!last) return [];
    const { rows } = await scope.target.query<{ oid: string }>(
      'select oid::text from pg_largeobject_metadata m where oid = any ($1::oid[]) order by m.oid',
      [page.rows.map(({ oid }) => oid)],
    );
    if (rows.length > 0) return rows.map(({ oid }) => oid);
    after = last.oid;
  }
}

async function rolesOf(scope: TaskScope): Promise<string[]> {
  const { owners, privileges } = scope.spec.options;
  const { rows } = await scope.source.query<{ name: string }>(
    `select pg_get_userbyid(oid)::text as name from (
       select lomowner as oid from pg_largeobject_metadata where $1
       union select a.grantee from pg_largeobject_metadata, aclexplode(lomacl) a
         where $2 and a.grantee <> 0 and ($1 or a.grantee <> lomowner)) r order by 1`,
    [owners !== 'none', privileges],
  );
  return rows.map(({ name }) => name);
}

function leftBehind(count: number, { everything, selection }: PlanInput): Finding {
  const mayBeNamed = selection.tables.some(({ columns }) =>
    columns.some(({ type }) => /^(?:.*\.)?(?:oid|lo)$/.test(type)),
  );
  return {
    code: 'large_objects',
    severity: everything || mayBeNamed ? 'warning' : 'info',
    object: 'source',
    message: `the source has ${count} large objects (pg_largeobject), which are not migrated`,
    remedy: everything
      ? 'set options.large_objects to true'
      : 'set tables to ["*"]: a list of tables does not bring them',
  };
}

function comeAlong({ count, megabytes }: Facts): Finding {
  return {
    code: 'large_objects',
    severity: 'warning',
    object: 'source',
    message:
      `${count} large objects (about ${megabytes} MB) are copied under the write stop, which grows with them; ` +
      'no trigger fences them: the comparison finds what changes before it, nothing what changes after it',
    remedy: 'stop what writes large objects before the cutover; or set options.large_objects to false',
  };
}

function selectDenied({ denied, user }: Facts): Finding {
  return {
    code: 'large_object_select_denied',
    severity: 'blocking',
    object: 'source',
    message: `source: role ${user} may not read ${denied} large objects`,
    remedy: `do $$ declare o oid; begin for o in select oid from pg_largeobject_metadata loop execute format('grant select on large object %s to %I', o, ${literal(user)}); end loop; end $$`,
  };
}

function conflict(oids: readonly string[]): Finding {
  return {
    code: 'large_object_conflict',
    severity: 'blocking',
    object: 'target',
    message: `target: OIDs of the source's large objects are in use there, ${oids[0]} is the first`,
    remedy: `select lo_unlink(${oids[0]}) if it is not needed, and so the others; or set options.large_objects to false`,
  };
}
