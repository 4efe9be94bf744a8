// The sets of many tables over one pipeline that writes nothing: what they keep between batches.
import { expect, test } from 'vitest';
import { BufferPool } from '../../src/postgres/buffer-pool.ts';
import type { Pipeline } from '../../src/postgres/pipeline.ts';
import type { ChangeContext } from '../../src/sync/apply-errors.ts';
import type { StreamedTable } from '../../src/sync/relations.ts';
import { SetWriter, tuplesOf } from '../../src/sync/set-writer.ts';
import type { TableBatch } from '../../src/sync/table-batch.ts';
import { tuple } from '../support/pgoutput-messages.ts';

const INSERT = 0x49;
const UPDATE = 0x55;
const DELETE = 0x44;

const tableOf = (name: string): StreamedTable => ({
  key: `public.${name}`,
  plan: {
    source: { schema: 'public', name },
    target: { schema: 'public', name },
    columns: [],
    keyColumns: ['id'],
    replicaIdentity: 'default',
    rowsEstimated: 0,
    bytesEstimated: 0,
  },
  columns: [{ name: 'id', type: 'integer', generated: false, identityAlways: false, notNull: true }],
  kept: null,
  keyPositions: [0],
  shape: { columns: 1, sent: 1, kept: null, keys: [0], integerKey: true },
  setUpdates: true,
});

test('a table that gets nothing any more gives the memory of its batch back, one that goes on keeps it', () => {
  const pipe = { pool: new BufferPool(), execute: () => undefined, copy: () => undefined };
  const batches = new Map<string, TableBatch>();
  let written = 0;
  const sets = new SetWriter(pipe as unknown as Pipeline<ChangeContext>, false, ({ key }, batch) => {
    batches.set(key, batch);
    for (const row of tuplesOf(batch)) written += row.length;
  });
  const rows = Array.from({ length: 2_000 }, (_, n) => tuple([String(n)]));
  const take = (table: StreamedTable): void => {
    for (const row of rows) sets.take(table, INSERT, row, 0, row.length);
  };
  const tables = [tableOf('once'), tableOf('again'), tableOf('often')] as const;
  const [once, again, often] = tables;
  const memory = (): number[] => tables.map(({ key }) => batches.get(key)?.ops.length ?? 0);
  for (const table of tables) take(table);
  for (let n = 1; n <= 64; n++) {
    sets.writeAll();
    if (n === 64) expect(new Set(memory()).size).toBe(1);
    take(n === 64 ? again : often); // into the next batch, while this one ends
    sets.ended('committed');
  }
  const [small = 0, kept, large = 0] = memory();
  expect(small).toBeLessThan(large / 16);
  expect(kept).toBe(large);
  take(once);
  sets.writeAll();
  expect(memory()).toEqual([large, large, large]);
  expect(written).toBe(rows.length * (3 + 63 + 2));
});

test('what is taken after the rows were arranged leaves with them', () => {
  const sent: number[] = [];
  const pipe = {
    pool: new BufferPool(),
    execute: () => undefined,
    copy: (_: string, rows: number) => sent.push(rows),
  };
  const sets = new SetWriter(pipe as unknown as Pipeline<ChangeContext>, false, () => undefined);
  const [table, later] = [tableOf('arranged'), tableOf('later')];
  const take = (into: StreamedTable, from: number, to: number): void => {
    for (let n = from; n < to; n++) {
      const row = tuple([String(n)]);
      sets.take(into, INSERT, row, 0, row.length);
    }
  };
  take(table, 0, 20);
  sets.arrange();
  take(table, 20, 50);
  take(later, 0, 30);
  sets.arrange();
  sets.drop();
  take(later, 0, 13);
  sets.writeAll();
  expect(sent).toEqual([13]);
  sent.length = 0;
  take(table, 0, 20);
  sets.arrange();
  take(table, 20, 50);
  sets.writeAll();
  expect(sent).toEqual([50]);
});

test('a row that came and went within a batch is told of, though nothing is written of it', () => {
  const told: unknown[] = [];
  const pipe = { pool: new BufferPool(), execute: () => undefined, copy: () => undefined };
  const sets = new SetWriter(pipe as unknown as Pipeline<ChangeContext>, false, (_table, batch) =>
    told.push(...tuplesOf(batch)),
  );
  const row = tuple(['15']);
  const table = tableOf('busy');
  for (const tag of [INSERT, DELETE]) sets.take(table, tag, row, 0, row.length);
  sets.writeAll();
  expect(told).toEqual([['15']]);
});

test.each([
  ['updates', UPDATE, 12, 12, 1],
  ['updates', UPDATE, 13, 1, 16],
  ['updates', UPDATE, 17, 1, 64],
  ['updates', UPDATE, 256, 1, 256],
  ['updates', UPDATE, 257, 2, 0],
  ['deletes', DELETE, 12, 12, 1],
  ['deletes', DELETE, 13, 1, 16],
  ['deletes', DELETE, 257, 2, 0],
])('%s (%i): of %i rows by %i statements, with a list of %i', (_kind, tag, rows, statements, parameters) => {
  const executed: { sql: string; values: readonly unknown[]; rows: unknown }[] = [];
  let copied = 0;
  const pipe = {
    pool: new BufferPool(),
    execute: (sql: string, values: readonly unknown[], expected: unknown) =>
      executed.push({ sql, values, rows: expected }),
    copy: () => copied++,
  };
  const sets = new SetWriter(pipe as unknown as Pipeline<ChangeContext>, false, () => undefined);
  const table = tableOf('changed');
  for (let n = 0; n < rows; n++) {
    const row = tuple([String(n)]);
    sets.take(table, tag, row, 0, row.length);
  }
  sets.writeAll();
  expect(executed).toHaveLength(statements);
  expect(copied).toBe(parameters === 0 ? 1 : 0);
  for (const { values } of executed) expect(values).toHaveLength(parameters);
  const last = executed.at(-1);
  expect(last?.rows).toBe(parameters === 1 ? 1 : rows);
  // what fills the list up is its last row
  const given = [...new Set(executed.flatMap(({ values }) => values))];
  expect(given).toEqual(parameters === 0 ? [] : Array.from({ length: rows }, (_row, n) => String(n)));
});
