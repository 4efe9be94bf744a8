// Compares tables without a key while the stream runs: as multisets, by the digest of each side. The stream notes that such
// a table has changed (sync/changed-keys.ts), not which of its rows, so only a table that stays as it is for as long as the
// comparison takes can be compared; one that never does is left for the cutover.
//
//   1 what is written down of it so far
//   2 the digest of the source, and the source's position behind that read
//   3 once the stream has applied that position: the digest of the target
//   4 the same digests, and nothing written down since 1 → verified, until it changes
//     others, three times in a row                       → differs
//
// Once is not enough, for the reason that key-check.ts gives.
import { asMigrationError, type MigrationError } from '../model/errors.ts';
import type { TableValidation } from '../model/validation.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { changedBeyond, noteNumbers, waitApplied } from './changes.ts';
import { saveTableNote, tableNote } from './notes.ts';
import { sumsSql } from './range-sql.ts';
import { ask, type TablePair } from './ranges.ts';
import { closePair, openPair, positionBehind, type SidePair } from './sessions.ts';
import { readForms } from './table-forms.ts';

/** Comparisons that must find the same difference. */
const LOOKS = 3;
/** Of the time, all tables together; the first comparison of each does not count. */
const MOST_OF_THE_TIME = 1 / 10;
const LEAST_PAUSE_MS = 1_000;
/** After a comparison that failed, or that gave way. */
const FAILED_PAUSE_MS = 60_000;
/** Longest wait for the stream; the table is compared another time then. */
const WAIT_MS = 30_000;
/** Somebody whose lock request waits behind our read has to wait for so long, and holds up everybody behind him. */
const GIVE_WAY_AFTER_MS = 3_000;
const WATCH_EVERY_MS = 1_000;
const WHOLE = [{ after: null, upTo: null }];

/** What is known of one table in this process. */
interface Attempts {
  /** Counts what was written down and taken out of dts.changed. */
  changes: number;
  changedAtMs: number;
  /** Of the last comparison; 0: there was none. */
  comparedAtMs: number;
  tookMs: number;
  rows: number;
  notBeforeMs: number;
  /** The last difference, and how often it was found. */
  seen: string;
  looks: number;
}

interface Sum {
  readonly rows: string;
  readonly sum: string | null;
}

const none: Attempts = {
  changes: 0,
  changedAtMs: 0,
  comparedAtMs: 0,
  tookMs: 0,
  rows: 0,
  notBeforeMs: 0,
  seen: '',
  looks: 0,
};

export class KeylessTables {
  readonly #scope: TaskScope;
  readonly #attempts: Map<TablePair, Attempts>;
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  /** Of tables that have been compared before. */
  #nextMs = 0;
  #running: Promise<void> | null = null;
  #failure: MigrationError | null = null;

  constructor(scope: TaskScope, tables: readonly TablePair[]) {
    this.#scope = scope;
    this.#signal = AbortSignal.any([scope.signal, this.#stop.signal]);
    const keyless = tables.filter(({ source }) => source.key.length === 0);
    this.#attempts = new Map(keyless.map((table) => [table, { ...none }]));
  }

