// Decides single keys while the stream runs: are source and target really different, or is the target only late?
//
//   begin   the keys written down so far; their rows on the source; the source's position behind that read
//   finish  once the stream has applied that position: the rows on the target, and what was written down since
//
//   same rows                              → settled
//   different, written down again since    → settled here: the newer note is looked at later
//   different, not written down since      → in doubt, looked at again; the third time in a row it is a difference
//
// Once is not enough: the walsender may send a transaction that others on the source do not see yet (its backend waits
// for a synchronous standby), and then the target is ahead of our read.
import type { Lsn } from '../model/lsn.ts';
import type { RowDifference } from '../model/validation.ts';
import { askForPosition } from '../postgres/marker.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { changedBeyond, readChanges, replaceChanges, streamPosition } from './changes.ts';
import { differenceOf, readHashes, withColumns, type RowHashes } from './keys.ts';
import { isRead, saveTableNote, tableNote } from './notes.ts';
import type { KeyTexts } from './range-sql.ts';
import type { TablePair } from './ranges.ts';
import { positionBehind, type SidePair } from './sessions.ts';

/** Looks in a row that must find the same difference. */
const LOOKS = 3;
/** Differences of a table that are kept; beyond it is only `differs`, until those are settled and it is read again. */
const MAX_DIFFERENCES = 1_000;
/** Of these the columns are named. */
const SAMPLED = 20;

interface KeysOfTable {
  readonly table: TablePair;
  readonly keys: readonly KeyTexts[];
  readonly source: RowHashes;
}

export interface KeyCheck {
  readonly beganAtMs: number;
  /** Rows of dts.changed that are settled with it. */
  readonly rows: readonly string[];
  readonly tables: readonly KeysOfTable[];
  /** Position of the source behind the reads. */
  readonly lsn: Lsn;
  /** About how many keys of dts.changed it has left for another look; null: none. */
  readonly waiting: number | null;
  /**
   * What the stream had applied before dts.changed was read. Every change up to here that was not settled before is in this look,
   * and its row is read on the source later than it was committed. Null: not so, for keys are left, or ranges to be read.
   */
  readonly completeUpTo: Lsn | null;
}

export interface KeyVerdict {
  /** Keys. */
  readonly inDoubt: number;
  /** Tables with a row that was not the same, late or not. */
  readonly unlike: readonly string[];
}

export class KeyChecker {
  readonly #scope: TaskScope;
  readonly #pair: SidePair;
  readonly #tables: ReadonlyMap<string, TablePair>;
  readonly #readAgain: (relation: string) => void;
  /** Looks that found the same difference, by table and key. */
  readonly #doubts = new Map<string, { readonly seen: string; readonly looks: number }>();

  /** `readAgain`: told of tables whose keys no longer tell what changed, before that is taken out of dts.changed. */
  constructor(
    scope: TaskScope,
    pair: SidePair,
    tables: ReadonlyMap<string, TablePair>,
    readAgain: (relation: string) => void,
  ) {
    this.#scope = scope;
    this.#pair = pair;
    this.#tables = tables;
    this.#readAgain = readAgain;
  }

