// Numbers and small values read, written and copied through views of buffers: by words, which is twice as fast as byte by
// byte. Used for every change, by table-batch.ts and spilled-messages.ts.

const NOTHING = Buffer.alloc(0);
/** From here on memmove copies faster; for less, the call costs more than the copy. */
export const SMALL_BYTES = 128;

export function viewOf({ buffer, byteOffset, length }: Buffer): DataView {
  return new DataView(buffer, byteOffset, length);
}

/** The view of the buffer that was asked for last. */
export class LastView {
  #buffer: Buffer = NOTHING;
  #view = viewOf(NOTHING);

  of(buffer: Buffer): DataView {
    if (this.#buffer !== buffer) {
      this.#buffer = buffer;
      this.#view = viewOf(buffer);
    }
    return this.#view;
  }
}

/** Copies `length` bytes, fewer than SMALL_BYTES. */
export function copySmall(
  source: DataView,
  from: number,
  target: DataView,
  to: number,
  length: number,
): void {
  const words = length & ~3;
  let i = 0;
  for (; i < words; i += 4) target.setInt32(to + i, source.getInt32(from + i, true), true);
  for (; i < length; i++) target.setUint8(to + i, source.getUint8(from + i));
}
