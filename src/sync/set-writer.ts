// The pending sets of all tables, and how they leave: a few rows as prepared statements of their own, some as one with a list
// of parameters, many as COPY and one statement. Owned by apply.ts, which opens and ends the transaction around them.
import type { Tuple, ColumnValue } from '../postgres/pgoutput-messages.ts';
import { UNCHANGED } from '../postgres/pgoutput-messages.ts';
import type { Parameter, Pipeline } from '../postgres/pipeline.ts';
import type { ChangeContext } from './apply-errors.ts';
import { LastView } from '../postgres/byte-views.ts';
import { FEW_ROWS, leavingRows, type LeavingRows } from './leaving-rows.ts';
import type { StreamedTable } from './relations.ts';
import { LIST_SIZES, setStatements, type SetStatements } from './set-statements.ts';
import { deleteRow, insertRows, updateRow } from './statements.ts';
import { TableBatch, UNCHANGED_LENGTH } from './table-batch.ts';

/** After so many target transactions without it, the memory of a table's last batch is given back. */
const IDLE_TRANSACTIONS = 64;

/** Of one list, and of all: the target keeps about 800 bytes for each parameter of a prepared statement. */
const MAX_LIST_PARAMETERS = 1_024;
const MAX_LISTS_PARAMETERS = 64 * 1_024;
/** Beyond, a list is no cheaper than COPY. */
const MAX_LIST_BYTES = 256 * 1024;

const INSERT_TAG = 0x49;
const UPDATE_TAG = 0x55;

interface TableSet {
  readonly table: StreamedTable;
  readonly batch: TableBatch;
  readonly sql: SetStatements;
  /** Statements with lists, by kind and size: their texts are long, and made once. */
  readonly lists: Map<string, string>;
  /** How its batch will leave; null: not asked for yet, or something was taken since. */
  leaving: LeavingRows | null;
  updates: TemporaryTable;
  deletes: TemporaryTable;
  /** Target transactions that have ended since its batch was written. */
  idle: number;
}

/** `filled`: by the open transaction. */
type TemporaryTable = 'absent' | 'empty' | 'filled';

/** What a COPY sends of each row: all values, which it has; all, NULL for those that it lacks; or those at these positions. */
type Sending = 'whole' | 'lacking' | readonly number[];

/** `PGCOPY\n\377\r\n\0`, no flags, no extension. */
const copyHeader = Buffer.concat([Buffer.from('PGCOPY\n\xff\r\n\0', 'latin1'), Buffer.alloc(8)]);

export class SetWriter {
  readonly #pipe: Pipeline<ChangeContext>;
  readonly #binary: boolean;
  readonly #onWrite: (table: StreamedTable, batch: TableBatch) => void;
  readonly #sets = new Map<StreamedTable, TableSet>();
  readonly #touched = new Set<TableSet>();
  readonly #views = new LastView();
  /** The one that was taken into last, while it is pending: as a rule the next change is its, too. */
  #last: TableSet | null = null;
  #listParameters = 0;
  #bytes = 0;

  /** `onWrite` is called with every set before it leaves. */
  constructor(
    pipe: Pipeline<ChangeContext>,
    binary: boolean,
    onWrite: (table: StreamedTable, batch: TableBatch) => void,
  ) {
    this.#pipe = pipe;
    this.#binary = binary;
    this.#onWrite = onWrite;
  }

  /** Memory of what is pending. */
  get bytes(): number {
    return this.#bytes;
  }

  take(table: StreamedTable, tag: number, message: Buffer, at: number, end: number): boolean {
    if (table.shape === null) return false;
    if (tag === UPDATE_TAG && !table.setUpdates) return false;
    const set = this.#last?.table === table ? this.#last : this.#setOf(table, table.shape);
    const { batch } = set;
    const before = batch.used;
    const taken =
      tag === INSERT_TAG
        ? batch.insert(message, at, end)
        : tag === UPDATE_TAG
          ? batch.update(message, at, end)
          : batch.delete(message, at, end);
    if (!taken) return false;
    if (this.#last !== set) {
      this.#touched.add(set);
      this.#last = set;
    }
    set.leaving = null;
    this.#bytes += batch.used - before;
    return true;
  }

