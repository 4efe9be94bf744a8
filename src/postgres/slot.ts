// The task's replication slot on the source: made once, behind the barrier, recognised after a crash, dropped at the
// end. The stream ensures it; copy and cutover read its record. A slot that is gone is never made again silently.
import { randomBytes } from 'node:crypto';
import { DatabaseError, type ClientBase } from 'pg';
import { MigrationError } from '../model/errors.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import { fromPostgres } from './errors.ts';
import { whyNotFollow } from './promotion.ts';
import { ident, taskObjectName } from './sql.ts';
import { sleep, type TaskScope } from './task-scope.ts';
import { allEndedBelow, describeWriters, newTransactionId, writersSince, type Writer } from './writers.ts';

/** What tells a cluster from its clones: both answers of IDENTIFY_SYSTEM. */
export interface SourceSystem {
  /** system_identifier of pg_control: of initdb, shared by physical copies. */
  readonly id: string;
  /** Begins anew with every promotion and every point-in-time recovery. */
  readonly timeline: number;
}

/** What the task remembers of its slot; checkpoint `slot`, written when slot and barrier stand. */
export interface SlotRecord {
  readonly name: string;
  /** Unique per created slot: parts and progress of another incarnation are worthless. */
  readonly incarnation: string;
  /** Every transaction that commits behind it is streamed. */
  readonly consistentLsn: Lsn;
  /** Where it was made; absent in a record that was written before this was noted. */
  readonly system?: SourceSystem;
  /** Standbys may have a copy of it (17+). */
  readonly failover?: boolean;
  /** Set by dropSlot; the record stays, so that nothing makes the slot again. */
  readonly dropped?: boolean;
}

/** Checkpoint of the SlotRecord. */
export const slotNote = 'slot';
/** Set before the slot is created: one found without a record is then known as ours, but unused. */
const SLOT_INTENT = 'slotIntent';
const POLL_MS = 250;
const DROP_TIMEOUT_MS = 30_000;

/** The slot's record, or undefined while publication, slot and barrier do not stand yet. */
export function findSlot(scope: TaskScope): SlotRecord | undefined {
  return scope.checkpoints.get<SlotRecord>(slotNote);
}

/** The slot's record. Throws `internal` when there is none: parts may be read only after SLOT_READY. */
export function slotOf(scope: TaskScope): SlotRecord {
  const slot = findSlot(scope);
  if (!slot) throw new MigrationError('internal', 'the replication slot has not been made yet');
  return slot;
}

interface SlotRow {
  readonly plugin: string | null;
  readonly here: boolean;
  readonly temporary: boolean;
  readonly two_phase: boolean;
  readonly active_pid: number | null;
  readonly wal_status: string | null;
  readonly restart_lsn: Lsn | null;
  readonly confirmed: Lsn | null;
  readonly invalidation: string | null;
}

async function readSlot(scope: TaskScope, name: string): Promise<SlotRow | null> {
  // to_jsonb: two_phase exists from 14 on, conflicting from 16, invalidation_reason from 17. 16 also calls a slot
  // conflicting whose WAL was removed; that one alone has lost its restart_lsn.
  const { rows } = await scope.source.query<SlotRow>(
    `select plugin, coalesce(database = current_database(), false) as here, temporary, active_pid, wal_status,
       restart_lsn::text, confirmed_flush_lsn::text as confirmed,
       coalesce((to_jsonb(s) ->> 'two_phase')::boolean, false) as two_phase,
       coalesce(to_jsonb(s) ->> 'invalidation_reason',
         case when to_jsonb(s) ->> 'conflicting' = 'true' and restart_lsn is not null then 'conflicting' end) as invalidation
     from pg_replication_slots s where slot_name = $1`,
    [name],
  );
  return rows[0] ?? null;
}

/** `client` is a walsender. */
async function identifySystem(client: ClientBase): Promise<SourceSystem> {
  // The keywords of replication commands are known in capitals only. timeline is int4 until 15, int8 since.
  const { rows } = await client.query<{ systemid: string; timeline: number | string }>('IDENTIFY_SYSTEM');
  const row = rows[0];
  if (!row) throw new MigrationError('internal', 'source: it does not say which cluster it is');
  return { id: row.systemid, timeline: Number(row.timeline) };
}

/**
 * Throws `source_replaced` unless the walsender `client` is of the cluster and timeline where the slot was made. A slot of
 * our name elsewhere (a clone's, a synchronised one) leads through another history: LSNs and transaction ids mean something
 * else there, and what we have already applied may never have happened. So nothing is compared and nothing guessed.
 */
