// The activity of migratingData: copies every part that has no marker, builds keys and indexes behind it, and tells the
// stream that the copy is complete; also the copy of single tables beside a stream that runs. Called after SLOT_READY and again after any crash, pause or error; it starts by
// asking the target what is done. When it returns or throws, every connection that it opened is closed.
import { setMaxListeners } from 'node:events';
import { asMigrationError, MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import { relationKey } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import type { Side } from '../postgres/connections.ts';
import { markCopyComplete } from '../postgres/copy-state.ts';
import { chooseCopyJobs, readHosts } from '../postgres/host.ts';
import { endSessions } from '../postgres/end-sessions.ts';
import { slotOf } from '../postgres/slot-record.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { copyParts } from './copy-parts.ts';
import { makeIndexBuilder, type IndexBuilder } from './indexes.ts';
import { Pace, watchSourceLag } from './pace.ts';
import { readMarkers, startOver } from './markers.ts';
import { planParts, type CopyPart } from './plan.ts';
import { ensureCuts, leaveWhole } from './plan-read.ts';
import { constrainedBefore, forgetCopies, isConstrained } from './recopy.ts';
import { Tally } from './tally.ts';
import { Waits } from './waits.ts';

const STREAM_POLL_MS = 200;

/** Tables that are copied while the stream goes on and sets their changes aside. */
export interface LiveTables {
  readonly relations: ReadonlySet<string>;
  /** Of these: tables that have their rows from before, which every part replaces. */
  readonly replaced: ReadonlySet<string>;
  /** Resolves when everything that these tables' copies may have seen in part is applied. */
  passes(relations: readonly string[], waits: Waits, signal: AbortSignal): Promise<void>;
}

/**
 * All tables of the plan, or those of `live`.
 * Errors: `copy_failed` (relation and part in `details`), `source_ddl`, `target_conflict`, `schema_failed`, `disk_full`,
 * `insufficient_privilege`, `aborted`, and transient ones after some attempts of its own. The first real one is thrown,
 * after everything else has ended.
 */
export async function copyTables(scope: TaskScope, live: LiveTables | null = null): Promise<void> {
  const stop = new AbortController();
  const signal = AbortSignal.any([scope.signal, stop.signal]);
  setMaxListeners(0, signal, scope.signal); // one listener a connection
  const waits = new Waits(scope);
  let first: unknown = null;
  const fail = (error: unknown): void => {
    if (!signal.aborted) first = error;
    stop.abort();
  };
  const builds: Promise<void>[] = [];
  let builder: IndexBuilder | null = null;
  try {
    scope.signal.throwIfAborted();
    await endLeftovers(scope);
    const plan = schemaPlanOf(scope);
    const slotIncarnation = slotOf(scope).incarnation;
    if (live === null) await forgetCopies(scope, plan, slotIncarnation);
    const isWanted = ({ source }: PlannedTable): boolean => live?.relations.has(relationKey(source)) ?? true;
    const replaced = live?.replaced ?? new Set();
    for (const relation of replaced) if (isConstrained(plan, relation)) leaveWhole(scope, relation);
    const constrained = live === null ? constrainedBefore(scope, plan) : [];
    const cuts = await ensureCuts(scope, plan.tables, slotIncarnation, constrained);
    const parts = planParts(plan.tables.filter(isWanted), cuts);
    await emptyFirst(scope, parts, replaced, slotIncarnation);
    const tally = new Tally(scope, parts, live !== null);
    const encoding = await commonEncoding(scope);
    const hosts = await readHosts(scope);
    const copyJobs = chooseCopyJobs(scope, hosts);
    const indexes = (builder = await makeIndexBuilder(scope, plan, {
      host: hosts.target,
      copyJobs,
      waits,
      signal,
    }));
    const onComplete = (relation: string): void => {
      builds.push(indexes.build(relation, tally.isOneSnapshot(relation)).catch(fail));
    };
    const pace = new Pace(scope);
    const watch = new AbortController();
    const watching = watchSourceLag(scope, pace, waits, AbortSignal.any([signal, watch.signal]));
    try {
      await copyParts(scope, {
        parts,
        copyJobs,
        slotIncarnation,
        replaced,
        encoding,
        tally,
        pace,
        waits,
        signal,
        onComplete,
      });
    } finally {
      watch.abort();
      await watching;
    }
    indexes.copyEnded();
    await Promise.all(builds);
    if (!signal.aborted && (indexes.waiting.length > 0 || indexes.attaches)) {
      if (live === null) markCopyComplete(scope, { uniqueLater: true });
      if (indexes.waiting.length > 0)
        await (live === null
          ? streamPasses(scope, indexes.waiting, slotIncarnation, waits, signal)
          : live.passes(indexes.waiting, waits, signal));
      if (indexes.attaches) await streamMeetsSource(scope, waits, signal);
      await indexes.finishUnique();
    }
    if (!signal.aborted) await indexes.finish();
    if (!signal.aborted && live !== null) await live.passes([...live.relations], waits, signal);
  } catch (error) {
    fail(error);
  }
  await Promise.all(builds);
  await builder?.close();
  waits.clear();
  if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request');
  if (first !== null) throw asMigrationError(first);
  if (live === null) markCopyComplete(scope);
}

/**
 * Blocks are the source's: which rows of the target such a part replaces cannot be told, so the table is emptied before its
 * first part.
 */
async function emptyFirst(
  scope: TaskScope,
  parts: readonly CopyPart[],
  replaced: ReadonlySet<string>,
  slotIncarnation: string,
): Promise<void> {
  const byBlocks = new Map(
    parts
      .filter(({ range, relation }) => range?.kind === 'ctid' && replaced.has(relation))
      .map((part) => [part.relation, part]),
  );
  if (byBlocks.size === 0) return;
  const markers = await readMarkers(scope, slotIncarnation);
  const begun = new Set([...markers.values()].map(({ relation }) => relation));
  for (const part of byBlocks.values())
    if (!begun.has(part.relation)) await startOver(scope, slotIncarnation, part);
}

/** Backends of ours that outlived a killed process hold locks and may be in the middle of an index, or of a part's commit. */
async function endLeftovers(scope: TaskScope): Promise<void> {
  const purposes = ['holder', 'copy', 'index'];
  await Promise.all([endSessions(scope, scope.source, purposes), endSessions(scope, scope.target, purposes)]);
}

/** Waits until the stream has applied everything that the copies of `tables` may have seen in part. */
async function streamPasses(
  scope: TaskScope,
  tables: readonly string[],
  slotIncarnation: string,
  waits: Waits,
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    // rows that the stream read again have markers and horizons of their own, so the last one is asked for every time
    const { rows } = await scope.target.query<{ passed: boolean; horizon: Lsn }>(
      `select coalesce((select applied_lsn >= m.horizon from dts.progress where task_id = $1), false) as passed,
              m.horizon::text as horizon
         from (select max(horizon_lsn) as horizon from dts.part
                where task_id = $1 and slot_incarnation = $2 and relation = any($3::text[])) as m`,
      [scope.taskId, slotIncarnation, tables],
    );
    if (rows[0]?.passed === true) return;
    await waits.pause(
      'unique',
      `unique constraints of ${tables.slice(0, 3).join(', ')} wait until the stream has passed ${rows[0]?.horizon ?? 'the copy'}`,
      STREAM_POLL_MS,
      signal,
    );
  }
}

