// From bytes in chunks of any size to messages: none is lost, joined or cut, whatever the network makes of them.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Lease } from '../../src/postgres/lease.ts';
import { type Gulp, KEEPALIVE, WalWalker } from '../../src/postgres/wal-walker.ts';

const frame = (type: string, payload: Buffer): Buffer => {
  const header = Buffer.alloc(5);
  header.write(type, 'latin1');
  header.writeInt32BE(payload.length + 4, 1);
  return Buffer.concat([header, payload]);
};
const xlog = (message: Buffer): Buffer =>
  frame('d', Buffer.concat([Buffer.from('w'), Buffer.alloc(24), message]));
const keepalive = (reply: boolean): Buffer => {
  const payload = Buffer.alloc(18);
  payload[0] = KEEPALIVE;
  payload[17] = reply ? 1 : 0;
  return frame('d', payload);
};
const rowOf = (value: Buffer): Buffer => {
  const head = Buffer.alloc(6);
  head.writeInt16BE(1);
  head.writeInt32BE(value.length, 2);
  return Buffer.concat([head, value]);
};
const signature = Buffer.concat([Buffer.from('PGCOPY\n\xff\r\n\0', 'latin1'), Buffer.alloc(8)]);

/** What comes out, in order: messages as hex, controls as their type, keepalives that want an answer. */
function walk(source: 'walsender' | 'rows', bytes: Buffer, cuts: readonly number[]): string[] {
  const out: string[] = [];
  const walker = new WalWalker(source, {
    gulp: ({ buffer, bounds }) => {
      for (let i = 0; i < bounds.length; i += 2) out.push(buffer.toString('hex', bounds[i], bounds[i + 1]));
    },
    keepalive: () => undefined,
    control: (message) => void out.push(`control ${message.toString('latin1', 0, 1)} ${message.length}`),
  });
  for (const chunk of chunks(bytes, cuts)) walker.push(chunk);
  return out;
}

/** Each of memory of its own. */
function chunks(bytes: Buffer, cuts: readonly number[]): Buffer[] {
  const at = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
  return [...at, bytes.length].map((to, n) => {
    const part = bytes.subarray(at[n - 1] ?? 0, to);
    const chunk = Buffer.allocUnsafeSlow(part.length); // not of a pool
    part.copy(chunk);
    return chunk;
  });
}

const payload = fc.uint8Array({ minLength: 1, maxLength: 300 }).map((array) => Buffer.from(array));
const cuts = fc.array(fc.nat({ max: 20_000 }), { maxLength: 40 });

describe('the walker', () => {
  it('gives every message of a walsender, wherever the chunks are cut', () => {
    const item = fc.oneof(
      payload.map((bytes) => ({ bytes: xlog(bytes), out: bytes.toString('hex') })),
      payload.map((bytes) => ({ bytes: frame('N', bytes), out: `control N ${bytes.length + 5}` })),
      fc.boolean().map((reply) => {
        const bytes = keepalive(reply);
        return { bytes, out: bytes.toString('hex', 5) };
      }),
    );
    fc.assert(
      fc.property(fc.array(item, { maxLength: 20 }), cuts, (items, at) => {
        const bytes = Buffer.concat(items.map((each) => each.bytes));
        expect(walk('walsender', bytes, at)).toEqual(items.map((each) => each.out));
      }),
      { numRuns: 300 },
    );
  });

  it('gives every row of a COPY, header and trailer apart or together with rows', () => {
    fc.assert(
      fc.property(fc.array(payload, { maxLength: 20 }), fc.boolean(), cuts, (rows, alone, at) => {
        const trailer = frame('d', Buffer.from([255, 255]));
        const [first, ...rest] = rows;
        const head =
          alone || first === undefined
            ? [frame('d', signature), ...(first === undefined ? [] : [frame('d', rowOf(first))])]
            : [frame('d', Buffer.concat([signature, rowOf(first)]))];
        const bytes = Buffer.concat([
          ...head,
          ...rest.map((row) => frame('d', rowOf(row))),
          trailer,
          frame('Z', Buffer.from('I')),
        ]);
        expect(walk('rows', bytes, at)).toEqual([...rows.map((row) => row.toString('hex')), 'control Z 6']);
      }),
      { numRuns: 300 },
    );
  });

  it('lets go of a chunk once its last gulp is released, and of one that gave none at once', () => {
    const piece = fc.oneof(
      payload.map((bytes) => ({ bytes: frame('d', rowOf(bytes)), out: [bytes.toString('hex')] })),
      fc.constant({ bytes: frame('N', Buffer.from('a notice')), out: [] }),
    );
    fc.assert(
      fc.property(
        fc.array(piece, { maxLength: 20 }),
        cuts,
        fc.infiniteStream(fc.boolean()),
        (rows, at, isNow) => {
          const out: string[] = [];
          const kept: Gulp[] = [];
          const freed: Buffer[] = [];
          const read = (gulp: Gulp): void => {
            const { buffer, bounds } = gulp;
            for (let i = 0; i < bounds.length; i += 2)
              out.push(buffer.toString('hex', bounds[i], bounds[i + 1]));
            gulp.lease?.release();
          };
          const walker = new WalWalker('rows', {
            gulp: (gulp) => void kept.push(gulp),
            keepalive: () => undefined,
            control: () => undefined,
          });
          const pieces = chunks(
            Buffer.concat([frame('d', signature), ...rows.map(({ bytes }) => bytes)]),
            at,
          );
          for (const chunk of pieces) {
            const before = kept.length;
            const lease = new Lease(() => {
              freed.push(chunk);
              chunk.fill(0xee); // it is read into
            });
            walker.push(chunk, lease);
            lease.release();
            const gulps = kept.slice(before).filter(({ buffer }) => buffer.buffer === chunk.buffer);
            expect(freed.includes(chunk)).toBe(gulps.length === 0);
            while (kept.length > 0 && isNow.next().value === true) read(kept.shift() as Gulp);
          }
          for (const gulp of kept) read(gulp);
          expect(out).toEqual(rows.flatMap((row) => row.out));
          expect(freed).toHaveLength(pieces.length);
          expect(pieces.filter((each) => !freed.includes(each))).toEqual([]);
        },
      ),
      { numRuns: 300 },
    );
  });

  it('refuses what is no message', () => {
    expect(() => walk('walsender', frame('d', Buffer.from('x')), [])).toThrow(RangeError);
    expect(() => walk('walsender', Buffer.from('d\0\0\0\0'), [])).toThrow(RangeError);
    expect(() => walk('rows', frame('d', Buffer.from('no signature here')), [])).toThrow(RangeError);
    const two = Buffer.concat([signature, Buffer.from([0, 2, 0, 0, 0, 0])]);
    expect(() => walk('rows', frame('d', two), [])).toThrow(RangeError);
  });
});
