// The copy of tables beside a stream that runs: tables that are added to the task, and tables that are copied again. An
// activity of the statechart's `copy` region; killed at any instant and run again, it goes on by what the target says.
//
//   plan and make the tables (added) → the stream sets their changes aside → publish them (added), or wait until whoever
//   wrote into them has ended → copy, keys, indexes → apply what was set aside, behind the copy's last horizon → the stream
//   takes over
//
// Added: their publication locks each table against writers, so every transaction is streamed whole or has ended.
// Copied again: what the stream has applied to the old rows is in every snapshot once its writers have ended.
import { copyTables, type LiveTables } from '../copy/copy-tables.ts';
import { startOver } from '../copy/markers.ts';
import type { Waits } from '../copy/waits.ts';
import { asMigrationError, MigrationError } from '../model/errors.ts';
import type { Finding } from '../model/finding.ts';
import type { Lsn } from '../model/lsn.ts';
import { relationKey } from '../model/relation.ts';
import type { PlannedTable } from '../model/schema-plan.ts';
import { findLiveCopy, saveLiveCopy, type LiveCopy } from '../postgres/copy-state.ts';
import {
  forgetHolds,
  heldBytes,
  heldTablePassed,
  holdTables,
  readHolds,
  releaseTables,
} from '../postgres/held-tables.ts';
import { extendPublication } from '../postgres/publication.ts';
import { makeIdentitiesFull } from '../postgres/replica-identity.ts';
import { slotOf } from '../postgres/slot-record.ts';
import { writersEnded } from '../postgres/table-writers.ts';
import { schemaPlanOf, sleep, type TaskScope } from '../postgres/task-scope.ts';
import type { AdditionRequest } from '../schema/addition.ts';
import { createTables } from '../schema/create-tables.ts';
import { checkColumns } from '../sync/catalog-watch.ts';
import { drainHeld } from '../sync/drain-held.ts';

const POLL_MS = 200;
const SHOW_HELD_MS = 1_000;
/** The look reads a row for every batch that is set aside: it takes at most this share of the time. */
const SHOW_HELD_SHARE = 1 / 20;
/** The stream takes over; so long none of it may be applied while the stream waits for somebody, or is not there. */
const HAND_OVER_PATIENCE_MS = 600_000;
/** The stream waits while it takes over what is set aside: not more than it applies in a moment. */
const FEW_CHANGES = 2_000;
/** After so many rounds what is written meanwhile is as much as is applied: then the stream takes over what there is. */
const MAX_ROUNDS = 20;

export interface LiveCopyRequest {
  /** Number of the request. */
  readonly pass: number;
  /** Null: the tables are copied again. */
  readonly addition: AdditionRequest | null;
  /** `relationKey`s of tables that are copied again. */
  readonly tables: readonly string[];
}

/** Returns the findings of the plan with an addition, or null. Errors: as of createTables, extendPublication and copyTables. */
export async function copyLive(
  scope: TaskScope,
  request: LiveCopyRequest,
): Promise<{ readonly findings: readonly Finding[] | null }> {
  const copy = await takeIn(scope, request);
  if (copy.state !== 'done') await carryOut(scope, request, copy.state);
  return { findings: request.addition ? schemaPlanOf(scope).findings : null };
}

async function carryOut(scope: TaskScope, request: LiveCopyRequest, state: LiveCopy['state']): Promise<void> {
  const ending = new AbortController();
  const showing = showHeld(scope, AbortSignal.any([scope.signal, ending.signal]));
  try {
    if (request.addition) await createTables(scope, request.addition, true);
    const wanted = new Set(findLiveCopy(scope)?.relations);
    const tables = schemaPlanOf(scope).tables.filter(({ source }) => wanted.has(relationKey(source)));
    if (state !== 'released') await copyHeld(scope, request, tables, state === 'broken');
    await handOver(scope, tables);
  } finally {
    ending.abort();
    await showing;
    scope.progress.setCopying(null);
  }
}

/** The request as a checkpoint, from now on the tables' state as everybody looks at it. */
async function takeIn(scope: TaskScope, { pass, tables }: LiveCopyRequest): Promise<LiveCopy> {
  const known = findLiveCopy(scope);
  if (known?.pass === pass) return known;
  await forgetHolds(scope); // of the copy before
  const copy: LiveCopy = { pass, relations: tables, state: 'copying' };
  saveLiveCopy(scope, copy);
  return copy;
}

function note(scope: TaskScope, state: LiveCopy['state']): void {
  const copy = findLiveCopy(scope);
  if (copy) saveLiveCopy(scope, { ...copy, state });
}

