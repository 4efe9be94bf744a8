// Log sequence numbers. Everywhere in our code an LSN is the text that PostgreSQL prints ('16/B374D848'): JSON keeps
// it, logs show it, SQL takes it. Only comparisons and distances go through bigint.

/** A position in the write-ahead log, as `pg_lsn` prints it, e.g. `'16/B374D848'`. */
export type Lsn = string;

export const ZERO_LSN: Lsn = '0/0';

/** Byte position of an LSN. Throws `RangeError` on anything that is not `hex/hex`. */
export function lsnToBigint(lsn: Lsn): bigint {
  const match = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/.exec(lsn);
  if (!match) throw new RangeError(`not an LSN: ${lsn}`);
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`);
}

export function bigintToLsn(position: bigint): Lsn {
  const high = (position >> 32n).toString(16).toUpperCase();
  const low = (position & 0xffffffffn).toString(16).toUpperCase();
  return `${high}/${low}`;
}

/** Negative, zero or positive as `a` lies before, at or after `b`. */
export function compareLsn(a: Lsn, b: Lsn): number {
  const left = lsnToBigint(a);
  const right = lsnToBigint(b);
  return left < right ? -1 : left > right ? 1 : 0;
}

/** Bytes of WAL between two positions, never negative: a reader ahead of a stale sample has no lag. */
export function lagBytes(ahead: Lsn, behind: Lsn): number {
  const distance = lsnToBigint(ahead) - lsnToBigint(behind);
  return distance > 0n ? Number(distance) : 0;
}
