// The socket of a session that reads COPY OUT. Node gives every read a buffer of its own, 64 KiB of garbage each: at the
// speed of a COPY that is most of the collector's work and tens of megabytes waiting for it. This socket reads into one
// buffer. Opened by connections.ts where the connection has no TLS (which reads by itself), used by copy-stream.ts.
import { Socket, type OnReadOpts, type SocketConstructorOpts } from 'node:net';

const READ_BYTES = 256 * 1024;

export class CopySocket extends Socket {
  /**
   * Takes what was read instead of the `data` listeners, which get copies of their own. The bytes are valid during the
   * call only and may be overwritten by it.
   */
  onGulp: ((bytes: Buffer) => void) | null = null;

  constructor() {
    const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
    let read = (_length: number): void => undefined;
    const onread: OnReadOpts = {
      buffer,
      callback: (length) => {
        read(length);
        return true; // go on; pause() and resume() work as ever
      },
    };
    const options: SocketConstructorOpts & { readonly onread: OnReadOpts } = { onread };
    super(options);
    read = (length) => {
      const bytes = buffer.subarray(0, length);
      if (this.onGulp) this.onGulp(bytes);
      else this.emit('data', Buffer.from(bytes));
    };
  }
}
