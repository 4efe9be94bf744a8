// The loop between walsender and target: source transactions in source order, many of them in one target transaction,
// cut at their boundaries; what the copies saw and what is applied already is left out. Started by stream.ts for every
// connection; ends only by a throw (lost connection, divergence, abort). After any throw dts.progress tells where to go on.
import { MigrationError } from '../model/errors.ts';
import { lsnToBigint, type Lsn } from '../model/lsn.ts';
import { markerPrefix } from '../postgres/marker.ts';
import {
  UNCHANGED,
  type ChangeMessage,
  type PgoutputMessage,
  type TruncateMessage,
  type Tuple,
} from '../postgres/pgoutput.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { WalStream } from '../postgres/wal-stream.ts';
import type { AppliedMarker, Applier } from './apply.ts';
import type { CopyFilter, SourceTransaction } from './filter.ts';
import { readAgain } from './reread.ts';
import type { RelationMap, StreamedTable } from './relations.ts';

type RowMessage = Exclude<ChangeMessage, TruncateMessage>;

/** A batch ends at the next boundary when it has this many changes, is this old, or when nothing more has arrived. */
const BATCH_CHANGES = 10_000;
const BATCH_AGE_MS = 250;
/** Without changes the position is stored, and the slot advanced, at most this often. */
const IDLE_STORE_MS = 2_000;

/** Counters that the sampler shows. */
export interface ReplayFigures {
  transactionsApplied: number;
  changesApplied: number;
}

interface OpenTransaction extends SourceTransaction {
  /** On the target already: sent again after a lost acknowledgement. */
  readonly applied: boolean;
  /** Commits before the last horizon: the copies may have seen it. */
  readonly filtered: boolean;
  changes: number;
  markerId: string | null;
}

export class Replay {
  readonly #scope: TaskScope;
  readonly #stream: WalStream;
  readonly #applier: Applier;
  readonly #relations: RelationMap;
  readonly #filter: CopyFilter;
  readonly #figures: ReplayFigures;
  readonly #onStored: () => void;
  #transaction: OpenTransaction | null = null;
  /** Everything up to here is applied or in the open batch. */
  #position: Lsn;
  #marker: AppliedMarker | null = null;
  #batch = { changes: 0, transactions: 0, since: 0 };
  #storedAt = Date.now();
  #answerNow = false;

  /** `onStored` is called after every position that has become durable on the target and was acknowledged. */
  constructor(parts: {
    readonly scope: TaskScope;
    readonly stream: WalStream;
    readonly applier: Applier;
    readonly relations: RelationMap;
    readonly filter: CopyFilter;
    readonly figures: ReplayFigures;
    readonly onStored: () => void;
  }) {
    this.#scope = parts.scope;
    this.#stream = parts.stream;
    this.#applier = parts.applier;
    this.#relations = parts.relations;
    this.#filter = parts.filter;
    this.#figures = parts.figures;
    this.#onStored = parts.onStored;
    this.#position = parts.applier.appliedLsn;
  }

  /** Up to here the target has everything; what only keepalives tell counts, because nothing is pending before it. */
  get position(): Lsn {
    return this.#applier.isOpen || this.#transaction !== null ? this.#applier.appliedLsn : this.#position;
  }

