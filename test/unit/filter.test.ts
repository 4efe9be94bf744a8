// Which changes a copied part had already seen.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bigintToLsn } from '../../src/model/lsn.ts';
import { parsePgSnapshot } from '../../src/model/pg-snapshot.ts';
import { CopyFilter, decideUpdate, sawTransaction, type CopiedPart } from '../../src/sync/filter.ts';

const part = (over: Partial<CopiedPart> = {}): CopiedPart => ({
  relation: 'public.t',
  part: 0,
  range: null,
  pgSnapshot: parsePgSnapshot('100:110:100,105'),
  horizonLsn: '0/1000',
  ...over,
});

describe('a change to a copied part', () => {
  it('is skipped when it is visible in the snapshot and commits before the horizon', () => {
    expect(sawTransaction(part(), { xid: 99, commitLsn: '0/FFF' })).toBe(true);
    expect(sawTransaction(part(), { xid: 104, commitLsn: '0/FFF' })).toBe(true);
  });

  it('passes when its transaction was still running for the snapshot, though its commit record lies before the horizon', () => {
    expect(sawTransaction(part(), { xid: 105, commitLsn: '0/FFF' })).toBe(false);
    expect(sawTransaction(part(), { xid: 110, commitLsn: '0/FFF' })).toBe(false);
  });

  it('passes when it commits at or behind the horizon, whatever its xid', () => {
    expect(sawTransaction(part(), { xid: 99, commitLsn: '0/1000' })).toBe(false);
    expect(sawTransaction(part(), { xid: 99, commitLsn: '1/0' })).toBe(false);
  });

  it('is judged by 64-bit ids: the low half alone would have wrapped', () => {
    const wrapped = part({ pgSnapshot: parsePgSnapshot('4294967300:4294967310:4294967305') });
    expect(sawTransaction(wrapped, { xid: 4, commitLsn: '0/1' })).toBe(true);
    expect(sawTransaction(wrapped, { xid: 9, commitLsn: '0/1' })).toBe(false);
    expect(sawTransaction(wrapped, { xid: 4_294_967_290, commitLsn: '0/1' })).toBe(true);
    expect(sawTransaction(wrapped, { xid: 14, commitLsn: '0/1' })).toBe(false);
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
        const skipped = filter.concerns(transaction) && filter.sawRow('public.t', ['1'], transaction);
        expect(skipped).toBe(seen);
      }),
    );
  });

  it('passes or skips an update of a table of one part as a whole', () => {
    const filter = new CopyFilter([part()]);
    expect(filter.update('public.t', ['1'], ['2'], { xid: 99, commitLsn: '0/1' })).toBe('skip');
    expect(filter.update('public.t', null, ['2'], { xid: 105, commitLsn: '0/1' })).toBe('apply');
  });

  it('tells a key move across parts as a delete and an insert, each with its own test', () => {
    expect(decideUpdate(true, true)).toBe('skip');
    expect(decideUpdate(false, false)).toBe('apply');
    expect(decideUpdate(true, false)).toBe('insert-new');
    expect(decideUpdate(false, true)).toBe('delete-old');
  });

  it('truncates only parts that had not seen the truncate', () => {
    const filter = new CopyFilter([part(), part({ part: 1, horizonLsn: '0/500' })]);
    const parts = (commitLsn: string): number[] =>
      filter.partsToTruncate('public.t', { xid: 99, commitLsn }).parts.map((each) => each.part);
    expect(parts('0/1')).toEqual([]);
    expect(parts('0/500')).toEqual([1]);
    expect(parts('0/1000')).toEqual([0, 1]);
    expect(filter.partsToTruncate('public.t', { xid: 99, commitLsn: '0/1000' }).all).toBe(true);
  });

  it('refuses a table that was never copied', () => {
    const filter = new CopyFilter([part()]);
    expect(() => filter.sawRow('public.other', ['1'], { xid: 1, commitLsn: '0/1' })).toThrow(/public.other/);
  });
});
