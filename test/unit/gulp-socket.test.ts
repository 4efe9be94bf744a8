// What is read stays as it is while somebody holds it, and is read over behind that.
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { expect, it } from 'vitest';
import { BufferPool } from '../../src/postgres/buffer-pool.ts';
import { GulpSocket } from '../../src/postgres/gulp-socket.ts';
import type { Lease } from '../../src/postgres/lease.ts';

interface Held {
  readonly chunk: Buffer;
  readonly lease: Lease;
}

/** Sends `sent` in pieces to a socket, whose chunks `take` gets; resolves to the memories that were read into. */
async function send(sent: Buffer, take: (held: Held) => void): Promise<Set<ArrayBufferLike>> {
  const server = createServer((peer) => {
    for (let at = 0; at < sent.length; at += 50_000) peer.write(sent.subarray(at, at + 50_000));
    peer.end();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = new GulpSocket(new BufferPool());
  const memories = new Set<ArrayBufferLike>();
  socket.lendTo((chunk, lease) => {
    memories.add(chunk.buffer);
    lease.hold();
    take({ chunk, lease });
  });
  socket.connect((server.address() as AddressInfo).port, '127.0.0.1');
  await once(socket, 'close');
  server.close();
  return memories;
}

it('what is held of a socket stays as it was read, whoever else lets go meanwhile', async () => {
  const sent = randomBytes(6_000_000);
  const held: Held[] = [];
  const read: Buffer[] = [];
  const letGo = ({ chunk, lease }: Held): void => {
    read.push(Buffer.from(chunk));
    lease.release();
  };
  const memories = await send(sent, (each) => {
    held.push(each);
    if (held.length > 12) for (const first of held.splice(0, 5)) letGo(first);
  });
  for (const each of held) letGo(each);
  expect(Buffer.concat(read).equals(sent)).toBe(true);
  expect(memories.size).toBeGreaterThan(1);
});

it('memory that everybody has let go of is read into again', async () => {
  let bytes = 0;
  const memories = await send(randomBytes(6_000_000), ({ chunk, lease }) => {
    bytes += chunk.length;
    lease.release();
  });
  expect(bytes).toBe(6_000_000);
  expect(memories.size).toBe(1);
});