/**
 * Waits until the stream is where the source is now. A partition is attached when no other one has rows of its range:
 * on the source the default partition was rid of them first, and the target's must be, too.
 */
async function streamMeetsSource(scope: TaskScope, waits: Waits, signal: AbortSignal): Promise<void> {
  const { rows: now } = await scope.source.query<{ lsn: Lsn }>(
    'select pg_current_wal_insert_lsn()::text as lsn',
  );
  for (;;) {
    const { rows } = await scope.target.query<{ passed: boolean }>(
      'select applied_lsn >= $2::pg_lsn as passed from dts.progress where task_id = $1',
      [scope.taskId, now[0]?.lsn],
    );
    if (rows[0]?.passed === true) return;
    await waits.pause(
      'attach',
      `new partitions are attached when the stream has passed ${now[0]?.lsn ?? 'their making'}`,
      STREAM_POLL_MS,
      signal,
    );
  }
}

/**
 * `client_encoding` for both ends of a COPY. UTF8, which every server encoding converts to and from; between two
 * SQL_ASCII servers that one, because their bytes need not be UTF8. Nothing else: names in our statements are UTF8.
 */
async function commonEncoding(scope: TaskScope): Promise<string> {
  const read = async (side: Side): Promise<string | undefined> =>
    (await side.query<{ encoding: string }>(`select current_setting('server_encoding') as encoding`)).rows[0]
      ?.encoding;
  const [source, target] = await Promise.all([read(scope.source), read(scope.target)]);
  return source === 'SQL_ASCII' && target === 'SQL_ASCII' ? 'SQL_ASCII' : 'UTF8';
}