export async function verifySystem(client: ClientBase, record: SlotRecord, scope: TaskScope): Promise<void> {
  if (record.system) verifySystemOf(await identifySystem(client), record, scope);
}

function verifySystemOf(found: SourceSystem, { system }: SlotRecord, scope: TaskScope): void {
  if (!system) return;
  if (found.id === system.id && found.timeline === system.timeline) return;
  const inWords = (each: SourceSystem): string => `system ${each.id}, timeline ${each.timeline}`;
  const what = found.id === system.id ? 'has changed its timeline' : 'is another cluster';
  throw new MigrationError(
    'source_replaced',
    `source: it ${what}: the slot was made on ${inWords(system)}, this is ${inWords(found)}`,
    {
      hint:
        'point the source at the server where the migration began, then resume; if that one is gone (failover, restore): ' +
        recopyRemedy(scope),
      details: { role: 'source', expected: system, found },
    },
  );
}

/** Of pg_replication_slots.invalidation_reason, with the setting to change. */
function invalidationReason(reason: string): string {
  switch (reason) {
    case 'idle_timeout':
      return 'nobody read from it for too long; set idle_replication_slot_timeout to 0 before the next attempt';
    case 'wal_level_insufficient':
      return 'wal_level was lowered; set it to logical before the next attempt';
    case 'rows_removed':
    case 'conflicting':
      return 'the server has removed rows that it needed: it is or was a standby';
    default:
      return 'the source removed WAL that was still needed; raise max_slot_wal_keep_size before the next attempt';
  }
}

/** What to do when changes are missing that no server can tell any more. */
export function recopyRemedy({ taskId, spec }: Pick<TaskScope, 'taskId' | 'spec'>): string {
  // what the old source has is what the rollback would lose: it is not replaced
  if (spec.origin) return `a rollback would lose them: POST /api/v1/migrations/${taskId}/finish`;
  return `POST /api/v1/migrations/${taskId}/recopy copies all tables again behind a new slot (the schema stays), or cancel this migration`;
}

function stranger(name: string, reason: string): MigrationError {
  return new MigrationError('slot_stranger', `source: replication slot ${name}: ${reason}`, {
    hint: `choose another id, or, if nobody uses that slot: select pg_drop_replication_slot('${name}')`,
    details: { slot: name },
  });
}

/** Whether the slot has the shape that we give it; another plugin, database or kind is somebody else's. */
function foreignShape(row: SlotRow): string | null {
  if (row.plugin !== 'pgoutput') return `its plugin is ${row.plugin ?? 'none (a physical slot)'}`;
  if (!row.here) return 'it belongs to another database';
  if (row.temporary) return 'it is temporary';
  if (row.two_phase) return 'it was switched to two-phase decoding';
  return null;
}

/** acked_lsn of dts.progress: the furthest position that we may have acknowledged. Null before the first stream. */
async function ackedLsn(scope: TaskScope, slot: SlotRecord): Promise<Lsn | null> {
  const { rows } = await scope.target.query<{ acked: Lsn; incarnation: string }>(
    'select acked_lsn::text as acked, slot_incarnation as incarnation from dts.progress where task_id = $1',
    [scope.taskId],
  );
  const row = rows[0];
  if (row && row.incarnation !== slot.incarnation)
    throw stranger(slot.name, 'the progress on the target belongs to another slot');
  return row?.acked ?? null;
}

/**
 * Makes the slot and waits behind its barrier, or checks the one that is there:
 *
 *   record     slot                                          result
 *   1 none     absent                                        created
 *   2 none     present, no intent of ours                    `slot_stranger`
 *   3 none     present, intent, pgoutput, this database      ours but unused (killed before its record): made again
 *   4 none     present, intent, another shape                `slot_stranger`
 *   5 ours     absent                                        `slot_lost`
 *   6 ours     another plugin, database, kind, two_phase     `slot_stranger`
 *   7 ours     wal_status lost, or invalidated               `slot_lost`
 *   8 ours     confirmed_flush_lsn beyond dts.progress.acked_lsn   `slot_stranger`: somebody else read from it
 *   9 ours     anything else                                 nothing to do
 *  10 dropped  any                                           `slot_lost`: this task is past its slot
 *  11 ours     any, on another cluster or timeline           `source_replaced`, before 5 to 9 are looked at
 *  12 ours     our copy, on a promoted standby               goes on there, if promotion.ts can prove that it may
 *
 * Other errors: `slot_creation_timeout` naming the transactions that it waits for, `insufficient_privilege`.
 */
