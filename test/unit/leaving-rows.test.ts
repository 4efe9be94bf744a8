// The order in which the rows of a batch leave.
import { expect, test } from 'vitest';
import { FEW_ROWS, leavingRows } from '../../src/sync/leaving-rows.ts';
import { TableBatch } from '../../src/sync/table-batch.ts';
import { tuple } from '../support/pgoutput-messages.ts';

const shape = { columns: 1, sent: 1, kept: null, keys: [0], integerKey: true, binary: false };

function batchOf(rows: number): TableBatch {
  const batch = new TableBatch(shape);
  for (let n = rows; n > 0; n--) {
    const bytes = tuple([String(n)]);
    if (n % 2 === 0) batch.update(bytes, 0, bytes.length);
    else batch.delete(bytes, 0, bytes.length);
  }
  return batch;
}

test.each([
  [2 * FEW_ROWS, 'source order: what each may do depends on the one before', 0, 2],
  [2 * FEW_ROWS + 2, 'the order of their keys', 2 * FEW_ROWS, -2],
])('of %i rows, half of each kind, both leave in %s', (rows, _, first, step) => {
  const { updates, deletes, inserts } = leavingRows(batchOf(rows));
  const half = rows / 2;
  expect(inserts).toEqual([]);
  expect([...updates]).toEqual([['', Array.from({ length: half }, (_row, n) => first + n * step)]]);
  expect(deletes).toEqual(Array.from({ length: half }, (_row, n) => first + 1 + n * step));
});
