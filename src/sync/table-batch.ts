// The changes of one table in one batch, coalesced: the last state of every row, by its key. Pure; apply.ts fills it from
// the bytes of pgoutput and empties it into set-wise statements: deletes, then updates, then inserts.
//
//   pending    insert    update    delete      A change that does not fit (…) means that source and target may disagree,
//   nothing    insert    update    delete      or that its order matters: it is not taken. The caller then writes what is
//   insert     …         insert    none        pending and sends that change by itself, which fails where it must.
//   update     …         update    delete
//   delete     replace   …         …           replace: the row was there before and another one is there now: deleted
//   replace    …         replace   delete      and inserted
//   none       insert    …         …
//
// Tuples lie in one arena in the layout of COPY BINARY (int16 count, then int32 length and bytes of each value), so that
// a table that only got inserts is written by copying memory. A value that the update did not send (unchanged TOAST) is
// taken from the pending state; where there is none its length is UNCHANGED_LENGTH.
import { BufferPool } from '../postgres/buffer-pool.ts';
import type { LentRows } from '../postgres/pipeline.ts';
import { copySmall, LastView, SMALL_BYTES, viewOf } from '../postgres/byte-views.ts';
import { isSparse, KeyMap } from './key-map.ts';
import { isAscending } from './key-order.ts';

/** Length of a value that the message lacks; −1 is NULL. */
export const UNCHANGED_LENGTH = -2;

const NONE = 0;
export const INSERT = 1;
export const UPDATE = 2;
export const DELETE = 3;
export const REPLACE = 4;

/** What a batch needs to know of its table. */
export interface BatchShape {
  /** Values of a tuple in the arena. */
  readonly columns: number;
  /** Values of a tuple as it is sent. */
  readonly sent: number;
  /** Positions of the values that are taken of them, ascending; null: all. */
  readonly kept: readonly number[] | null;
  /** Positions of the key in the arena's tuples, ascending; empty: inserts only. */
  readonly keys: readonly number[];
  /** The single key column is an integer: then the keys of the map are numbers. */
  readonly integerKey: boolean;
  /** Values are in binary form (`b`), else text (`t`). */
  readonly binary: boolean;
}

/** Bytes `from` … `to` of the arena. */
interface GatheredRows {
  readonly entries: readonly number[];
  readonly from: number;
  readonly to: number;
}

const INITIAL_ROWS = 64;
const NOTHING = Buffer.alloc(0);

export class TableBatch {
  readonly shape: BatchShape;
  /** By positions of a tuple as it is sent: 1 where the value is not taken. Null: all are. */
  readonly #skips: Uint8Array | null;
  readonly #pool: BufferPool;
  readonly #views: LastView;
  arena: Buffer = NOTHING;
  #arenaView = viewOf(NOTHING);
  /** Bytes used of the arena. */
  used = 0;
  /** Entries, NONE ones included. */
  count = 0;
  ops = new Uint8Array(INITIAL_ROWS);
  starts = new Float64Array(INITIAL_ROWS);
  ends = new Float64Array(INITIAL_ROWS);
  /** Bytes of the arena of the batch before, which as a rule is enough: one that grows is copied every time. */
  #usual = 0;
  /** The arena holds exactly the tuples of the entries, in their order. */
  #isDense = true;
  /** Where the tuples of these entries lie one behind the other; null: nowhere that is known. */
  #gathered: GatheredRows | null = null;
  /** Some tuple may lack values. */
  hasUnchanged = false;
  #map = new KeyMap();
  /** The map knows the entries: not yet, while there were only inserts. */
  #isMapped = false;
  #unchanged = false;

  /** `views`: of what its changes come in, which as a rule is what other tables' come in, too. */
  constructor(shape: BatchShape, pool = new BufferPool(), views = new LastView()) {
    this.shape = shape;
    this.#views = views;
    this.#skips = shape.kept === null ? null : new Uint8Array(shape.sent).fill(1);
    for (const position of shape.kept ?? []) this.#skips?.fill(0, position, position + 1);
    this.#pool = pool;
  }

