// Memory for the messages that carry rows to the target: read into, packed and written from the same place, and used
// again. Of all streams, and of the sockets that they read: a copy of thousands of small tables would make new memory for
// each. It belongs to WebAssembly, because the rows are packed there.
import { rowMemories, type RowMemory } from './pack-rows.ts';

export const HEADER_BYTES = 5;

/** Payload bytes of a CopyData message that we send. */
export const FRAME_BYTES = 256 * 1024 - HEADER_BYTES;

const SLAB_FRAMES = 16;
const SLAB_BYTES = SLAB_FRAMES * (HEADER_BYTES + FRAME_BYTES);

class Slab {
  readonly free: Frame[];

  constructor(memory: RowMemory) {
    this.free = Array.from({ length: SLAB_FRAMES }, (_, i) => new Frame(this, memory, i));
  }
}

/** Room for the header of a CopyData message, and for FRAME_BYTES. */
export class Frame {
  readonly slab: Slab;
  readonly bytes: Buffer;
  readonly #base: number;
  readonly #memory: RowMemory;

  constructor(slab: Slab, memory: RowMemory, index: number) {
    this.slab = slab;
    this.#memory = memory;
    this.#base = index * (HEADER_BYTES + FRAME_BYTES);
    this.bytes = Buffer.from(memory.bytes, this.#base, HEADER_BYTES + FRAME_BYTES);
  }

  /** `PackRows` of its own bytes. */
  pack(at: number, end: number, kept: number): { at: number; kept: number; count: number } {
    const base = this.#base;
    const [stopped, packed, count] = this.#memory.pack(base + at, base + end, base + kept);
    return { at: stopped - base, kept: packed - base, count };
  }
}

export class FramePool {
  readonly #make = rowMemories(SLAB_BYTES);
  #slabs: Slab[] = [];

  /** With anything in it. */
  take(): Frame {
    for (const { free } of this.#slabs) {
      const frame = free.pop();
      if (frame) return frame;
    }
    const slab = new Slab(this.#make());
    this.#slabs.push(slab);
    return this.take();
  }

  /** Nobody uses it any more. One slab is kept although nobody uses it. */
  give(frame: Frame): void {
    const { slab } = frame;
    slab.free.push(frame);
    const isIdle = ({ free }: Slab): boolean => free.length === SLAB_FRAMES;
    if (isIdle(slab) && this.#slabs.some((other) => other !== slab && isIdle(other)))
      this.#slabs = this.#slabs.filter((other) => other !== slab);
  }
}

export const frames = new FramePool();
