// Which changes a copied part had already seen.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bigintToLsn } from '../../src/model/lsn.ts';
import type { KeyRange, PartRange } from '../../src/model/part-range.ts';
import { parsePgSnapshot } from '../../src/model/pg-snapshot.ts';
import {
  CopyFilter,
  decideUpdate,
  sawTransaction,
  type CopiedPart,
  type FilteredTable,
} from '../../src/sync/filter.ts';

const t: FilteredTable = {
  key: 'public.t',
  columns: [
    { name: 'v', type: 'text' },
    { name: 'id', type: 'integer' },
  ],
  keyPositions: [1],
};
const row = (id: number | string): readonly [string, string] => ['x', String(id)];
const key = (from: string | null, to: string | null): PartRange => ({
  kind: 'key',
  column: 'id',
  type: 'integer',
  from,
  to,
});

const part = (over: Partial<CopiedPart> = {}): CopiedPart => ({
  relation: 'public.t',
  part: 0,
  range: null,
  pgSnapshot: parsePgSnapshot('100:110:100,105'),
  horizonLsn: '0/1000',
  ...over,
});
/** Read later: sees everything below 200. */
const later = { pgSnapshot: parsePgSnapshot('200:200:'), horizonLsn: '0/2000' };

describe('a change to a copied part', () => {
  it.each([
    ['older than everything that ran', 99, '0/FFF', true],
    ['ended before the snapshot', 104, '0/FFF', true],
    ['still running for the snapshot, though its commit record lies before the horizon', 105, '0/FFF', false],
    ['not begun when the snapshot was taken', 110, '0/FFF', false],
    ['commits at the horizon: another epoch of the same id', 99, '0/1000', false],
    ['commits far behind the horizon', 99, '1/0', false],
  ])('%s', (_what, xid, commitLsn, seen) => {
    expect(sawTransaction(part(), { xid, commitLsn })).toBe(seen);
  });

  it.each([
    [4, true],
    [9, false],
    [4_294_967_290, true],
    [14, false],
  ])('is judged by 64-bit ids: the low half %i alone would have wrapped', (xid, seen) => {
    const wrapped = part({ pgSnapshot: parsePgSnapshot('4294967300:4294967310:4294967305') });
    expect(sawTransaction(wrapped, { xid, commitLsn: '0/1' })).toBe(seen);
  });

  it('of a two-phase transaction is judged by the id that it was prepared with and by the commit that came later', () => {
    // prepared (hence running) when the snapshot was taken, committed before its horizon was read
    expect(sawTransaction(part(), { xid: 100, commitLsn: '0/FFE' })).toBe(false);
  });

  it('of a sub-transaction is the top-level one’s: only that id is in the stream and in a snapshot’s list', () => {
    // 106 is a sub-transaction of 105; had the stream named it, it would have counted as seen
    expect(sawTransaction(part(), { xid: 106, commitLsn: '0/FFF' })).toBe(true);
    expect(sawTransaction(part(), { xid: 105, commitLsn: '0/FFF' })).toBe(false);
  });
});

describe('CopyFilter', () => {
  it('concerns nothing that commits at or behind the last horizon', () => {
    const filter = new CopyFilter([part(), part({ relation: 'public.u', horizonLsn: '0/2000' })]);
    expect(filter.concerns({ xid: 1, commitLsn: '0/1FFF' })).toBe(true);
    expect(filter.concerns({ xid: 1, commitLsn: '0/2000' })).toBe(false);
    expect(new CopyFilter([]).concerns({ xid: 1, commitLsn: '0/1' })).toBe(false);
  });

  it('agrees with the definition for any transaction', () => {
    fc.assert(
      fc.property(fc.nat(200), fc.bigInt({ min: 0n, max: 0x2000n }), (xid, commit) => {
        const filter = new CopyFilter([part()]);
        const transaction = { xid, commitLsn: bigintToLsn(commit) };
        const seen = commit < 0x1000n && (xid < 100 || (xid < 110 && xid !== 100 && xid !== 105));
        const skipped = filter.concerns(transaction) && filter.sawRow(t, row(1), transaction);
        expect(skipped).toBe(seen);
      }),
    );
  });

  it('finds the part of a key that came in binary form as that of its text', () => {
    const filter = new CopyFilter([
      part({ part: 0, range: key(null, '-5') }),
      part({ part: 1, range: key('-5', null), ...later }),
    ]);
    const transaction = { xid: 105, commitLsn: '0/1' }; // seen by the later part only
    for (const id of [-2_147_483_648, -6, -5, 0, 2_147_483_647]) {
      const bytes = Buffer.alloc(4);
      bytes.writeInt32BE(id);
      expect(filter.sawRow(t, ['x', bytes], transaction)).toBe(id >= -5);
      expect(filter.sawRow(t, row(id), transaction)).toBe(id >= -5);
    }
  });

  it('finds the part of a moment that came in binary form', () => {
    const at: FilteredTable = {
      ...t,
      columns: [
        { name: 'v', type: 'text' },
        { name: 'id', type: 'timestamp with time zone' },
      ],
    };
    const moments = (from: string | null, to: string | null): PartRange => ({
      ...(key(from, to) as KeyRange),
      type: 'timestamptz',
    });
    const bound = '1999-12-31 23:59:59.5+00';
    const filter = new CopyFilter([
      part({ part: 0, range: moments(null, bound) }),
      part({ part: 1, range: moments(bound, null), ...later }),
    ]);
    const transaction = { xid: 105, commitLsn: '0/1' }; // seen by the later part only
    const infinity = 2n ** 63n - 1n;
    for (const micros of [-infinity - 1n, -63_000_000_000_000_000n, -500_001n, -500_000n, 0n, infinity]) {
      const bytes = Buffer.alloc(8);
      bytes.writeBigInt64BE(micros);
      expect(filter.sawRow(at, ['x', bytes], transaction)).toBe(micros >= -500_000n);
    }
  });

  it('passes or skips an update of a table of one part as a whole', () => {
    const filter = new CopyFilter([part()]);
    expect(filter.update(t, row(1), row(2), { xid: 99, commitLsn: '0/1' })).toBe('skip');
    expect(filter.update(t, null, row(2), { xid: 105, commitLsn: '0/1' })).toBe('apply');
  });

  it.each([
    [true, true, 'skip'],
    [false, false, 'apply'],
    [true, false, 'insert-new'],
    [false, true, 'delete-old'],
  ] as const)('a key move seen in the old part: %s, in the new one: %s → %s', (sawOld, sawNew, verdict) => {
    expect(decideUpdate(sawOld, sawNew)).toBe(verdict);
  });
});