export async function ensureSlot(scope: TaskScope): Promise<SlotRecord> {
  const record = findSlot(scope);
  if (record) {
    try {
      await verifySlot(scope, record);
      return record;
    } catch (error) {
      return followPromotion(scope, record, error);
    }
  }
  const name = taskObjectName(scope.taskId);
  const row = await readSlot(scope, name);
  if (row) {
    if (scope.checkpoints.get<boolean>(SLOT_INTENT) !== true)
      throw stranger(name, 'it exists and is not ours');
    const shape = foreignShape(row);
    if (shape !== null) throw stranger(name, shape);
    scope.log.info({ slot: name }, 'a slot of an interrupted start is made again');
    await removeSlot(scope, name);
  }
  return createSlot(scope, name);
}

/** Cases 5–11 of {@link ensureSlot}; for the sampler and before every connection of the walsender. */
export async function verifySlot(scope: TaskScope, record: SlotRecord): Promise<void> {
  const lost = (reason: string): MigrationError =>
    new MigrationError('slot_lost', `source: replication slot ${record.name} ${reason}`, {
      hint: `changes since then cannot be read any more: ${recopyRemedy(scope)}`,
      details: { slot: record.name },
    });
  if (record.dropped) throw lost('was dropped by this task');
  if (record.system) await verifySource(scope, record);
  const row = await readSlot(scope, record.name);
  if (!row) throw lost('is gone');
  const shape = foreignShape(row);
  if (shape !== null) throw stranger(record.name, shape);
  if (row.wal_status === 'lost' || row.restart_lsn === null || row.invalidation !== null) {
    const reason = row.invalidation ?? 'wal_removed';
    throw lost(`was invalidated (${reason}): ${invalidationReason(reason)}`);
  }
  const acked = (await ackedLsn(scope, record)) ?? record.consistentLsn;
  if (row.confirmed !== null && compareLsn(row.confirmed, acked) > 0)
    throw stranger(
      record.name,
      `somebody else has read from it: it is at ${row.confirmed}, but we have acknowledged only ${acked}`,
    );
}

/** Case 12: the record is then of the new timeline. Throws `error` again in every other, with the reason. */
async function followPromotion(scope: TaskScope, record: SlotRecord, error: unknown): Promise<SlotRecord> {
  if (!(error instanceof MigrationError) || error.code !== 'source_replaced') throw error;
  const found = await sourceSystem(scope);
  const reason = await whyNotFollow(scope, record, found);
  if (reason !== null)
    throw new MigrationError('source_replaced', `${error.message}; ${reason}`, {
      ...(error.hint === undefined ? {} : { hint: error.hint }),
      ...(error.details === undefined ? {} : { details: error.details }),
      cause: error,
    });
  const followed: SlotRecord = { ...record, system: found };
  await verifySlot(scope, followed);
  scope.checkpoints.set(slotNote, followed);
  scope.log.warn({ slot: record.name, ...found }, 'the source was promoted; the stream goes on there');
  return followed;
}

async function verifySource(scope: TaskScope, record: SlotRecord): Promise<void> {
  verifySystemOf(await sourceSystem(scope), record, scope);
}

/** On a walsender of its own: it asks what the stream will ask, and for no right that the stream does not need. */
async function sourceSystem(scope: TaskScope): Promise<SourceSystem> {
  const session = await scope.source.session({
    purpose: 'identify',
    replication: true,
    signal: scope.signal,
  });
  try {
    return await identifySystem(session.client);
  } catch (error) {
    throw fromPostgres(error, { role: 'source' });
  } finally {
    await session.close();
  }
}

/**
 * By walsender and with its snapshot exported: only then does the server also wait for transactions whose COMMIT is
 * already in the WAL while they are still running in the proc array. The connection is held until the barrier stands.
 */
