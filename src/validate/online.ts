// Compares every table on both servers while the stream runs, range by range, and from then on what changes: so the
// cutover has only the last moment's keys to compare. An activity of the statechart's `verify` region; it ends only when it
// is stopped and goes on where it was. Before the first range is read the stream has begun to write down what it changes
// (changes.ts); without that, nothing verified would stay so.
import { isDeepStrictEqual } from 'node:util';
import { asMigrationError, MigrationError, type ErrorReport } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import { retryDelayMs } from '../model/retry.ts';
import {
  validationNotes,
  type Repair,
  type TableValidation,
  type ValidationRun,
  type VerifiedUpTo,
} from '../model/validation.ts';
import { unfinishedTables } from '../postgres/copy-state.ts';
import { schemaPlanOf, sleep, type TaskScope } from '../postgres/task-scope.ts';
import { hasApplied, overflow, replaceChanges, startTracking, streamPosition } from './changes.ts';
import { KeyChecker, type KeyCheck, type KeyVerdict } from './key-check.ts';
import { KeylessTables } from './keyless.ts';
import {
  findRun,
  isClean,
  isRead,
  repairsOf,
  saveRepair,
  saveTableNote,
  tableNote,
  unread,
  verifiedUpTo,
} from './notes.ts';
import type { KeyTexts } from './range-sql.ts';
import { RangeReader, tablePair, type TablePair } from './ranges.ts';
import { repairSome } from './repair.ts';
import { BY_KEY, closePair, openPair, rowFormOf, type SidePair } from './sessions.ts';
import { readForms } from './table-forms.ts';

/** Between looks at the keys that changed. */
const CHECK_EVERY_MS = 500;
/** Known differences are looked at again: somebody may have repaired them. */
const RECHECK_EVERY_MS = 5_000;
/** Between notes that only say that all is still well. */
const NOTE_EVERY_MS = 2_000;
/** A repair that has waited in vain holds the looks up for as long as it waits. */
const REPAIR_AGAIN_MS = 30_000;
const POLL_MS = 50;
/** Of ranges between two notes: each waits for both disks. */
const NOTE_RANGES_MS = 100;
/** Of one note: it is read as a whole. */
const NOTE_KEYS = 10_000;

/** A table whose keys no longer tell what changed is read from its beginning. */
type ReadAgain = (relation: string) => void;

/**
 * Runs until `scope.signal` aborts. `pass`: how often a new run was asked for; a higher one begins anew. Trouble is
 * noted for the API and tried again: the validation never stops the migration.
 */
export async function validateOnline(scope: TaskScope, pass: number): Promise<never> {
  for (let attempt = 1; ; attempt++) {
    try {
      await validate(scope, pass, () => (attempt = 0));
      attempt = 0;
    } catch (error) {
      scope.signal.throwIfAborted();
      const failure = asMigrationError(error);
      if (failure.kind === 'aborted') throw failure; // our connections were closed: it begins with new ones
      scope.log.warn({ err: failure }, 'the online validation stands still and is tried again');
      noteError(scope, failure.toReport());
      scope.progress.setValidationClean(false);
      await sleep(retryDelayMs(attempt, Math.random()), scope.signal);
    }
  }
}

/** Returns when other tables are being copied than in the beginning: those are left out, and come later. */
async function validate(scope: TaskScope, pass: number, onProgress: () => void): Promise<void> {
  await beginRun(scope, pass);
  const form = await rowFormOf(scope);
  const unfinished = unfinishedTables(scope);
  const leftOut = new Set(unfinished);
  const tables = schemaPlanOf(scope)
    .tables.filter(({ source }) => !leftOut.has(relationKey(source)))
    .map((plan) => tablePair(plan, form, scope.spec.options.validationMaxRowsPerSecond ?? undefined));
  const pair = await openPair(scope, scope.signal, BY_KEY);
  const keyless = new KeylessTables(scope, tables);
  let ranges: RangeReader | null = null;
  try {
    const readAgain: ReadAgain = (relation) => {
      if (!keyless.changed(relation)) saveTableNote(scope.checkpoints, relation, unread);
    };
    const byName = new Map(tables.map((table) => [table.name, table]));
    const checker = new KeyChecker(scope, pair, byName, readAgain);
    let check: KeyCheck | null = null;
    let nextCheckMs = 0;
    let nextRecheckMs = 0;
    let nextRepairMs = 0;
    while (isDeepStrictEqual(unfinishedTables(scope), unfinished)) {
      if (check === null && Date.now() >= nextCheckMs) {
        await dropOverflow(scope, readAgain);
        const recheck = Date.now() >= nextRecheckMs;
        if (recheck) {
          nextRecheckMs = Date.now() + RECHECK_EVERY_MS;
          await readChangedTablesAgain(scope, readAgain, tables);
        }
        check = await checker.begin(recheck);
      }
      if (check !== null && (check.tables.length === 0 || (await hasApplied(scope, check.lsn)))) {
        noteCheck(scope, tables, leftOut, check, await checker.finish(check));
        nextCheckMs = check.waiting === null ? Date.now() + CHECK_EVERY_MS : 0;
        check = null;
        onProgress();
      }
      // a stream that stands still settles nothing, and what was settled grows old
      if (check !== null && isTooOld(scope, check.beganAtMs)) {
        scope.progress.setValidationClean(false);
        check = null;
      }
      // between two looks: both read dts.changed
      if (check === null && Date.now() >= nextRepairMs) {
        const repaired = await repairNext(scope, pair, tables, leftOut);
        if (repaired === 'some') nextRecheckMs = 0;
        if (repaired === 'later') nextRepairMs = Date.now() + REPAIR_AGAIN_MS;
      }
      keyless.poll();
      const next = tables.find((table) => !isRead(tableNote(scope.checkpoints, table.name)));
      if (next) {
        // connections of its own: a look at some keys does not wait for a range
        ranges ??= new RangeReader(await openPair(scope, scope.signal, BY_KEY, true));
        await readRanges(scope, ranges, next);
        continue;
      }
      await ranges?.close();
      ranges = null;
      await sleep(POLL_MS, scope.signal);
    }
  } finally {
    await Promise.all([closePair(pair), ranges?.close(), keyless.close()]);
  }
}

