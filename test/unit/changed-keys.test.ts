// What the stream writes down about the rows that it changes: exactly the keys, once each, and never too little.
import { expect, test } from 'vitest';
import { UNCHANGED, type Tuple } from '../../src/postgres/pgoutput-messages.ts';
import { ChangedKeys } from '../../src/sync/changed-keys.ts';
import type { StreamedTable } from '../../src/sync/relations.ts';

const table = (keyPositions: readonly number[], key = 'public.t'): StreamedTable => ({
  key,
  keyPositions,
  columns: [],
  kept: null,
  shape: null,
  setUpdates: false,
  plan: {
    source: { schema: 'public', name: 't' },
    target: { schema: 'public', name: 't' },
    columns: [],
    keyColumns: [],
    replicaIdentity: 'default',
    rowsEstimated: 0,
    bytesEstimated: 0,
  },
});

/** What would be written: relation → keys, or null for the whole table. */
function taken(changed: ChangedKeys): Record<string, unknown> {
  return Object.fromEntries(
    changed
      .take()
      .map(({ values: [, relation, keys] }): [string, unknown] => [
        String(relation),
        keys === null ? null : (JSON.parse(String(keys)) as unknown),
      ]),
  );
}

const keys = (...rows: [Tuple | null, Tuple | null][]): unknown => {
  const changed = new ChangedKeys('t');
  for (const [before, after] of rows) changed.noteRow(table([1, 0]), before, after);
  return taken(changed)['public.t'];
};

test('every changed row is named once, by its key in the order of the key', () => {
  expect(keys([null, ['a', '1', 'x']], [null, ['a', '1', 'y']], [['b', '2', null], null])).toEqual([
    ['1', 'a'],
    ['2', 'b'],
  ]);
});

test('a moved key names both rows', () => {
  expect(
    keys([
      ['a', '1', null],
      ['a', '2', 'x'],
    ]),
  ).toEqual([
    ['1', 'a'],
    ['2', 'a'],
  ]);
});

test('texts that look alike stay apart', () => {
  expect(keys([null, ['a","b', '1']], [null, ['b', '1","a']])).toEqual([
    ['1', 'a","b'],
    ['1","a', 'b'],
  ]);
});

test('an out-of-line key that was not sent again is the old one', () => {
  expect(
    keys([
      ['long', '1'],
      [UNCHANGED, '1'],
    ]),
  ).toEqual([['1', 'long']]);
});

test('what cannot be named by its key marks the whole table, and stays so within the batch', () => {
  expect(keys([null, [UNCHANGED, '1']], [null, ['a', '1']])).toBeNull();
  expect(keys([null, [Buffer.from('a'), '1']])).toBeNull();
  const changed = new ChangedKeys('t');
  changed.noteRow(table([0]), null, ['1']);
  changed.noteTruncate([table([0]), table([], 'public.keyless')]);
  changed.noteRow(table([0]), null, ['2']);
  expect(taken(changed)).toEqual({ 'public.t': null, 'public.keyless': null });
});

test('a table without a key is named as a whole, and a batch begins empty', () => {
  const changed = new ChangedKeys('t');
  changed.noteRow(table([]), ['1'], null);
  expect(taken(changed)).toEqual({ 'public.t': null });
  changed.noteRow(table([0]), null, ['1']);
  expect(taken(changed)).toEqual({ 'public.t': [['1']] });
  expect(taken(changed)).toEqual({});
});

test('a huge transaction does not collect its keys without end', () => {
  const changed = new ChangedKeys('t');
  for (let n = 0; !changed.isFull; n++) changed.noteRow(table([0]), null, [String(n)]);
  expect((taken(changed)['public.t'] as unknown[]).length).toBe(10_000);
  expect(changed.isFull).toBe(false);
});
