// How transactions on a pooled connection differ from a plain one (connections.ts). Named here, so that a call says why.

export interface TransactionOptions {
  /** The statement that begins it. */
  readonly begin?: string;
  readonly timeoutMs?: number;
}

export const READ_ONLY = { begin: 'begin read only' } as const satisfies TransactionOptions;

/** All its statements see the same moment. */
export const ONE_SNAPSHOT = {
  begin: 'begin isolation level repeatable read read only',
} as const satisfies TransactionOptions;

/** It waits for a batch of the stream without a lock_timeout, rewrites a table, or removes any number of rows. */
export const PATIENT = { timeoutMs: 6 * 3_600_000 } as const satisfies TransactionOptions;
