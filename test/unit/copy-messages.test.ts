// The bytes of COPY: the walk over what the source sends, and the messages that its rows leave in.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CopyInFramer, CopyOutWalker } from '../../src/postgres/copy-messages.ts';
import { FRAME_BYTES, type Frame, FramePool, frames, HEADER_BYTES } from '../../src/postgres/frames.ts';

function message(type: string, body: Buffer): Buffer {
  const header = Buffer.alloc(5);
  header.write(type, 'latin1');
  header.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([header, body]);
}

interface Walked {
  readonly payload: Buffer;
  readonly control: Buffer;
  readonly rest: Buffer | null;
  readonly messages: number;
}

function walk(bytes: Buffer, sizes: readonly number[]): Walked {
  const payload: Buffer[] = [];
  const control: Buffer[] = [];
  let rest: Buffer | null = null;
  const walker = new CopyOutWalker({
    payload: (part) => void payload.push(Buffer.from(part)),
    control: (part) => void control.push(part),
    ready: (part) => (rest = Buffer.from(part)),
  });
  const frame = frames.take();
  for (let at = 0, i = 0; at < bytes.length && rest === null; i++) {
    const piece = bytes.subarray(at, at + (sizes[i % sizes.length] ?? 1));
    frame.bytes.fill(0xaa).set(piece, HEADER_BYTES);
    const kept = walker.push(frame, piece.length);
    payload.push(Buffer.from(frame.bytes.subarray(HEADER_BYTES, HEADER_BYTES + kept)));
    at += piece.length;
  }
  frames.give(frame);
  return {
    payload: Buffer.concat(payload),
    control: Buffer.concat(control),
    rest,
    messages: walker.messages,
  };
}

describe('the walk over a COPY', () => {
  it('separates rows from everything else, however the bytes are cut', () => {
    const row = fc.uint8Array({ maxLength: 200 }).map((body) => message('d', Buffer.from(body)));
    const other = fc
      .tuple(fc.constantFrom('N', 'S', 'A', 'H', 'c', 'C', 'E'), fc.uint8Array({ maxLength: 30 }))
      .map(([type, body]) => message(type, Buffer.from(body)));
    fc.assert(
      fc.property(
        fc.array(fc.oneof({ weight: 4, arbitrary: row }, { weight: 1, arbitrary: other }), { maxLength: 30 }),
        fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 10 }),
        (messages, sizes) => {
          const ready = message('Z', Buffer.from('T'));
          const walked = walk(Buffer.concat([...messages, ready]), sizes);
          const rows = messages.filter((one) => one[0] === 0x64);
          expect(walked.payload).toEqual(Buffer.concat(rows.map((one) => one.subarray(5))));
          expect(walked.messages).toBe(rows.length);
          expect(walked.control).toEqual(
            Buffer.concat([...messages.filter((one) => one[0] !== 0x64), ready]),
          );
          expect(walked.rest).toEqual(Buffer.alloc(0));
        },
      ),
    );
  });

  it('hands over what follows ReadyForQuery and refuses bytes that are no message of a COPY', () => {
    const bytes = Buffer.concat([message('Z', Buffer.from('I')), Buffer.from('next')]);
    expect(walk(bytes, [1_000]).rest?.toString()).toBe('next');
    expect(() => walk(Buffer.from('garbage'), [1_000])).toThrow(RangeError);
    expect(() => walk(Buffer.from([0x64, 0, 0, 0, 1, 0]), [1_000])).toThrow(RangeError);
  });
});

