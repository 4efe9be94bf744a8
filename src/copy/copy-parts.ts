// Workers over parts, generation after generation, until every part has its marker. Called by copy-tables.ts. A lost
// connection costs the parts that ran over it; a generation that gave way or lost its holder is followed by the next.
import { asMigrationError, MigrationError } from '../model/errors.ts';
import { retryDelayMs } from '../model/retry.ts';
import type { Session } from '../postgres/connections.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { CopyFormat } from '../postgres/binary-form.ts';
import { chooseFormats } from './format.ts';
import { beginGeneration, type Generation } from './generation.ts';
import { readMarkers } from './markers.ts';
import { copyPart, type PartSessions } from './part.ts';
import { partKey, type CopyPart, type Marker } from './plan.ts';
import type { Waits } from './waits.ts';

/** How long somebody's DDL may wait behind our locks; doubled whenever a generation yielded without finishing a part. */
const YIELD_AFTER_MS = 5_000;
const MAX_PATIENCE_MS = 3_600_000;
/** Transient failures in a row, without a part done in between, before the error is thrown (about 15 s of delays). */
const MAX_FAILURES = 5;

export interface CopyPartsOptions {
  readonly parts: readonly CopyPart[];
  readonly slotIncarnation: string;
  /** `client_encoding` of the copy's sessions. */
  readonly encoding: string;
  readonly waits: Waits;
  readonly signal: AbortSignal;
  /** Once for every part, as soon as its marker is known. */
  readonly onCopied: (part: CopyPart, marker: Marker) => void;
}

/** Resolves when every part has a marker. Errors: those of `beginGeneration` and `copyPart`; all sessions are closed. */
export async function copyParts(scope: TaskScope, options: CopyPartsOptions): Promise<void> {
  const { signal, waits } = options;
  const told = new Set<string>();
  let patienceMs = YIELD_AFTER_MS;
  let failures = 0;
  for (;;) {
    let generation: Generation | null = null;
    const toldBefore = told.size;
    try {
      const markers = await readMarkers(scope, options.slotIncarnation);
      const tell = (part: CopyPart, marker: Marker): void => {
        if (told.has(partKey(part))) return;
        told.add(partKey(part));
        options.onCopied(part, marker);
      };
      const remaining: CopyPart[] = [];
      for (const part of options.parts) {
        const marker = markers.get(partKey(part));
        if (marker) tell(part, marker);
        else remaining.push(part);
      }
      if (remaining.length === 0) return;
      const last = Math.max(0, ...[...markers.values()].map((marker) => marker.generation));
      generation = await beginGeneration(scope, {
        number: last + 1,
        parts: remaining,
        patienceMs,
        waits,
        signal,
      });
      scope.log.info(
        { generation: generation.number, parts: remaining.length, horizonLsn: generation.horizonLsn },
        'copy generation began',
      );
      const formats = await chooseFormats(
        scope,
        remaining.map((part) => part.table),
      );
      await runGeneration(scope, generation, remaining, formats, options, tell);
    } catch (error) {
      const failure = asMigrationError(error);
      const progressed = told.size > toldBefore;
      if (progressed) failures = 0;
      if (signal.aborted) throw failure;
      if (generation?.state() === 'yielded') {
        patienceMs = progressed ? YIELD_AFTER_MS : Math.min(patienceMs * 2, MAX_PATIENCE_MS);
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

/** Copies `remaining` with `copyJobs` workers. Throws the first error of a worker after all of them have ended. */
async function runGeneration(
  scope: TaskScope,
  generation: Generation,
  remaining: readonly CopyPart[],
  formats: ReadonlyMap<string, CopyFormat>,
  options: CopyPartsOptions,
  tell: (part: CopyPart, marker: Marker) => void,
): Promise<void> {
  const queue = [...remaining];
  let first: unknown = null;
  const work = async (): Promise<void> => {
    let sessions: PartSessions | null = null;
    let failures = 0;
    try {
      for (let part = queue.shift(); part !== undefined; part = queue.shift()) {
        if (generation.state() !== 'open') throw generationOver(generation);
        const format = formats.get(part.relation);
        if (!format) throw new MigrationError('internal', `no format was chosen for ${part.relation}`);
        try {
          sessions ??= await openSessions(scope, generation, options.encoding);
          scope.progress.updateTable(part.relation, {
            state: 'copying',
            rowsCopied: 0,
            bytesCopied: 0,
            format: format.format,
            formatReason: format.reason,
          });
          tell(part, await copyPart(scope, sessions, { ...options, part, format, generation }));
          failures = 0;
        } catch (error) {
          if (sessions) await closeSessions(sessions, generation);
          sessions = null;
          scope.progress.updateTable(part.relation, { state: 'pending', rowsCopied: 0, bytesCopied: 0 });
          const failure = asMigrationError(error);
          if (generation.signal.aborted || generation.state() !== 'open') throw failure;
          if (failure.kind !== 'transient' || ++failures > MAX_FAILURES) throw failure;
          queue.unshift(part);
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
  const jobs = Math.min(scope.spec.options.copyJobs, queue.length);
  await Promise.all(Array.from({ length: jobs }, work));
  if (first !== null) throw asMigrationError(first);
}

function generationOver(generation: Generation): MigrationError {
  return new MigrationError('connection_failed', 'source: the connection that holds the snapshot was lost', {
    details: { role: 'source', generation: generation.number },
  });
}

async function openSessions(
  scope: TaskScope,
  generation: Generation,
  encoding: string,
): Promise<PartSessions> {
  const { signal } = generation;
  const source = await scope.source.session({ purpose: 'copy', signal });
  generation.watch(source.pid);
  let target: Session | null = null;
  try {
    target = await scope.target.session({ purpose: 'copy', signal });
    // a marker must not be forgotten by a crash of the target: the stream builds on it
    for (const { client } of [source, target])
      await client.query(
        `select set_config('client_encoding', $1, false),
                case current_setting('synchronous_commit') when 'off' then set_config('synchronous_commit', 'local', false) end`,
        [encoding],
      );
    return { source, target };
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
