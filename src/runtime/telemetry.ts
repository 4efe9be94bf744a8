// Live figures of one task: fed by its activities, read by views, SSE and metrics. The lasting part (figures per table)
// is saved when a part or table is done; the rest is only true while somebody works.
import type { TaskNotes } from '../../db/notes.ts';
import { isStoreFailure } from '../model/errors.ts';
import type { CopyingBeside, SyncStatus, TableProgress, TaskProgress } from '../model/progress.ts';
import type { TaskState } from '../model/task-state.ts';
import type { ProgressPort } from '../postgres/task-scope.ts';

const RATE_WINDOW_MS = 5_000;
/** Figures are saved together: a commit each would cost thousands of small tables a wait for the disk each. */
const SAVE_AFTER_MS = 200;

/** What was copied at a moment. Estimates are corrected on the way, so shares of them are reckoned when the rate is asked for. */
interface RateSample {
  readonly atMs: number;
  readonly tables: ReadonlyMap<string, TableProgress>;
}

export class TaskTelemetry implements ProgressPort {
  readonly #taskId: string;
  readonly #notes: TaskNotes;
  readonly #changed: () => void;
  readonly #partDone: () => void;
  readonly #tables = new Map<string, TableProgress>();
  readonly #unsaved = new Set<string>();
  #saving: NodeJS.Timeout | null = null;
  #samples: RateSample[] = [];
  #sync: SyncStatus | null = null;
  #copying: { readonly tables: readonly string[]; readonly heldBytes: number } | null = null;
  #waitingFor: string | null = null;
  readonly #validated: (clean: boolean) => void;

  constructor(
    taskId: string,
    notes: TaskNotes,
    listeners: { changed: () => void; partDone: () => void; validated: (clean: boolean) => void },
  ) {
    this.#taskId = taskId;
    this.#notes = notes;
    this.#changed = listeners.changed;
    this.#partDone = listeners.partDone;
    this.#validated = listeners.validated;
    for (const table of notes.tables(taskId)) this.#tables.set(table.table, table);
  }

