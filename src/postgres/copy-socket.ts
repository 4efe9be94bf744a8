// The socket of a session that reads COPY OUT. Node gives every read a buffer of its own, 64 KiB of garbage each: at the
// speed of a COPY that is most of the collector's work and tens of megabytes waiting for it. This socket reads into frames
// that are used again, each with room for the header of the message that its rows leave in. Opened by connections.ts where
// the connection has no TLS (which reads by itself), used by copy-stream.ts.
import { Socket, type OnReadOpts, type SocketConstructorOpts } from 'node:net';
import { type Frame, frames, HEADER_BYTES } from './frames.ts';

export class CopySocket extends Socket {
  /**
   * Takes what was read instead of the `data` listeners, which get copies of their own: so many bytes of a frame, behind the
   * room for a header. True: the frame is the taker's now; else its bytes are valid during the call only.
   */
  onGulp: ((frame: Frame, length: number) => boolean) | null = null;

  constructor() {
    let frame = frames.take();
    let read = (_length: number): void => undefined;
    const onread: OnReadOpts = {
      buffer: () => frame.bytes.subarray(HEADER_BYTES), // asked for before every read
      callback: (length) => {
        read(length);
        return true; // go on; pause() and resume() work as ever
      },
    };
    const options: SocketConstructorOpts & { readonly onread: OnReadOpts } = { onread };
    super(options);
    read = (length) => {
      if (!this.onGulp)
        this.emit('data', Buffer.from(frame.bytes.subarray(HEADER_BYTES, HEADER_BYTES + length)));
      else if (this.onGulp(frame, length)) frame = frames.take();
    };
    this.once('close', () => frames.give(frame));
  }
}
