// The socket of a session that reads COPY OUT, into frames with room for the header of the message that its rows leave in.
// Used by copy-stream.ts.
import { type Frame, frames, HEADER_BYTES } from './frames.ts';
import { ReadSocket } from './read-socket.ts';

export class CopySocket extends ReadSocket<Frame> {
  constructor() {
    super(frames, ({ bytes }) => bytes.subarray(HEADER_BYTES));
  }
}