/** From the first change that is set aside until only little is left of them. */
async function copyHeld(
  scope: TaskScope,
  { addition }: LiveCopyRequest,
  tables: readonly PlannedTable[],
  isBroken: boolean,
): Promise<void> {
  const relations = tables.map(({ source }) => relationKey(source));
  const concerned = new Set(relations);
  try {
    await checkColumns(scope, (table) => concerned.has(table));
    await betweenLargeBatches(scope, () => holdTables(scope, relations, isBroken));
    if (isBroken) {
      const { incarnation } = slotOf(scope);
      for (const table of tables)
        await startOver(scope, incarnation, { relation: relationKey(table.source), table });
      note(scope, 'copying');
    }
    if (addition) {
      await makeIdentitiesFull(scope);
      await extendPublication(scope);
    }
    if (!addition || isBroken)
      await writersEnded(
        scope,
        tables.map(({ source }) => source),
        (reason) => scope.progress.setWaitingFor(reason),
      );
    scope.failpoint('held.begun');
    const live: LiveTables = {
      relations: concerned,
      replaced: addition ? new Set() : concerned,
      passes: (some, waits, signal) => drainBehindHorizon(scope, some, waits, signal),
    };
    if (tables.length > 0) await copyTables(scope, live);
    for (let round = 0; round < MAX_ROUNDS; round++) {
      let changes = 0;
      for (const relation of relations) changes += await drainHeld(scope, relation);
      if (changes <= FEW_CHANGES) break;
    }
    await checkColumns(scope, (table) => concerned.has(table));
  } catch (error) {
    const failure = asMigrationError(error);
    if (failure.code !== 'source_ddl') throw failure;
    // rows that were read before and behind the DDL would come together
    note(scope, 'broken');
    const follows = scope.spec.options.onDdl !== 'pause';
    throw new MigrationError('source_ddl', failure.message, {
      hint: `${follows ? '' : 'undo it on the source, then '}resume: ${relations.slice(0, 3).join(', ')} is copied from its beginning`,
      ...(failure.details === undefined ? {} : { details: failure.details }),
      cause: failure,
    });
  }
}

/** Tries `work` again while a batch of the stream is open for longer than one attempt waits. */
async function betweenLargeBatches(scope: TaskScope, work: () => Promise<void>): Promise<void> {
  const deadline = Date.now() + scope.spec.options.slotTimeoutMs;
  for (;;) {
    try {
      await work();
      return;
    } catch (error) {
      const failure = asMigrationError(error);
      if (failure.code !== 'lock_timeout' || Date.now() > deadline) throw failure;
      scope.progress.setWaitingFor('the copy waits for a large transaction that the stream is applying');
    } finally {
      scope.progress.setWaitingFor(null);
    }
  }
}

/** Resolves when everything of these tables is applied that their copies may have seen in part. */
async function drainBehindHorizon(
  scope: TaskScope,
  relations: readonly string[],
  waits: Waits,
  signal: AbortSignal,
): Promise<void> {
  for (const relation of relations) {
    for (;;) {
      await waits.during(
        `held ${relation}`,
        `${relation}: the changes that were set aside during its copy are applied`,
        drainHeld(scope, relation),
      );
      // a row that was read again has a horizon of its own
      const { rows } = await scope.target.query<{ horizon: Lsn | null }>(
        `select max(horizon_lsn)::text as horizon from dts.part
          where task_id = $1 and slot_incarnation = $2 and relation = $3`,
        [scope.taskId, slotOf(scope).incarnation, relation],
      );
      const horizon = rows[0]?.horizon ?? null;
      if (horizon === null || (await heldTablePassed(scope, relation, horizon))) break;
      await waits.pause(
        `horizon ${relation}`,
        `${relation}: the stream has to pass ${horizon}, where its copy was read`,
        POLL_MS,
        signal,
      );
    }
  }
}

async function handOver(scope: TaskScope, tables: readonly PlannedTable[]): Promise<void> {
  note(scope, 'released');
  await betweenLargeBatches(scope, () => releaseTables(scope));
  scope.failpoint('held.released');
  await takenOver(scope, new Set(tables.map(({ source }) => relationKey(source))));
  note(scope, 'done');
  scope.failpoint('held.noted');
  await forgetHolds(scope);
}

/** Errors: `deadline_exceeded` when the stream does not get on with it. */
async function takenOver(scope: TaskScope, names: ReadonlySet<string>): Promise<void> {
  let known = '';
  let deadline = 0;
  try {
    for (;;) {
      const { tables } = await readHolds(scope);
      const left = tables.filter(({ relation, state }) => names.has(relation) && state !== 'done');
      if (left.length === 0) return;
      const position = JSON.stringify(left);
      const some = left.map(({ relation }) => relation).slice(0, 3);
      if (position !== known) {
        deadline = Date.now() + HAND_OVER_PATIENCE_MS;
        scope.progress.setWaitingFor(`the stream applies what was set aside of ${some.join(', ')}`);
      }
      known = position;
      if (Date.now() > deadline && !(await isApplying(scope)))
        throw new MigrationError(
          'deadline_exceeded',
          `target: the stream has applied nothing of what was set aside of ${some.join(', ')} for ${HAND_OVER_PATIENCE_MS / 60_000} minutes`,
          { hint: 'look for sessions on the target that hold locks on these tables, then resume' },
        );
      await sleep(POLL_MS, scope.signal);
    }
  } finally {
    scope.progress.setWaitingFor(null);
  }
}

/** Whether a session of ours works on the target and waits for nobody: one transaction may take longer than any patience. */
async function isApplying(scope: TaskScope): Promise<boolean> {
  const { rowCount } = await scope.target.query(
    `select from pg_stat_activity where datname = current_database() and application_name = $1
       and state = 'active' and wait_event_type is distinct from 'Lock'`,
    [`${scope.target.sessionName}/apply`],
  );
  return rowCount !== 0;
}

async function showHeld(scope: TaskScope, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const lookedSince = performance.now();
    try {
      const tables = findLiveCopy(scope)?.relations ?? [];
      scope.progress.setCopying({ tables, heldBytes: await heldBytes(scope) });
    } catch (error) {
      if (!signal.aborted) scope.log.debug({ error }, 'could not look at what is set aside');
    }
    const tookMs = performance.now() - lookedSince;
    await sleep(Math.max(SHOW_HELD_MS, tookMs / SHOW_HELD_SHARE), signal).catch(() => undefined);
  }
}
