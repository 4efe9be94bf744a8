// Where a table's pending rows lie, by key. Integer keys have a table of their own, with open addressing in typed arrays that
// are kept from batch to batch: a Map of a hundred thousand numbers is most of the garbage of a stream. Used by
// table-batch.ts.

const INITIAL_SLOTS = 256;

/** Memory that was used for less than this share of it is halved: far from what makes it grow, so that it does not swing. */
const SPARSE = 1 / 16;

/** Whether what is kept for the next batch should be less than `capacity`, of which this one has used `used`. */
export function isSparse(used: number, capacity: number): boolean {
  return used < capacity * SPARSE;
}

export class KeyMap {
  #slots = INITIAL_SLOTS;
  #keys = new Float64Array(INITIAL_SLOTS);
  /** Entry + 1; 0: the slot is empty. */
  #entries = new Int32Array(INITIAL_SLOTS);
  #count = 0;
  readonly #others = new Map<string, number>();

  /** Its memory: 12 bytes each. */
  get slots(): number {
    return this.#slots;
  }

  get size(): number {
    return this.#count + this.#others.size;
  }

  get(key: number | string): number | undefined {
    if (typeof key === 'string') return this.#others.get(key);
    const entry = this.#entries[this.#slotOf(key)] ?? 0;
    return entry === 0 ? undefined : entry - 1;
  }

  /** Numbers are integers that a double holds exactly. */
  set(key: number | string, entry: number): void {
    if (typeof key === 'string') {
      this.#others.set(key, entry);
      return;
    }
    let slot = this.#slotOf(key);
    if (this.#entries[slot] === 0) {
      if (++this.#count * 2 > this.#slots) {
        this.#grow();
        slot = this.#slotOf(key);
      }
      this.#keys[slot] = key;
    }
    this.#entries[slot] = entry + 1;
  }

  /** Keeps its memory for as many keys; after a batch of few, only half of it. */
  clear(): void {
    if (this.#slots > INITIAL_SLOTS && isSparse(this.#count, this.#slots)) this.#allocate(this.#slots / 2);
    else if (this.#count > 0) this.#entries.fill(0);
    this.#count = 0;
    this.#others.clear();
  }

  /** The key's slot, or the empty one that it would get. */
  #slotOf(key: number): number {
    const mask = this.#slots - 1;
    // Fibonacci hashing: the upper bits of the product are well mixed also for keys that follow one another
    const mixed = Math.imul(key | 0, 0x9e3779b1) ^ Math.imul(Math.floor(key / 0x1_0000_0000), 0x85ebca6b);
    let slot = (mixed ^ (mixed >>> 15)) & mask;
    while (this.#entries[slot] !== 0 && this.#keys[slot] !== key) slot = (slot + 1) & mask;
    return slot;
  }

  #allocate(slots: number): void {
    this.#slots = slots;
    this.#keys = new Float64Array(slots);
    this.#entries = new Int32Array(slots);
  }

  #grow(): void {
    const keys = this.#keys;
    const entries = this.#entries;
    this.#allocate(this.#slots * 2);
    for (let old = 0; old < entries.length; old++) {
      const entry = entries[old] ?? 0;
      if (entry === 0) continue;
      const slot = this.#slotOf(keys[old] ?? 0);
      this.#keys[slot] = keys[old] ?? 0;
      this.#entries[slot] = entry;
    }
  }
}
