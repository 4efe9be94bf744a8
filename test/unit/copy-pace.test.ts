// The speed limit of the copy: an allowance that time refills, and limits that are read whenever they are needed.
import { expect, it } from 'vitest';
import { Pace } from '../../src/copy/pace.ts';
import type { TaskSpec } from '../../src/model/task.ts';

function paceAt(rate: number | null): {
  pace: Pace;
  options: { maxBytesPerSecond: number | null };
  pass: (ms: number) => void;
} {
  const options = { maxBytesPerSecond: rate };
  let now = 0;
  const pace = new Pace({ spec: { options } as unknown as TaskSpec }, () => now);
  return { pace, options, pass: (ms) => void (now += ms) };
}

it('lets as many bytes through as the rate allows, over any time', () => {
  const { pace, pass } = paceAt(100_000);
  let sent = 0;
  for (let ms = 0; ms < 10_000; ms += 10) {
    if (pace.waitMs() === 0) {
      pace.take(8_192);
      sent += 8_192;
    }
    pass(10);
  }
  expect(sent).toBeGreaterThan(0.95 * 1_000_000);
  expect(sent).toBeLessThan(1.05 * 1_000_000);
});

it('asks again soon, so that a raised or lifted limit holds at once', () => {
  const { pace, options, pass } = paceAt(65_536);
  pace.take(10_000_000);
  expect(pace.waitMs()).toBe(200);
  options.maxBytesPerSecond = null;
  expect(pace.waitMs()).toBe(0);
  options.maxBytesPerSecond = 65_536;
  pass(1);
  expect(pace.waitMs()).toBe(0); // no debt of the time without a limit
});

it('does not save up for later what was not used', () => {
  const { pace, pass } = paceAt(1_000_000);
  pass(60_000);
  pace.take(300_000);
  expect(pace.waitMs()).toBeGreaterThan(0);
});

it('stops while standbys lie behind, with or without a rate', () => {
  for (const rate of [null, 1_000_000]) {
    const { pace } = paceAt(rate);
    pace.isLagging = true;
    expect(pace.waitMs()).toBe(200);
    pace.isLagging = false;
    expect(pace.waitMs()).toBe(0);
  }
});