  /** Keeps the memory of its entries for as many; after a batch of few, only half of it. */
  clear(): void {
    const size = this.ops.length;
    if (size > INITIAL_ROWS && isSparse(this.count, size)) this.#allocate(size / 2);
    this.#usual = this.used;
    this.used = 0;
    this.count = 0;
    this.#isDense = true;
    this.#gathered = null;
    this.hasUnchanged = false;
    this.#map.clear();
    this.#isMapped = false;
    this.#pool.give(this.arena);
    this.#useArena(NOTHING);
  }

  /** Forgets the memory of its entries, too. Only while nothing is pending. */
  rest(): void {
    if (this.ops.length > INITIAL_ROWS) this.#allocate(INITIAL_ROWS);
    this.#usual = 0;
    this.#map = new KeyMap();
  }

  /** The tuples of all entries in this order. Their memory now belongs to the caller, who gives it to the pool. */
  release(entries: readonly number[]): LentRows {
    const { from, to } = this.gather(entries);
    const { arena: memory } = this;
    this.#useArena(NOTHING);
    this.#gathered = null;
    return { memory, from, to };
  }

  /** Lays the tuples of all entries one behind the other, unless they are: `release` then has nothing left to do. */
  gather(entries: readonly number[]): GatheredRows {
    if (this.#gathered?.entries === entries) return this.#gathered;
    const { starts, ends, used } = this;
    if (this.#isDense && isAscending(entries)) return (this.#gathered = { entries, from: 0, to: used });
    let bytes = 0;
    for (const entry of entries) bytes += (ends[entry] ?? 0) - (starts[entry] ?? 0);
    if (used + bytes > this.arena.length) this.#grow(bytes);
    const { arena } = this;
    let to = used; // behind all others, where the next change would go
    for (const entry of entries) {
      const [start, end] = [starts[entry] ?? 0, ends[entry] ?? 0];
      arena.copyWithin(to, start, end); // unlike Buffer.copy it makes no object
      to += end - start;
    }
    return (this.#gathered = { entries, from: used, to });
  }

  /** `at`: the tuple's column count in the message. False: not taken, nothing changed. */
  insert(message: Buffer, at: number, end: number): boolean {
    const start = this.used;
    if (this.#put(message, at, end) < 0 || this.#unchanged) return this.#undo(start);
    if (!this.#isMapped) {
      this.#add(INSERT, start);
      return true;
    }
    const key = this.#keyAt(start);
    const entry = this.#map.get(key);
    if (entry === undefined) {
      this.#map.set(key, this.#add(INSERT, start));
      return true;
    }
    const pending = this.ops[entry];
    if (pending === NONE) this.#replaceTuple(entry, INSERT, start);
    else if (pending === DELETE) this.#replaceTuple(entry, REPLACE, start);
    else return this.#undo(start);
    return true;
  }

  /** An update that keeps its key: the new tuple alone. */
  update(message: Buffer, at: number, end: number): boolean {
    const start = this.used;
    const key = this.#putKeyed(message, at, end);
    if (key === null) return this.#undo(start);
    const entry = this.#map.get(key);
    this.hasUnchanged ||= this.#unchanged;
    if (entry === undefined) {
      this.#map.set(key, this.#add(UPDATE, start));
      return true;
    }
    const pending = this.ops[entry] ?? NONE;
    if (pending === NONE || pending === DELETE) return this.#undo(start);
    this.#replaceTuple(entry, pending, start, this.#unchanged ? this.#merge(entry, start) : start);
    return true;
  }

  /** `at`: the old tuple, of which only the key means anything. */
  delete(message: Buffer, at: number, end: number): boolean {
    const start = this.used;
    const key = this.#putKeyed(message, at, end);
    if (key === null) return this.#undo(start);
    const entry = this.#map.get(key);
    if (entry === undefined) {
      this.#map.set(key, this.#add(DELETE, start));
      return true;
    }
    const pending = this.ops[entry] ?? NONE;
    if (pending === NONE || pending === DELETE) return this.#undo(start);
    this.#replaceTuple(entry, pending === INSERT ? NONE : DELETE, start);
    return true;
  }

  /** Start and end of a value in the arena; its length may be −1 or UNCHANGED_LENGTH: then there are no bytes. */
  lengthAt(position: number): number {
    return this.#arenaView.getInt32(position);
  }

  /** The entry's key as the map has it: a number of a single integer, else its bytes. */
  readonly keyOf = (entry: number): number | string => this.#keyAt(this.starts[entry] ?? 0);

  /** Positions of the values that the entry lacks, as a word; empty when it has all. */
  unchangedOf(entry: number): string {
    let at = (this.starts[entry] ?? 0) + 2;
    let word = '';
    for (let column = 0; column < this.shape.columns; column++) {
      const length = this.lengthAt(at);
      if (length === UNCHANGED_LENGTH) word += `${column},`;
      at += 4 + Math.max(0, length);
    }
    return word;
  }

  /** Copies a tuple from the message to the end of the arena; −1 when it is not in the expected form. */
  #put(message: Buffer, at: number, end: number): number {
    const { columns, sent, binary } = this.shape;
    const skips = this.#skips;
    this.#unchanged = false;
    this.#gathered = null;
    let from = at + 2;
    if (from > end || ((message[at] ?? 0) << 8) + (message[at + 1] ?? 0) !== sent) return -1;
    const most = end - from + 4 * columns + 2;
    if (this.used + most > this.arena.length) this.#grow(most);
    const source = this.#views.of(message);
    const target = this.#arenaView;
    const wanted = binary ? 0x62 : 0x74;
    let to = this.used;
    target.setInt16(to, columns);
    to += 2;
    for (let column = 0; column < sent; column++) {
      if (skips !== null && skips[column] === 1) {
        from = endOfValue(message, from, end);
        if (from < 0) return -1;
        continue;
      }
      const kind = message[from++];
      if (kind === wanted) {
        if (from + 4 > end) return -1;
        const length = source.getInt32(from) + 4;
        if (length < 4 || from + length > end) return -1;
        if (length < SMALL_BYTES) copySmall(source, from, target, to, length);
        else message.copy(this.arena, to, from, from + length);
        to += length;
        from += length;
      } else if (kind === 0x6e) {
        target.setInt32(to, -1);
        to += 4;
      } else if (kind === 0x75) {
        target.setInt32(to, UNCHANGED_LENGTH);
        to += 4;
        this.#unchanged = true;
      } else return -1;
    }
    if (from !== end) return -1;
    this.used = to;
    return to;
  }

  /** Copies the tuple of a change to a row that is there; its key, or null when the change cannot be taken by key. */
  #putKeyed(message: Buffer, at: number, end: number): number | string | null {
    const start = this.used;
    if (!this.#ensureMap() || this.#put(message, at, end) < 0) return null;
    if (this.#unchanged && this.#keyUnchanged(start)) return null;
    return this.#keyAt(start);
  }

  #undo(start: number): false {
    this.used = start;
    return false;
  }

  #allocate(entries: number): void {
    this.ops = new Uint8Array(entries);
    this.starts = new Float64Array(entries);
    this.ends = new Float64Array(entries);
  }

  #add(op: number, start: number): number {
    const entry = this.count++;
    if (entry >= this.ops.length) {
      const { ops, starts, ends } = this;
      this.#allocate(ops.length * 2);
      this.ops.set(ops);
      this.starts.set(starts);
      this.ends.set(ends);
    }
    this.ops[entry] = op;
    this.starts[entry] = start;
    this.ends[entry] = this.used;
    return entry;
  }

  /** The entry's tuple becomes the one that begins at `from` and ends the arena, of which nothing from `start` on was used before. */
  #replaceTuple(entry: number, op: number, start: number, from = start): void {
    const old = this.starts[entry] ?? 0;
    this.ops[entry] = op;
    if ((this.ends[entry] ?? 0) - old === this.used - from) {
      // the same place: a hot row does not fill the arena
      this.arena.copyWithin(old, from, this.used);
      this.used = start;
      return;
    }
    this.#isDense = false;
    this.starts[entry] = from;
    this.ends[entry] = this.used;
  }

