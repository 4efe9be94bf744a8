// Begin and Commit as pgoutput sends them, without a time: for messages that are given on as a transaction of their own,
// by transactions-in-progress.ts and held-changes.ts.

/** `commit`: start of the commit record. `xid`: low 32 bits of the top-level transaction's id. */
export function beginMessage(commit: bigint, xid: number): Buffer {
  const message = Buffer.alloc(21);
  message[0] = 0x42; // B
  message.writeBigUInt64BE(commit, 1);
  message.writeUInt32BE(xid, 17);
  return message;
}

/** `end`: of the commit record. */
export function commitMessage(commit: bigint, end: bigint): Buffer {
  const message = Buffer.alloc(26);
  message[0] = 0x43; // C
  message.writeBigUInt64BE(commit, 2);
  message.writeBigUInt64BE(end, 10);
  return message;
}