  #setOf(table: StreamedTable, columns: NonNullable<StreamedTable['shape']>): TableSet {
    const known = this.#sets.get(table);
    if (known) return known;
    const sql = setStatements(table, this.#sets.size, this.#binary);
    const batch = new TableBatch({ ...columns, binary: this.#binary }, this.#pipe.pool, this.#views);
    const set: TableSet = {
      table,
      batch,
      sql,
      lists: new Map(),
      leaving: null,
      updates: 'absent',
      deletes: 'absent',
      idle: 0,
    };
    this.#sets.set(table, set);
    this.write(table); // what it has pending under the columns that it had before
    return set;
  }

  /** Whether the table has something pending. */
  has(table: StreamedTable): boolean {
    return this.#pendingOf(table).length > 0;
  }

  /** Sends what the table has pending. */
  write(table: StreamedTable): void {
    this.#last = null;
    for (const set of this.#pendingOf(table)) if (this.#touched.delete(set)) this.#write(set);
  }

  /** More than one, in order, where the source has changed its columns in between. */
  #pendingOf({ key }: StreamedTable): TableSet[] {
    return [...this.#touched].filter(({ table }) => table.key === key);
  }

  /** Arranges what is pending while the target is still at work, so that it leaves at once when its turn comes. */
  arrange(): void {
    for (const set of this.#touched) {
      const { batch } = set;
      const leaving = leavingRows(batch);
      set.leaving = leaving;
      const isCopied = (entries: readonly number[]): boolean =>
        entries.length > FEW_ROWS && leavesAsItLies(batch, entries, 'whole');
      if (isCopied(leaving.inserts)) batch.gather(leaving.inserts);
      const updates = leaving.updates.get('') ?? [];
      if (isCopied(updates) && listSizeOf(batch, updates, batch.shape.columns) === null)
        batch.gather(updates);
    }
  }

  writeAll(): void {
    this.#last = null;
    for (const set of this.#touched) this.#write(set);
    this.#touched.clear();
  }

  /** Forgets what is pending. */
  drop(): void {
    this.#last = null;
    for (const set of this.#touched) {
      set.batch.clear();
      set.leaving = null;
    }
    this.#touched.clear();
    this.#bytes = 0;
  }

  /** After the end of a transaction: a rolled back one may have made the temporary tables. */
  ended(how: 'committed' | 'rolled back'): void {
    for (const set of this.#sets.values()) {
      if (set.updates !== 'absent') set.updates = how === 'committed' ? 'empty' : 'absent';
      if (set.deletes !== 'absent') set.deletes = how === 'committed' ? 'empty' : 'absent';
      if (++set.idle === IDLE_TRANSACTIONS && !this.#touched.has(set)) set.batch.rest();
    }
  }

  #write(set: TableSet): void {
    const { batch } = set;
    set.idle = 0;
    this.#onWrite(set.table, batch);
    const { deletes, updates, inserts } = set.leaving ?? leavingRows(batch);
    if (deletes.length > 0) this.#deleteRows(set, deletes);
    for (const [word, entries] of updates) this.#updateRows(set, word, entries);
    if (inserts.length > 0) this.#insertRows(set, inserts);
    this.#bytes -= batch.used;
    batch.clear();
    set.leaving = null;
  }

  #deleteRows(set: TableSet, entries: readonly number[]): void {
    const { table, batch, sql } = set;
    const context: ChangeContext = { operation: 'delete', table };
    if (entries.length <= FEW_ROWS) {
      for (const entry of entries) {
        const row = tupleOf(batch, entry);
        const { text, values } = deleteRow(table, row, false);
        this.#pipe.execute(text, values, 1, { ...context, row });
      }
      return;
    }
    const { keys } = batch.shape;
    if (this.#sendList(set, 'delete', entries, keys, context, (rows) => sql.delete(rows))) return;
    if (set.deletes === 'absent') this.#pipe.execute(sql.createDeletes, [], null, context);
    else if (set.deletes === 'filled') this.#pipe.execute(sql.clearDeletes, [], null, context);
    set.deletes = 'filled';
    this.#copy(set, sql.copyDeletes, entries, keys, context);
    this.#pipe.execute(sql.delete(null), [], entries.length, context);
  }

  #updateRows(set: TableSet, word: string, entries: readonly number[]): void {
    const { table, batch, sql } = set;
    const context: ChangeContext = { operation: 'update', table };
    if (entries.length <= FEW_ROWS) {
      for (const entry of entries) {
        const row = tupleOf(batch, entry);
        const message = { tag: 'update', relationId: 0, oldKind: 'none', old: null, new: row } as const;
        const { text, values } = updateRow(table, message);
        this.#pipe.execute(text, values, 1, { ...context, row });
      }
      return;
    }
    const unchanged = new Set(
      word
        .split(',')
        .filter((position) => position !== '')
        .map(Number),
    );
    const sent = table.columns.map((_, at) => at).filter((at) => !unchanged.has(at));
    const update = (rows: number): string => sql.update(sent, rows);
    if (this.#sendList(set, `update ${word}`, entries, sent, context, update)) return;
    if (set.updates === 'absent') this.#pipe.execute(sql.createUpdates, [], null, context);
    else if (set.updates === 'filled') this.#pipe.execute(sql.clearUpdates, [], null, context);
    set.updates = 'filled';
    this.#copy(set, sql.copyUpdates, entries, unchanged.size > 0 ? 'lacking' : 'whole', context);
    this.#pipe.execute(sql.update(sent, null), [], entries.length, context);
  }

  /** False: they are too many for a list, or too large, or there are lists enough. `statement`: of so many rows. */
  #sendList(
    { batch, lists }: TableSet,
    kind: string,
    entries: readonly number[],
    positions: readonly number[],
    context: ChangeContext,
    statement: (rows: number) => string,
  ): boolean {
    const rows = listSizeOf(batch, entries, positions.length);
    if (rows === null) return false;
    const name = `${kind} ${rows}`;
    let text = lists.get(name);
    if (text === undefined) {
      if (this.#listParameters + rows * positions.length > MAX_LISTS_PARAMETERS) return false;
      this.#listParameters += rows * positions.length;
      text = statement(rows);
      lists.set(name, text);
    }
    this.#pipe.execute(text, listOf(batch, entries, positions, rows), entries.length, context);
    return true;
  }

  #insertRows(set: TableSet, entries: readonly number[]): void {
    const { table, batch, sql } = set;
    const context: ChangeContext = { operation: 'insert', table };
    if (entries.length <= FEW_ROWS)
      for (const entry of entries) {
        const row = tupleOf(batch, entry);
        const { text, values } = insertRows(table, [row]);
        this.#pipe.execute(text, values, 1, { ...context, row });
      }
    else this.#copy(set, sql.insert, entries, 'whole', context);
  }

  #copy(
    { batch }: TableSet,
    sql: string,
    entries: readonly number[],
    sending: Sending,
    context: ChangeContext,
  ): void {
    const { binary } = batch.shape;
    const pipe = this.#pipe;
    const columns = typeof sending === 'string' ? null : sending;
    pipe.copy(sql, entries.length, context, ({ frame, lend }) => {
      if (binary) pipe.bytes(copyHeader, 0, copyHeader.length);
      if (leavesAsItLies(batch, entries, sending)) lend(batch.release(entries));
      else
        for (const entry of entries) {
          if (!binary) this.#textRow(batch, entry, columns);
          else if (sending === 'whole')
            pipe.bytes(batch.arena, batch.starts[entry] ?? 0, batch.ends[entry] ?? 0);
          else this.#binaryRow(batch, entry, columns);
          frame();
        }
      if (binary) pipe.int16(-1);
    });
  }

  /** `columns`: null: all of them. */
  #binaryRow(batch: TableBatch, entry: number, columns: readonly number[] | null): void {
    const pipe = this.#pipe;
    pipe.int16(columns?.length ?? batch.shape.columns);
    let at = (batch.starts[entry] ?? 0) + 2;
    for (let column = 0; column < batch.shape.columns; column++) {
      const length = batch.lengthAt(at);
      const end = at + 4 + Math.max(0, length);
      if (columns === null || columns.includes(column)) {
        if (length < 0) pipe.int32(-1);
        else pipe.bytes(batch.arena, at, end);
      }
      at = end;
    }
  }

  /** https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2: tabs, newlines and backslashes escaped. */
  #textRow(batch: TableBatch, entry: number, columns: readonly number[] | null): void {
    const pipe = this.#pipe;
    const { arena } = batch;
    let at = (batch.starts[entry] ?? 0) + 2;
    let first = true;
    for (let column = 0; column < batch.shape.columns; column++) {
      const length = batch.lengthAt(at);
      const end = at + 4 + Math.max(0, length);
      if (columns === null || columns.includes(column)) {
        if (!first) pipe.byte(0x09);
        first = false;
        if (length < 0) {
          pipe.byte(0x5c);
          pipe.byte(0x4e);
        } else {
          let from = at + 4;
          for (let i = from; i < end; i++) {
            const byte = arena[i];
            const letter =
              byte === 0x5c ? 0x5c : byte === 0x09 ? 0x74 : byte === 0x0a ? 0x6e : byte === 0x0d ? 0x72 : 0;
            if (letter === 0) continue;
            pipe.bytes(arena, from, i);
            pipe.byte(0x5c);
            pipe.byte(letter);
            from = i + 1;
          }
          pipe.bytes(arena, from, end);
        }
      }
      at = end;
    }
    pipe.byte(0x0a);
  }
}