describe('a table of key ranges', () => {
  const filter = new CopyFilter([
    part({ part: 2, range: key('100', null), ...later }),
    part({ part: 0, range: key(null, '-5') }),
    part({ part: 1, range: key('-5', '100') }),
  ]);
  const between = { xid: 150, commitLsn: '0/1500' }; // only the last part has seen it

  it.each([
    ['-9223372036854775808', false],
    ['-6', false],
    ['-5', false],
    ['99', false],
    ['100', true],
    ['9223372036854775807', true],
  ])('the row %s belongs to the part whose range has it', (id, seen) => {
    expect(filter.sawRow(t, row(id), between)).toBe(seen);
  });

  it.each([
    [-6, 3, 'apply'],
    [100, 200, 'skip'],
    [3, 100, 'delete-old'],
    [100, 3, 'insert-new'],
  ])('a row that moves from %i to %i: %s', (from, to, verdict) => {
    expect(filter.update(t, row(from), row(to), between)).toBe(verdict);
  });

  it('is truncated part by part', () => {
    expect(filter.truncate('public.t', between)).toEqual({
      kind: 'some',
      unseen: [key(null, '-5'), key('-5', '100')],
      seenRows: [],
    });
    expect(filter.truncate('public.t', { xid: 1, commitLsn: '0/1' })).toEqual({ kind: 'skip' });
    expect(filter.truncate('public.t', { xid: 150, commitLsn: '0/2000' })).toEqual({ kind: 'apply' });
  });

  it('asks a row that was read again by its own marker, whatever its range says', () => {
    const own = new CopyFilter([part({ range: key(null, '7') }), part({ part: 1, range: key('7', null) })]);
    expect(own.concerns(between)).toBe(false);
    own.addRow(part({ part: -1, range: { kind: 'row', key: { id: '8' } }, ...later }));
    expect(own.concerns(between)).toBe(true);
    expect(own.sawRow(t, row(8), between)).toBe(true);
    expect(own.sawRow(t, row(9), between)).toBe(false);
    expect(own.truncate('public.t', between)).toEqual({
      kind: 'some',
      unseen: [key(null, '7'), key('7', null)],
      seenRows: [{ kind: 'row', key: { id: '8' } }],
    });
  });

  it.each<[string, readonly (PartRange | null)[]]>([
    ['a gap', [key(null, '1'), key('2', null)]],
    ['an end', [key(null, '1'), key('1', '5')]],
    ['a start', [key('0', '1'), key('1', null)]],
    ['two whole tables', [null, null]],
    ['a whole table and a range', [null, key('1', null)]],
    ['blocks without the first', [{ kind: 'ctid', from: 3, to: null }]],
    ['keys and blocks', [key(null, '1'), { kind: 'ctid', from: 0, to: null }]],
  ])('refuses parts with %s', (_what, ranges) => {
    expect(() => new CopyFilter(ranges.map((range, n) => part({ part: n, range })))).toThrow(/public\.t/);
  });

  it('refuses a table that was never copied, and a change that does not tell the key', () => {
    expect(() =>
      new CopyFilter([part()]).sawRow({ ...t, key: 'public.other' }, row(1), { xid: 1, commitLsn: '0/1' }),
    ).toThrow(/public.other/);
    expect(() => filter.sawRow(t, ['x', null], between)).toThrow(/does not tell its id/);
  });
});

describe('a table of block ranges', () => {
  const blocks = (from: number, to: number | null): PartRange => ({ kind: 'ctid', from, to });

  it('has one verdict for all of its rows', () => {
    const filter = new CopyFilter([
      part({ part: 1, range: blocks(10, null) }),
      part({ part: 0, range: blocks(0, 10) }),
    ]);
    expect(filter.sawRow(t, row(1), { xid: 104, commitLsn: '0/1' })).toBe(true);
    expect(filter.sawRow(t, row(1), { xid: 105, commitLsn: '0/1' })).toBe(false);
    expect(filter.truncate('public.t', { xid: 105, commitLsn: '0/1' })).toEqual({ kind: 'apply' });
  });

  it('refuses blocks of two snapshots', () => {
    expect(
      () =>
        new CopyFilter([
          part({ range: blocks(0, 10) }),
          part({ part: 1, range: blocks(10, null), ...later }),
        ]),
    ).toThrow(/different snapshots/);
  });
});
