// The demo's migration, over HTTP: create, start, two kills, cutover. What an operator would do, with worse luck.
import { setTimeout as sleep } from 'node:timers/promises';
import { DtsApi, type Status } from './api.ts';
import { count, megabytes, seconds, type Display } from './display.ts';
import type { DtsProcess } from './dts-process.ts';
import type { WriterCounts, Writers } from './writers.ts';

export const SUFFIX = '_migrated';

/** So long the stream follows the writers before it is killed, and so long they work while nobody follows. */
const FOLLOW_MS = 2_000;
const ABSENT_MS = 1_000;
const KILL_FROM_PERCENT = 15;
const KILL_TO_PERCENT = 90;
const SMALL_LAG_BYTES = 2 * 1024 * 1024;
const WAIT_MS = 90_000;

export interface Migration {
  /** Name and value of what was measured, in the order in which it is shown. */
  readonly figures: readonly (readonly [name: string, value: string])[];
  /** What went otherwise than promised, in words. */
  readonly problems: readonly string[];
}

export interface MigrationInput {
  readonly dts: DtsProcess;
  readonly writers: Writers;
  readonly sourceUrl: string;
  readonly targetUrl: string;
  readonly display: Display;
  readonly signal: AbortSignal;
}

/** Runs the whole migration with its two crashes. Afterwards the task is completed and the fence lifted. */
export async function migrate(input: MigrationInput): Promise<Migration> {
  const { dts, writers, display, signal } = input;
  const problems: string[] = [];
  const api = new DtsApi(dts.url, signal);
  const show = (status: Status): void =>
    display.progress(status.progress, statusText(status, writers.counts));

  display.step('DTS starts, and gets a task over HTTP');
  display.line(`healthy after ${seconds(await dts.start(signal))}`);
  const before = { ...writers.counts };
  const id = await api.create(input.sourceUrl, input.targetUrl, SUFFIX);
  const startedAt = performance.now();
  await api.command(id, 'start');

  display.step('The tables are copied; in the middle of it DTS is killed (SIGKILL) and started again');
  let copyFrom = startedAt;
  let copying = false;
  const middle = await api.waitFor(id, 'the copy is under way', WAIT_MS, isMidCopy, (status) => {
    if (status.state === 'migratingData' && !copying) {
      copying = true;
      copyFrom = performance.now();
    }
    show(status);
  });
  await dts.kill();
  display.line(`killed at ${middle.progress.toFixed(0)} %, state ${middle.state}`);
  if (middle.state !== 'migratingData' || middle.progress > KILL_TO_PERCENT)
    problems.push('the copy was too quick to be killed in the middle');
  display.line(`healthy again after ${seconds(await dts.start(signal))}`);
  await api.waitFor(id, 'the copy is done', WAIT_MS, isSyncing, show);
  const copyMs = performance.now() - copyFrom;
  const { rows_copied: rowsCopied, bytes_copied: bytesCopied } = await api.status(id);

  display.step('The stream follows the writers; DTS is killed again');
  const followUntil = performance.now() + FOLLOW_MS;
  await api.waitFor(
    id,
    'the stream has followed for a while',
    WAIT_MS,
    () => performance.now() > followUntil,
    show,
  );
  await dts.kill();
  const missedFrom = writers.counts.committed;
  await sleep(ABSENT_MS, undefined, { signal });
  display.line(
    `killed in mid-sync; ${count(writers.counts.committed - missedFrom)} transactions committed meanwhile`,
  );
  display.line(`healthy again after ${seconds(await dts.start(signal))}`);
  const caughtUp = await api.waitFor(id, 'the target has caught up', WAIT_MS, isCaughtUp, show);

  display.step('Cutover: writers are refused, the rest is applied, both sides are validated');
  display.line(`lag before it: ${megabytes(caughtUp.lag_bytes ?? 0)}`);
  await api.command(id, 'cutover');
  let sawStop = false;
  const completed = await api.waitFor(
    id,
    'the cutover is done',
    WAIT_MS,
    (status) => {
      sawStop ||= !isSyncing(status);
      if (sawStop && isSyncing(status))
        throw new Error(`the cutover was called off: ${status.error?.message ?? ''}`);
      return status.state === 'completed';
    },
    show,
  );
  const openAt = performance.now();
  await Promise.race([writers.ended, sleep(5_000, undefined, { signal, ref: false })]);
  const { committed, rolledBack, conflicts, fenced, total } = { ...writers.counts, total: writers.total };
  if (fenced !== total) problems.push(`only ${fenced} of ${total} writers met the fence (SQLSTATE 25006)`);

  const task = await api.task(id);
  const verdicts = task.certificate?.tables ?? [];
  if (verdicts.length === 0 || verdicts.some(({ equal }) => !equal))
    problems.push("DTS' own certificate is missing or not of equality");
  await api.command(id, 'unfence');
  if (completed.connections !== 0)
    await api.waitFor(id, 'no connection is open', 10_000, (s) => s.connections === 0, show);
  display.line(`completed; all ${fenced} writers were refused, none before the cutover`);

  return {
    problems,
    figures: [
      [
        'copy, with the crash in it',
        `${seconds(copyMs)}, ${count(rowsCopied)} rows, ${megabytes(bytesCopied)}`,
      ],
      ['', `${count(rowsCopied / (copyMs / 1000))} rows/s`],
      ['migration, from start to completed', seconds(openAt - startedAt)],
      [
        'transactions written meanwhile',
        `${count(committed - before.committed)} (${rolledBack - before.rolledBack} rolled back, ${conflicts - before.conflicts} conflicts)`,
      ],
      [
        'write stop, as DTS measured it',
        completed.write_stop_ms === null ? 'unknown' : seconds(completed.write_stop_ms),
      ],
      ['last commit on the source until completed', seconds(openAt - writers.lastCommitAt)],
      ["tables in DTS' certificate", `${verdicts.length}`],
    ],
  };
}

function isMidCopy({ state, progress }: Status): boolean {
  if (state === 'migratingData') return progress >= KILL_FROM_PERCENT;
  return !['created', 'queued', 'init', 'creatingTables', 'retrying'].includes(state);
}

function isSyncing({ state }: Status): boolean {
  return state === 'syncingWal';
}

function isCaughtUp(status: Status): boolean {
  return isSyncing(status) && status.lag_bytes !== null && status.lag_bytes <= SMALL_LAG_BYTES;
}

function statusText(status: Status, { committed }: WriterCounts): string {
  const parts = [status.state];
  if (status.state === 'migratingData') parts.push(`${count(status.rows_copied)} rows`);
  if (status.lag_bytes !== null) parts.push(`lag ${megabytes(status.lag_bytes)}`);
  if (status.waiting_for !== null) parts.push(status.waiting_for);
  parts.push(`${count(committed)} transactions written`);
  return parts.join('  ');
}