async function createSlot(scope: TaskScope, name: string): Promise<SlotRecord> {
  const started = Date.now();
  const remaining = (): number => started + scope.spec.options.slotTimeoutMs - Date.now();
  const giveUp = new AbortController();
  const session = await scope.source.session({
    purpose: 'slot',
    replication: true,
    signal: AbortSignal.any([scope.signal, giveUp.signal]),
  });
  let made = false;
  let unused = false;
  try {
    const system = await identifySystem(session.client);
    const failover = await wantsFailover(scope);
    scope.checkpoints.set(SLOT_INTENT, true);
    const creation = session.client.query<{ consistent_point: Lsn }>(
      `CREATE_REPLICATION_SLOT ${ident(name)} LOGICAL pgoutput${failover ? ' (FAILOVER)' : ''}`,
    );
    const { rows } = await waitNamingWriters(scope, 'the replication slot', started, remaining, creation);
    made = true;
    const consistentLsn = rows[0]?.consistent_point;
    if (consistentLsn === undefined)
      throw new MigrationError('internal', 'source: the new slot has no position');
    scope.failpoint('slot.created');
    await waitNamingWriters(scope, 'the copy', started, remaining, barrier(scope, giveUp.signal));
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
    if (error instanceof DatabaseError && error.severity !== 'FATAL') scope.checkpoints.delete(SLOT_INTENT);
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
        () => scope.checkpoints.delete(SLOT_INTENT),
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

/**
 * Transactions older than the slot may not be decoded, and a snapshot taken now may not see them: no part is read
 * before all that ran when the slot was made have ended.
 */
async function barrier(scope: TaskScope, signal: AbortSignal): Promise<void> {
  const id = await newTransactionId(scope.source);
  while (!signal.aborted && !(await allEndedBelow(scope.source, id))) await sleep(POLL_MS, scope.signal);
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
          hint: `${reason}; end them (commit, roll back, pg_terminate_backend) or raise slot_timeout_ms`,
          details: { writers },
        },
      );
  }
}

/**
 * Drops the slot, ending its walsender first when one is running. Idempotent; a slot that this task never made is left
 * alone. Errors: `deadline_exceeded` when it stays in use, `connection_failed`.
 */
export async function dropSlot(scope: TaskScope): Promise<void> {
  const record = findSlot(scope);
  const ours = record ? !record.dropped : scope.checkpoints.get<boolean>(SLOT_INTENT) === true;
  if (!ours) return;
  await removeSlot(scope, taskObjectName(scope.taskId));
  if (record) scope.checkpoints.set(slotNote, { ...record, dropped: true } satisfies SlotRecord);
  scope.checkpoints.delete(SLOT_INTENT);
}

/** After dropSlot: another one may be made. */
export function forgetSlot(scope: TaskScope): void {
  scope.checkpoints.delete(slotNote);
}

/**
 * Forgets the slot, so that ensureSlot makes another, and drops what is left of it. On another cluster nothing is: what
 * bears the name there is somebody else's. Idempotent. Errors: those of dropSlot.
 */
export async function abandonSlot(scope: TaskScope): Promise<void> {
  const record = findSlot(scope);
  if (!record) return;
  const found = record.system && (await sourceSystem(scope));
  // a promoted standby of the same cluster has a copy of ours, if any
  if (found?.id === record.system?.id) await dropSlot(scope);
  scope.checkpoints.delete(slotNote);
  scope.checkpoints.delete(SLOT_INTENT);
}

/** Ends the walsender that still reads from our slot: one that outlived its connection. Bounded. */
export async function releaseSlot(scope: TaskScope, name: string): Promise<void> {
  await untilDone(scope, `slot ${name} is still in use`, async () => {
    const row = await readSlot(scope, name);
    if (!row || row.active_pid === null) return true;
    await scope.source.query('select pg_terminate_backend($1)', [row.active_pid]);
    return false;
  });
}

async function removeSlot(scope: TaskScope, name: string): Promise<void> {
  await untilDone(scope, `slot ${name} is still in use`, async () => {
    const row = await readSlot(scope, name);
    if (!row || foreignShape(row) !== null) return true;
    if (row.active_pid !== null) {
      await scope.source.query('select pg_terminate_backend($1)', [row.active_pid]);
      return false;
    }
    try {
      await scope.source.query('select pg_drop_replication_slot($1)', [name]);
      return true;
    } catch (error) {
      // 55006 object_in_use: taken again between the two statements; 42704: dropped meanwhile
      const state = fromPostgres(error).details?.['sqlstate'];
      if (state === '42704') return true;
      if (state !== '55006') throw error;
      return false;
    }
  });
}

async function untilDone(scope: TaskScope, what: string, attempt: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + DROP_TIMEOUT_MS;
  for (;;) {
    if (await attempt()) {
      scope.progress.setWaitingFor(null);
      return;
    }
    scope.progress.setWaitingFor(what);
    if (Date.now() > deadline)
      throw new MigrationError('deadline_exceeded', `source: ${what} after ${DROP_TIMEOUT_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
