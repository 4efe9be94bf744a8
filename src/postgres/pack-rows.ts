// The loop that every row of a COPY goes through, as WebAssembly: it takes the headers out from between the rows, in place.
// JavaScript needs 10 to 20 ns for a short row where this needs 3 to 5, since it can neither move 16 bytes at once nor call a
// memmove cheaply. Written with the operators below, as an expression a line; used by frames.ts, whose memory it works on.
import { setFlagsFromString } from 'node:v8';

/** What memory is measured in. */
const PAGE_BYTES = 64 * 1024;

type Code = readonly number[];

const I32 = 0x7f;
/** A type index, count or index below 128, as all are here, is its own LEB128. */
const listOf = (...items: readonly Code[]): Code => [items.length, ...items.flat()];
const sized = (code: Code): Code => [...unsigned(code.length), ...code];
const section = (id: number, ...items: readonly Code[]): Code => [id, ...sized(listOf(...items))];

function unsigned(value: number): Code {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...unsigned(value >>> 7)];
}

function signed(value: number): Code {
  const isLast = value >= -0x40 && value < 0x40;
  return isLast ? [value & 0x7f] : [(value & 0x7f) | 0x80, ...signed(value >> 7)];
}

const get = (local: number): Code => [0x20, local];
const set = (local: number, value: Code): Code => [...value, 0x21, local];
const tee = (local: number, value: Code): Code => [...value, 0x22, local];
const i32 = (value: number): Code => [0x41, ...signed(value)];

const binary =
  (opcode: number) =>
  (left: Code, right: Code): Code => [...left, ...right, opcode];
const notEqual = binary(0x47);
const isLess = binary(0x48);
const isBelow = binary(0x49); // unsigned, as addresses are
const isAbove = binary(0x4b);
const add = binary(0x6a);
const subtract = binary(0x6b);
const and = binary(0x71);
const or = binary(0x72);
const rotateLeft = binary(0x77);
const rotateRight = binary(0x78);

/** At an address and a constant offset, of any alignment. */
const loadByte = (address: Code): Code => [...address, 0x2d, 0, 0];
const load = (address: Code, offset: number): Code => [...address, 0x28, 0, offset];
const loadSixteen = (address: Code): Code => [...address, 0xfd, 0x00, 0, 0];
const storeSixteen = (address: Code, value: Code): Code => [...address, ...value, 0xfd, 0x0b, 0, 0];
const memmove = (to: Code, from: Code, bytes: Code): Code => [...to, ...from, ...bytes, 0xfc, 0x0a, 0, 0];

/** `leave` and `again` name the enclosing block or loop by how many are between. */
const block = (...body: readonly Code[]): Code => [0x02, 0x40, ...body.flat(), 0x0b];
const loop = (...body: readonly Code[]): Code => [0x03, 0x40, ...body.flat(), 0x0b];
const when = (condition: Code, ...body: readonly Code[]): Code => [
  ...condition,
  0x04,
  0x40,
  ...body.flat(),
  0x0b,
];
const again = (depth: number): Code => [0x0c, depth];
const againIf = (depth: number, condition: Code): Code => [...condition, 0x0d, depth];
const leaveIf = againIf;

const COPY_DATA = 0x64; // d
/** From so many bytes on a call of memmove is cheaper than the loop. */
const MEMMOVE_FROM = 512;

// parameters, then locals
const [AT, END, KEPT, COUNT, FROM, STOP] = [0, 1, 2, 3, 4, 5] as const;

const bigEndian = (word: Code): Code =>
  or(and(rotateLeft(word, i32(8)), i32(0x00ff00ff)), and(rotateRight(word, i32(8)), i32(0xff00ff00 | 0)));

const packRows: Code = [
  ...block(
    loop(
      leaveIf(1, isAbove(tee(FROM, add(get(AT), i32(5))), get(END))),
      leaveIf(1, notEqual(loadByte(get(AT)), i32(COPY_DATA))),
      set(STOP, bigEndian(load(get(AT), 1))), // the length counts itself, not the type
      leaveIf(1, isLess(get(STOP), i32(4))),
      set(STOP, add(add(get(AT), i32(1)), get(STOP))),
      leaveIf(1, isAbove(get(STOP), get(END))),
      set(AT, get(STOP)),
      set(COUNT, add(get(COUNT), i32(1))),
      when(
        // the first rows, which have hardly moved: sixteen bytes would reach into what has not been read
        or(
          isBelow(subtract(get(FROM), get(KEPT)), i32(16)),
          isAbove(subtract(get(STOP), get(FROM)), i32(MEMMOVE_FROM)),
        ),
        memmove(get(KEPT), get(FROM), subtract(get(STOP), get(FROM))),
        set(KEPT, add(get(KEPT), subtract(get(STOP), get(FROM)))),
        again(1),
      ),
      // up to 15 bytes too many, over what has been read or comes to lie there next
      loop(
        storeSixteen(get(KEPT), loadSixteen(get(FROM))),
        set(KEPT, add(get(KEPT), i32(16))),
        againIf(0, isBelow(tee(FROM, add(get(FROM), i32(16))), get(STOP))),
      ),
      set(KEPT, subtract(get(KEPT), subtract(get(FROM), get(STOP)))),
      again(0),
    ),
  ),
  ...get(AT),
  ...get(KEPT),
  ...get(COUNT),
];

const magic: Code = [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0]; // and the version of the format
const text = (value: string): Code => sized([...Buffer.from(value)]);

/** `memory` of so many pages, and `pack`. */
const moduleOf = (pages: number): Uint8Array =>
  Uint8Array.from([
    ...magic,
    ...section(1, [0x60, ...listOf([I32], [I32], [I32]), ...listOf([I32], [I32], [I32])]),
    ...section(3, [0]),
    ...section(5, [1, ...unsigned(pages), ...unsigned(pages)]),
    ...section(7, [...text('memory'), 2, 0], [...text('pack'), 0, 0]),
    ...section(10, sized([...listOf([3, I32]), ...packRows, 0x0b])),
  ]);

/**
 * Moves the payload of the CopyData messages that lie wholly in `[at, end)` to `kept`, which is not behind `at`: stops at
 * anything else. Returns where it stopped, the end of what was moved, and the count of messages.
 */
export type PackRows = (at: number, end: number, kept: number) => [at: number, kept: number, count: number];

export interface RowMemory {
  readonly bytes: ArrayBuffer;
  readonly pack: PackRows;
}

interface PackModule {
  readonly memory: { readonly buffer: ArrayBuffer };
  readonly pack: PackRows;
}

/** TypeScript's own declarations come with the whole DOM. */
const { Module, Instance } = Reflect.get(globalThis, 'WebAssembly') as {
  readonly Module: new (code: Uint8Array) => object;
  readonly Instance: new (module: object) => { readonly exports: PackModule };
};

/** Makes memories of `bytes` each. */
export function rowMemories(bytes: number): () => RowMemory {
  // one page more, which stays untouched: sixteen bytes are read where fewer are left
  const module = new Module(moduleOf(Math.ceil(bytes / PAGE_BYTES) + 1));
  const make = (): RowMemory => {
    const { memory, pack } = new Instance(module).exports;
    return { bytes: memory.buffer, pack };
  };
  // Compiled at its first call: at once by the compiler that optimises, for dump.ts keeps V8 from turning to it later.
  setFlagsFromString('--no-liftoff');
  try {
    make().pack(0, 0, 0);
  } finally {
    setFlagsFromString('--liftoff');
  }
  return make;
}
