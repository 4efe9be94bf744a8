// The loop between a feed and the target: source transactions in source order, many of them in one target transaction,
// cut at their boundaries; what the copies saw and what is applied already is left out. Started by stream.ts for every
// connection; ends by a throw (lost connection, divergence, abort). After any throw dts.progress tells where to go on.
//
//   1 changes are taken into sets (apply.ts) while the batch before them is carried out on the target
//   2 a change that cannot be coalesced waits for that batch and is sent by itself, behind what its table has pending
//   3 a set that fails (a constraint that holds only in source order, an unexpected row) is rolled back, and its batch,
//     whose messages are kept, is sent again statement by statement; what fails then is reported
//   4 a transaction larger than a batch leaves as it comes, into the open target transaction, and its messages are not
//     kept: after 3 it is read again, by a new connection (ReplayInOrder)
import { MigrationError } from '../model/errors.ts';
import { bigintToLsn, lsnToBigint, type Lsn } from '../model/lsn.ts';
import { markerPrefix } from '../postgres/marker.ts';
import {
  decodePgoutput,
  UNCHANGED,
  type ChangeMessage,
  type TruncateMessage,
  type Tuple,
} from '../postgres/pgoutput.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { WalStream } from '../postgres/wal-stream.ts';
import { KEEPALIVE, type Gulp } from '../postgres/wal-walker.ts';
import { TRACKING_BEGAN, type AppliedMarker, type Applier } from './apply.ts';
import { BatchSize } from './batch-size.ts';
import type { CopyFilter, SourceTransaction } from './filter.ts';
import { readAgain } from './reread.ts';
import type { RelationMap, StreamedTable } from './relations.ts';

/** A batch ends at the next boundary when it is this large; a transaction's part of it then leaves before its end. */
const BATCH_BYTES = 4 * 1024 * 1024;
/** Without changes the position is stored, and the slot advanced, at most this often. */
const IDLE_STORE_MS = 2_000;

const INSERT = 0x49;
const UPDATE = 0x55;
const DELETE = 0x44;
const NEW_TUPLE = 0x4e;
const KEY_TUPLE = 0x4b;

/** Counters that the sampler shows. */
export interface ReplayFigures {
  transactionsApplied: number;
  changesApplied: number;
  /** Batches that had to be sent again in source order. */
  batchesInOrder: number;
  /** Time spent waiting for more changes, and for the target to carry out a batch. */
  feedWaitMs: number;
  targetWaitMs: number;
}

export function newFigures(): ReplayFigures {
  return { transactionsApplied: 0, changesApplied: 0, batchesInOrder: 0, feedWaitMs: 0, targetWaitMs: 0 };
}

/** What may feed a replay: the walsender, or the slot functions while far behind. */
export type Feed = Pick<WalStream, 'take' | 'poke' | 'drained' | 'acknowledge'> & {
  /** Nothing more will come. */
  readonly ended: boolean;
};

/** Everything up to `until` is to be applied in source order, by a new connection: the sets of it failed. */
export class ReplayInOrder extends Error {
  readonly until: Lsn;

  constructor(until: Lsn, cause: unknown) {
    super(`the changes up to ${until} are read again and applied in source order`, { cause });
    this.until = until;
  }
}

type RowMessage = Exclude<ChangeMessage, TruncateMessage>;

interface OpenTransaction extends SourceTransaction {
  /** On the target already: sent again after a lost acknowledgement. */
  readonly applied: boolean;
  /** Commits before the last horizon: the copies may have seen it. */
  readonly filtered: boolean;
  changes: number;
  markerId: string | null;
}

/** What becomes one target transaction. */
interface Batch {
  changes: number;
  transactions: number;
  /** Commit of its last transaction that has changes. */
  lastCommitLsn: Lsn;
  marker: AppliedMarker | null;
  /** Sent change by change. */
  ordered: boolean;
  /** Its messages, for sending them again in order; null once a part of a large transaction has left. */
  log: { readonly buffers: Buffer[]; readonly bounds: number[] } | null;
  bytes: number;
}