/**
 * Goes on with the oldest request. A lost connection leaves it to the next attempt; so does a wait that was too long, where a
 * walk over ranges would have to begin again.
 */
async function repairNext(
  scope: TaskScope,
  pair: SidePair,
  tables: readonly TablePair[],
  leftOut: ReadonlySet<string>,
): Promise<'none' | 'some' | 'later'> {
  const repair = repairsOf(scope.checkpoints).findLast(
    ({ state, table }) => state === 'pending' && !leftOut.has(table),
  );
  if (!repair) return 'none';
  let now = repair;
  const save = (next: Repair): void => saveRepair(scope.checkpoints, (now = next));
  const table = tables.find(({ name }) => name === repair.table);
  try {
    if (!table)
      throw new MigrationError('invalid_request', `${repair.table} is not a table of the migration`);
    await repairSome(scope, pair, table, repair, save);
  } catch (error) {
    scope.signal.throwIfAborted();
    const failure = asMigrationError(error);
    if (failure.kind === 'aborted' || failure.code === 'connection_failed') throw failure;
    if (failure.code === 'deadline_exceeded' && now.position) {
      save({ ...now, error: failure.toReport() });
      return 'later';
    }
    save({ ...now, state: 'failed', endedAt: new Date().toISOString(), error: failure.toReport() });
  }
  return 'some';
}

/** Goes on with the run that stands, or begins one: first the notes go, then the stream starts to write changes down. */
async function beginRun(scope: TaskScope, pass: number): Promise<void> {
  for (;;) {
    const position = await streamPosition(scope);
    if (position) {
      const run = findRun(scope.checkpoints);
      const stands =
        run?.slotIncarnation === position.slotIncarnation && run.pass === pass && position.tracking;
      if (stands) return;
      scope.checkpoints.delete(validationNotes.run);
      for (const { source } of schemaPlanOf(scope).tables)
        scope.checkpoints.delete(validationNotes.table(relationKey(source)));
      await startTracking(scope);
      scope.checkpoints.set(validationNotes.run, {
        slotIncarnation: position.slotIncarnation,
        pass,
        startedAt: new Date().toISOString(),
        keysInDoubt: 0,
        keysWaiting: 0,
        settledAt: null,
        error: null,
      } satisfies ValidationRun);
      return;
    }
    await sleep(POLL_MS, scope.signal); // the stream has not begun
  }
}

/** Reads some ranges of the table and notes what they have brought. */
async function readRanges(scope: TaskScope, ranges: RangeReader, table: TablePair): Promise<void> {
  const note = tableNote(scope.checkpoints, table.name);
  if (table.source.key.length === 0) {
    saveTableNote(scope.checkpoints, table.name, { ...note, state: 'atCutover' });
    return;
  }
  const startedMs = Date.now();
  const form = note.form ?? (await readForms(scope.source, [table.plan.source])).get(table.name);
  const limit = scope.spec.options.validationMaxRowsPerSecond;
  let { cursor, rows, ranges: count, verifiedLsn } = note;
  const differing: KeyTexts[] = [];
  let isEnd = false;
  do {
    const verdict = await ranges.read(table, cursor, limit === null);
    differing.push(...verdict.keys);
    cursor = verdict.upTo;
    rows += verdict.rows;
    count++;
    verifiedLsn = verdict.lsn;
    isEnd = cursor === null;
  } while (
    !isEnd &&
    limit === null &&
    differing.length < NOTE_KEYS &&
    Date.now() - startedMs < NOTE_RANGES_MS
  );
  // Before the cursor moves: what differed is looked at again, whatever happens to us.
  for (let from = 0; from < differing.length; from += NOTE_KEYS)
    await replaceChanges(scope, [], new Map([[table.name, differing.slice(from, from + NOTE_KEYS)]]));
  const next: TableValidation = {
    ...note,
    ...(form === undefined ? {} : { form }),
    state: isEnd ? 'verified' : 'scanning',
    cursor,
    rows,
    ranges: count,
    verifiedLsn,
  };
  saveTableNote(scope.checkpoints, table.name, next);
  scope.failpoint('validate.range-compared');
  const tookMs = Date.now() - startedMs;
  if (limit === null) return;
  const wantedMs = ((rows - note.rows) / limit) * 1000;
  if (wantedMs > tookMs) await sleep(wantedMs - tookMs, scope.signal);
}

