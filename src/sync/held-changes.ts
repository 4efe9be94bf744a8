// Changes of tables that are copied while the stream goes on: not applied but set aside, as the messages that came, in the
// target transaction of their batch. A table's messages are a stream of their own (Begin, Relation, changes, Commit), in
// chunks; held-feed.ts reads it when the copy is complete, and the copy's filter then decides of every change as it would
// have now. So neither does the copy hold up the stream, nor must it be known which parts are being read.
import { MigrationError } from '../model/errors.ts';
import { bigintToLsn, type Lsn } from '../model/lsn.ts';
import { beginMessage, commitMessage } from '../postgres/pgoutput-ends.ts';
import type { OpenTransaction } from './batch.ts';

/** Other tables are set aside, or no longer, than this connection knows: what it has open is read again by another. */
export const HOLDS_CHANGED = new MigrationError(
  'internal',
  'target: the tables whose changes are set aside have changed',
);

/** A table whose changes are set aside, as its last Relation message describes it. */
export interface HeldRelation {
  /** `relationKey` of the source table. */
  readonly key: string;
  /** The Relation message as it came. */
  readonly description: Buffer;
}

export interface HeldChunk {
  readonly relation: string;
  /** Commit of the last transaction that it has changes of. */
  readonly lastCommit: Lsn;
  /** Each message behind its length as int32. */
  readonly messages: Buffer;
}

/** A chunk leaves when it is this large. */
const CHUNK_BYTES = 1024 * 1024;

interface TableStream {
  /** The transaction that is begun and not ended in what has been gathered or has left. */
  open: OpenTransaction | null;
  lastCommit: bigint;
  /** What the chunk's messages are described by; every chunk brings its own. */
  described: HeldRelation | null;
  messages: Buffer[];
}

/** What the batch that is being filled sets aside. */
export class HeldChanges {
  readonly #streams = new Map<string, TableStream>();
  #bytes = 0;

  get isFull(): boolean {
    return this.#bytes >= CHUNK_BYTES;
  }

  /** `message` stays as it is until the next `take`. */
  add(relation: HeldRelation, message: Buffer, transaction: OpenTransaction): void {
    let stream = this.#streams.get(relation.key);
    if (!stream) {
      stream = { open: null, lastCommit: 0n, described: null, messages: [] };
      this.#streams.set(relation.key, stream);
    }
    // by position: a batch that is sent again has transactions of its own
    if (stream.open?.commit !== transaction.commit) {
      this.#end(stream);
      this.#push(stream, beginMessage(transaction.commit, transaction.xid));
      stream.open = transaction;
      stream.lastCommit = transaction.commit;
    } else this.#goOn(stream);
    if (stream.described !== relation) {
      this.#push(stream, relation.description);
      stream.described = relation;
    }
    this.#push(stream, message);
  }

  /** What has been gathered. `ended`: its last transaction is complete; otherwise the next chunk goes on with it. */
  take(ended: boolean): HeldChunk[] {
    const chunks: HeldChunk[] = [];
    for (const [relation, stream] of this.#streams) {
      if (ended) this.#end(stream);
      if (stream.messages.length === 0) continue;
      chunks.push({
        relation,
        lastCommit: bigintToLsn(stream.lastCommit),
        messages: Buffer.concat(stream.messages),
      });
      stream.messages = [];
      stream.described = null;
    }
    this.#bytes = 0;
    return chunks;
  }

  /** A chunk may be read after the one before it is gone: it begins the transaction that it goes on with once more. */
  #goOn(stream: TableStream): void {
    if (stream.open !== null && stream.messages.length === 0)
      this.#push(stream, beginMessage(stream.open.commit, stream.open.xid));
  }

  #end(stream: TableStream): void {
    if (stream.open === null) return;
    this.#goOn(stream);
    const { commit } = stream.open;
    // the position lies behind its commit record's beginning, and before the next one's
    this.#push(stream, commitMessage(commit, commit + 1n));
    stream.open = null;
  }

  #push(stream: TableStream, message: Buffer): void {
    const length = Buffer.allocUnsafe(4);
    length.writeInt32BE(message.length);
    stream.messages.push(length, message);
    this.#bytes += message.length + 4;
  }
}

/** A TRUNCATE of this table alone, as pgoutput sends it; `options` as in the message of them all. */
export function truncateMessage(relationId: number, options: number): Buffer {
  const message = Buffer.alloc(10);
  message.write('T', 0, 'latin1');
  message.writeInt32BE(1, 1);
  message[5] = options;
  message.writeUInt32BE(relationId, 6);
  return message;
}

/** The messages of a chunk, as bounds of a gulp. Throws `internal` for what {@link HeldChanges} cannot have written. */
export function boundsOf(messages: Buffer): Int32Array {
  const bounds: number[] = [];
  for (let at = 0; at < messages.length; ) {
    const start = at + 4;
    at = start <= messages.length ? start + messages.readInt32BE(at) : -1;
    if (at <= start || at > messages.length)
      throw new MigrationError('internal', 'target: what was set aside of a table is not readable');
    bounds.push(start, at);
  }
  return Int32Array.from(bounds);
}
