// What a PostgreSQL snapshot had already seen. The apply side asks this for every change to a copied row (DESIGN §5
// rule 5), so the functions are pure and follow `pg_visible_in_snapshot` (src/backend/utils/adt/xid8funcs.c).

/** `pg_current_snapshot()`: 64-bit transaction ids, epoch included. */
export interface PgSnapshot {
  readonly xmin: bigint;
  readonly xmax: bigint;
  readonly xip: ReadonlySet<bigint>;
}

/** Parses `xmin:xmax:xip,xip,…` as `pg_snapshot` prints it. */
export function parsePgSnapshot(text: string): PgSnapshot {
  const match = /^(\d+):(\d+):((?:\d+(?:,\d+)*)?)$/.exec(text);
  if (!match) throw new RangeError(`not a pg_snapshot: ${text}`);
  const xip = match[3] === '' ? [] : (match[3] ?? '').split(',').map(BigInt);
  return { xmin: BigInt(match[1] ?? '0'), xmax: BigInt(match[2] ?? '0'), xip: new Set(xip) };
}

/** Whether the effects of the committed top-level transaction `xid` were visible to the snapshot. */
export function isVisible(snapshot: PgSnapshot, xid: bigint): boolean {
  if (xid < snapshot.xmin) return true;
  return xid < snapshot.xmax && !snapshot.xip.has(xid);
}

/**
 * The 64-bit id whose low half is `xid32`, nearest to `near`. The stream carries 32-bit ids; a transaction in it can
 * never be further than 2^31 from the snapshot it is compared with, because PostgreSQL itself stops before that.
 */
export function widenXid(xid32: number, near: bigint): bigint {
  const base = near & ~0xffffffffn;
  const candidate = base | BigInt(xid32 >>> 0);
  const half = 1n << 31n;
  if (candidate - near > half && candidate >= 1n << 32n) return candidate - (1n << 32n);
  if (near - candidate > half) return candidate + (1n << 32n);
  return candidate;
}
