// One generation: a source session that holds ACCESS SHARE on the tables still to be copied and exports the snapshot
// that their parts are read under. Opened and ended by copy-parts.ts. Nobody's DDL waits behind it for longer than the
// patience given: every reader of the table would queue behind that DDL.
import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { MigrationError } from '../model/errors.ts';
import type { Role } from '../model/endpoint.ts';
import type { Lsn } from '../model/lsn.ts';
import { waitForFlush } from '../postgres/copy-flush.ts';
import { copyError } from '../postgres/copy-stream.ts';
import type { Session } from '../postgres/connections.ts';
import { recopyRemedy, slotOf } from '../postgres/slot-record.ts';
import { identRelation } from '../postgres/sql.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { ONE_SNAPSHOT } from '../postgres/transaction-options.ts';
import type { CopyPart, Marker } from './plan.ts';
import type { Waits } from './waits.ts';

const WATCH_INTERVAL_MS = 1_000;
const LOCK_RETRY_MS = 500;
/** Identifiers of one LOCK TABLE statement. */
const LOCK_BATCH = 200;

/**
 * - `open`: parts may begin
 * - `lost`: the holder's connection is gone, or an earlier generation was not at its end; running parts have their own copy
 *   of the snapshot and go on
 * - `yielded`: gave way to somebody's lock; running parts are aborted
 */
export type GenerationState = 'open' | 'lost' | 'yielded';

export interface Generation {
  readonly number: number;
  /** For SET TRANSACTION SNAPSHOT. */
  readonly exportedAs: string;
  /** `pg_current_snapshot()` of everything read in this generation. */
  readonly pgSnapshot: string;
  /** Read after the snapshot: the commit of every transaction that it sees lies before. */
  readonly horizonLsn: Lsn;
  /** Of an advisory lock that the holder keeps as long as its locks on the tables. */
  readonly holderKey: string;
  /** `Date.now()` when the snapshot was taken. */
  readonly begunAt: number;
  /** Resolves when the source's WAL is on disk up to the horizon; asked by every part, found out once. */
  flushed(): Promise<void>;
  /** Aborted when the task stops, the generation yields or a worker has failed. */
  readonly signal: AbortSignal;
  state(): GenerationState;
  /** Counts a backend's locks as the generation's. */
  watch(pid: number): void;
  unwatch(pid: number): void;
  /** Aborts the running parts. */
  abort(): void;
  /** The error of a part that found the holder gone; no further part begins. */
  holderLost(): MigrationError;
  /** The error of a part by blocks that an earlier generation has committed behind our back; no further part begins. */
  committedLate(marker: Marker): MigrationError;
  /** Closes the holder. */
  end(): Promise<void>;
}

export interface GenerationOptions {
  readonly number: number;
  readonly parts: readonly CopyPart[];
  /** How long somebody may wait for a lock of ours. */
  readonly patienceMs: number;
  readonly waits: Waits;
  readonly signal: AbortSignal;
}

