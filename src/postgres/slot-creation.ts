// Makes the task's slot and waits until it has a beginning (slot.ts says when). What it waits for is shown, and it gives up at
// `slot_timeout_ms` without leaving a slot that holds back WAL.
import { randomBytes } from 'node:crypto';
import { DatabaseError } from 'pg';
import { MigrationError } from '../model/errors.ts';
import { fromPostgres } from './errors.ts';
import { findBeginning } from './slot-beginning.ts';
import { forgetIntent, noteIntent } from './slot-intent.ts';
import { slotNote, type SlotRecord } from './slot-record.ts';
import { removeSlot } from './slot-removal.ts';
import { readSlot, stranger } from './slot-row.ts';
import { identifySystem } from './source-system.ts';
import { ident } from './sql.ts';
import { sleep, type TaskScope } from './task-scope.ts';
import { describeWriters, writersSince, type Writer } from './writers.ts';

const POLL_MS = 250;

/**
 * By walsender and with its snapshot exported: only then does the server also wait for transactions whose COMMIT is
 * already in the WAL while they are still running in the proc array. The connection is held until the barrier stands.
 */
export async function createSlot(scope: TaskScope, name: string): Promise<SlotRecord> {
  const started = Date.now();
  const remaining = (): number => started + scope.spec.options.slotTimeoutMs - Date.now();
  const giveUp = new AbortController();
  const signal = AbortSignal.any([scope.signal, giveUp.signal]);
  const session = await scope.source.session({ purpose: 'slot', replication: true, signal });
  let made = false;
  let unused = false;
  try {
    const system = await identifySystem(session.client);
    const failover = await wantsFailover(scope);
    await noteIntent(scope, system);
    const creation = session.client.query(
      `CREATE_REPLICATION_SLOT ${ident(name)} LOGICAL pgoutput${failover ? ' (FAILOVER)' : ''}`,
    );
    await waitNamingWriters(scope, 'the replication slot', started, remaining, creation);
    made = true;
    scope.failpoint('slot.created');
    const beginning = findBeginning(scope, signal);
    const consistentLsn = await waitNamingWriters(scope, 'the copy', started, remaining, beginning);
    const record: SlotRecord = {
      name,
      incarnation: `${system.id}/${consistentLsn}/${randomBytes(6).toString('hex')}`,
      consistentLsn,
      system,
      ...(failover ? { failover } : {}),
    };
    scope.checkpoints.set(slotNote, record);
    return record;
  } catch (error) {
    // Only this session's errors arrive unclassified: the server has answered, and keeps no slot that it did not finish.
    if (error instanceof DatabaseError && error.severity !== 'FATAL') forgetIntent(scope);
    // A slot that nobody advances retains WAL: not left behind for an attempt that may never come. It is ours when we were
    // told so or see our session at work on it; a slot of this name alone may be anybody's.
    else unused = made || (await isMadeBy(scope, name, session.pid));
    scope.signal.throwIfAborted();
    const failure = fromPostgres(error, { role: 'source', slot: name });
    // 42710 duplicate_object
    if (failure.details?.['sqlstate'] === '42710') throw stranger(name, 'somebody else made it just now');
    throw failure;
  } finally {
    scope.progress.setWaitingFor(null);
    giveUp.abort();
    await session.close();
    if (unused)
      await removeSlot(scope, name).then(
        () => forgetIntent(scope),
        (error: unknown) => scope.log.warn({ err: error }, 'the unused slot could not be dropped yet'),
      );
  }
}

/**
 * Standbys synchronise slots with FAILOVER only. It is asked for where the source says which standbys must have received
 * what its walsenders send (synchronized_standby_slots, 17+): otherwise the target may have changes that a promoted standby
 * never got, and nobody could go on there.
 */
async function wantsFailover(scope: TaskScope): Promise<boolean> {
  const { rows } = await scope.source.query<{ wanted: boolean }>(
    `select coalesce(current_setting('synchronized_standby_slots', true), '') <> '' as wanted`,
  );
  return rows[0]?.wanted === true;
}

async function isMadeBy(scope: TaskScope, name: string, pid: number): Promise<boolean> {
  const row = await readSlot(scope, name).catch(() => null);
  return row?.active_pid === pid;
}

/** Waits for `work`, showing which write transactions it waits for; `slot_creation_timeout` with them at the deadline. */
async function waitNamingWriters<T>(
  scope: TaskScope,
  what: string,
  started: number,
  remaining: () => number,
  work: Promise<T>,
): Promise<T> {
  let settled = false;
  const done = work.finally(() => (settled = true));
  done.catch(() => undefined); // awaited below, but perhaps after a throw of ours
  let writers: readonly Writer[] = [];
  for (;;) {
    const pause = Math.max(1, Math.min(POLL_MS, remaining()));
    await Promise.race([done, sleep(pause, scope.signal)]);
    if (settled) return done;
    writers = await writersSince(scope.source, started);
    const reason = `${what} waits for ${describeWriters(writers)}`;
    scope.progress.setWaitingFor(reason);
    if (remaining() <= 0)
      throw new MigrationError(
        'slot_creation_timeout',
        `source: ${what} could not begin within ${scope.spec.options.slotTimeoutMs} ms`,
        {
          hint: `${reason}; end them (commit, roll back, pg_terminate_backend), or raise slot_timeout_ms and, for a cutover, cutover_timeout_ms: PATCH …/options`,
          details: { writers },
        },
      );
  }
}
