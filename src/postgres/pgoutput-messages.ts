// What pgoutput.ts makes of the messages of PostgreSQL's `pgoutput` plugin, protocols 1 to 4.
import type { Lsn } from '../model/lsn.ts';

/** An out-of-line (TOAST) value that the update did not touch and that the message therefore lacks. */
export const UNCHANGED = Symbol('unchanged toast value');

/** Text as the type's output function prints it, bytes as its send function writes them, NULL, or not sent. */
export type ColumnValue = string | Buffer | null | typeof UNCHANGED;
/** One value per published column, in the order of the Relation message. */
export type Tuple = readonly ColumnValue[];

export interface RelationColumn {
  /** Part of the replica identity. */
  readonly key: boolean;
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
}

export interface BeginMessage {
  readonly tag: 'begin';
  /** Start of the commit record: what the copy filter compares. */
  readonly commitLsn: Lsn;
  /** Microseconds since 2000-01-01 UTC. */
  readonly commitTime: bigint;
  /** Low 32 bits of the top-level transaction id. */
  readonly xid: number;
}

export interface CommitMessage {
  readonly tag: 'commit';
  readonly commitLsn: Lsn;
  /** End of the commit record: the position to acknowledge and to start again from. */
  readonly endLsn: Lsn;
  readonly commitTime: bigint;
}

export interface RelationMessage {
  readonly tag: 'relation';
  readonly relationId: number;
  readonly schema: string;
  readonly name: string;
  /** pg_class.relreplident. */
  readonly replicaIdentity: 'default' | 'nothing' | 'full' | 'index';
  readonly columns: readonly RelationColumn[];
}

export interface InsertMessage {
  readonly tag: 'insert';
  readonly relationId: number;
  readonly new: Tuple;
}

export interface UpdateMessage {
  readonly tag: 'update';
  readonly relationId: number;
  /**
   * `key`: only the identity's columns are meaningful, the others are NULL for "not sent"; sent when the key changed or
   * has out-of-line values. `full`: the whole old row. `none`: the new tuple holds the key.
   */
  readonly oldKind: 'key' | 'full' | 'none';
  readonly old: Tuple | null;
  readonly new: Tuple;
}

export interface DeleteMessage {
  readonly tag: 'delete';
  readonly relationId: number;
  readonly oldKind: 'key' | 'full';
  readonly old: Tuple;
}

export interface TruncateMessage {
  readonly tag: 'truncate';
  readonly relationIds: readonly number[];
  readonly cascade: boolean;
  readonly restartIdentity: boolean;
}

export interface LogicalMessage {
  readonly tag: 'message';
  readonly transactional: boolean;
  readonly lsn: Lsn;
  readonly prefix: string;
  readonly content: Buffer;
}

/** A part of a transaction that is still running begins; `first`: its first part. */
export interface StreamStartMessage {
  readonly tag: 'stream-start';
  readonly xid: number;
  readonly first: boolean;
}

export interface StreamCommitMessage {
  readonly tag: 'stream-commit';
  readonly xid: number;
  readonly commitLsn: Lsn;
  readonly endLsn: Lsn;
  readonly commitTime: bigint;
}

/** The (sub)transaction `subXid` was rolled back; the whole one when both are the same. */
export interface StreamAbortMessage {
  readonly tag: 'stream-abort';
  readonly xid: number;
  readonly subXid: number;
  /** Protocol 4 with `streaming 'parallel'`, else null. */
  readonly abortLsn: Lsn | null;
  readonly abortTime: bigint | null;
}

/** Option `two_phase`, from protocol 3 on; `stream-prepare` ends a streamed transaction. */
export interface PrepareMessage {
  readonly tag: 'begin-prepare' | 'prepare' | 'commit-prepared' | 'stream-prepare';
  /** Of PREPARE; of COMMIT PREPARED for `commit-prepared`. */
  readonly lsn: Lsn;
  readonly endLsn: Lsn;
  readonly time: bigint;
  readonly xid: number;
  readonly gid: string;
}

export interface RollbackPreparedMessage {
  readonly tag: 'rollback-prepared';
  readonly prepareEndLsn: Lsn;
  readonly endLsn: Lsn;
  readonly prepareTime: bigint;
  readonly time: bigint;
  readonly xid: number;
  readonly gid: string;
}

export type ChangeMessage = InsertMessage | UpdateMessage | DeleteMessage | TruncateMessage;
export type PgoutputMessage =
  | BeginMessage
  | CommitMessage
  | { readonly tag: 'origin'; readonly lsn: Lsn; readonly name: string }
  | RelationMessage
  | { readonly tag: 'type'; readonly typeOid: number; readonly schema: string; readonly name: string }
  | ChangeMessage
  | LogicalMessage
  | StreamStartMessage
  | { readonly tag: 'stream-stop' }
  | StreamCommitMessage
  | StreamAbortMessage
  | PrepareMessage
  | RollbackPreparedMessage;
