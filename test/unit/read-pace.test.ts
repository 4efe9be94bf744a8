// When the feed's socket is left alone: while small pieces come fast, for longer and longer, and never longer than the pace.
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { ReadPace } from '../../src/postgres/read-pace.ts';

const PACE_MS = 3;
const SMALL = 100;
const LARGE = 32 * 1024;

beforeEach(() => {
  vi.useFakeTimers({
    toFake: ['setTimeout', 'clearTimeout', 'setImmediate', 'clearImmediate', 'performance'],
  });
  vi.advanceTimersByTime(1_000);
});
afterEach(() => void vi.useRealTimers());

function paced() {
  const socket = {
    paused: false,
    readableLength: 0,
    pause: () => (socket.paused = true),
    resume: () => (socket.paused = false),
  };
  const held = { now: false };
  const pace = new ReadPace(socket, PACE_MS, () => held.now);
  /** What one read brings. */
  const read = (...pieces: readonly number[]): void => {
    for (const bytes of pieces) pace.chunk(bytes);
    vi.advanceTimersByTime(0);
  };
  return { socket, held, pace, read };
}

test('small pieces that come fast wait for each other, longer and longer, up to the pace', () => {
  const { socket, read } = paced();
  read(SMALL); // the first for long
  expect(socket.paused).toBe(false);
  for (const pauseMs of [1, 2, PACE_MS, PACE_MS]) {
    vi.advanceTimersByTime(PACE_MS);
    read(SMALL);
    expect(socket.paused).toBe(true);
    vi.advanceTimersByTime(pauseMs - 1);
    expect(socket.paused).toBe(true);
    vi.advanceTimersByTime(1);
    expect(socket.paused).toBe(false);
  }
});

test('the pieces of what comes alone wait no longer than at first', () => {
  const { socket, read } = paced();
  for (let round = 0; round < 3; round++) {
    vi.advanceTimersByTime(100);
    read(SMALL);
    expect(socket.paused).toBe(false);
    read(SMALL);
    expect(socket.paused).toBe(true);
    vi.advanceTimersByTime(1);
    expect(socket.paused).toBe(false);
  }
});

test.each([
  ['what comes seldom', 2 * PACE_MS + 2, SMALL, 0],
  ['a large piece', 1, LARGE, 0],
  ['a piece behind which more waits in memory', 1, SMALL, 1],
])('%s does not', (_, afterMs, bytes, readableLength) => {
  const { socket, read } = paced();
  read(SMALL);
  vi.advanceTimersByTime(afterMs);
  socket.readableLength = readableLength;
  read(bytes);
  expect(socket.paused).toBe(false);
});

test('pieces that waited in memory count as one', () => {
  const { socket, read } = paced();
  read(SMALL);
  socket.readableLength = 1;
  read(LARGE);
  socket.readableLength = 0;
  read(SMALL);
  expect(socket.paused).toBe(false);
  read(SMALL);
  expect(socket.paused).toBe(true);
});

test('the pieces of one read count as one', () => {
  const { socket, read } = paced();
  read(SMALL);
  read(...Array.from({ length: LARGE / SMALL + 1 }, () => SMALL));
  expect(socket.paused).toBe(false);
  read(SMALL, SMALL);
  expect(socket.paused).toBe(true);
});

test('whoever holds the socket resumes it, but not within the pace', () => {
  const { socket, held, pace, read } = paced();
  read(SMALL);
  read(SMALL);
  pace.resume();
  expect(socket.paused).toBe(true);
  held.now = true;
  vi.advanceTimersByTime(PACE_MS);
  expect(socket.paused).toBe(true);
  held.now = false;
  pace.resume();
  expect(socket.paused).toBe(false);
});

test('nothing is resumed after the end', () => {
  const { socket, pace, read } = paced();
  read(SMALL);
  read(SMALL);
  pace.stop();
  vi.advanceTimersByTime(PACE_MS);
  expect(socket.paused).toBe(true);
});