/** Errors: `lock_timeout` after `slotTimeoutMs` with the blockers, `source_ddl` when a table is gone, the session's. */
export async function beginGeneration(scope: TaskScope, options: GenerationOptions): Promise<Generation> {
  const controller = new AbortController();
  const signal = AbortSignal.any([options.signal, controller.signal]);
  setMaxListeners(0, signal); // one listener a connection
  const holder = await scope.source.session({ purpose: 'holder', signal });
  let state: GenerationState = 'open';
  let ended = false;
  holder.client.once('end', () => {
    if (!ended && state === 'open') state = 'lost';
  });
  try {
    await lockTables(scope, holder, options);
    const holderKey = `dts holder ${randomUUID()}`;
    const { rows } = await holder.client.query<{
      exported: string;
      seen: string;
      horizon: Lsn;
      timeline: string;
      hasSlot: boolean;
    }>(
      `select pg_export_snapshot() as exported, pg_current_snapshot()::text as seen,
              pg_current_wal_insert_lsn()::text as horizon, pg_advisory_xact_lock(hashtextextended($1, 0)),
              left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) as timeline,
              exists (select from pg_replication_slots where slot_name = $2) as "hasSlot"`,
      [holderKey, slotOf(scope).name],
    );
    const row = rows[0];
    if (!row) throw new MigrationError('internal', 'pg_export_snapshot returned no row');
    requireSlotsServer(scope, row);
    const pids = new Set([holder.pid]);
    let flushed: Promise<void> | null = null;
    const watcherStop = new AbortController();
    const lost = (message: string, details: { readonly role: Role; readonly relation?: string }) => {
      if (state === 'open') state = 'lost';
      return new MigrationError('connection_failed', message, {
        details: { ...details, generation: options.number },
      });
    };
    const watcher = watchWaiters(scope, pids, options.patienceMs, watcherStop.signal, (waiter) => {
      state = 'yielded';
      scope.log.warn({ generation: options.number, waiter }, 'copy gives way to a lock on the source');
      controller.abort();
    });
    return {
      number: options.number,
      exportedAs: row.exported,
      pgSnapshot: row.seen,
      horizonLsn: row.horizon,
      holderKey,
      begunAt: Date.now(),
      flushed() {
        flushed ??= waitForFlush(
          scope,
          row.horizon,
          (reason) => options.waits.set(`flush ${options.number}`, reason),
          signal,
        ).catch((error: unknown) => {
          flushed = null; // the next part asks again
          throw error;
        });
        return flushed;
      },
      signal,
      state: () => state,
      watch: (pid) => void pids.add(pid),
      unwatch: (pid) => void pids.delete(pid),
      abort() {
        ended = true; // the holder's end is our doing now
        controller.abort();
      },
      holderLost: () => lost('source: the connection that holds the snapshot was lost', { role: 'source' }),
      committedLate: ({ relation, part, generation }) =>
        lost(
          `target: part ${part} of ${relation} was committed by generation ${generation} after its connection was lost`,
          { role: 'target', relation },
        ),
      async end() {
        ended = true;
        watcherStop.abort();
        await watcher;
        await holder.close();
      },
    };
  } catch (error) {
    ended = true;
    await holder.close();
    throw copyError(error, 'source', { relation: 'copy' });
  }
}

/**
 * The address may lead to a promoted standby by now. Parts read there hold rows that the slot's server never had, and
 * their markers would outlive the way back.
 */
function requireSlotsServer(
  scope: TaskScope,
  { timeline, hasSlot }: { readonly timeline: string; readonly hasSlot: boolean },
): void {
  const { name, system } = slotOf(scope);
  if (!system || (hasSlot && Number.parseInt(timeline, 16) === system.timeline)) return;
  throw new MigrationError(
    'source_replaced',
    hasSlot
      ? `source: its timeline is ${Number.parseInt(timeline, 16)}, the slot was made on ${system.timeline}`
      : `source: the server that answers has no replication slot ${name}`,
    {
      hint:
        'point the source at the server where the migration began, then resume; if that one is gone: ' +
        recopyRemedy(scope),
      details: { role: 'source', slot: name },
    },
  );
}

