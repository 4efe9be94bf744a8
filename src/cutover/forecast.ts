// What a cutover would meet now, step by step, without stopping anybody: what the fence would wait for, how long a marker
// takes to the target, whether the last statements would run. Behind POST cutover {dry_run: true}. It writes nothing but a
// marker into the WAL, as the heartbeat does, and takes back what it tries.
import { randomBytes, randomUUID } from 'node:crypto';
import { cutoverNotes } from '../model/cutover-notes.ts';
import { MigrationError, type ErrorReport } from '../model/errors.ts';
import type { ComparisonForecast, CutoverForecast, ForecastStep } from '../model/forecast.ts';
import type { Hook } from '../model/task-options.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { emitMarker } from '../postgres/marker.ts';
import { schemaPlanOf, sleep, type TaskScope } from '../postgres/task-scope.ts';
import { writersSince } from '../postgres/writers.ts';
import { forecastFence } from './fence.ts';
import { readingSteps } from './forecast-reading.ts';
import { titleOf } from './hooks.ts';
import { rehearsePhases } from './planned-statements.ts';

const MARKER_TIMEOUT_MS = 10_000;
const POLL_MS = 10;
/** The stream waits behind our lock requests. */
const LOCK_TIMEOUT = '1s';
const SEQUENCES_AT_ONCE = 200;
/** Transactions on the target that are younger end by themselves. */
const LONG_MS = 2_000;
/** A slot on the target waits until every transaction that writes there has ended. */
const SLOT_TIMEOUT_MS = 5_000;

/** `waitsFor`: gates that are closed. Errors: those of a connection. What would fail is in the answer. */
export async function forecastCutover(
  scope: TaskScope,
  comparison: ComparisonForecast,
  waitsFor: readonly string[],
): Promise<CutoverForecast> {
  const problems: ErrorReport[] = [];
  const attempt = async <T>(work: () => Promise<T>): Promise<{ ms: number; result: T | null }> => {
    const startedMs = performance.now();
    try {
      const result = await work();
      return { ms: performance.now() - startedMs, result };
    } catch (error) {
      const known = fromPostgres(error);
      if (known.kind === 'aborted' || known.code === 'connection_failed') throw known;
      problems.push(known.toReport());
      return { ms: performance.now() - startedMs, result: null };
    }
  };
  const { differing } = comparison;
  if (differing.length > 0)
    problems.push({
      code: 'validation_failed',
      kind: 'divergence',
      message: `source and target differ in ${differing.join(', ')}, by the online validation`,
      hint: 'GET …/validation names the rows; repair them',
      details: { tables: differing },
    });
  const roundTripMs = await roundTrip(scope);
  const fence = await attempt(() => forecastFence(scope));
  const drain = await attempt(() => passMarker(scope));
  const rehearsal = await attempt(() =>
    rehearsePhases(scope, { phases: ['foreign-key', 'final'], lockTimeout: LOCK_TIMEOUT }),
  );
  const {
    reverse,
    hooks: { beforeOpen },
  } = scope.spec.options;
  const targetWriters = reverse
    ? await attempt(() => writersSince(scope.target, Date.now() - LONG_MS))
    : null;
  const targetBlockers = targetWriters?.result ?? [];
  const slot = reverse && targetBlockers.length === 0 ? await attempt(() => tryTargetSlot(scope)) : null;
  const { sequences } = schemaPlanOf(scope);
  const blockers = fence.result ?? [];
  const measured = slot?.result
    ? 'measured: a temporary slot on the target, made and dropped'
    : 'could not be measured: see problems';
  const wayBack: ForecastStep = {
    step: 'reverse',
    ms: slot?.ms ?? 0,
    detail:
      targetBlockers.length === 0
        ? measured
        : `as long as ${targetBlockers.length} transactions that write on the target take to end`,
  };
  const steps: ForecastStep[] = [
    {
      step: 'fence',
      ms: 6 * roundTripMs,
      detail:
        blockers.length === 0
          ? 'nobody writes at the moment'
          : `and as long as ${blockers.length} transactions that write now take to end`,
    },
    { step: 'drain', ms: drain.ms, detail: 'measured: a marker, from the source to the target' },
    ...readingSteps(comparison, roundTripMs),
    {
      step: 'sequences',
      ms: Math.ceil(sequences.length / SEQUENCES_AT_ONCE) * 3 * roundTripMs,
      detail: `${sequences.length} sequences`,
    },
    {
      step: 'statements',
      ms: 2 * rehearsal.ms,
      detail: 'measured: rehearsed and rolled back; a cutover rehearses them and runs them',
    },
    ...(reverse ? [wayBack] : []),
    ...(beforeOpen ? [hookStep(scope, beforeOpen)] : []),
  ];
  const rounded = steps.map((step) => ({ ...step, ms: Math.ceil(step.ms) }));
  const writeStopMs = rounded.reduce((sum, step) => sum + step.ms, 0);
  scope.checkpoints.set(cutoverNotes.forecast, writeStopMs);
  return {
    steps: rounded,
    writeStopMs,
    blockers,
    targetBlockers,
    waitsFor,
    problems,
  };
}

/** It is not called: what it does may not be undone. */
function hookStep({ spec }: TaskScope, hook: Hook): ForecastStep {
  const atMost = Math.min(hook.timeoutMs, spec.options.cutoverTimeoutMs);
  return {
    step: 'before_open',
    ms: 0,
    detail: `and as long as the hook ${titleOf(hook, 'beforeOpen')} takes, which is not known: at most ${atMost} ms, after which the cutover fails and the source takes writes again`,
  };
}

async function roundTrip(scope: TaskScope): Promise<number> {
  await scope.source.query('select 1');
  const startedMs = performance.now();
  for (let n = 0; n < 3; n++) await scope.source.query('select 1');
  return (performance.now() - startedMs) / 3;
}

/** What arming the way back does under the write stop, with a slot that ends with its session. */
async function tryTargetSlot(scope: TaskScope): Promise<true> {
  const session = await scope.target.session({ purpose: 'forecast', signal: scope.signal });
  try {
    await session.client.query(`set statement_timeout = ${SLOT_TIMEOUT_MS}`);
    await session.client.query(`select pg_create_logical_replication_slot($1, 'pgoutput', true)`, [
      `dtsf_${randomBytes(8).toString('hex')}`,
    ]);
    return true;
  } catch (error) {
    throw fromPostgres(error, { role: 'target' });
  } finally {
    await session.close();
  }
}

async function passMarker(scope: TaskScope): Promise<void> {
  const id = `forecast-${randomUUID()}`;
  const deadline = Date.now() + MARKER_TIMEOUT_MS;
  await emitMarker(scope, id);
  for (;;) {
    const { rows } = await scope.target.query<{ marker: string | null }>(
      'select marker from dts.progress where task_id = $1',
      [scope.taskId],
    );
    if (rows[0]?.marker === id) return;
    if (Date.now() > deadline)
      throw new MigrationError(
        'cutover_timeout',
        `a marker did not reach the target within ${MARKER_TIMEOUT_MS} ms`,
        { hint: 'wait until the lag is smaller' },
      );
    await sleep(POLL_MS, scope.signal);
  }
}
