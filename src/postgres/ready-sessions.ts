// Connections of a side that were opened ahead: what happens while writes are refused must not wait for a fork on the
// server, a TLS handshake and a password. Side.warm fills it, Side.session takes from it.
import type { Client } from 'pg';
import { closeClient } from './connect.ts';

export type ReadyKind = 'plain' | 'replication';

export class ReadySessions {
  readonly #clients: Record<ReadyKind, Client[]> = { plain: [], replication: [] };

  count(kind: ReadyKind): number {
    return this.#clients[kind].length;
  }

  /** Forgets it, and tells, when its connection ends before it is taken. */
  put(kind: ReadyKind, client: Client, onLost: () => void): void {
    const list = this.#clients[kind];
    list.push(client);
    client.once('end', () => {
      const at = list.indexOf(client);
      if (at < 0) return;
      list.splice(at, 1);
      onLost();
    });
  }

  take(kind: ReadyKind): Client | undefined {
    return this.#clients[kind].pop();
  }

  /** Closes all that were not taken, and returns them. */
  async close(): Promise<readonly Client[]> {
    const left = [...this.#clients.plain.splice(0), ...this.#clients.replication.splice(0)];
    await Promise.all(left.map(closeClient));
    return left;
  }
}
