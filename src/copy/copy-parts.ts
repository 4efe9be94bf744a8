// Workers over parts, generation after generation, until every part has its marker. Called by copy-tables.ts. A lost
// connection costs the parts that ran over it; a generation that gave way, grew old or lost its holder is followed by the
// next, and only tables cut by blocks, whose parts must share one snapshot, then start over.
import { asMigrationError, MigrationError } from '../model/errors.ts';
import { retryDelayMs } from '../model/retry.ts';
import type { StreamPace } from '../postgres/copy-stream.ts';
import { CopySocket } from '../postgres/copy-socket.ts';
import type { Session } from '../postgres/connections.ts';
import { silenceTriggers, writesExisting } from '../postgres/existing-tables.ts';
import { flushTarget } from '../postgres/flush-wal.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { CopyFormat } from '../postgres/binary-form.ts';
import { chooseFormats } from './format.ts';
import { beginGeneration, type Generation } from './generation.ts';
import { readMarkers, startOver } from './markers.ts';
import { copyPart, type PartSessions } from './part.ts';
import { PartQueue } from './part-queue.ts';
import { partKey, type CopyPart, type Marker } from './plan.ts';
import type { Tally } from './tally.ts';
import type { Waits } from './waits.ts';

/** How long somebody's DDL may wait behind our locks. */
export const YIELD_AFTER_MS = 5_000;
export const MAX_PATIENCE_MS = 3_600_000;
/** Transient failures in a row, without a part done in between, before the error is thrown (about 15 s of delays). */
const MAX_FAILURES = 5;

export interface CopyPartsOptions {
  readonly parts: readonly CopyPart[];
  readonly copyJobs: number;
  readonly slotIncarnation: string;
  /** Tables whose parts replace the rows that are there. */
  readonly replaced: ReadonlySet<string>;
  /** `client_encoding` of the copy's sessions. */
  readonly encoding: string;
  readonly tally: Tally;
  readonly pace: StreamPace;
  readonly waits: Waits;
  readonly signal: AbortSignal;
  /** Once for every table, as soon as its last marker is known. */
  readonly onComplete: (relation: string) => void;
}

/** Resolves when every part has a marker. Errors: those of `beginGeneration` and `copyPart`; all sessions are closed. */
export async function copyParts(scope: TaskScope, options: CopyPartsOptions): Promise<void> {
  const { signal, waits, tally, slotIncarnation } = options;
  let patienceMs = YIELD_AFTER_MS;
  let failures = 0;
  let done = 0;
  let number = 0;
  const tell = (part: CopyPart, marker: Marker): void => {
    if (tally.isDone(part)) return;
    done++;
    if (tally.done(part, marker)) options.onComplete(part.relation);
  };
  for (;;) {
    let generation: Generation | null = null;
    const doneBefore = done;
    try {
      // those of a killed process, too
      const markers = await flushTarget(scope, (client) => readMarkers(scope, slotIncarnation, client));
      // beyond the previous one, too: a commit of its last parts may be under way, and show itself at any later time
      for (const marker of markers.values()) number = Math.max(number, marker.generation);
      number++;
      for (const part of brokenTables(options.parts, markers)) {
        scope.log.warn({ relation: part.relation }, 'a table cut by blocks starts over under a new snapshot');
        await startOver(scope, slotIncarnation, part);
        tally.reset(part.relation);
        for (const other of options.parts)
          if (other.relation === part.relation) markers.delete(partKey(other));
      }
      const remaining: CopyPart[] = [];
      for (const part of options.parts) {
        const marker = markers.get(partKey(part));
        if (marker) tell(part, marker);
        else if (tally.isDone(part)) throw forgotten(part);
        else remaining.push(part);
      }
      if (remaining.length === 0) return;
      generation = await beginGeneration(scope, {
        number,
        parts: remaining,
        patienceMs,
        waits,
        signal,
      });
      scope.log.info(
        { generation: generation.number, parts: remaining.length, horizonLsn: generation.horizonLsn },
        'copy generation began',
      );
      const formats = await chooseFormats(scope, [...new Set(remaining.map((part) => part.table))]);
      await runGeneration(scope, generation, remaining, formats, options, tell);
    } catch (error) {
      const failure = asMigrationError(error);
      const progressed = done > doneBefore;
      if (progressed) failures = 0;
      if (signal.aborted) throw failure;
      if (generation?.state() === 'yielded') {
        patienceMs = nextPatience(progressed, patienceMs);
        continue;
      }
      const retryable = generation === null ? failure.code !== 'lock_timeout' : generation.state() === 'lost';
      if (!retryable || failure.kind !== 'transient' || ++failures > MAX_FAILURES) throw failure;
      await pauseAfter(scope, failure, failures, 'generation', options);
    } finally {
      await generation?.end();
    }
  }
}

/**
 * How long DDL waits behind the next generation, when the last one gave way to some after `ms`. One that finished no part
 * doubles it: beside DDL that comes again and again, a part that takes longer would never end.
 */
