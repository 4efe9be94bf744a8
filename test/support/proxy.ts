// A TCP proxy in front of a server that a test can take away and give back: the network between DTS and one side.
import { connect, createServer, type Server, type Socket } from 'node:net';
import { onTestFinished } from 'vitest';
import type { TestDatabase } from './databases.ts';

export interface Proxy {
  readonly port: number;
  /** Breaks every connection; new ones are refused. */
  close(): Promise<void>;
  /** Open connections stay and new ones are taken, but not a byte passes any more: a firewall that drops. */
  freeze(): void;
  /** Open connections stay, but not a byte passes over them any more; new ones work: a firewall that was restarted. */
  forget(): void;
  /** The server is reachable again; connections from before `close` or `freeze` are gone. */
  open(): Promise<void>;
}

export async function makeProxy(target: number): Promise<Proxy> {
  const sockets = new Set<Socket>();
  let frozen = false;
  const server: Server = createServer((near) => {
    sockets.add(near);
    near.once('close', () => sockets.delete(near));
    near.on('error', () => undefined);
    if (frozen) return;
    const far = connect(target, '127.0.0.1');
    sockets.add(far);
    far.once('close', () => sockets.delete(far));
    far.on('error', () => near.destroy());
    near.on('error', () => far.destroy());
    near.pipe(far);
    far.pipe(near);
  });
  const listen = (port: number): Promise<void> =>
    new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, '127.0.0.1', () => {
        server.off('error', reject);
        resolve();
      });
    });
  const cut = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  const close = async (): Promise<void> => {
    const closed = new Promise((resolve) => server.close(resolve));
    cut();
    await closed;
  };
  await listen(0);
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  const { port } = address;
  onTestFinished(async () => {
    if (server.listening) await close();
  });
  const forget = (): void => {
    for (const socket of sockets) {
      socket.unpipe();
      socket.pause();
    }
  };
  return {
    port,
    close,
    forget,
    freeze() {
      frozen = true;
      forget();
    },
    async open() {
      frozen = false;
      cut();
      if (!server.listening) await listen(port);
    },
  };
}

/** The database as DTS sees it through the proxy; the test's own queries go past it. */
export function through(proxy: Proxy, database: TestDatabase): TestDatabase {
  return { ...database, connection: { ...database.connection, port: proxy.port } };
}