  async run(): Promise<never> {
    for (;;) {
      const items = await this.#stream.take(this.#waitMs());
      for (const item of items) {
        if (item.kind === 'message') {
          await this.#onMessage(item.message);
          if (this.#batchIsFull()) await this.#commit();
        } else this.#onKeepalive(item.walEnd, item.replyRequested);
      }
      // A long transaction's changes go out as they come; a batch that waits for company ends now.
      this.#applier.push();
      if (this.#transaction !== null) continue;
      if (this.#applier.isOpen) {
        if (this.#stream.drained) await this.#commit();
      } else if (this.#storeIsDue()) await this.#commit();
    }
  }

  #waitMs(): number {
    if (this.#transaction !== null || this.#position === this.#applier.appliedLsn) return IDLE_STORE_MS;
    return Math.max(1, this.#storedAt + IDLE_STORE_MS - Date.now());
  }

  #storeIsDue(): boolean {
    if (this.#position === this.#applier.appliedLsn) return false;
    return this.#answerNow || Date.now() >= this.#storedAt + IDLE_STORE_MS;
  }

  #batchIsFull(): boolean {
    if (this.#transaction !== null || !this.#applier.isOpen) return false;
    if (this.#marker !== null || this.#batch.changes >= BATCH_CHANGES) return true;
    return Date.now() - this.#batch.since >= BATCH_AGE_MS;
  }

  #onKeepalive(walEnd: Lsn, replyRequested: boolean): void {
    // Between the changes of a transaction it says nothing about that transaction.
    if (this.#transaction === null) this.#advance(walEnd);
    if (!replyRequested) return;
    // A server that shuts down waits until we have acknowledged everything: store what is new at once.
    this.#stream.reply();
    this.#answerNow = true;
  }

  #advance(lsn: Lsn): void {
    if (lsnToBigint(lsn) > lsnToBigint(this.#position)) this.#position = lsn;
  }

  async #onMessage(message: PgoutputMessage): Promise<void> {
    switch (message.tag) {
      case 'begin': {
        const transaction = { xid: message.xid, commitLsn: message.commitLsn };
        this.#transaction = {
          ...transaction,
          // Positions are ends of records: a commit record that begins before one ends at or before it.
          applied: lsnToBigint(message.commitLsn) < lsnToBigint(this.#applier.appliedLsn),
          filtered: this.#filter.concerns(transaction),
          changes: 0,
          markerId: null,
        };
        return;
      }
      case 'commit':
        this.#onCommit(message.endLsn);
        return;
      case 'relation':
        await this.#relations.learn(message);
        return;
      case 'insert':
      case 'update':
      case 'delete':
      case 'truncate':
        await this.#onChange(message, this.#openTransaction());
        return;
      case 'message':
        if (message.transactional && message.prefix === markerPrefix(this.#scope.taskId))
          this.#openTransaction().markerId = message.content.toString('utf8');
        return;
      case 'origin':
      case 'type':
        return;
    }
  }

  #openTransaction(): OpenTransaction {
    if (!this.#transaction) throw new MigrationError('internal', 'source: a change outside of a transaction');
    return this.#transaction;
  }

  #onCommit(endLsn: Lsn): void {
    const transaction = this.#openTransaction();
    this.#transaction = null;
    if (transaction.applied) return;
    this.#advance(endLsn);
    if (transaction.markerId !== null) {
      this.#applier.open();
      this.#marker = { id: transaction.markerId, lsn: endLsn };
    }
    // Empty ones (other tables', all filtered) only move the position.
    if (transaction.changes > 0) this.#batch.transactions++;
  }

  async #onChange(message: ChangeMessage, transaction: OpenTransaction): Promise<void> {
    if (transaction.applied) return;
    if (!this.#applier.isOpen) this.#batch = { changes: 0, transactions: 0, since: Date.now() };
    if (message.tag === 'truncate') {
      if (!this.#truncate(message, transaction)) return;
    } else {
      const relation = this.#relations.get(message.relationId);
      if (relation.kind === 'marker') {
        const id = message.tag === 'insert' ? message.new[0] : null;
        if (typeof id === 'string') transaction.markerId = id;
        return;
      }
      const { table } = relation;
      const passes = transaction.filtered
        ? await this.#filtered(message, table, transaction)
        : this.#apply(message, table, transaction);
      if (!passes) return;
    }
    transaction.changes++;
    this.#batch.changes++;
    await this.#applier.throttle();
  }

  #apply(message: RowMessage, table: StreamedTable, transaction: OpenTransaction): true {
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

  /** Also stores a position without changes: then the target transaction holds nothing but the progress row. */
  async #commit(): Promise<void> {
    const { changes, transactions } = this.#batch;
    const hasChanges = this.#applier.isOpen;
    await this.#applier.commit({ position: this.#position, marker: this.#marker });
    this.#scope.failpoint('sync.committed-not-acknowledged');
    this.#stream.acknowledge(this.#applier.appliedLsn);
    this.#marker = null;
    this.#answerNow = false;
    this.#storedAt = Date.now();
    if (hasChanges) {
      this.#figures.changesApplied += changes;
      this.#figures.transactionsApplied += transactions;
      this.#batch = { changes: 0, transactions: 0, since: 0 };
      this.#scope.failpoint('sync.batch-applied');
    }
    this.#onStored();
  }
}
