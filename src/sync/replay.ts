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
import { markerPrefix, positionPrefix } from '../postgres/marker.ts';
import { decodePgoutput } from '../postgres/pgoutput.ts';
import type { ChangeMessage } from '../postgres/pgoutput-messages.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { WalStream } from '../postgres/wal-stream.ts';
import { KEEPALIVE, type Gulp } from '../postgres/wal-walker.ts';
import { TRACKING_BEGAN, type Applier } from './apply.ts';
import { newBatch, OpenTransaction, type Batch } from './batch.ts';
import { BatchSize } from './batch-size.ts';
import { ChangeWriter, DELETE, KEY_TUPLE, NEW_TUPLE, type RawChange } from './change-writer.ts';
import type { CopyFilter } from './filter.ts';
import type { KnownRelation, RelationMap } from './relations.ts';
import type { ReplayFigures } from './replay-figures.ts';

/** A batch ends at the next boundary when it is this large. */
const BATCH_BYTES = 7 * 1024 * 1024;
/** When it is this large it leaves before its transaction has ended: of most transactions the end comes before. */
const SPILL_BYTES = 8 * 1024 * 1024;
/** So much memory may its rows take. An update that lacks a large value keeps the one that is pending, once more for each. */
const PENDING_BYTES = 24 * 1024 * 1024;
/** Without changes the position is stored, and the slot advanced, at most this often. */
const IDLE_STORE_MS = 2_000;
/**
 * While the source commits all the time, target transactions begin at most this often: what is committed meanwhile shares
 * one. What comes alone leaves at once.
 */
const GATHER_MS = 100;
/** So long the target's commits need not be durable while the next batch waits for them: it would wait for the disk. */
const LATE_MS = 1_000;

const INSERT = 0x49;
const UPDATE = 0x55;
const TRUNCATE = 0x54;
const BEGIN = 0x42;
const BEGIN_BYTES = 21;
const COMMIT = 0x43;
const COMMIT_BYTES = 26;

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

