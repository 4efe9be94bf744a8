// Coalescing against the truth: whatever sequence of changes a table got, one set of deletes, updates and inserts leaves
// the rows that the changes would have left one after the other.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { UNCHANGED, type ColumnValue, type Tuple } from '../../src/postgres/pgoutput-messages.ts';
import { DELETE, INSERT, REPLACE, TableBatch, UPDATE } from '../../src/sync/table-batch.ts';
import { tupleOf } from '../../src/sync/set-writer.ts';
import { tuple } from '../support/pgoutput-messages.ts';

type Change =
  | { readonly tag: 'insert'; readonly row: Tuple }
  | { readonly tag: 'update'; readonly row: Tuple }
  | { readonly tag: 'delete'; readonly row: Tuple };

interface KeyKind {
  readonly name: string;
  readonly binary: boolean;
  readonly integerKey: boolean;
  /** Positions of the key among three columns. */
  readonly keys: readonly number[];
  readonly key: (n: number) => string | Buffer;
  /** Where in a sent tuple of five the three columns are; the others are ignored. Absent: three are sent. */
  readonly kept?: readonly number[];
}

const int4 = (n: number): Buffer => {
  const buffer = Buffer.alloc(4);
  buffer.writeInt32BE(n);
  return buffer;
};
const int8 = (n: number): Buffer => {
  const buffer = Buffer.alloc(8);
  // beyond what a double holds exactly: neighbours must stay apart
  buffer.writeBigInt64BE((n % 2 === 0 ? 1n : -1n) * (9_007_199_254_740_992n + BigInt(n)));
  return buffer;
};

const kinds: readonly KeyKind[] = [
  { name: 'int4', binary: true, integerKey: true, keys: [0], key: (n) => int4(n - 2) },
  { name: 'large int8', binary: true, integerKey: true, keys: [1], key: int8 },
  { name: 'integer as text', binary: false, integerKey: true, keys: [0], key: (n) => String(n - 2) },
  {
    name: 'large integer as text',
    binary: false,
    integerKey: true,
    keys: [0],
    key: (n) => `900719925474099${n}`,
  },
  {
    name: 'text',
    binary: false,
    integerKey: false,
    keys: [2],
    key: (n) => ['', 'a', 'aä', '\n', 'a\\'][n] ?? '',
  },
  // parts that run together must not look alike: ('a','aa') and ('aa','a')
  { name: 'two columns', binary: false, integerKey: false, keys: [0, 2], key: (n) => 'a'.repeat(n) },
  {
    name: 'two columns between ignored ones',
    binary: false,
    integerKey: false,
    keys: [0, 2],
    kept: [1, 2, 4],
    key: (n) => 'a'.repeat(n),
  },
  {
    name: 'int4 before and behind ignored columns',
    binary: true,
    integerKey: true,
    keys: [1],
    kept: [0, 3, 4],
    key: (n) => int4(n - 2),
  },
];

/** Nothing is ignored. */
const allOf = (columns: number): { columns: number; sent: number; kept: null } => ({
  columns,
  sent: columns,
  kept: null,
});

/** The source's view: rows by key, every change possible there. */
function changesOf(
  kind: KeyKind,
  steps: readonly [number, number, number][],
): { before: Tuple[]; changes: Change[] } {
  const rows = new Map<string, Tuple>();
  const before: Tuple[] = [];
  const value = (n: number): ColumnValue => {
    const text = n % 7 === 0 ? null : 'v'.repeat(n % 5) + String(n);
    return text === null ? null : kind.binary ? Buffer.from(text) : text;
  };
  const rowOf = (k: number, n: number): Tuple =>
    [0, 1, 2].map((column, i) => {
      if (!kind.keys.includes(column)) return value(n + i);
      return kind.key(kind.keys.length === 1 ? k : column === 0 ? k : 3 - (k % 4));
    });
  for (const k of [0, 1]) {
    rows.set(String(k), rowOf(k, 100 + k));
    before.push(rowOf(k, 100 + k));
  }
  const changes: Change[] = [];
  for (const [k, action, n] of steps) {
    const old = rows.get(String(k));
    if (old === undefined) {
      const row = rowOf(k, n);
      rows.set(String(k), row);
      changes.push({ tag: 'insert', row });
    } else if (action === 0) {
      rows.delete(String(k));
      changes.push({ tag: 'delete', row: old.map((each, i) => (kind.keys.includes(i) ? each : null)) });
    } else {
      const fresh = rowOf(k, n);
      // some values were not touched and are not sent
      const sent = fresh.map((each, i) =>
        !kind.keys.includes(i) && (action >> i) % 2 === 1 ? UNCHANGED : each,
      );
      rows.set(
        String(k),
        sent.map((each, i) => (each === UNCHANGED ? (old[i] ?? null) : each)),
      );
      changes.push({ tag: 'update', row: sent });
    }
  }
  return { before, changes };
}