  setTables(tables: readonly TableProgress[]): void {
    const known = new Map(this.#tables);
    this.#tables.clear();
    for (const table of tables) this.#tables.set(table.table, known.get(table.table) ?? table);
    this.#notes.saveTables(this.#taskId, [...this.#tables.values()]);
    this.#changed();
  }

  addTables(tables: readonly TableProgress[]): void {
    this.setTables([...this.#tables.values(), ...tables.filter(({ table }) => !this.#tables.has(table))]);
  }

  setCopying(copying: { readonly tables: readonly string[]; readonly heldBytes: number } | null): void {
    this.#copying = copying;
    this.#changed();
  }

  updateTable(table: string, patch: Partial<TableProgress>, durable = false): void {
    const known = this.#tables.get(table);
    if (!known) return;
    this.#tables.set(table, { ...known, ...patch });
    this.#sample();
    if (durable) {
      this.#saveSoon(table);
      this.#partDone();
    }
    this.#changed();
  }

  setSync(status: SyncStatus): void {
    this.#sync = status;
    this.#changed();
  }

  setValidationClean(clean: boolean): void {
    this.#validated(clean);
  }

  setWaitingFor(reason: string | null): void {
    if (this.#waitingFor === reason) return;
    this.#waitingFor = reason;
    this.#changed();
  }

  /** Nobody works on the task any more: rates, lag and waits are no longer true. */
  rest(): void {
    this.#save();
    this.#samples = [];
    this.#sync = null;
    this.#copying = null;
    this.#waitingFor = null;
  }

  #saveSoon(table: string): void {
    this.#unsaved.add(table);
    this.#saving ??= setTimeout(() => this.#save(), SAVE_AFTER_MS).unref();
  }

  /** What is lost here is only shown wrong until the next start: the target knows what is done. */
  #save(): void {
    if (this.#saving) clearTimeout(this.#saving);
    this.#saving = null;
    const figures = [...this.#unsaved].flatMap((table) => this.#tables.get(table) ?? []);
    this.#unsaved.clear();
    if (figures.length === 0) return;
    try {
      this.#notes.updateTables(this.#taskId, figures);
    } catch (error) {
      // better-sqlite3 says that a store is closed by a TypeError
      if (!isStoreFailure(error) && !(error instanceof TypeError)) throw error;
    }
  }

  get tables(): readonly TableProgress[] {
    return [...this.#tables.values()];
  }

  snapshot(): TaskProgress {
    const tables = this.tables;
    const { bytesPerSecond, sharePerSecond } = this.#rates();
    const done = copiedFraction(tables);
    const etaSeconds = sharePerSecond > 0 && done < 1 ? Math.ceil((1 - done) / sharePerSecond) : null;
    return {
      tables,
      bytesCopied: total(tables, 'bytesCopied'),
      bytesEstimated: total(tables, 'bytesEstimated'),
      rowsCopied: total(tables, 'rowsCopied'),
      bytesPerSecond,
      etaSeconds,
      copying: this.#copying === null ? null : copyingOf(tables, this.#copying, etaSeconds),
      sync: this.#sync,
      waitingFor: this.#waitingFor,
    };
  }

  #sample(): void {
    const atMs = Date.now();
    const last = this.#samples.at(-1);
    if (last && atMs - last.atMs < 200) return;
    // before the first part begins, those of a former run are told, all at once: that is no rate
    if (!this.tables.some(({ state }) => state === 'copying')) return;
    this.#samples = this.#samples.filter((sample) => atMs - sample.atMs <= RATE_WINDOW_MS);
    this.#samples.push({ atMs, tables: new Map(this.#tables) });
  }

  /** Over the samples; 0 where there are none, or none of late. */
  #rates(): { readonly bytesPerSecond: number; readonly sharePerSecond: number } {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (!first || !last || first === last || Date.now() - last.atMs > RATE_WINDOW_MS)
      return { bytesPerSecond: 0, sharePerSecond: 0 };
    const seconds = (last.atMs - first.atMs) / 1_000;
    const [before, after] = [this.#asOf(first), this.#asOf(last)];
    // it may be less than before: parts are lost, tables start over
    const bytes = Math.max(0, total(after, 'bytesCopied') - total(before, 'bytesCopied'));
    return {
      bytesPerSecond: Math.round(bytes / seconds),
      sharePerSecond: (copiedFraction(after) - copiedFraction(before)) / seconds,
    };
  }

  /** What was copied then, of what is expected now. */
  #asOf({ tables }: RateSample): TableProgress[] {
    return this.tables.map((table) => {
      const { state, rowsCopied, bytesCopied } = tables.get(table.table) ?? notBegun;
      return { ...table, state, rowsCopied, bytesCopied };
    });
  }
}

const notBegun = { state: 'pending', rowsCopied: 0, bytesCopied: 0 } as const;

/** Only these are copied: what the whole lacks is theirs. */
function copyingOf(
  all: readonly TableProgress[],
  { tables, heldBytes }: { readonly tables: readonly string[]; readonly heldBytes: number },
  etaSeconds: number | null,
): CopyingBeside {
  const names = new Set(tables);
  const concerned = all.filter(({ table }) => names.has(table));
  return {
    tables,
    rowsCopied: total(concerned, 'rowsCopied'),
    rowsEstimated: total(concerned, 'rowsEstimated'),
    bytesCopied: total(concerned, 'bytesCopied'),
    bytesEstimated: total(concerned, 'bytesEstimated'),
    etaSeconds,
    heldBytes,
  };
}

function total(
  tables: readonly TableProgress[],
  figure: 'bytesCopied' | 'bytesEstimated' | 'rowsCopied' | 'rowsEstimated',
): number {
  return tables.reduce((sum, table) => sum + table[figure], 0);
}

/**
 * Copied share of all tables, 0–1, each weighing its size on the source's disk, which does not change on the way. Within a
 * table rows are set against their estimate, or bytes where the statistics know no rows; it counts fully only when done.
 */
export function copiedFraction(tables: readonly TableProgress[]): number {
  let copied = 0;
  let all = 0;
  for (const table of tables) {
    const weight = Math.max(table.bytesOnDisk ?? table.bytesEstimated, 8_192);
    const done = table.state === 'copied' || table.state === 'indexing' || table.state === 'ready';
    const share =
      table.rowsEstimated > 0
        ? table.rowsCopied / table.rowsEstimated
        : table.bytesCopied / Math.max(table.bytesEstimated, 1);
    all += weight;
    copied += weight * (done ? 1 : Math.min(share, 0.99));
  }
  return all === 0 ? 0 : copied / all;
}

/** 0–100 for the API: at most 99 until completed. */
export function progressPercent(state: TaskState, tables: readonly TableProgress[]): number {
  if (state === 'completed') return 100;
  return Math.min(Math.floor(copiedFraction(tables) * 100), 99);
}