export class Replay {
  readonly #scope: TaskScope;
  readonly #feed: Feed;
  readonly #applier: Applier;
  readonly #relations: RelationMap;
  readonly #filter: CopyFilter;
  readonly #changes: ChangeWriter;
  readonly #figures: ReplayFigures;
  readonly #onStored: () => void;
  readonly #orderedUntil: bigint;
  /** Where the target stood when this connection began. */
  readonly #startedAt: bigint;
  readonly #size = new BatchSize();
  #transaction: OpenTransaction | null = null;
  /** Everything up to here is applied, under way or in the batch. */
  #position: bigint;
  #batch: Batch;
  /** The gulp that is being read; which of its messages are kept for a batch, and where the next one is. */
  #gulp: Gulp | null = null;
  #kept = 0;
  #next = 0;
  /** Something of it is looked at again when it has been read. */
  #isKept = false;
  #isPastCopies = false;
  /** The batch that the target is carrying out, and how it ended when it failed. */
  #underWay: { readonly batch: Batch; readonly position: Lsn; readonly done: Promise<void> } | null = null;
  #failure: { readonly error: unknown } | null = null;
  /** When a commit was last durable. */
  #storedAt = Date.now();
  /** The batch ends with the transaction that is open. */
  #isDue = false;
  /** A batch is complete, and waits for the one under way. */
  #isNextReady = false;
  /** When the last target transaction was sent, by performance.now(). */
  #submittedAt = -Infinity;
  /** Somebody waits for a position of the target that is not before this one; null: nobody does. */
  #askedFor: bigint | null = null;
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
    this.#changes = new ChangeWriter(parts);
    this.#figures = parts.figures;
    this.#onStored = parts.onStored;
    this.#orderedUntil = parts.orderedUntil ? lsnToBigint(parts.orderedUntil) : 0n;
    this.#startedAt = lsnToBigint(parts.applier.appliedLsn);
    this.#position = this.#startedAt;
    this.#batch = newBatch(this.#position);
  }

  /** Up to here the target has everything; what only keepalives tell counts, because nothing is pending before it. */
  get position(): Lsn {
    const pending = this.#applier.isOpen || this.#transaction !== null || this.#hasWork();
    return pending || this.#underWay !== null ? this.#applier.appliedLsn : bigintToLsn(this.#position);
  }

  /** Lets `run` return at the next end of a transaction, with everything before it on the target. */
  leave(): void {
    this.#leaving = true;
    this.#feed.poke();
  }

  /** Returns when the feed has ended or after `leave`; otherwise only by a throw. */
  async run(): Promise<void> {
    for (;;) {
      const waitsForTarget = this.#underWay !== null && this.#feed.drained;
      const waitedSince = performance.now();
      const gulps = await this.#feed.take(this.#waitMs());
      this.#figures[waitsForTarget ? 'targetWaitMs' : 'feedWaitMs'] += performance.now() - waitedSince;
      if (this.#failure) await this.#settle();
      for (const gulp of gulps) await this.#onGulp(gulp);
      const over = this.#leaving || (this.#feed.ended && this.#feed.drained);
      if (over && this.#transaction === null) {
        if (this.#hasWork() || !this.#isStored()) await this.#submit();
        await this.#settle();
        return;
      }
      if (this.#transaction !== null) {
        // Ordered changes of a long transaction go out as they come.
        this.#applier.push();
        // Reads may end within a transaction time after time: then the batch ends within what is read next.
        this.#isDue ||= this.#workIsDue();
        continue;
      }
      if (this.#underWay !== null) continue;
      if (this.#workIsDue() || this.#storeIsDue()) await this.#submit();
    }
  }

  /** What is there has waited for more for long enough. */
  #workIsDue(): boolean {
    return this.#underWay === null && this.#hasWork() && this.#feed.drained && this.#gatherMs() <= 0;
  }

  #hasWork(): boolean {
    return this.#batch.changes > 0 || this.#batch.marker !== null;
  }

  #isStored(): boolean {
    return this.#position === lsnToBigint(this.#applier.appliedLsn);
  }

  /** How long what is there waits for more; 0 or less: no longer. */
  #gatherMs(): number {
    return this.#askedFor !== null ? 0 : this.#submittedAt + GATHER_MS - performance.now();
  }

  #waitMs(): number {
    if (this.#transaction === null && this.#underWay === null && this.#hasWork())
      return Math.max(1, this.#gatherMs());
    if (this.#transaction !== null || this.#isStored()) return IDLE_STORE_MS;
    return Math.max(1, this.#storedAt + IDLE_STORE_MS - Date.now());
  }

  #storeIsDue(): boolean {
    if (this.#hasWork() || this.#isStored()) return false;
    return this.#askedFor !== null || Date.now() >= this.#storedAt + IDLE_STORE_MS;
  }

  async #onGulp(gulp: Gulp): Promise<void> {
    const { buffer, bounds } = gulp;
    this.#gulp = gulp;
    this.#kept = 0;
    this.#isKept = false;
    for (let i = 0; i < bounds.length; i += 2) {
      const start = bounds[i] ?? 0;
      const end = bounds[i + 1] ?? 0;
      const tag = buffer[start];
      this.#next = i + 2;
      if (tag === INSERT || tag === UPDATE || tag === DELETE) {
        if (!this.#takeChange(tag, buffer, start, end)) await this.#onChange(buffer, start, end);
        if (this.#isOversized() && this.#transaction !== null) await this.#spill();
      } else if (tag === BEGIN && end - start === BEGIN_BYTES) {
        const commit = buffer.readBigUInt64BE(start + 1);
        // between transactions only: a chunk of what was set aside begins once more the one that it goes on with
        if (this.#transaction === null && this.#batch.ordered !== commit <= this.#orderedUntil) {
          this.#next = i; // it is the next batch's
          await this.#changeOrder(commit <= this.#orderedUntil);
          this.#next = i + 2;
        }
        if (this.#transaction === null && commit >= this.#startedAt && commit < this.#position)
          throw givenTwice(commit, this.#position);
        this.#begin(commit, buffer.readUInt32BE(start + 17));
      } else if (tag === COMMIT && end - start === COMMIT_BYTES) {
        if (this.#onCommit(buffer.readBigUInt64BE(start + 10))) await this.#submit();
      } else if (tag === KEEPALIVE)
        this.#onKeepalive(buffer.readBigUInt64BE(start + 1), buffer[start + 17] === 1);
      else await this.#onMessage(buffer, start, end);
    }
    this.#keep(bounds.length);
    this.#gulp = null;
    if (!this.#isKept) gulp.lease?.release();
    // What only moves the position, or was applied before, is not worth its memory.
    if (!this.#hasWork() && this.#transaction?.applied !== false) this.#batch.log?.splice(0);
  }

  async #changeOrder(ordered: boolean): Promise<void> {
    if (this.#hasWork()) await this.#submit();
    if (ordered) await this.#settle();
    this.#batch.ordered = ordered;
  }

  #onKeepalive(walEnd: bigint, replyRequested: boolean): void {
    // Between the changes of a transaction it says nothing about that transaction.
    if (this.#transaction === null) this.#advance(walEnd);
    // A server that shuts down waits until we have acknowledged everything: store what is new at once.
    if (replyRequested) this.#askedFor = this.#position;
  }

  #advance(position: bigint): void {
    if (position > this.#position) this.#position = position;
  }

  async #onMessage(buffer: Buffer, start: number, end: number): Promise<void> {
    const message = decodePgoutput(buffer.subarray(start, end));
    switch (message.tag) {
      case 'begin':
      case 'commit':
        throw new MigrationError('internal', `source: a ${message.tag} of ${end - start} bytes`);
      case 'relation':
        if (this.#relations.reshapes(message)) {
          // Messages that are kept would be sent again under the new columns: these are read again instead.
          await this.#settle();
          this.#batch.log = null;
        }
        await this.#relations.learn(message, Buffer.from(buffer.subarray(start, end)));
        return;
      case 'truncate':
        await this.#onChange(buffer, start, end);
        return;
      case 'message':
        if (message.transactional && message.prefix === markerPrefix(this.#scope.taskId))
          this.#openTransaction().markerId = message.content.toString('utf8');
        else if (message.prefix === positionPrefix(this.#scope.taskId))
          this.#askedFor = this.#transaction?.commit ?? this.#position;
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

  #begin(commit: bigint, xid: number): void {
    if (this.#transaction?.commit === commit) return; // the chunk goes on with it
    // Positions are ends of records: a commit record that begins before one ends at or before it.
    const transaction = new OpenTransaction(commit, xid, commit < this.#startedAt);
    // Commits come in the order of their positions: behind the last horizon there is none before it.
    if (!this.#isPastCopies && this.#filter.concerns(transaction)) transaction.filtered = true;
    else this.#isPastCopies = true;
    this.#transaction = transaction;
  }

  #openTransaction(): OpenTransaction {
    if (!this.#transaction) throw new MigrationError('internal', 'source: a change outside of a transaction');
    return this.#transaction;
  }

  /** True when the batch has to end here. */
  #onCommit(end: bigint): boolean {
    const transaction = this.#openTransaction();
    this.#transaction = null;
    if (transaction.applied) return false;
    this.#advance(end);
    const batch = this.#batch;
    if (transaction.markerId !== null) batch.marker = { id: transaction.markerId, lsn: bigintToLsn(end) };
    // Empty ones (other tables', all filtered) only move the position.
    if (transaction.changes > 0) {
      batch.transactions++;
      batch.lastCommit = transaction.commit;
    }
    const isFull = batch.changes >= this.#size.changes || batch.bytes >= BATCH_BYTES;
    return this.#isDue || isFull || this.#isOversized() || batch.marker !== null;
  }

  #isOversized(): boolean {
    return this.#batch.bytes > SPILL_BYTES || this.#applier.pendingBytes > PENDING_BYTES;
  }

  /** What was read of the gulp up to `to` belongs to the batch; what follows may be the next one's. */
  #keep(to: number): void {
    const { log, ordered } = this.#batch;
    if (this.#gulp !== null && to > this.#kept && log !== null && !ordered) {
      log.push({ gulp: this.#gulp, from: this.#kept, to });
      this.#isKept = true;
    }
    this.#kept = to;
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
    const relation = this.#relationOf(buffer, start, end);
    if (relation?.kind === 'held') {
      this.#applier.hold(relation, buffer.subarray(start, end), transaction);
      this.#isKept = true;
      this.#count(transaction, end - start);
      return true;
    }
    if (transaction.filtered || this.#batch.ordered || end - start < 8) return false;
    if (relation?.kind !== 'table' || buffer[start + 5] !== (tag === DELETE ? KEY_TUPLE : NEW_TUPLE))
      return false;
    if (!this.#applier.take(relation.table, tag, buffer, start + 6, end)) return false;
    this.#count(transaction, end - start);
    return true;
  }

  /** Of an insert, update or delete; null: the message is too short to name one. */
  #relationOf(buffer: Buffer, start: number, end: number): KnownRelation | null {
    return end - start < 5 ? null : this.#relations.get(buffer.readUInt32BE(start + 1));
  }

  async #onChange(buffer: Buffer, start: number, end: number): Promise<void> {
    const transaction = this.#openTransaction();
    if (transaction.applied) return;
    const message = decodePgoutput(buffer.subarray(start, end)) as ChangeMessage;
    // The target must have done with the batch before: this change may go out now.
    await this.#settle();
    const raw = this.#batch.ordered ? null : { buffer, start, end };
    if (!(await this.#write(message, transaction, raw))) return;
    this.#count(transaction, end - start);
    try {
      await this.#applier.throttle();
    } catch (error) {
      await this.#recover(this.#batch, error, true);
    }
  }

  async #write(
    message: ChangeMessage,
    transaction: OpenTransaction,
    raw: RawChange | null,
  ): Promise<boolean> {
    const { filtered } = transaction;
    // Sent again, a filtered change would be asked for again, of a filter that knows more by now: it is read again.
    if (filtered) this.#batch.log = null;
    const written = await this.#changes.write(message, transaction, raw);
    if (!filtered && transaction.filtered) {
      // A row was read again, under a horizon that lies ahead: from here on as in `#begin`.
      this.#isPastCopies = false;
      this.#batch.log = null;
    }
    return written;
  }

  /** A part of a large transaction leaves before its end; after a failure it is read again. */
  async #spill(): Promise<void> {
    await this.#settle();
    const batch = this.#batch;
    batch.bytes = 0;
    if (batch.ordered) {
      await this.#applier.throttle();
      return;
    }
    try {
      if (batch.log === null) await this.#applier.answered();
      batch.log = null;
      this.#applier.send(false);
    } catch (error) {
      await this.#recover(batch, error, true);
    }
  }

  /** The batch goes to the target, after the one before it; also a position without changes. */
  async #submit(): Promise<void> {
    if (this.#underWay !== null) {
      this.#applier.arrange();
      this.#isNextReady = true;
      await this.#settle();
      this.#isNextReady = false;
    }
    const batch = this.#batch;
    this.#keep(this.#next);
    const position = bigintToLsn(this.#position);
    this.#batch = newBatch(this.#position);
    this.#isDue = false;
    this.#submittedAt = performance.now(); // until the target has answered nothing else is sent
    this.#applier.send(true);
    const carryOut = async (): Promise<void> => {
      try {
        const isDurable = await this.#applier.finish({ position, marker: batch.marker }, () =>
          this.#mayBeLate(batch),
        );
        this.#size.learn(batch.changes, performance.now() - this.#submittedAt);
        this.#onCommitted(batch, isDurable);
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

  /** Whether the batch's commit may be durable with the next one's only: nobody else waits for it, and that one is there. */
  #mayBeLate({ marker }: Batch): boolean {
    return this.#isNextReady && marker === null && Date.now() - this.#storedAt < LATE_MS;
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
    const isDurable = await this.#applier.finish({ position, marker: batch.marker });
    this.#onCommitted(batch, isDurable);
  }

  /**
   * Rolls back and sends the batch's messages again in source order, leaving the target transaction open; throws when that
   * is not the remedy. `current`: the batch is the one that is being filled.
   */
  async #recover(batch: Batch, error: unknown, current: boolean): Promise<void> {
    // A missing right may be that of making temporary tables: the ordered way needs none.
    const repeatable =
      error instanceof MigrationError &&
      (['unexpected_row', 'sql_failed', 'insufficient_privilege'].includes(error.code) ||
        error === TRACKING_BEGAN);
    if (!repeatable || batch.ordered) throw error;
    this.#figures.batchesInOrder++;
    this.#scope.log.info({ err: error, changes: batch.changes }, 'a batch is applied again in source order');
    if (batch.log === null) {
      const until = current ? this.#transaction?.commit : undefined;
      throw new ReplayInOrder(bigintToLsn(until ?? batch.lastCommit), error);
    }
    if (current) this.#keep(this.#next);
    const segments = batch.log;
    const open = this.#transaction;
    await this.#applier.rollback(current);
    batch.ordered = true;
    this.#applier.beginInOrder(current);
    this.#transaction = null;
    for (const { gulp, from, to } of segments)
      for (let i = from; i < to; i += 2)
        await this.#again(gulp.buffer, gulp.bounds[i] ?? 0, gulp.bounds[i + 1] ?? 0);
    await this.#applier.endInOrder();
    batch.log = [];
    this.#transaction = open;
  }

  /** One message of a batch that is sent again: what is not a change has had its effect. */
  async #again(buffer: Buffer, start: number, end: number): Promise<void> {
    const tag = buffer[start];
    if (tag === BEGIN) this.#begin(buffer.readBigUInt64BE(start + 1), buffer.readUInt32BE(start + 17));
    if (tag !== INSERT && tag !== UPDATE && tag !== DELETE && tag !== TRUNCATE) return;
    const transaction = this.#transaction;
    // What is kept may begin within a transaction that is on the target already: its beginning was not worth the memory.
    if (transaction === null || transaction.applied) return;
    // a TRUNCATE names tables elsewhere, and is set aside where it is written
    const relation = tag === TRUNCATE ? null : this.#relationOf(buffer, start, end);
    if (relation?.kind === 'held') this.#applier.hold(relation, buffer.subarray(start, end), transaction);
    else await this.#write(decodePgoutput(buffer.subarray(start, end)) as ChangeMessage, transaction, null);
    await this.#applier.throttle();
  }

  #onCommitted(batch: Batch, isDurable: boolean): void {
    this.#scope.failpoint('sync.committed-not-acknowledged');
    // a gulp whose last messages these are: those before them were of batches before
    for (const { gulp, to } of batch.log ?? []) if (to === gulp.bounds.length) gulp.lease?.release();
    if (isDurable) {
      this.#feed.acknowledge(this.#applier.appliedLsn);
      const applied = lsnToBigint(this.#applier.appliedLsn);
      if (this.#askedFor !== null && applied >= this.#askedFor) this.#askedFor = null;
      this.#storedAt = Date.now();
    } else this.#scope.failpoint('sync.committed-not-durable');
    if (batch.changes > 0 || batch.marker !== null) {
      this.#figures.changesApplied += batch.changes;
      this.#figures.transactionsApplied += batch.transactions;
      this.#scope.failpoint('sync.batch-applied');
    }
    if (isDurable) this.#onStored();
  }
}

/** No feed does that; one that did would double the rows of tables without a key. */
function givenTwice(commit: bigint, position: bigint): MigrationError {
  return new MigrationError(
    'connection_failed',
    `source: it sent the transaction at ${bigintToLsn(commit)} again, behind ${bigintToLsn(position)}`,
  );
}