/** Of the list of these entries; null: they are too many, or too large. */
function listSizeOf(batch: TableBatch, entries: readonly number[], columns: number): number | null {
  const size = LIST_SIZES.find((each) => each >= entries.length);
  if (size === undefined || size * columns > MAX_LIST_PARAMETERS) return null;
  let bytes = 0;
  for (const entry of entries) bytes += (batch.ends[entry] ?? 0) - (batch.starts[entry] ?? 0);
  return bytes > MAX_LIST_BYTES ? null : size;
}

/** The parameters: of each entry its values at `positions`, and of the last one again, up to `size` rows. */
function listOf(
  batch: TableBatch,
  entries: readonly number[],
  positions: readonly number[],
  size: number,
): Parameter[] {
  const values: Parameter[] = [];
  for (const entry of entries) {
    const row = tupleOf(batch, entry);
    for (const position of positions) {
      const value = row[position];
      values.push(typeof value === 'string' || Buffer.isBuffer(value) ? value : null);
    }
  }
  const last = values.slice(values.length - positions.length);
  for (let rows = entries.length; rows < size; rows++) values.push(...last);
  return values;
}

/** Whether the arena's tuples of these entries are the COPY, and nobody else needs the arena. */
function leavesAsItLies(batch: TableBatch, { length }: readonly number[], sending: Sending): boolean {
  return batch.shape.binary && sending === 'whole' && length === batch.count;
}

/**
 * A tuple of every row that the batch has touched. Also of one that came and went within it, which nothing is written of: who
 * has read it on the source in between must know that it has changed since.
 */
export function* tuplesOf(batch: TableBatch): Generator<Tuple> {
  for (let entry = 0; entry < batch.count; entry++) yield tupleOf(batch, entry);
}

/** The entry's tuple as the ordered statements take it. */
export function tupleOf(batch: TableBatch, entry: number): Tuple {
  const values: ColumnValue[] = [];
  let at = (batch.starts[entry] ?? 0) + 2;
  for (let column = 0; column < batch.shape.columns; column++) {
    const length = batch.lengthAt(at);
    at += 4;
    if (length === UNCHANGED_LENGTH) values.push(UNCHANGED);
    else if (length < 0) values.push(null);
    else {
      const end = at + length;
      values.push(
        batch.shape.binary
          ? Buffer.from(batch.arena.subarray(at, end))
          : batch.arena.toString('utf8', at, end),
      );
      at = end;
    }
  }
  return values;
}