/** What DDL has done to their rows is on no stream. */
async function readChangedTablesAgain(
  scope: TaskScope,
  readAgain: ReadAgain,
  tables: readonly TablePair[],
): Promise<void> {
  const forms = await readForms(
    scope.source,
    tables.map(({ plan }) => plan.source),
  );
  for (const { name, source } of tables) {
    const { state, form } = tableNote(scope.checkpoints, name);
    const isBelieved = source.key.length === 0 ? state === 'verified' : state !== 'pending';
    if (isBelieved && form !== forms.get(name)) readAgain(name);
  }
}

async function dropOverflow(scope: TaskScope, readAgain: ReadAgain): Promise<void> {
  const rows = await overflow(scope);
  if (rows.length === 0) return;
  for (const relation of new Set(rows.map((row) => row.relation))) readAgain(relation);
  await replaceChanges(
    scope,
    rows.map(({ n }) => n),
    new Map(),
  );
}

function noteCheck(
  scope: TaskScope,
  tables: readonly TablePair[],
  leftOut: ReadonlySet<string>,
  check: KeyCheck,
  { inDoubt, unlike }: KeyVerdict,
): void {
  const run = findRun(scope.checkpoints);
  if (!run) return;
  const notes = tables.map((table) => tableNote(scope.checkpoints, table.name));
  const allRead = notes.every(isRead);
  const settled = check.waiting === null && inDoubt === 0 && allRead;
  const now: ValidationRun = {
    ...run,
    settledAt: settled ? new Date(check.beganAtMs).toISOString() : run.settledAt,
    keysInDoubt: inDoubt,
    keysWaiting: check.waiting ?? 0,
    error: null,
  };
  const { settledAt } = now;
  const isNews =
    inDoubt !== run.keysInDoubt ||
    now.keysWaiting !== run.keysWaiting ||
    run.error !== null ||
    Date.parse(settledAt ?? '') - Date.parse(run.settledAt ?? new Date(0).toISOString()) >= NOTE_EVERY_MS;
  if (isNews) {
    const differing = tables
      .filter((_, n) => (notes[n]?.differences.length ?? 0) > 0)
      .map(({ name }) => name);
    const except = new Set([...differing, ...unlike, ...leftOut]);
    const verified = allRead ? verifiedBy(scope, run, check, except) : null;
    scope.checkpoints.set(validationNotes.run, { ...now, ...(verified && { verified }) });
  }
  const fresh = settledAt !== null && !isTooOld(scope, Date.parse(settledAt));
  scope.progress.setValidationClean(fresh && isClean(notes));
}

/**
 * Up to where a look leaves the tables equal; null: it does not tell. The stream writes a change down in the transaction that applies
 * it. A look takes it out when the rows are the same, are written down again, or are noted to differ, and of the latter two the
 * table is uncertain. So of any other every change up to `completeUpTo` was found the same, by this look or an earlier one, on
 * the source as of a later position; one without a key would have made its table `atCutover`. Not the position behind the
 * reads: what was committed in between was not written down yet.
 */
function verifiedBy(
  scope: TaskScope,
  run: ValidationRun,
  { completeUpTo }: KeyCheck,
  uncertain: ReadonlySet<string>,
): VerifiedUpTo | null {
  if (completeUpTo === null) return null;
  const except: string[] = [];
  for (const name of uncertain) {
    const note = tableNote(scope.checkpoints, name);
    if (note.state !== 'verified') continue; // is read first, and then known further
    except.push(name);
    // it stays at what the last look knew
    const verifiedLsn = verifiedUpTo(run, name, note);
    if (verifiedLsn !== note.verifiedLsn) saveTableNote(scope.checkpoints, name, { ...note, verifiedLsn });
  }
  return { lsn: completeUpTo, except };
}

function isTooOld(scope: TaskScope, settledMs: number): boolean {
  const { cutoverMaxValidationAgeMs } = scope.spec.options;
  return cutoverMaxValidationAgeMs !== null && Date.now() - settledMs > cutoverMaxValidationAgeMs;
}

function noteError(scope: TaskScope, error: ErrorReport): void {
  const run = findRun(scope.checkpoints);
  if (run) scope.checkpoints.set(validationNotes.run, { ...run, error } satisfies ValidationRun);
}
