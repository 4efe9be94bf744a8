// From bytes in chunks of any size to messages: none is lost, joined or cut, whatever the network makes of them.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { KEEPALIVE, WalWalker } from '../../src/postgres/wal-walker.ts';

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
  const at = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
  let from = 0;
  for (const to of [...at, bytes.length]) {
    walker.push(Buffer.from(bytes.subarray(from, to)));
    from = to;
  }
  return out;
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

  it('refuses what is no message', () => {
    expect(() => walk('walsender', frame('d', Buffer.from('x')), [])).toThrow(RangeError);
    expect(() => walk('walsender', Buffer.from('d\0\0\0\0'), [])).toThrow(RangeError);
    expect(() => walk('rows', frame('d', Buffer.from('no signature here')), [])).toThrow(RangeError);
    const two = Buffer.concat([signature, Buffer.from([0, 2, 0, 0, 0, 0])]);
    expect(() => walk('rows', frame('d', two), [])).toThrow(RangeError);
  });
});