  /**
   * Begins the next comparison that is due, beside everything else. Throws when the last one has lost its connection;
   * whatever else a comparison fails with leaves its table for another time.
   */
  poll(): void {
    if (this.#failure !== null) throw this.#failure;
    if (this.#running) return;
    const now = Date.now();
    const due = [...this.#attempts]
      .filter(([table, attempts]) => this.#isDue(table, attempts, now))
      .toSorted(([, a], [, b]) => a.comparedAtMs - b.comparedAtMs);
    const [next] = due;
    if (!next) return;
    this.#running = this.#compare(...next)
      .catch((error: unknown) => void (this.#failure = asMigrationError(error)))
      .finally(() => void (this.#running = null));
  }

  #isDue(table: TablePair, attempts: Attempts, now: number): boolean {
    if (tableNote(this.#scope.checkpoints, table.name).state === 'verified') return false;
    if (attempts.comparedAtMs > 0 && now < this.#nextMs) return false;
    // a table that has just changed would have changed before we are through
    return now >= attempts.notBeforeMs && now - attempts.changedAtMs >= attempts.tookMs;
  }

  /** The table is not as it was compared: call it before its row of dts.changed is taken out. False: it has a key. */
  changed(relation: string): boolean {
    for (const [table, attempts] of this.#attempts) {
      if (table.name !== relation) continue;
      attempts.changes++;
      attempts.changedAtMs = Date.now();
      const note = tableNote(this.#scope.checkpoints, relation);
      if (note.state === 'verified') this.#save(table, { ...note, state: 'atCutover' });
      return true;
    }
    return false;
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #compare(table: TablePair, attempts: Attempts): Promise<void> {
    const startedMs = Date.now();
    const over = new AbortController();
    const yielding = new AbortController();
    const signal = AbortSignal.any([this.#signal, yielding.signal]);
    let pauseMs = LEAST_PAUSE_MS;
    try {
      // a read holds back VACUUM, like a snapshot of the copy
      const age = { statement_timeout: String(this.#scope.spec.options.maxSnapshotAgeMs) };
      const pair = await openPair(this.#scope, signal, age);
      const watch = this.#watch(pair, over.signal, () => yielding.abort());
      try {
        await this.#compareOnce(pair, table, attempts);
      } finally {
        over.abort();
        await Promise.all([closePair(pair), watch]);
      }
    } catch (error) {
      this.#signal.throwIfAborted();
      const failure = asMigrationError(error);
      if (yielding.signal.aborted)
        this.#scope.log.info({}, `${table.name}: the comparison gave way to a lock request behind it`);
      else if (failure.code === 'connection_failed') throw failure;
      else this.#scope.log.warn({ err: failure }, `${table.name} could not be compared beside the stream`);
      pauseMs = FAILED_PAUSE_MS;
    } finally {
      const now = Date.now();
      attempts.comparedAtMs = now;
      attempts.tookMs = now - startedMs;
      const { validationMaxRowsPerSecond: limit } = this.#scope.spec.options;
      const restMs = attempts.tookMs / MOST_OF_THE_TIME - attempts.tookMs;
      attempts.notBeforeMs = now + pauseMs;
      this.#nextMs = now + Math.max(restMs, limit === null ? 0 : (attempts.rows / limit) * 1_000);
    }
  }

  /** Has the read end when somebody's lock request waits behind it: what comes after him waits, too, our stream as well. */
  async #watch(pair: SidePair, over: AbortSignal, giveWay: () => void): Promise<void> {
    let since: number | null = null;
    const { source, target } = this.#scope;
    const sides = [
      [source, pair.source.pid],
      [target, pair.target.pid],
    ] as const;
    while (!over.aborted) {
      try {
        await sleep(WATCH_EVERY_MS, over);
        const waits = await Promise.all(
          sides.map(([side, pid]) =>
            side.query(
              'select from pg_locks as w where not w.granted and $1 = any (pg_blocking_pids(w.pid)) limit 1',
              [pid],
            ),
          ),
        );
        since = waits.some(({ rowCount }) => rowCount !== 0) ? (since ?? Date.now()) : null;
      } catch {
        continue; // it is over, or the comparison's own next query tells
      }
      if (since !== null && Date.now() - since >= GIVE_WAY_AFTER_MS) return giveWay();
    }
  }

  async #compareOnce(pair: SidePair, table: TablePair, attempts: Attempts): Promise<void> {
    const scope = this.#scope;
    const { changes } = attempts;
    const known = await noteNumbers(scope);
    const form = (await readForms(scope.source, [table.plan.source])).get(table.name);
    const source = await this.#sum(pair, table, 'source');
    const verifiedLsn = await positionBehind(pair);
    attempts.rows = Number(source?.rows ?? 0);
    const isApplied = await waitApplied(scope, verifiedLsn, WAIT_MS, this.#signal);
    const target = isApplied ? await this.#sum(pair, table, 'target') : undefined;
    const isSame = source?.rows === target?.rows && source?.sum === target?.sum;
    const newer = await changedBeyond(scope, known, [table.name]);
    scope.failpoint('validate.keyless-compared');
    // From here on nothing is awaited: a look that takes a newer row out has called changed() before, or will call it.
    const note = tableNote(scope.checkpoints, table.name);
    if (target === undefined || attempts.changes !== changes || newer.size > 0 || form === undefined) {
      attempts.looks = 0;
      return; // what was found before stands
    }
    const compared = { ...note, form, rows: attempts.rows, ranges: note.ranges + 1 };
    if (isSame) {
      attempts.looks = 0;
      return this.#save(table, { ...compared, state: 'verified', verifiedLsn });
    }
    const seen = JSON.stringify([source, target]);
    attempts.looks = attempts.seen === seen ? attempts.looks + 1 : 1;
    attempts.seen = seen;
    // what was known to differ does until it is found equal
    const differs = attempts.looks >= LOOKS || note.state === 'differs';
    this.#save(table, { ...compared, state: differs ? 'differs' : 'atCutover' });
  }

  async #sum(pair: SidePair, table: TablePair, role: 'source' | 'target'): Promise<Sum | undefined> {
    const [sum] = await ask<Sum>(pair[role], sumsSql(table[role], WHOLE), table, role);
    return sum;
  }

  #save(table: TablePair, note: TableValidation): void {
    saveTableNote(this.#scope.checkpoints, table.name, note);
  }
}
