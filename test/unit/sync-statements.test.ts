// SQL of the replay, and Relation messages against the plan: what reaches the target, and what stops the stream.
import { describe, expect, it } from 'vitest';
import type { PlannedColumn, PlannedTable } from '../../src/model/schema-plan.ts';
import { UNCHANGED, type RelationMessage, type UpdateMessage } from '../../src/postgres/pgoutput-messages.ts';
import { relationDifference, type StreamedTable } from '../../src/sync/relations.ts';
import { deleteRow, describeKey, insertRows, truncateTables, updateRow } from '../../src/sync/statements.ts';

const column = (name: string, type: string, over: Partial<PlannedColumn> = {}): PlannedColumn => ({
  name,
  type,
  generated: false,
  identityAlways: false,
  notNull: false,
  ...over,
});

function table(
  columns: readonly PlannedColumn[],
  keyColumns: readonly string[],
  replicaIdentity: 'default' | 'full' = 'default',
): StreamedTable {
  const plan: PlannedTable = {
    source: { schema: 'public', name: 't' },
    target: { schema: 'public', name: 't_new' },
    columns,
    keyColumns,
    replicaIdentity,
    rowsEstimated: 0,
    bytesEstimated: 0,
  };
  const streamed = columns.filter((each) => !each.generated);
  return {
    key: 'public.t',
    plan,
    columns: streamed,
    keyPositions: keyColumns.map((name) => streamed.findIndex((each) => each.name === name)),
    kept: null,
    shape: null,
    setUpdates: false,
  };
}

const update = (over: Partial<UpdateMessage>): UpdateMessage => ({
  tag: 'update',
  relationId: 1,
  oldKind: 'none',
  old: null,
  new: [],
  ...over,
});

const simple = table([column('id', 'integer'), column('note', 'text'), column('big', 'text')], ['id']);

describe('statements', () => {
  it('leave unchanged TOAST values and an unchanged key out of SET', () => {
    expect(updateRow(simple, update({ new: ['1', null, UNCHANGED] }))).toEqual({
      text: 'update only "public"."t_new" set "note" = $1::text where "id" = $2::integer',
      values: [null, '1'],
    });
  });

  it('move a key by the old key tuple, and never read its other columns', () => {
    expect(
      updateRow(simple, update({ oldKind: 'key', old: ['1', null, null], new: ['2', 'n', UNCHANGED] })),
    ).toEqual({
      text: 'update only "public"."t_new" set "id" = $1::integer, "note" = $2::text where "id" = $3::integer',
      values: ['2', 'n', '1'],
    });
  });

  it('move an ALWAYS identity key by delete and insert, keeping values that the message lacks', () => {
    const always = table([column('id', 'bigint', { identityAlways: true }), column('big', 'text')], ['id']);
    const moved = updateRow(always, update({ oldKind: 'key', old: ['1', null], new: ['2', UNCHANGED] }));
    expect(moved.text).toContain('overriding system value');
    expect(moved.text).toContain('moved."big"');
    expect(moved.values).toEqual(['1', '2']);
    expect(updateRow(always, update({ new: ['1', 'x'] })).text).toBe(
      'update only "public"."t_new" set "big" = $1::text where "id" = $2::bigint',
    );
  });

  it('update in place where an ALWAYS identity stays as it is, also in binary form', () => {
    const always = table([column('n', 'integer', { identityAlways: true }), column('v', 'text')], [], 'full');
    const sent = (n: number, v: string): Buffer[] => [Buffer.from([0, 0, 0, n]), Buffer.from(v)];
    const updated = (n: number): string =>
      updateRow(always, update({ oldKind: 'full', old: sent(1, 'a'), new: sent(n, 'b') })).text;
    expect(updated(1)).toMatch(/^update only .* set "v" = /);
    expect(updated(2)).toContain('overriding system value');
  });

  it('match identity full by every column, NULLs included, and by text where = is not identity', () => {
    const full = table([column('a', 'integer'), column('p', 'point'), column('n', 'numeric')], [], 'full');
    expect(deleteRow(full, ['1', '(1,2)', null], true)).toEqual({
      text:
        'delete from only "public"."t_new" where ctid = (select ctid from only "public"."t_new" where ' +
        '"a" = $1::integer and (case when "p" is distinct from null then concat("p") end) collate "C" = ' +
        'concat($2::point) collate "C" and "n" is not distinct from null limit 1)',
      values: ['1', '(1,2)'],
    });
  });

  it('refuse to write a value that the message lacks', () => {
    expect(() => insertRows(simple, [['1', UNCHANGED, 'x']])).toThrow(/lacks/);
  });

  it('truncate all tables at once and never cascade', () => {
    expect(truncateTables([simple, simple], true).text).toBe(
      'truncate table only "public"."t_new", only "public"."t_new" restart identity',
    );
  });

  it('name the key of a row, long values cut', () => {
    expect(describeKey(simple, ['1', 'x', 'y'])).toEqual({ id: '1' });
    const text = describeKey(table([column('k', 'text')], ['k']), ['a'.repeat(500)])['k'];
    expect(text).toHaveLength(101);
  });
});

describe('relationDifference', () => {
  const columns = [
    column('id', 'integer'),
    column('twice', 'integer', { generated: true }),
    column('note', 'text'),
  ];
  const { plan } = table(columns, ['id']);
  const relation = (over: Partial<RelationMessage> = {}): RelationMessage => ({
    tag: 'relation',
    relationId: 1,
    schema: 'public',
    name: 't',
    replicaIdentity: 'default',
    columns: [
      { key: true, name: 'id', typeOid: 23, typmod: -1 },
      { key: false, name: 'note', typeOid: 25, typmod: -1 },
    ],
    ...over,
  });
  const types = ['integer', 'text'];
  const [id, note] = relation().columns;
  if (!id || !note) throw new Error('two columns');

  it('finds none in the planned table, whose generated columns are not sent', () => {
    expect(relationDifference(plan, relation(), types)).toBeNull();
  });

  it.each([
    [
      'an added column',
      { columns: [id, note, { ...note, name: 'extra' }] },
      [...types, 'text'],
      /extra was added/,
    ],
    ['a dropped column', { columns: [id] }, ['integer'], /note was dropped/],
    ['a renamed column', { columns: [id, { ...note, name: 'remark' }] }, types, /note was renamed to remark/],
    ['a changed type', {}, ['bigint', 'text'], /id changed its type from integer to bigint/],
    ['another replica identity', { replicaIdentity: 'full' as const }, types, /replica identity/],
    [
      'another key',
      {
        columns: [
          { ...id, key: false },
          { ...note, key: true },
        ],
      },
      types,
      /its key changed/,
    ],
  ])('finds %s', (_what, over, seen, expected) => {
    expect(relationDifference(plan, relation(over), seen)).toMatch(expected);
  });
});