  /** `recheck`: also the differences that are known. */
  async begin(recheck: boolean): Promise<KeyCheck> {
    const beganAtMs = Date.now();
    const position = await streamPosition(this.#scope); // before the keys: those of each batch are committed with it
    const { changes, waiting } = await readChanges(this.#scope);
    const wanted = new Map<string, Map<string, KeyTexts>>();
    const want = (relation: string, keys: readonly KeyTexts[]): void => {
      const known = wanted.get(relation) ?? new Map<string, KeyTexts>();
      for (const key of keys) known.set(JSON.stringify(key), key);
      wanted.set(relation, known);
    };
    for (const { relation, keys } of changes) {
      if (keys === null) this.#readAgain(relation);
      else want(relation, keys);
    }
    if (recheck)
      for (const relation of this.#tables.keys())
        want(
          relation,
          tableNote(this.#scope.checkpoints, relation).differences.map(({ key }) => key),
        );
    const isComplete =
      waiting === null &&
      [...this.#tables.keys()].every((relation) => isRead(tableNote(this.#scope.checkpoints, relation)));
    const tables: KeysOfTable[] = [];
    for (const [relation, byText] of wanted) {
      const table = this.#tables.get(relation);
      if (!table || table.source.key.length === 0 || byText.size === 0) continue;
      const keys = [...byText.values()];
      tables.push({ table, keys, source: await readHashes(this.#pair, table, keys, 'source') });
    }
    const lsn = await positionBehind(this.#pair);
    if (tables.length > 0) await askForPosition(this.#scope);
    return {
      beganAtMs,
      rows: changes.map(({ n }) => n),
      tables,
      lsn,
      waiting,
      completeUpTo: isComplete ? (position?.appliedLsn ?? null) : null,
    };
  }

  /** Call it once the stream has applied `check.lsn`. */
  async finish(check: KeyCheck): Promise<KeyVerdict> {
    const compared = [];
    for (const each of check.tables) {
      const targets = await readHashes(this.#pair, each.table, each.keys, 'target');
      const kinds = each.keys.map((_, n) => differenceOf(each.source[n], targets[n]));
      compared.push({ ...each, targets, kinds });
    }
    // Read after the rows: what changed in between makes us look again, never believe. Of tables that agree nobody asks.
    const unlike = compared.filter(({ kinds }) => kinds.some((kind) => kind !== null));
    const newer = await changedBeyond(
      this.#scope,
      check.rows,
      unlike.map(({ table }) => table.name),
    );
    const again = new Map<string, KeyTexts[]>();
    for (const { table, keys, source, targets, kinds } of compared) {
      const found = new Map<string, RowDifference>();
      const settled = new Set<string>();
      const inDoubt: KeyTexts[] = [];
      const since = newer.get(table.name);
      for (const [n, key] of keys.entries()) {
        const text = JSON.stringify(key);
        const kind = kinds[n] ?? null;
        const changedSince = since === null || since?.has(text) === true;
        if (kind === null || changedSince) {
          this.#doubts.delete(table.name + text);
          settled.add(text);
        } else if (this.#looks(table.name + text, `${source[n]}/${targets[n]}`) >= LOOKS)
          found.set(text, { key, kind });
        else inDoubt.push(key);
      }
      await this.#saveDifferences(table, settled, found);
      if (inDoubt.length > 0) again.set(table.name, inDoubt);
    }
    this.#scope.failpoint('validate.keys-compared');
    await replaceChanges(this.#scope, check.rows, again);
    return {
      inDoubt: [...again.values()].reduce((sum, keys) => sum + keys.length, 0),
      unlike: unlike.map(({ table }) => table.name),
    };
  }

  #looks(id: string, seen: string): number {
    const before = this.#doubts.get(id);
    const looks = before?.seen === seen ? before.looks + 1 : 1;
    this.#doubts.set(id, { seen, looks });
    return looks;
  }

  async #saveDifferences(
    table: TablePair,
    settled: ReadonlySet<string>,
    found: ReadonlyMap<string, RowDifference>,
  ): Promise<void> {
    const note = tableNote(this.#scope.checkpoints, table.name);
    const kept = note.differences.filter(({ key }) => {
      const text = JSON.stringify(key);
      return !settled.has(text) && !found.has(text);
    });
    if (found.size === 0 && kept.length === note.differences.length) return;
    const known = new Map(note.differences.map((difference) => [JSON.stringify(difference.key), difference]));
    // a difference that stays as it was keeps its columns
    const named = [...found].map(([text, difference]) => {
      const before = known.get(text);
      return before?.kind === difference.kind ? before : difference;
    });
    const differences = [...kept, ...named];
    // Those beyond what is kept are not known by their keys: the table has not been read to its end.
    if (differences.length === 0 && note.state === 'differs') return this.#readAgain(table.name);
    const sampled = await withColumns(this.#pair, table, differences.slice(0, SAMPLED));
    const all = [...sampled, ...differences.slice(SAMPLED)];
    saveTableNote(this.#scope.checkpoints, table.name, {
      ...note,
      differences: all.slice(0, MAX_DIFFERENCES),
      ...(all.length > MAX_DIFFERENCES ? { state: 'differs' as const } : {}),
    });
  }
}