/** Leaves `holder` in a transaction that holds the locks and has no snapshot yet. */
async function lockTables(scope: TaskScope, holder: Session, options: GenerationOptions): Promise<void> {
  const { parts, waits, signal } = options;
  const key = `locks ${holder.pid}`;
  const relations = [...new Set(parts.map((part) => identRelation(part.table.source)))];
  const deadline = Date.now() + scope.spec.options.slotTimeoutMs;
  try {
    for (;;) {
      await holder.client.query(ONE_SNAPSHOT.begin);
      // Short, because our waiting request stops everybody who comes after it. SET and LOCK take no snapshot.
      await holder.client.query(`set local lock_timeout = '2s'`);
      const stopNaming = new AbortController();
      const naming = nameBlockers(scope, holder.pid, key, waits, stopNaming.signal);
      let blockers = '';
      try {
        for (let at = 0; at < relations.length; at += LOCK_BATCH) {
          const only = relations.slice(at, at + LOCK_BATCH).map((relation) => `only ${relation}`);
          await holder.client.query(`lock table ${only.join(', ')} in access share mode`);
        }
        return;
      } catch (error) {
        const failure = copyError(error, 'source', { relation: 'copy' });
        if (failure.code !== 'lock_timeout') throw failure;
        stopNaming.abort();
        blockers = await naming;
        if (Date.now() > deadline)
          throw new MigrationError(
            'lock_timeout',
            'source: the tables could not be locked for reading in time',
            {
              hint: blockers === '' ? 'end what locks the tables' : `end what locks the tables: ${blockers}`,
              details: { role: 'source', blockers },
              cause: error,
            },
          );
        await holder.client.query('rollback');
      } finally {
        stopNaming.abort();
        await naming;
      }
      await waits.pause(key, lockReason(blockers), LOCK_RETRY_MS, signal);
    }
  } finally {
    waits.set(key, null);
  }
}

function lockReason(blockers: string): string {
  return `the copy waits for locks on the source${blockers === '' ? '' : `: ${blockers}`}`;
}

/** Shows who blocks `pid`, until stopped; resolves to the last answer. */
async function nameBlockers(
  scope: TaskScope,
  pid: number,
  key: string,
  waits: Waits,
  signal: AbortSignal,
): Promise<string> {
  let last = '';
  for (;;) {
    try {
      await sleep(LOCK_RETRY_MS, signal);
      const { rows } = await scope.source.query<{ blocker: string }>(
        `select format('pid %s (%s, %s s: %s)', b.pid, coalesce(a.usename, 'prepared transaction'),
                       coalesce(extract(epoch from now() - a.xact_start)::int, 0), left(a.query, 80)) as blocker
           from unnest(pg_blocking_pids($1)) as b(pid) left join pg_stat_activity a on a.pid = b.pid`,
        [pid],
      );
      if (rows.length > 0) last = rows.map((row) => row.blocker).join(', ');
      if (last !== '' && !signal.aborted) waits.set(key, lockReason(last));
    } catch (error) {
      if (signal.aborted) return last;
      scope.log.debug({ error }, 'could not name who blocks the copy');
    }
  }
}

/** Calls `give` once when the same backend has waited for a lock of `pids` for `patienceMs`. */
async function watchWaiters(
  scope: TaskScope,
  pids: ReadonlySet<number>,
  patienceMs: number,
  signal: AbortSignal,
  give: (waiter: object) => void,
): Promise<void> {
  // pg_locks.waitstart exists from 14 on, so the clock is ours.
  let since = new Map<string, number>();
  while (!signal.aborted) {
    try {
      await sleep(WATCH_INTERVAL_MS, signal);
      const { rows } = await scope.source.query<{
        waiter: string;
        pid: number;
        relation: string;
        query: string;
      }>(
        `select distinct w.virtualtransaction || '/' || w.relation as waiter, w.pid, w.relation::regclass::text as relation,
                left(a.query, 200) as query
           from pg_locks w
           join pg_locks h on h.locktype = 'relation' and h.database = w.database and h.relation = w.relation
            and h.granted and h.pid = any($1::int[])
           left join pg_stat_activity a on a.pid = w.pid
          where w.locktype = 'relation' and not w.granted and w.mode = 'AccessExclusiveLock'`,
        [[...pids]],
      );
      const now = Date.now();
      since = new Map(rows.map(({ waiter }) => [waiter, since.get(waiter) ?? now]));
      const first = rows.find(({ waiter }) => now - (since.get(waiter) ?? now) >= patienceMs);
      if (first && !signal.aborted) {
        give({ pid: first.pid, relation: first.relation, query: first.query });
        return;
      }
    } catch (error) {
      if (!signal.aborted) scope.log.debug({ error }, 'could not look for waiters behind the copy');
    }
  }
}