  /** Behind the tuple at `start`, which ends the arena, once more with what it lacks taken from the entry's. Returns where it begins. */
  #merge(entry: number, start: number): number {
    const from = this.used;
    let newer = start;
    let older = this.starts[entry] ?? 0;
    const most = from - newer + (this.ends[entry] ?? 0) - older;
    if (from + most > this.arena.length) this.#grow(most);
    const { arena } = this;
    let to = from;
    const take = (at: number, length: number): void => {
      arena.copyWithin(to, at, at + length);
      to += length;
    };
    take(newer, 2);
    newer += 2;
    older += 2;
    for (let column = 0; column < this.shape.columns; column++) {
      const length = this.lengthAt(newer);
      const size = 4 + Math.max(0, length);
      const olderSize = 4 + Math.max(0, this.lengthAt(older));
      if (length === UNCHANGED_LENGTH) take(older, olderSize);
      else take(newer, size);
      newer += size;
      older += olderSize;
    }
    this.used = to;
    return from;
  }

  #keyUnchanged(start: number): boolean {
    let at = start + 2;
    for (let column = 0; column < this.shape.columns; column++) {
      const length = this.lengthAt(at);
      if (length === UNCHANGED_LENGTH && this.shape.keys.includes(column)) return true;
      at += 4 + Math.max(0, length);
    }
    return false;
  }

  /** False when the pending inserts hold a key twice, or the table has no key. */
  #ensureMap(): boolean {
    if (this.#isMapped) return true;
    if (this.shape.keys.length === 0) return false;
    for (let entry = 0; entry < this.count; entry++)
      this.#map.set(this.#keyAt(this.starts[entry] ?? 0), entry);
    this.#isMapped = this.#map.size === this.count;
    if (!this.#isMapped) this.#map.clear();
    return this.#isMapped;
  }

  #keyAt(start: number): number | string {
    const { keys, integerKey, binary } = this.shape;
    const { arena } = this;
    let at = start + 2;
    let column = 0;
    let key = '';
    for (const position of keys) {
      for (; column < position; column++) at += 4 + Math.max(0, this.lengthAt(at));
      const length = this.lengthAt(at);
      const end = at + 4 + Math.max(0, length);
      if (integerKey) {
        const value = binary ? integerAt(arena, at + 4, length) : digitsAt(arena, at + 4, end);
        if (value !== null) return value;
      }
      key += arena.toString('latin1', at, end);
      at = end;
      column++;
    }
    return key;
  }

  #grow(bytes: number): void {
    const larger = this.#pool.take(Math.max(this.arena.length * 2, this.used + bytes, this.#usual));
    this.arena.copy(larger, 0, 0, this.used);
    this.#pool.give(this.arena);
    this.#useArena(larger);
  }

  #useArena(arena: Buffer): void {
    this.arena = arena;
    this.#arenaView = viewOf(arena);
  }
}

