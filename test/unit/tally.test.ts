// What a copy shows of its tables while parts come and go: counts, and an estimate that finished parts correct.
import { expect, it } from 'vitest';
import { Tally } from '../../src/copy/tally.ts';
import type { CopyPart } from '../../src/copy/plan.ts';
import type { TableProgress } from '../../src/model/progress.ts';
import type { TaskScope } from '../../src/postgres/task-scope.ts';

const parts = [0, 1, 2, 3].map((part) => ({
  relation: 'public.t',
  part,
  range: null,
  table: {
    source: { schema: 'public', name: 't' },
    target: { schema: 'public', name: 't' },
    rowsEstimated: 1_000,
    bytesEstimated: 8_192,
  },
})) as unknown as readonly [CopyPart, CopyPart, CopyPart, CopyPart];

function tallied(): { tally: Tally; shown: () => Partial<TableProgress> | undefined } {
  const tables = new Map<string, TableProgress>();
  const progress = {
    setTables: (all: readonly TableProgress[]) => all.forEach((each) => tables.set(each.table, each)),
    updateTable: (table: string, patch: Partial<TableProgress>) => {
      const known = tables.get(table);
      if (known) tables.set(table, { ...known, ...patch });
    },
  };
  return {
    tally: new Tally({ progress } as unknown as TaskScope, parts),
    shown: () => tables.get('public.t'),
  };
}

const marker = (part: CopyPart, rows: number) => ({
  relation: part.relation,
  part: part.part,
  rows,
  bytes: rows * 10,
  generation: 1,
});

it('corrects the estimate by the parts that are finished, and by what of a running one is beyond its share', () => {
  const { tally, shown } = tallied();
  const [first, second, third, fourth] = parts;
  for (const part of [first, second]) tally.begin(part, { format: 'text', reason: '' });
  tally.moved(first, { rows: 500, bytes: 5_000 });
  expect(shown()).toMatchObject({ rowsEstimated: 1_000, rowsCopied: 500, bytesEstimated: 8_192 });
  tally.moved(first, { rows: 900, bytes: 9_000 });
  expect(shown()).toMatchObject({ rowsEstimated: 1_000, rowsCopied: 900, partsDone: 0 });
  expect(shown()).toMatchObject({ bytesEstimated: 9_000, bytesCopied: 9_000 }); // never more than there is
  tally.done(first, marker(first, 2_000));
  expect(shown()).toMatchObject({ rowsEstimated: 8_000, rowsCopied: 2_000, partsDone: 1 });
  expect(shown()).toMatchObject({ bytesEstimated: 80_000, bytesCopied: 20_000 });
  tally.moved(second, { rows: 3_000, bytes: 30_000 });
  expect(shown()).toMatchObject({ rowsEstimated: 9_000, rowsCopied: 5_000 });
  expect(shown()).toMatchObject({ bytesEstimated: 90_000, bytesCopied: 50_000 });
  tally.done(second, marker(second, 3_000));
  expect(shown()).toMatchObject({ rowsEstimated: 10_000, bytesEstimated: 100_000 });
  tally.done(third, marker(third, 0));
  tally.done(fourth, marker(fourth, 1));
  expect(shown()).toMatchObject({ state: 'copied', rowsEstimated: 5_001, rowsCopied: 5_001, partsDone: 4 });
  expect(shown()).toMatchObject({ bytesEstimated: 50_010, bytesCopied: 50_010, bytesOnDisk: 8_192 });
});

it('knows no better than the statistics when a table starts over', () => {
  const { tally, shown } = tallied();
  tally.done(parts[0], marker(parts[0], 7_000));
  tally.reset('public.t');
  expect(shown()).toMatchObject({ state: 'pending', rowsEstimated: 1_000, rowsCopied: 0, partsDone: 0 });
  expect(shown()).toMatchObject({ bytesEstimated: 8_192, bytesCopied: 0 });
});