describe('the frames for the target', () => {
  it('carry the same bytes in messages of 256 KiB, in buffers that are used again', () => {
    const messages: Buffer[] = [];
    const used = new Set<Frame>();
    const framer = new CopyInFramer((framed, frame) => {
      messages.push(Buffer.from(framed));
      used.add(frame);
      frames.give(frame);
    });
    const piece = Buffer.from(Array.from({ length: 50_021 }, (_, i) => i % 251));
    for (let i = 0; i < 20; i++) framer.append(piece);
    framer.flush();
    framer.flush();
    const sent = Buffer.concat(messages.map((one) => one.subarray(5)));
    expect(sent.equals(Buffer.concat(Array.from({ length: 20 }, () => piece)))).toBe(true);
    expect(messages.every((one) => one[0] === 0x64 && one.readInt32BE(1) === one.length - 1)).toBe(true);
    expect(messages.slice(0, -1).every((one) => one.length === FRAME_BYTES + 5)).toBe(true);
    expect(used.size).toBe(1);
  });

  it('leave in the memory in which their rows lie, behind what was gathered', () => {
    const messages: string[] = [];
    const framer = new CopyInFramer((framed) => void messages.push(framed.toString('latin1')));
    const frame = frames.take();
    frame.bytes.write('rows that were read', HEADER_BYTES);
    framer.append(Buffer.from('gathered'));
    framer.lend(frame, 'rows that were read'.length);
    framer.flush();
    expect(messages).toEqual(['d\0\0\0\x0cgathered', 'd\0\0\0\x17rows that were read']);
  });
});

describe('the memory in which rows are packed', () => {
  it('packs rows of every length, up to its last byte, and touches no other memory', () => {
    const pool = new FramePool();
    const slab = Array.from({ length: 16 }, () => pool.take());
    for (const frame of slab) {
      for (const other of slab) other.bytes.fill(0x55);
      const rows: Buffer[] = [];
      let room = FRAME_BYTES;
      for (let length = 0; room >= length + 5; length = (length + 1) % 700) {
        rows.push(Buffer.from(Array.from({ length }, (_, i) => (i * 7 + rows.length) % 256)));
        room -= length + 5;
      }
      if (room >= 5) rows.push(Buffer.alloc(room - 5, 'x'));
      const bytes = Buffer.concat(rows.map((row) => message('d', row)));
      bytes.copy(frame.bytes, HEADER_BYTES);
      const end = HEADER_BYTES + bytes.length;
      const packed = frame.pack(HEADER_BYTES, end, HEADER_BYTES);
      const payload = Buffer.concat(rows);
      expect(packed).toEqual({ at: end, kept: HEADER_BYTES + payload.length, count: rows.length });
      expect(frame.bytes.subarray(HEADER_BYTES, packed.kept).equals(payload)).toBe(true);
      expect(frame.bytes.subarray(0, HEADER_BYTES).every((byte) => byte === 0x55)).toBe(true);
      expect(slab.every(({ bytes: all }) => all === frame.bytes || all.every((byte) => byte === 0x55))).toBe(
        true,
      );
    }
  });

  it.each([-1, 0, 3, 0x7fffffff, -0x80000000, 200])('stops at a message of length %i', (length) => {
    const frame = frames.take();
    const row = message('d', Buffer.from('row'));
    frame.bytes.set(row, HEADER_BYTES);
    frame.bytes.write('d', HEADER_BYTES + row.length);
    frame.bytes.writeInt32BE(length, HEADER_BYTES + row.length + 1);
    expect(frame.pack(HEADER_BYTES, 200, HEADER_BYTES)).toEqual({
      at: HEADER_BYTES + row.length,
      kept: HEADER_BYTES + 3,
      count: 1,
    });
    frames.give(frame);
  });

  it('is given to one at a time, and kept only as far as it is likely to be used again', () => {
    const pool = new FramePool();
    const taken = Array.from({ length: 48 }, () => pool.take());
    expect(new Set(taken.map(({ bytes }) => bytes)).size).toBe(48);
    for (const frame of taken) pool.give(frame);
    const again = Array.from({ length: 48 }, () => pool.take());
    const known = new Set(taken);
    expect(again.filter((frame) => known.has(frame)).length).toBe(16);
    for (const frame of again) pool.give(frame);
  });
});
