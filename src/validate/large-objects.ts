// Used by compare.ts: the large objects of both servers under the fence, each by its length and a digest. They are read
// again from the source after the copy, since no trigger fences them: one that has changed since differs.
import { createHash, type Hash } from 'node:crypto';
import { MigrationError } from '../model/errors.ts';
import type { LargeObjectsVerdict } from '../model/certificate.ts';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { hasNoLargeObjects } from '../postgres/large-objects.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { underFence } from '../postgres/under-fence.ts';
import { closePair, openPair } from './sessions.ts';

const PAGE = 1_000;
/** What a server has of one in memory at once. */
const CHUNK_BYTES = 1024 * 1024;
const SHOWN = 20;

interface ObjectDigest {
  readonly oid: string;
  readonly bytes: string;
  readonly digest: string;
}

/**
 * Null when the migration has none to copy. Errors: `validation_failed` with OIDs, `deadline_exceeded` at `at`, ms since the
 * epoch, those of the servers.
 */
export async function compareLargeObjects(scope: TaskScope, at: number): Promise<LargeObjectsVerdict | null> {
  if (schemaPlanOf(scope).largeObjects !== true) return null;
  if (await hasNoLargeObjects(scope)) return verdictOf(createHash('sha256'), 0, 0n);
  const limit = {
    what: 'the comparison of the large objects',
    remedy: 'begin anew with options.large_objects false',
  };
  return underFence(scope, at, limit, async (signal) => {
    const pair = await openPair(scope, signal);
    try {
      return await compare(scope, pair.source, pair.target);
    } finally {
      await closePair(pair);
    }
  });
}

async function compare(scope: TaskScope, source: Session, target: Session): Promise<LargeObjectsVerdict> {
  const { verdict, differing } = await digestBoth(source, target, {
    // of one that somebody has removed only our note is left
    ofTarget:
      'select l.oid from dts.large_object l join pg_largeobject_metadata m using (oid) where l.task_id = $4',
    parameter: () => scope.taskId,
    onPage: (count) => scope.progress.setWaitingFor(`the comparison of large objects, ${count} done`),
  });
  if (differing.length > 0)
    throw new MigrationError(
      'validation_failed',
      `source and target differ in large objects: ${differing.slice(0, SHOWN).join(', ')}${differing.length > SHOWN ? ' and more' : ''}`,
      {
        hint: 'no trigger fences large objects: stop the application that writes them, and request the cutover again',
        details: { oids: differing.slice(0, SHOWN) },
      },
    );
  return verdict;
}

export interface LargeObjectsCheck {
  /** Of the source, now. */
  readonly count: number;
  /** The source holds what was certified. */
  readonly sourceUnchanged: boolean;
  /** OIDs, the first ones, of the source's that the target lacks or has differently. */
  readonly differing: readonly string[];
}

/** For `dts verify`. Large objects that only the target has are its own: which of them were ours is not known any more. */
export async function checkLargeObjects(
  { source, target }: { readonly source: Session; readonly target: Session },
  certified: LargeObjectsVerdict,
): Promise<LargeObjectsCheck> {
  const { verdict, differing } = await digestBoth(source, target, {
    ofTarget: 'select oid from pg_largeobject_metadata where oid = any ($4::oid[])',
    parameter: (ofSource) => ofSource.map(({ oid }) => oid),
  });
  const sourceUnchanged =
    verdict.count === certified.count &&
    verdict.bytes === certified.bytes &&
    verdict.digest === certified.digest;
  return { count: verdict.count, sourceUnchanged, differing };
}

/** Page by page. `ofTarget`: the target's OIDs to look at, by one parameter of the source's page. */
async function digestBoth(
  source: Session,
  target: Session,
  options: {
    readonly ofTarget: string;
    readonly parameter: (ofSource: readonly ObjectDigest[]) => string | readonly string[];
    readonly onPage?: (count: number) => void;
  },
): Promise<{ readonly verdict: LargeObjectsVerdict; readonly differing: readonly string[] }> {
  const hash = createHash('sha256');
  const differing: string[] = [];
  let count = 0;
  let bytes = 0n;
  for (let after = '0', more = true; more; ) {
    options.onPage?.(count);
    const last = await lastOfPage(source, after);
    more = last !== null;
    // behind the source's last one there must be none of ours
    const upTo = last ?? '4294967295';
    const ofSource = await digests(source, 'source', 'select oid from pg_largeobject_metadata', [
      after,
      upTo,
    ]);
    const parameter = options.parameter(ofSource);
    const ofTarget = await digests(target, 'target', options.ofTarget, [after, upTo, parameter]);
    differing.push(...differences(ofSource, ofTarget).slice(0, SHOWN + 1 - differing.length));
    for (const object of ofSource) {
      hash.update(`${object.oid} ${object.bytes} ${object.digest}\n`);
      bytes += BigInt(object.bytes);
    }
    count += ofSource.length;
    after = upTo;
  }
  return { verdict: verdictOf(hash, count, bytes), differing };
}

function verdictOf(hash: Hash, count: number, bytes: bigint): LargeObjectsVerdict {
  return { count, bytes: String(bytes), digest: hash.digest('hex') };
}

function differences(ofSource: readonly ObjectDigest[], ofTarget: readonly ObjectDigest[]): string[] {
  const found = new Map(ofTarget.map((object) => [object.oid, object]));
  const differing = ofSource.filter(({ oid, bytes, digest }) => {
    const other = found.get(oid);
    found.delete(oid);
    return other?.bytes !== bytes || other.digest !== digest;
  });
  return [...differing.map(({ oid }) => oid), ...found.keys()];
}

async function lastOfPage(source: Session, after: string): Promise<string | null> {
  const { rows } = await source.client.query<{ last: string | null }>(
    `select max(oid)::text as last from (
       select oid from pg_largeobject_metadata where oid > $1::oid order by oid limit $2) page`,
    [after, PAGE],
  );
  return rows[0]?.last ?? null;
}

/** Chunk by chunk on the server: a digest each, and the digest of those. OFFSET 0 keeps lo_get from being called twice. */
async function digests(
  session: Session,
  role: 'source' | 'target',
  oids: string,
  params: readonly [after: string, upTo: string, ...rest: (string | readonly string[])[]],
): Promise<readonly ObjectDigest[]> {
  const [after, upTo, ...rest] = params;
  try {
    const { rows } = await session.client.query<ObjectDigest>(
      `with recursive listed as (${oids}), chunk as (
         select o.oid, 0::bigint as at, length(d.b) as l, sha256(d.b) as h
         from listed o, lateral (select lo_get(o.oid, 0, $3::int) as b offset 0) d
         where o.oid > $1::oid and o.oid <= $2::oid
         union all
         select c.oid, c.at + $3::int, length(d.b), sha256(d.b)
         from chunk c, lateral (select lo_get(c.oid, c.at + $3::int, $3::int) as b offset 0) d where c.l = $3::int)
       select oid::text, sum(l)::text as bytes, encode(sha256(string_agg(h, ''::bytea order by at)), 'hex') as digest
       from chunk group by chunk.oid order by chunk.oid`,
      [after, upTo, CHUNK_BYTES, ...rest],
    );
    return rows;
  } catch (error) {
    throw fromPostgres(error, { role, object: 'large objects' });
  }
}
