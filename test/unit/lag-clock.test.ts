// The lag in seconds and what follows from it: measured between the positions of source and target, not on their clocks.
import { describe, expect, it } from 'vitest';
import { bigintToLsn } from '../../src/model/lsn.ts';
import { BatchSize } from '../../src/sync/batch-size.ts';
import { LagClock, slotFinding, slotOutlook } from '../../src/sync/lag-clock.ts';

const lsn = (bytes: number) => bigintToLsn(BigInt(1_000_000 + bytes));

describe('the lag clock', () => {
  it('says since when the source is beyond what is applied', () => {
    const clock = new LagClock();
    expect(clock.add(0, lsn(0), lsn(0)).lagSeconds).toBe(0);
    clock.add(1_000, lsn(100), lsn(0));
    expect(clock.add(5_000, lsn(500), lsn(0)).lagSeconds).toBe(4);
    expect(clock.add(6_000, lsn(600), lsn(100)).lagSeconds).toBe(1);
    expect(clock.add(7_000, lsn(600), lsn(600)).lagSeconds).toBe(0);
    // an idle source does not age
    expect(clock.add(90_000, lsn(600), lsn(600)).lagSeconds).toBe(0);
  });

  it('tells it of any position, as far back as it was told to look', () => {
    const clock = new LagClock();
    for (let second = 0; second <= 300; second++)
      clock.add(second * 1_000, lsn(second * 100), lsn(second * 100), lsn(0));
    expect(clock.secondsBehind(lsn(30_000))).toBe(0);
    expect(clock.secondsBehind(lsn(29_950))).toBe(0);
    expect(clock.secondsBehind(lsn(29_900))).toBe(0);
    expect(clock.secondsBehind(lsn(29_800))).toBe(1);
    expect(clock.secondsBehind(lsn(0))).toBe(299);
  });

  it('tells when they will meet, and never when the source is faster', () => {
    const clock = new LagClock();
    clock.add(0, lsn(10_000), lsn(0));
    expect(clock.add(10_000, lsn(11_000), lsn(3_000))).toMatchObject({
      sourceBytesPerSecond: 100,
      appliedBytesPerSecond: 300,
      catchUpSeconds: 40,
    });
    const slower = new LagClock();
    slower.add(0, lsn(10_000), lsn(0));
    expect(slower.add(10_000, lsn(20_000), lsn(500)).catchUpSeconds).toBeNull();
    expect(slower.add(11_000, lsn(20_000), lsn(20_000)).catchUpSeconds).toBe(0);
  });

  it('remembers hours of lag in bounded memory', () => {
    const clock = new LagClock();
    let last = clock.add(0, lsn(1), lsn(0));
    for (let n = 1; n <= 30_000; n++) last = clock.add(n * 500, lsn(n), lsn(0));
    expect(last.lagSeconds).toBe(15_000);
  });
});

describe('the outlook of a slot', () => {
  const mb = 1024 * 1024;
  it.each([
    ['no limit', { walStatus: 'reserved', safeWalBytes: null }, mb, null, null],
    ['an idle source', { walStatus: 'extended', safeWalBytes: 100 * mb }, 0, null, null],
    ['a day', { walStatus: 'reserved', safeWalBytes: 86_400 * mb }, mb, 86_400, null],
    [
      'ten minutes',
      { walStatus: 'extended', safeWalBytes: 600 * mb },
      mb,
      600,
      /about 10 min.*max_slot_wal_keep_size/,
    ],
    [
      'no reserve',
      { walStatus: 'unreserved', safeWalBytes: 0 },
      mb,
      0,
      /next checkpoint.*max_slot_wal_keep_size/,
    ],
  ] as const)('%s', (_, slot, rate, seconds, warning) => {
    const outlook = slotOutlook({ retainedBytes: 0, ...slot }, rate, null);
    expect(outlook.secondsUntilLost).toBe(seconds);
    if (warning === null) expect(outlook.warning).toBeNull();
    else expect(outlook.warning).toMatch(warning);
  });

  it('counts what max_retained_wal_bytes leaves, where that is less', () => {
    const slot = { walStatus: 'extended', safeWalBytes: 1_000 * mb, retainedBytes: 40 * mb };
    expect(slotOutlook(slot, mb, 100 * mb)).toMatchObject({
      secondsUntilLost: 60,
      warning: expect.stringContaining('max_retained_wal_bytes') as string,
    });
    expect(slotOutlook(slot, mb, 2_000 * mb)).toMatchObject({
      secondsUntilLost: 1_000,
      warning: expect.stringContaining('max_slot_wal_keep_size') as string,
    });
  });
});

describe('the finding of a slot', () => {
  const mb = 1024 * 1024;
  const reserved = { walStatus: 'reserved', safeWalBytes: 600 * mb, retainedBytes: 0 };
  const find = (slot: typeof reserved, rate: number, cap: number | null, calmMs: number) =>
    slotFinding(slot, slotOutlook(slot, rate, cap), cap, { atMs: 100_000, dangerAtMs: 100_000 - calmMs });

  it('is the same whatever the rate is, and another one when something else is so', () => {
    const soon = find(reserved, mb, null, 0);
    expect(soon).toMatchObject({ code: 'slot_endangered', severity: 'warning', object: 'source' });
    expect(find({ ...reserved, safeWalBytes: 90 * mb }, 3 * mb, null, 0)).toEqual(soon);
    expect(soon?.remedy).toContain('max_slot_wal_keep_size');
    expect(find(reserved, mb, 100 * mb, 0)?.remedy).toContain('max_retained_wal_bytes');
    const next = find({ ...reserved, walStatus: 'unreserved', safeWalBytes: 0 }, 0, null, 0);
    expect(next?.message).toContain('next checkpoint');
  });

  it('is taken back when the slot has been safe for a minute', () => {
    expect(find(reserved, 0, null, 59_999)).toBeUndefined();
    expect(find(reserved, 0, null, 60_000)).toBeNull();
  });
});

describe('the size of a batch', () => {
  it('goes to what the target takes in half a second, within bounds', () => {
    const size = new BatchSize();
    for (let n = 0; n < 20; n++) size.learn(size.changes, size.changes / 80); // 80 changes a ms
    expect(size.changes).toBeGreaterThan(39_000);
    expect(size.changes).toBeLessThan(41_000);
    for (let n = 0; n < 20; n++) size.learn(size.changes, size.changes * 2);
    expect(size.changes).toBeLessThan(1_100);
    const before = size.changes;
    size.learn(3, 50); // the time of a commit
    expect(size.changes).toBe(before);
  });
});