export function nextPatience(progressed: boolean, ms: number): number {
  return progressed ? YIELD_AFTER_MS : Math.min(ms * 2, MAX_PATIENCE_MS);
}

/**
 * The first part of every table cut by blocks that has some markers but not all, for their snapshot's holder is gone, or
 * markers of several generations.
 */
function brokenTables(parts: readonly CopyPart[], markers: ReadonlyMap<string, Marker>): CopyPart[] {
  const tables = new Map<string, { readonly first: CopyPart; readonly generations: Set<number | null> }>();
  for (const part of parts) {
    if (part.range?.kind !== 'ctid') continue;
    const table = tables.get(part.relation) ?? { first: part, generations: new Set() };
    tables.set(part.relation, table);
    table.generations.add(markers.get(partKey(part))?.generation ?? null);
  }
  return [...tables.values()].filter(({ generations }) => generations.size > 1).map(({ first }) => first);
}

/** Parts commit without waiting for the disk: a crash of the target may take back the last of them, rows and marker. */
function forgotten(part: CopyPart): MigrationError {
  return new MigrationError(
    'connection_failed',
    `target: it has lost the finished part ${part.part} of ${part.relation} in a crash; it is copied again`,
    { details: { role: 'target', relation: part.relation, part: part.part } },
  );
}

/** Copies `remaining` with `copyJobs` workers. Throws the first error of a worker after all of them have ended. */
async function runGeneration(
  scope: TaskScope,
  generation: Generation,
  remaining: readonly CopyPart[],
  formats: ReadonlyMap<string, CopyFormat>,
  options: CopyPartsOptions,
  tell: (part: CopyPart, marker: Marker) => void,
): Promise<void> {
  const { tally } = options;
  const queue = new PartQueue(generation, remaining, () => scope.spec.options.maxSnapshotAgeMs);
  let first: unknown = null;
  const work = async (): Promise<void> => {
    let sessions: PartSessions | null = null;
    let failures = 0;
    try {
      for (let part = queue.take(); part !== undefined; part = queue.take()) {
        if (generation.state() !== 'open') throw generation.holderLost();
        const format = formats.get(part.relation);
        if (!format) throw new MigrationError('internal', `no format was chosen for ${part.relation}`);
        try {
          sessions ??= await openSessions(scope, generation, options.encoding);
          tally.begin(part, format);
          tell(part, await copyPart(scope, sessions, { ...options, part, format, generation }));
          queue.leave(part);
          failures = 0;
        } catch (error) {
          if (sessions) await closeSessions(sessions, generation);
          sessions = null;
          tally.undo(part);
          const failure = asMigrationError(error);
          if (generation.signal.aborted || generation.state() !== 'open') throw failure;
          if (failure.kind !== 'transient' || ++failures > MAX_FAILURES) throw failure;
          queue.putBack(part);
          await pauseAfter(scope, failure, failures, part.relation, {
            ...options,
            signal: generation.signal,
          });
        }
      }
    } catch (error) {
      first ??= error;
      // Running parts of a lost holder have the snapshot and finish; everything else ends together.
      if (generation.state() !== 'lost') generation.abort();
    } finally {
      if (sessions) await closeSessions(sessions, generation);
    }
  };
  const jobs = Math.min(options.copyJobs, queue.length);
  await Promise.all(Array.from({ length: jobs }, work));
  if (first !== null) throw asMigrationError(first);
}

async function openSessions(
  scope: TaskScope,
  generation: Generation,
  encoding: string,
): Promise<PartSessions> {
  const { signal } = generation;
  const source = await scope.source.session({ purpose: 'copy', signal, socket: () => new CopySocket() });
  generation.watch(source.pid);
  let target: Session | null = null;
  try {
    target = await scope.target.session({ purpose: 'copy', signal });
    for (const { client } of [source, target])
      await client.query(`select set_config('client_encoding', $1, false)`, [encoding]);
    if (writesExisting(scope)) await silenceTriggers(target.client);
    // Rows and marker are lost together or not at all; copyParts flushes before it believes that a marker lasts.
    await target.client.query('set synchronous_commit = off');
    return { source, target, partsRead: 0 };
  } catch (error) {
    generation.unwatch(source.pid);
    await source.close();
    await target?.close();
    throw error;
  }
}

async function closeSessions(sessions: PartSessions, generation: Generation): Promise<void> {
  generation.unwatch(sessions.source.pid);
  await Promise.all([sessions.source.close(), sessions.target.close()]);
}

async function pauseAfter(
  scope: TaskScope,
  failure: MigrationError,
  failures: number,
  what: string,
  { waits, signal }: { readonly waits: Waits; readonly signal: AbortSignal },
): Promise<void> {
  const ms = retryDelayMs(failures, Math.random());
  scope.log.warn({ error: failure.toReport(), failures, delayMs: ms }, `copy of ${what} is tried again`);
  await waits.pause(
    `retry ${what}`,
    `${failure.message}; next attempt in ${Math.ceil(ms / 1_000)} s`,
    ms,
    signal,
  );
}