const textOfRow = (row: Tuple): string =>
  JSON.stringify(row.map((each) => (Buffer.isBuffer(each) ? `\\x${each.toString('hex')}` : each)));

/** A table that is as strict as the server: every statement has to find what it expects. */
class Model {
  readonly rows = new Map<string, Tuple>();
  readonly #keys: readonly number[];
  constructor(rows: readonly Tuple[], keys: readonly number[]) {
    this.#keys = keys;
    for (const row of rows) this.rows.set(this.#key(row), row);
  }
  #key(row: Tuple): string {
    return textOfRow(this.#keys.map((position) => row[position] ?? null));
  }
  insert(row: Tuple): void {
    if (this.rows.has(this.#key(row))) throw new Error('duplicate key');
    if (row.includes(UNCHANGED)) throw new Error('insert without a value');
    this.rows.set(this.#key(row), row);
  }
  update(row: Tuple): void {
    const old = this.rows.get(this.#key(row));
    if (!old) throw new Error('no row to update');
    this.rows.set(
      this.#key(row),
      row.map((each, i) => (each === UNCHANGED ? (old[i] ?? null) : each)),
    );
  }
  delete(row: Tuple): void {
    if (!this.rows.delete(this.#key(row))) throw new Error('no row to delete');
  }
  apply({ tag, row }: Change): void {
    this[tag](row);
  }
  get contents(): string[] {
    return [...this.rows.values()].map(textOfRow).sort();
  }
}

function flush(batch: TableBatch, model: Model): void {
  const entries = Array.from({ length: batch.count }, (_, entry) => entry);
  const having = (...ops: number[]): Tuple[] =>
    entries.filter((entry) => ops.includes(batch.ops[entry] ?? 0)).map((entry) => tupleOf(batch, entry));
  for (const row of having(DELETE, REPLACE)) model.delete(row);
  for (const row of having(UPDATE)) model.update(row);
  for (const row of having(INSERT, REPLACE)) model.insert(row);
  batch.clear();
}

/** What ignored columns bring: null, a text whatever the form is, a value that was not touched, bytes. */
const ignored: Tuple = [null, 'not carried', UNCHANGED, Buffer.alloc(300)];

let turn = 0;
const take = (batch: TableBatch, { tag, row }: Change): boolean => {
  turn++;
  const { sent, kept } = batch.shape;
  const valueAt = (at: number, position: number): ColumnValue =>
    (position === -1 ? ignored[(at + turn) % ignored.length] : row[position]) ?? null;
  const values = kept && Array.from({ length: sent }, (_, at) => valueAt(at, kept.indexOf(at)));
  const message = Buffer.concat([Buffer.from('xx'), tuple(values ?? row)]);
  return batch[tag](message, 2, message.length);
};

describe('a coalesced batch', () => {
  it.each(kinds)('leaves what its changes leave one by one (key: $name)', (kind) => {
    const step = fc.tuple(fc.nat({ max: 4 }), fc.nat({ max: 7 }), fc.nat({ max: 50 }));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), fc.nat({ max: 20 }), (steps, flushEvery) => {
        const { before, changes } = changesOf(kind, steps);
        const expected = new Model(before, kind.keys);
        const model = new Model(before, kind.keys);
        const { keys, binary, integerKey } = kind;
        const columns = kind.kept ? { columns: 3, sent: 5, kept: kind.kept } : allOf(3);
        const batch = new TableBatch({ ...columns, keys, binary, integerKey });
        for (const [n, change] of changes.entries()) {
          expected.apply(change);
          if (!take(batch, change)) {
            flush(batch, model);
            model.apply(change);
          }
          if (flushEvery > 0 && n % flushEvery === 0) flush(batch, model);
        }
        flush(batch, model);
        expect(model.contents).toEqual(expected.contents);
      }),
      { numRuns: 400 },
    );
  });

  it('takes each kind of change onto each pending state, or leaves it to the ordered way', () => {
    const row = (v: string): Tuple => ['1', v, 'x'];
    const sequences: Record<string, readonly ('insert' | 'update' | 'delete')[]> = {
      insert: ['insert'],
      update: ['update'],
      delete: ['delete'],
      replace: ['delete', 'insert'],
      none: ['insert', 'delete'],
    };
    const taken = Object.entries(sequences).map(([state, tags]) => [
      state,
      ...(['insert', 'update', 'delete'] as const).map((tag) => {
        const batch = new TableBatch({ ...allOf(3), keys: [0], binary: false, integerKey: true });
        // so that there is a map of keys
        expect(take(batch, { tag: 'update', row: ['2', 'a', 'b'] })).toBe(true);
        for (const each of tags) expect(take(batch, { tag: each, row: row('a') })).toBe(true);
        return take(batch, { tag, row: row('b') }) ? (batch.ops[1] ?? null) : null;
      }),
    ]);
    expect(taken).toEqual([
      ['insert', null, INSERT, 0],
      ['update', null, UPDATE, DELETE],
      ['delete', REPLACE, null, null],
      ['replace', null, REPLACE, DELETE],
      ['none', INSERT, null, null],
    ]);
  });

  it('holds only what is kept of a tuple, in whatever form the rest comes', () => {
    const shape = { columns: 2, sent: 4, kept: [1, 2], keys: [0], binary: true, integerKey: true };
    const batch = new TableBatch(shape);
    for (const rest of ignored) {
      const message = tuple([rest, int4(1), int4(2), rest]);
      expect(batch.update(message, 0, message.length)).toBe(true);
      for (let length = 0; length < message.length; length++)
        expect(batch.update(message.subarray(0, length), 0, length)).toBe(false);
    }
    const short = tuple([int4(1), int4(2)]);
    expect(batch.insert(short, 0, short.length)).toBe(false);
    expect(batch).toMatchObject({ count: 1, used: 2 + 8 + 8, hasUnchanged: false });
    expect(tupleOf(batch, 0)).toEqual([int4(1), int4(2)]);
  });

  it('does not grow with the updates of a hot row', () => {
    const batch = new TableBatch({ ...allOf(2), keys: [0], binary: true, integerKey: true });
    for (let n = 0; n < 1_000; n++)
      expect(take(batch, { tag: 'update', row: [int4(1), int4(n)] })).toBe(true);
    expect(batch).toMatchObject({ count: 1 });
    expect(batch.used).toBe(2 + 8 + 8);
    expect(tupleOf(batch, 0)).toEqual([int4(1), int4(999)]);
  });

  it('does not grow either where they lack a value that the row has', () => {
    const batch = new TableBatch({ ...allOf(3), keys: [0], binary: true, integerKey: true });
    const large = Buffer.alloc(5_000, 7);
    expect(take(batch, { tag: 'insert', row: [int4(1), int4(0), large] })).toBe(true);
    for (let n = 0; n < 1_000; n++)
      expect(take(batch, { tag: 'update', row: [int4(1), int4(n), UNCHANGED] })).toBe(true);
    expect(batch).toMatchObject({ count: 1 });
    expect(batch.used).toBe(2 + 8 + 8 + 4 + 5_000);
    expect(batch.arena.length).toBeLessThan(32_768);
    expect(tupleOf(batch, 0)).toEqual([int4(1), int4(999), large]);
  });

  it('keeps its memory for batches of one size, and less of it behind smaller ones', () => {
    const batch = new TableBatch({ ...allOf(1), keys: [0], binary: true, integerKey: true });
    const memoryAfter = (rows: number): number => {
      for (let n = 0; n < rows; n++) take(batch, { tag: 'insert', row: [int4(n)] });
      expect(tupleOf(batch, rows - 1)).toEqual([int4(rows - 1)]);
      batch.clear();
      expect([batch.starts.length, batch.ends.length]).toEqual([batch.ops.length, batch.ops.length]);
      return batch.ops.length;
    };
    const large = memoryAfter(10_000);
    for (const rows of [10_000, 2_000, 10_000]) expect(memoryAfter(rows)).toBe(large);
    const small = Array.from({ length: 12 }, () => memoryAfter(20));
    expect(small.slice(0, 2)).toEqual([large / 2, large / 4]);
    expect(new Set(small.slice(-3)).size).toBe(1);
    expect(small.at(-1)).toBeLessThanOrEqual(20 * 16);
  });

  it('lays its tuples in the order that is asked for, also when more come after that', () => {
    const batch = new TableBatch({
      columns: 1,
      sent: 1,
      kept: null,
      keys: [0],
      integerKey: true,
      binary: true,
    });
    const update = (n: number): void => {
      const bytes = tuple([int4(n)]);
      expect(batch.update(bytes, 0, bytes.length)).toBe(true);
    };
    const keysOf = (entries: readonly number[]): number[] => {
      const { memory, from, to } = batch.release(entries);
      return Array.from({ length: (to - from) / 10 }, (_, row) => memory.readInt32BE(from + row * 10 + 6));
    };
    for (const n of [7, 5, 6]) update(n);
    const ordered = [1, 2, 0];
    expect(batch.gather(ordered)).toBe(batch.gather(ordered));
    expect(keysOf(ordered)).toEqual([5, 6, 7]);

    batch.clear();
    for (const n of [7, 5, 6]) update(n);
    batch.gather(ordered);
    update(4); // lies where they were laid
    expect(keysOf([3, 1, 2, 0])).toEqual([4, 5, 6, 7]);

    batch.clear();
    for (const n of [7, 5]) update(n);
    expect(keysOf([0, 1])).toEqual([7, 5]);
  });

  it('has values of every length as they came, wherever in the message and behind whatever they lie', () => {
    const batch = new TableBatch({ ...allOf(3), keys: [0], binary: true, integerKey: true });
    const bytesOf = (length: number): Buffer =>
      Buffer.from(Array.from({ length }, (_, i) => 255 - (i % 251)));
    const rows = Array.from({ length: 300 }, (_, n) => [int4(n), bytesOf(n), bytesOf(299 - n)]);
    for (const [n, row] of rows.entries()) {
      const sent = tuple(row);
      const message = Buffer.concat([bytesOf(n % 9), sent, bytesOf(n % 5)]);
      expect(batch.insert(message, n % 9, (n % 9) + sent.length)).toBe(true);
    }
    expect(rows.map((_, entry) => tupleOf(batch, entry))).toEqual(rows);
  });

  it('takes nothing that is malformed, in another form, or short of a column', () => {
    const batch = new TableBatch({ ...allOf(2), keys: [0], binary: false, integerKey: false });
    const whole = tuple(['a', 'b']);
    for (let length = 0; length < whole.length; length++)
      expect(batch.insert(whole.subarray(0, length), 0, length)).toBe(false);
    expect(batch.insert(Buffer.concat([whole, Buffer.from([0])]), 0, whole.length + 1)).toBe(false);
    for (const row of [['a'], ['a', 'b', 'c'], [Buffer.from('a'), 'b'], ['a', UNCHANGED]] as Tuple[])
      expect(take(batch, { tag: 'insert', row })).toBe(false);
    expect(take(batch, { tag: 'update', row: [UNCHANGED, 'b'] })).toBe(false);
    expect(batch).toMatchObject({ count: 0, used: 0 });
  });

  it('survives random bytes', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 60 }),
        fc.constantFrom('insert', 'update', 'delete'),
        (bytes, tag) => {
          for (const columns of [allOf(2), { columns: 2, sent: 3, kept: [0, 2] }]) {
            const batch = new TableBatch({ ...columns, keys: [1], binary: true, integerKey: true });
            const used = batch[tag](Buffer.from(bytes), 0, bytes.length) ? 1 : 0;
            expect(batch.count).toBe(used);
          }
        },
      ),
      { numRuns: 2_000 },
    );
  });
});