/** Where the value at `at` of a tuple ends, whatever its form; −1 when it is malformed. */
function endOfValue(message: Buffer, at: number, end: number): number {
  const kind = message[at];
  if (kind === 0x6e || kind === 0x75) return at + 1;
  if ((kind !== 0x62 && kind !== 0x74) || at + 5 > end) return -1;
  const length = message.readInt32BE(at + 1);
  return length < 0 || at + 5 + length > end ? -1 : at + 5 + length;
}

/** Null where a double would not hold it exactly. */
function integerAt(arena: Buffer, at: number, length: number): number | null {
  if (length === 4) return arena.readInt32BE(at);
  if (length === 2) return arena.readInt16BE(at);
  if (length !== 8) return null;
  const high = arena.readInt32BE(at);
  return high < -0x200000 || high >= 0x200000 ? null : high * 0x1_0000_0000 + arena.readUInt32BE(at + 4);
}

/** A decimal of at most 15 digits; the output functions write no sign, space or zero before them. */
function digitsAt(arena: Buffer, at: number, end: number): number | null {
  if (end - at > 15 || end <= at) return null;
  let value = 0;
  for (let i = at; i < end; i++) {
    const digit = (arena[i] ?? 0) - 0x30;
    if (digit < 0 || digit > 9) return null;
    value = value * 10 + digit;
  }
  return value;
}
