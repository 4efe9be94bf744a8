// A socket that reads into memory which is used again. Node gives every read a buffer of its own, 64 KiB of garbage each: at
// the speed of a COPY that is most of the collector's work and tens of megabytes waiting for it. Where a connection has no
// TLS (which reads by itself), sessions that read much have one: copy-socket.ts and gulp-socket.ts say into what.
import { Socket, type OnReadOpts, type SocketConstructorOpts } from 'node:net';
import type { ClientConfig } from 'pg';

export interface Memories<M> {
  /** With anything in it. */
  take(): M;
  /** Nobody uses it any more. */
  give(memory: M): void;
}

/** Where TLS reads, it reads by itself. */
export const mayReadInto = ({ ssl }: Pick<ClientConfig, 'ssl'>): boolean => ssl === false;

export class ReadSocket<M> extends Socket {
  /**
   * Takes what was read instead of the `data` listeners, which get copies of their own: so many bytes of the memory's room.
   * True: the memory is the taker's now, and other memory is read into.
   */
  onRead: ((memory: M, length: number) => boolean) | null = null;

  constructor(memories: Memories<M>, roomOf: (memory: M) => Buffer) {
    let memory = memories.take();
    let read = (_length: number): void => undefined;
    const onread: OnReadOpts = {
      buffer: () => roomOf(memory), // asked for before every read
      callback: (length) => {
        read(length);
        return true; // go on; pause() and resume() work as ever
      },
    };
    const options: SocketConstructorOpts & { readonly onread: OnReadOpts } = { onread };
    super(options);
    read = (length) => {
      if (!this.onRead) this.emit('data', Buffer.from(roomOf(memory).subarray(0, length)));
      else if (this.onRead(memory, length)) memory = memories.take();
    };
    this.once('close', () => memories.give(memory));
  }
}
