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
import type { Lsn } from '../model/lsn.ts';
import type { TableValidation } from '../model/validation.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { changedBeyond, noteNumbers, waitApplied } from './changes.ts';
import { saveTableNote, tableNote } from './notes.ts';
import { sumsSql } from './range-sql.ts';
import { ask, type TablePair } from './ranges.ts';
import { closePair, openPair, type SidePair } from './sessions.ts';
import { readForms } from './table-forms.ts';

/** Comparisons that must find the same difference. */
const LOOKS = 3;
/** Of the servers' time: each comparison reads the whole table on both. */
const MOST_OF_THE_TIME = 1 / 10;
const LEAST_PAUSE_MS = 1_000;
/** Longest wait for the stream; the table is compared another time then. */
const WAIT_MS = 30_000;
const WHOLE = [{ after: null, upTo: null }];

/** What is known of one table in this process. */
interface Attempts {
  /** Counts what was written down and taken out of dts.changed. */
  changes: number;
  changedAtMs: number;
  /** Of the last comparison. */
  tookMs: number;
  nextMs: number;
  /** The last difference, and how often it was found. */
  seen: string;
  looks: number;
}

interface Sum {
  readonly rows: string;
  readonly sum: string | null;
}

export class KeylessTables {
  readonly #scope: TaskScope;
  readonly #attempts: Map<TablePair, Attempts>;
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  #running: Promise<void> | null = null;
  #failure: MigrationError | null = null;

  constructor(scope: TaskScope, tables: readonly TablePair[]) {
    this.#scope = scope;
    this.#signal = AbortSignal.any([scope.signal, this.#stop.signal]);
    this.#attempts = new Map(
      tables
        .filter(({ source }) => source.key.length === 0)
        .map((table) => [
          table,
          { changes: 0, changedAtMs: 0, tookMs: 0, nextMs: 0, seen: '', looks: 0 } satisfies Attempts,
        ]),
    );
  }

  /** Begins the next comparison that is due, beside everything else. Throws what the last one failed with. */
  poll(): void {
    if (this.#failure !== null) throw this.#failure;
    if (this.#running) return;
    const now = Date.now();
    for (const [table, attempts] of this.#attempts) {
      const { state } = tableNote(this.#scope.checkpoints, table.name);
      // a table that has just changed would have changed before we are through
      const isQuiet = now - attempts.changedAtMs >= attempts.tookMs;
      if (state === 'verified' || now < attempts.nextMs || !isQuiet) continue;
      this.#running = this.#compare(table, attempts)
        .catch((error: unknown) => void (this.#failure = asMigrationError(error)))
        .finally(() => void (this.#running = null));
      return;
    }
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
    const pair = await openPair(this.#scope, this.#signal);
    try {
      await this.#compareOnce(pair, table, attempts);
    } finally {
      attempts.tookMs = Date.now() - startedMs;
      const { validationMaxRowsPerSecond: limit } = this.#scope.spec.options;
      const { rows } = tableNote(this.#scope.checkpoints, table.name);
      const pauseMs = Math.max(
        LEAST_PAUSE_MS,
        attempts.tookMs / MOST_OF_THE_TIME - attempts.tookMs,
        limit === null ? 0 : (rows / limit) * 1_000,
      );
      attempts.nextMs = Date.now() + pauseMs;
      await closePair(pair);
    }
  }

  async #compareOnce(pair: SidePair, table: TablePair, attempts: Attempts): Promise<void> {
    const scope = this.#scope;
    const known = await noteNumbers(scope);
    const { changes } = attempts;
    const form = (await readForms(scope.source, [table.plan.source])).get(table.name);
    const source = await this.#sum(pair, table, 'source');
    const { rows: lsns } = await pair.source.client.query<{ lsn: Lsn }>(
      'select pg_current_wal_insert_lsn()::text as lsn',
    );
    const verifiedLsn = lsns[0]?.lsn ?? '0/0';
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
    const compared = { ...note, form, rows: Number(source?.rows ?? 0), ranges: note.ranges + 1 };
    if (isSame) {
      attempts.looks = 0;
      return this.#save(table, { ...compared, state: 'verified', verifiedLsn });
    }
    const seen = JSON.stringify([source, target]);
    attempts.looks = attempts.seen === seen ? attempts.looks + 1 : 1;
    attempts.seen = seen;
    this.#save(table, { ...compared, state: attempts.looks >= LOOKS ? 'differs' : 'atCutover' });
  }

  async #sum(pair: SidePair, table: TablePair, role: 'source' | 'target'): Promise<Sum | undefined> {
    const [sum] = await ask<Sum>(pair[role], sumsSql(table[role], WHOLE), table, role);
    return sum;
  }

  #save(table: TablePair, note: TableValidation): void {
    saveTableNote(this.#scope.checkpoints, table.name, note);
  }
}