export class Replay {
  readonly #scope: TaskScope;
  readonly #feed: Feed;
  readonly #applier: Applier;
  readonly #relations: RelationMap;
  readonly #filter: CopyFilter;
  readonly #figures: ReplayFigures;
  readonly #onStored: () => void;
  readonly #orderedUntil: bigint;
  /** Where the target stood when this connection began. */
  readonly #startedAt: Lsn;
  readonly #size = new BatchSize();
  #transaction: OpenTransaction | null = null;
  /** Everything up to here is applied, under way or in the batch. */
  #position: Lsn;
  #batch: Batch;
  /** The batch that the target is carrying out, and how it ended when it failed. */
  #underWay: { readonly batch: Batch; readonly position: Lsn; readonly done: Promise<void> } | null = null;
  #failure: { readonly error: unknown } | null = null;
  /** The message that is being handled, as it came. */
  #raw: {
    readonly message: ChangeMessage;
    readonly buffer: Buffer;
    readonly start: number;
    readonly end: number;
  } | null = null;
  #storedAt = Date.now();
  #answerNow = false;
  #leaving = false;

  /**
   * `onStored` is called after every position that has become durable on the target and was acknowledged; `orderedUntil`
   * comes from a ReplayInOrder.
   */
  constructor(parts: {
    readonly scope: TaskScope;
    readonly feed: Feed;
    readonly applier: Applier;
    readonly relations: RelationMap;
    readonly filter: CopyFilter;
    readonly figures: ReplayFigures;
    readonly onStored: () => void;
    readonly orderedUntil?: Lsn | null;
  }) {
    this.#scope = parts.scope;
    this.#feed = parts.feed;
    this.#applier = parts.applier;
    this.#relations = parts.relations;
    this.#filter = parts.filter;
    this.#figures = parts.figures;
    this.#onStored = parts.onStored;
    this.#orderedUntil = parts.orderedUntil ? lsnToBigint(parts.orderedUntil) : 0n;
    this.#startedAt = parts.applier.appliedLsn;
    this.#position = this.#startedAt;
    this.#batch = newBatch(this.#position);
  }

  /** Up to here the target has everything; what only keepalives tell counts, because nothing is pending before it. */
  get position(): Lsn {
    const pending = this.#applier.isOpen || this.#transaction !== null || this.#hasWork();
    return pending || this.#underWay !== null ? this.#applier.appliedLsn : this.#position;
  }

  /** Lets `run` return at the next end of a transaction, with everything before it on the target. */
  leave(): void {
    this.#leaving = true;
    this.#feed.poke();
  }

  /** Returns when the feed has ended or after `leave`; otherwise only by a throw. */
  async run(): Promise<void> {
    for (;;) {
      const waitsForTarget = this.#underWay !== null && this.#hasWork() && this.#feed.drained;
      const waitedSince = performance.now();
      const gulps = await this.#feed.take(this.#waitMs());
      this.#figures[waitsForTarget ? 'targetWaitMs' : 'feedWaitMs'] += performance.now() - waitedSince;
      if (this.#failure) await this.#settle();
      for (const gulp of gulps) await this.#onGulp(gulp);
      const over = this.#leaving || (this.#feed.ended && this.#feed.drained);
      if (over && this.#transaction === null) {
        if (this.#hasWork() || this.#position !== this.#applier.appliedLsn) await this.#submit();
        await this.#settle();
        return;
      }
      if (this.#transaction !== null) {
        // Ordered changes of a long transaction go out as they come.
        this.#applier.push();
        continue;
      }
      if (this.#underWay !== null) continue;
      if (this.#hasWork() ? this.#feed.drained : this.#storeIsDue()) await this.#submit();
    }
  }

  #hasWork(): boolean {
    return this.#batch.changes > 0 || this.#batch.marker !== null;
  }

  #waitMs(): number {
    if (this.#transaction !== null || this.#position === this.#applier.appliedLsn) return IDLE_STORE_MS;
    return Math.max(1, this.#storedAt + IDLE_STORE_MS - Date.now());
  }

  #storeIsDue(): boolean {
    if (this.#position === this.#applier.appliedLsn) return false;
    return this.#answerNow || Date.now() >= this.#storedAt + IDLE_STORE_MS;
  }

  async #onGulp({ buffer, bounds }: Gulp): Promise<void> {
    for (let i = 0; i < bounds.length; i += 2) {
      const start = bounds[i] ?? 0;
      const end = bounds[i + 1] ?? 0;
      const tag = buffer[start];
      if (tag === INSERT || tag === UPDATE || tag === DELETE) {
        if (!this.#takeChange(tag, buffer, start, end)) await this.#onChange(buffer, start, end);
        if (this.#batch.bytes > BATCH_BYTES && this.#transaction !== null) await this.#spill();
      } else if (tag === KEEPALIVE)
        this.#onKeepalive(bigintToLsn(buffer.readBigUInt64BE(start + 1)), buffer[start + 17] === 1);
      else await this.#onMessage(buffer, start, end);
    }
  }

  #onKeepalive(walEnd: Lsn, replyRequested: boolean): void {
    // Between the changes of a transaction it says nothing about that transaction.
    if (this.#transaction === null) this.#advance(walEnd);
    // A server that shuts down waits until we have acknowledged everything: store what is new at once.
    if (replyRequested) this.#answerNow = true;
  }

  #advance(lsn: Lsn): void {
    if (lsnToBigint(lsn) > lsnToBigint(this.#position)) this.#position = lsn;
  }

  async #onMessage(buffer: Buffer, start: number, end: number): Promise<void> {
    const message = decodePgoutput(buffer.subarray(start, end));
    switch (message.tag) {
      case 'begin': {
        const ordered = lsnToBigint(message.commitLsn) <= this.#orderedUntil;
        if (this.#batch.ordered !== ordered) {
          if (this.#hasWork()) await this.#submit();
          if (ordered) await this.#settle();
          this.#batch.ordered = ordered;
        }
        this.#begin(message);
        // Sent again, a filtered change would be asked for again, of a filter that knows more by now: it is read again.
        if (this.#transaction?.filtered) this.#batch.log = null;
        this.#keep(buffer, start, end);
        return;
      }
      case 'commit':
        await this.#onCommit(message.endLsn);
        return;
      case 'relation':
        await this.#relations.learn(message);
        return;
      case 'truncate':
        await this.#onChange(buffer, start, end);
        return;
      case 'message':
        if (message.transactional && message.prefix === markerPrefix(this.#scope.taskId))
          this.#openTransaction().markerId = message.content.toString('utf8');
        return;
      case 'origin':
      case 'type':
        return;
      case 'insert':
      case 'update':
      case 'delete':
        throw new MigrationError('internal', 'a change reached the wrong place');
      case 'stream-start':
      case 'stream-stop':
      case 'stream-commit':
      case 'stream-abort':
      case 'begin-prepare':
      case 'prepare':
      case 'commit-prepared':
      case 'stream-prepare':
      case 'rollback-prepared':
        // Need the options `streaming` and `two_phase`.
        throw new MigrationError('internal', `source: it sent ${message.tag}, which was not requested`);
    }
  }

  #begin(message: SourceTransaction): void {
    const transaction = { xid: message.xid, commitLsn: message.commitLsn };
    this.#transaction = {
      ...transaction,
      // Positions are ends of records: a commit record that begins before one ends at or before it.
      applied: lsnToBigint(message.commitLsn) < lsnToBigint(this.#startedAt),
      filtered: this.#filter.concerns(transaction),
      changes: 0,
      markerId: null,
    };
  }

  #openTransaction(): OpenTransaction {
    if (!this.#transaction) throw new MigrationError('internal', 'source: a change outside of a transaction');
    return this.#transaction;
  }

  async #onCommit(endLsn: Lsn): Promise<void> {
    const transaction = this.#openTransaction();
    this.#transaction = null;
    if (transaction.applied) return;
    this.#advance(endLsn);
    const batch = this.#batch;
    if (transaction.markerId !== null) batch.marker = { id: transaction.markerId, lsn: endLsn };
    // Empty ones (other tables', all filtered) only move the position.
    if (transaction.changes > 0) {
      batch.transactions++;
      batch.lastCommitLsn = transaction.commitLsn;
    }
    const full = batch.changes >= this.#size.changes || batch.bytes >= BATCH_BYTES;
    if (batch.marker !== null || full) await this.#submit();
  }

  /** The message of the open transaction is part of the batch. */
  #keep(buffer: Buffer, start: number, end: number): void {
    const batch = this.#batch;
    if (batch.log === null || batch.ordered) return;
    batch.log.buffers.push(buffer);
    batch.log.bounds.push(start, end);
  }

  #count(transaction: OpenTransaction, bytes: number): void {
    transaction.changes++;
    this.#batch.changes++;
    this.#batch.bytes += bytes;
  }

  /** The short way, without decoding: false when the change has to go the long one. */
  #takeChange(tag: number, buffer: Buffer, start: number, end: number): boolean {
    const transaction = this.#openTransaction();
    if (transaction.applied) return true;
    if (transaction.filtered || this.#batch.ordered || end - start < 8) return false;
    const relation = this.#relations.get(buffer.readUInt32BE(start + 1));
    if (relation.kind !== 'table' || buffer[start + 5] !== (tag === DELETE ? KEY_TUPLE : NEW_TUPLE))
      return false;
    if (!this.#applier.take(relation.table, tag, buffer, start + 6, end)) return false;
    this.#keep(buffer, start, end);
    this.#count(transaction, end - start);
    return true;
  }

  async #onChange(buffer: Buffer, start: number, end: number): Promise<void> {
    const transaction = this.#openTransaction();
    if (transaction.applied) return;
    const message = decodePgoutput(buffer.subarray(start, end)) as ChangeMessage;
    // The target must have done with the batch before: this change may go out now.
    await this.#settle();
    this.#raw = { message, buffer, start, end };
    if (!(await this.#change(message, transaction))) return;
    this.#keep(buffer, start, end);
    this.#count(transaction, end - start);
    try {
      await this.#applier.throttle();
    } catch (error) {
      await this.#recover(this.#batch, error, true);
    }
  }

  /** False when there is nothing to apply. */
  async #change(message: ChangeMessage, transaction: OpenTransaction): Promise<boolean> {
    if (message.tag === 'truncate') return this.#truncate(message, transaction);
    const relation = this.#relations.get(message.relationId);
    if (relation.kind === 'marker') {
      const id = message.tag === 'insert' ? message.new[0] : null;
      if (typeof id === 'string') transaction.markerId = id;
      return false;
    }
    const { table } = relation;
    return transaction.filtered
      ? this.#filtered(message, table, transaction)
      : this.#apply(message, table, transaction);
  }

  #apply(message: RowMessage, table: StreamedTable, transaction: OpenTransaction): true {
    if (this.#coalesce(message, table)) return true;
    switch (message.tag) {
      case 'insert':
        this.#applier.insert(table, message.new, transaction);
        break;
      case 'update':
        this.#applier.update(table, message, transaction);
        break;
      case 'delete':
        this.#applier.delete(table, message, transaction);
        break;
    }
    return true;
  }

  /** Whether the message itself, as it came, was taken into the set of its table. */
  #coalesce(message: RowMessage, table: StreamedTable): boolean {
    const raw = this.#raw;
    if (raw === null || raw.message !== message || this.#batch.ordered) return false;
    const tag = raw.buffer[raw.start] ?? 0;
    if (raw.buffer[raw.start + 5] !== (tag === DELETE ? KEY_TUPLE : NEW_TUPLE)) return false;
    return this.#applier.take(table, tag, raw.buffer, raw.start + 6, raw.end);
  }

  /** Applies what the copies have not seen; false when they have seen everything. */
  async #filtered(message: RowMessage, table: StreamedTable, transaction: OpenTransaction): Promise<boolean> {
    if (message.tag !== 'update') {
      const row = message.tag === 'insert' ? message.new : message.old;
      return !this.#filter.sawRow(table, row, transaction) && this.#apply(message, table, transaction);
    }
    const { relationId, old, oldKind } = message;
    switch (this.#filter.update(table, old, message.new, transaction)) {
      case 'skip':
        return false;
      case 'apply':
        return this.#apply(message, table, transaction);
      case 'delete-old':
        if (old === null || oldKind === 'none')
          throw new MigrationError('internal', `${table.key}: a key move without the old key`);
        return this.#apply({ tag: 'delete', relationId, oldKind, old }, table, transaction);
      case 'insert-new': {
        const row = message.new.map((value, at) =>
          value === UNCHANGED && oldKind === 'full' ? (old?.[at] ?? null) : value,
        );
        if (row.includes(UNCHANGED)) return this.#readAgain(table, row, transaction);
        return this.#apply({ tag: 'insert', relationId, new: row }, table, transaction);
      }
    }
  }

  async #readAgain(table: StreamedTable, row: Tuple, transaction: OpenTransaction): Promise<true> {
    const { row: found, part, marker } = await readAgain(this.#scope, table, row, this.#scope.signal);
    if (found !== null) this.#applier.insert(table, found, transaction);
    this.#applier.writePart(table, marker, transaction);
    this.#filter.addRow(part);
    return true;
  }

  /** False when every copy has seen it. */
  #truncate(message: TruncateMessage, transaction: OpenTransaction): boolean {
    const tables: StreamedTable[] = [];
    let emptied = false;
    for (const relationId of message.relationIds) {
      const relation = this.#relations.get(relationId);
      if (relation.kind === 'marker') continue;
      const { table } = relation;
      const verdict = transaction.filtered
        ? this.#filter.truncate(table.key, transaction)
        : { kind: 'apply' as const };
      if (verdict.kind === 'apply') tables.push(table);
      if (verdict.kind !== 'some') continue;
      this.#applier.deleteParts(table, verdict, transaction);
      emptied = true;
    }
    if (tables.length > 0) this.#applier.truncate(tables, message.restartIdentity, transaction);
    return emptied || tables.length > 0;
  }

  /** A part of a large transaction leaves before its end; after a failure it is read again. */
  async #spill(): Promise<void> {
    await this.#settle();
    const batch = this.#batch;
    batch.bytes = 0;
    if (batch.ordered) return;
    try {
      if (batch.log === null) await this.#applier.answered();
      batch.log = null;
      this.#applier.send();
    } catch (error) {
      await this.#recover(batch, error, true);
    }
  }

  /** The batch goes to the target, after the one before it; also a position without changes. */
  async #submit(): Promise<void> {
    await this.#settle();
    const batch = this.#batch;
    const position = this.#position;
    this.#batch = newBatch(position);
    const startedAt = performance.now();
    this.#applier.send();
    const carryOut = async (): Promise<void> => {
      try {
        await this.#applier.finish({ position, marker: batch.marker });
        this.#size.learn(batch.changes, performance.now() - startedAt);
        this.#onCommitted(batch);
        this.#underWay = null;
      } catch (error) {
        this.#failure = { error };
      }
      this.#feed.poke();
    };
    this.#underWay = { batch, position, done: carryOut() };
    // Whoever drains waits for this one.
    if (batch.marker !== null) await this.#settle();
  }

  /** Waits until the batch under way is on the target, whatever it takes. */
  async #settle(): Promise<void> {
    if (this.#underWay === null) return;
    const { batch, position, done } = this.#underWay;
    const waitedSince = performance.now();
    await done;
    this.#figures.targetWaitMs += performance.now() - waitedSince;
    const failure = this.#failure;
    if (failure === null) return;
    this.#failure = null;
    this.#underWay = null;
    await this.#recover(batch, failure.error, false);
    await this.#applier.finish({ position, marker: batch.marker });
    this.#onCommitted(batch);
  }

  /**
   * Rolls back and sends the batch's messages again in source order, leaving the target transaction open; throws when that
   * is not the remedy. `current`: the batch is the one that is being filled.
   */
  async #recover(batch: Batch, error: unknown, current: boolean): Promise<void> {
    const repeatable =
      error instanceof MigrationError &&
      (error.code === 'unexpected_row' || error.code === 'sql_failed' || error === TRACKING_BEGAN);
    if (!repeatable || batch.ordered) throw error;
    this.#figures.batchesInOrder++;
    this.#scope.log.info({ err: error, changes: batch.changes }, 'a batch is applied again in source order');
    if (batch.log === null)
      throw new ReplayInOrder(this.#transaction?.commitLsn ?? batch.lastCommitLsn, error);
    const { buffers, bounds } = batch.log;
    this.#raw = null;
    const open = this.#transaction;
    await this.#applier.rollback(current);
    batch.ordered = true;
    this.#applier.beginInOrder();
    for (const [i, buffer] of buffers.entries()) {
      const message = decodePgoutput(buffer.subarray(bounds[2 * i], bounds[2 * i + 1]));
      if (message.tag === 'begin') this.#begin(message);
      else {
        await this.#change(message as ChangeMessage, this.#openTransaction());
        await this.#applier.throttle();
      }
    }
    await this.#applier.endInOrder();
    batch.log = { buffers: [], bounds: [] };
    this.#transaction = open;
  }

  #onCommitted(batch: Batch): void {
    this.#scope.failpoint('sync.committed-not-acknowledged');
    this.#feed.acknowledge(this.#applier.appliedLsn);
    this.#answerNow = false;
    this.#storedAt = Date.now();
    if (batch.changes > 0 || batch.marker !== null) {
      this.#figures.changesApplied += batch.changes;
      this.#figures.transactionsApplied += batch.transactions;
      this.#scope.failpoint('sync.batch-applied');
    }
    this.#onStored();
  }
}

function newBatch(position: Lsn): Batch {
  return {
    changes: 0,
    transactions: 0,
    lastCommitLsn: position,
    marker: null,
    ordered: false,
    log: { buffers: [], bounds: [] },
    bytes: 0,
  };
}
