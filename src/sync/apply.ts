// Writes batches of changes to the target, over one pipelined session. Two ways, in one target transaction:
//
//   set-wise   changes are coalesced per row key (table-batch.ts) and leave as one statement per table and kind
//   ordered    a change leaves as a statement of its own, in source order: key changes, TRUNCATE, tables without a key.
//              It is a barrier for its tables: what they have pending leaves first
//
// A batch's position is committed with its rows, so each source transaction is applied exactly once, whatever dies when.
// Every row count is checked before COMMIT is sent. Driven by replay.ts.
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { DeleteMessage, Tuple, UpdateMessage } from '../postgres/pgoutput-messages.ts';
import { Pipeline } from '../postgres/pipeline.ts';
import type { Session } from '../postgres/connections.ts';
import { deleteAllSql, writesExisting } from '../postgres/existing-tables.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { classify, unexpectedRow, type ChangeContext } from './apply-errors.ts';
import { textOf } from './binary-text.ts';
import type { OpenTransaction } from './batch.ts';
import { ChangedKeys } from './changed-keys.ts';
import type { SourceTransaction, TruncateVerdict } from './filter.ts';
import { HeldChanges, HOLDS_CHANGED, type HeldRelation } from './held-changes.ts';
import { HOLDS_CHANGED_STATE, TRACKING, type Position } from './position.ts';
import type { StreamedTable } from './relations.ts';
import { SetWriter, tuplesOf } from './set-writer.ts';
import {
  deleteParts,
  deleteRow,
  insertRows,
  oldRowOf,
  truncateTables,
  updateRow,
  type Statement,
} from './statements.ts';

/** Rows of one INSERT on the ordered path. Few sizes, so that few statements are prepared; a run is cut greedily. */
const INSERT_SIZES = [128, 16, 1] as const;
const MAX_INSERT_PARAMETERS = 8_192;
const MAX_INSERT_BYTES = 1024 * 1024;
/** Sent and not answered yet: bounds our memory and the server's when the source sends faster than the target takes. */
const MAX_UNANSWERED = 2_000;
const MAX_UNANSWERED_BYTES = 8 * 1024 * 1024;

/** The validation has begun since the last batch: this one is done again, in order, and its keys are written down. */
export const TRACKING_BEGAN = new MigrationError(
  'internal',
  'target: keys are to be written down from now on',
);

/** The drain marker that arrived in the batch. */
export interface AppliedMarker {
  readonly id: string;
  /** End of its commit on the source. */
  readonly lsn: Lsn;
}

export interface BatchEnd {
  /** End LSN of the batch's last source transaction. */
  readonly position: Lsn;
  readonly marker: AppliedMarker | null;
}

export class Applier {
  readonly #scope: TaskScope;
  readonly #position: Position;
  readonly #pipe: Pipeline<ChangeContext>;
  readonly #sets: SetWriter;
  readonly #changed: ChangedKeys;
  /** What the batch that is filled sets aside, and meanwhile, of one that is sent again, what that one does. */
  #held = new HeldChanges();
  #heldBeside: HeldChanges | null = null;
  /** dts.progress.tracking as it was last found: by the open or the last transaction, or before the first one. */
  #tracking: boolean;
  /** A set left without its keys being noted. */
  #unnoted = false;
  #applied: Lsn;
  #open = false;
  #again = false;
  #run: {
    readonly table: StreamedTable;
    rows: Tuple[];
    bytes: number;
    transaction: SourceTransaction;
  } | null = null;

  /** `found`: `position` when this connection began. `binary`: how the stream sends values. */
  constructor(
    scope: TaskScope,
    session: Session,
    position: Position,
    found: { readonly appliedLsn: Lsn; readonly tracking: boolean },
    binary: boolean,
  ) {
    this.#scope = scope;
    this.#position = position;
    this.#pipe = new Pipeline<ChangeContext>(session, {
      onError: (error, context) => {
        const known = classify(error, context);
        const isHold =
          context.operation === 'progress' && known.details?.['sqlstate'] === HOLDS_CHANGED_STATE;
        return isHold ? HOLDS_CHANGED : known;
      },
      onRows: (rows, expected, context) =>
        context.operation === 'progress'
          ? new MigrationError(
              'connection_failed',
              `target: the progress is not at ${this.#applied} any more`,
              { kind: 'ambiguous', details: { expected: this.#applied } },
            )
          : unexpectedRow(context, `${rows} rows instead of ${expected}`),
      onData: (value, { operation }) => {
        if (operation === 'progress') this.#tracking = value === TRACKING;
      },
    });
    this.#changed = new ChangedKeys(scope.taskId);
    this.#sets = new SetWriter(this.#pipe, binary, (table, batch) => {
      this.#begin(); // a set of a table that got other columns leaves by itself
      if (!this.#tracking) this.#unnoted = true;
      else for (const row of tuplesOf(batch)) this.#note(table, null, row);
    });
    this.#applied = found.appliedLsn;
    this.#tracking = found.tracking;
  }

  /** Whether a target transaction is open. */
  get isOpen(): boolean {
    return this.#open;
  }

  /** The position that is committed on the target. */
  get appliedLsn(): Lsn {
    return this.#applied;
  }

  /** How long we have been waiting for the target to answer; 0 when we are not. */
  get waitingMs(): number {
    return this.#pipe.waitingMs;
  }

  get pid(): number {
    return this.#pipe.pid;
  }

  /** Memory of coalesced changes that have not been sent. */
  get pendingBytes(): number {
    return this.#sets.bytes;
  }

  /**
   * Takes an insert (`I`), update (`U`) without an old tuple, or delete (`D`) by key into the set of its table, from the
   * message's bytes; `at` is its tuple. False: it must go the ordered way.
   */
  take(table: StreamedTable, tag: number, message: Buffer, at: number, end: number): boolean {
    return this.#sets.take(table, tag, message, at, end);
  }

  /** Sets the message of a change aside. Its memory must stay as it is. */
  hold(relation: HeldRelation, message: Buffer, transaction: OpenTransaction): void {
    this.#held.add(relation, message, transaction);
  }

  insert(table: StreamedTable, row: Tuple, transaction: SourceTransaction): void {
    this.#barrier(table);
    this.#note(table, null, row);
    if (this.#run?.table !== table) {
      this.#flushRun();
      this.#run = { table, rows: [], bytes: 0, transaction };
    }
    const run = this.#run;
    run.rows.push(row);
    run.bytes += sizeOf(row);
    const most = INSERT_SIZES[0];
    const fits = Math.max(1, Math.floor(MAX_INSERT_PARAMETERS / Math.max(1, table.columns.length)));
    if (run.rows.length >= Math.min(most, fits) || run.bytes > MAX_INSERT_BYTES) this.#flushRun();
  }

  update(table: StreamedTable, message: UpdateMessage, transaction: SourceTransaction): void {
    this.#barrier(table);
    this.#note(table, message.old, message.new);
    this.#flushRun();
    this.#send(updateRow(table, message), 1, {
      operation: 'update',
      table,
      row: oldRowOf(message),
      commitLsn: transaction.commitLsn,
    });
  }

  delete(table: StreamedTable, message: DeleteMessage, transaction: SourceTransaction): void {
    this.#barrier(table);
    this.#note(table, message.old, null);
    this.#flushRun();
    this.#send(deleteRow(table, message.old, message.oldKind === 'full'), 1, {
      operation: 'delete',
      table,
      row: message.old,
      commitLsn: transaction.commitLsn,
    });
  }

  truncate(tables: readonly StreamedTable[], restartIdentity: boolean, transaction: SourceTransaction): void {
    const [table] = tables;
    if (!table) return;
    for (const each of tables) this.#barrier(each);
    this.#changed.noteTruncate(tables);
    this.#flushRun();
    if (writesExisting(this.#scope)) {
      // sequences are set at the cutover
      for (const each of tables)
        this.#send({ text: deleteAllSql(each.plan.target), values: [] }, null, {
          operation: 'truncate',
          table: each,
          commitLsn: transaction.commitLsn,
        });
      return;
    }
    this.#send(truncateTables(tables, restartIdentity), null, {
      operation: 'truncate',
      table,
      commitLsn: transaction.commitLsn,
    });
  }

  /** A truncate that some parts of the table have seen: removes the rows of the others. */
  deleteParts(
    table: StreamedTable,
    parts: Pick<Extract<TruncateVerdict, { kind: 'some' }>, 'unseen' | 'seenRows'>,
    transaction: SourceTransaction,
  ): void {
    this.#barrier(table);
    this.#changed.noteTruncate([table]);
    this.#flushRun();
    this.#send(deleteParts(table, parts.unseen, parts.seenRows), null, {
      operation: 'truncate',
      table,
      commitLsn: transaction.commitLsn,
    });
  }

  /** The marker of a part that the stream read itself, after its row. */
  writePart(table: StreamedTable, marker: Statement, { commitLsn }: SourceTransaction): void {
    this.#barrier(table);
    this.#flushRun();
    this.#send(marker, 1, { operation: 'insert', table, commitLsn });
  }

  /** Until `endInOrder`, what is pending is another batch's: no barrier sends it. `current`: but what is set aside. */
  beginInOrder(current: boolean): void {
    this.#again = true;
    if (!current) {
      this.#heldBeside = this.#held;
      this.#held = new HeldChanges();
    }
    this.#begin();
  }

  async endInOrder(): Promise<void> {
    this.#flushRun();
    this.#again = false;
    if (this.#heldBeside !== null) {
      this.#sendHeld(true);
      this.#held = this.#heldBeside;
      this.#heldBeside = null;
    }
    await this.#pipe.idle();
  }

  /** Sends what ordered changes have gathered. */
  push(): void {
    if (this.#open) this.#pipe.flush();
  }

  /** Waits while too much is unanswered; throws the first failure of the batch. Call it between ordered changes. */
  async throttle(): Promise<void> {
    const { failure } = this.#pipe;
    if (failure) throw failure;
    if (this.#changed.isFull) this.#sendChangedKeys();
    if (this.#held.isFull) this.#sendHeld(false);
    if (this.#pipe.unanswered < MAX_UNANSWERED && this.#pipe.bufferedBytes < MAX_UNANSWERED_BYTES) return;
    await this.#pipe.throttle(MAX_UNANSWERED / 2, MAX_UNANSWERED_BYTES / 2);
  }

  /** What is pending will leave as it is now: arranges it, in the time in which the target would not take it yet. */
  arrange(): void {
    this.#sets.arrange();
  }

  /**
   * Writes everything that is pending, beginning the transaction if none is open. `ended`: its last source transaction is
   * complete, and `finish` follows, whose statements leave with it. Does not wait.
   */
  send(ended: boolean): void {
    this.#begin();
    this.#flushRun();
    this.#sets.writeAll();
    this.#sendHeld(ended);
    if (ended) return;
    this.#pipe.sync();
    this.#pipe.flush();
  }

  /** Waits until the target has carried out all that was sent. Throws the first failure. */
  async answered(): Promise<void> {
    await this.#pipe.idle();
  }

  /**
   * Ends the batch that `send` sent: the position, and COMMIT once every row count is right; what was taken since stays
   * pending. Resolves to whether the commit is durable, which `mayBeLate` is asked for just before: then everything before
   * it is, too. Errors: `unexpected_row`, what fromPostgres says, `connection_failed` of
   * kind `ambiguous` when another session moved the progress, TRACKING_BEGAN when the keys of a set should have been noted,
   * HOLDS_CHANGED when other tables are to be set aside than this connection knows.
   */
  async finish(end: BatchEnd, mayBeLate = (): boolean => false): Promise<boolean> {
    this.#sendChangedKeys();
    for (const [at, { text, values }] of this.#position.move(end).entries())
      this.#pipe.execute(text, values, at === 0 ? 1 : null, { operation: 'progress' });
    await this.#pipe.idle();
    if (this.#unnoted && this.#tracking) throw TRACKING_BEGAN;
    this.#scope.failpoint('sync.before-target-commit');
    const isLate = mayBeLate();
    if (isLate) this.#pipe.execute('set local synchronous_commit = off', [], null, { operation: 'progress' });
    this.#pipe.execute('commit', [], 'COMMIT', { operation: 'progress' });
    await this.#pipe.idle();
    this.#sets.ended('committed');
    this.#unnoted = false;
    this.#open = false;
    this.#applied = end.position;
    return !isLate;
  }

  /**
   * After a failure that left the connection usable: nothing of the open transaction stays. What is pending belongs to the
   * next one, or is dropped.
   */
  async rollback(dropPending: boolean): Promise<void> {
    this.#run = null;
    if (dropPending) {
      this.#sets.drop();
      this.#held = new HeldChanges();
    }
    // after an error the server ignores everything up to a Sync
    await this.#pipe.idle().catch(() => undefined);
    this.#pipe.reset();
    this.#pipe.execute('rollback', [], null, { operation: 'progress' });
    this.#pipe.execute('deallocate all', [], null, { operation: 'progress' });
    await this.#pipe.idle();
    this.#pipe.reset(); // what was prepared is gone
    this.#sets.ended('rolled back');
    this.#changed.take();
    this.#unnoted = false;
    this.#open = false;
  }

  #begin(): void {
    if (this.#open) return;
    this.#open = true;
    const context: ChangeContext = { operation: 'progress' };
    this.#pipe.execute('begin', [], null, context);
    this.#pipe.execute('set constraints all deferred', [], null, context);
    // The lock, and the comparison, shut out a session of ours that the server still runs after its connection broke:
    // its COMMIT may arrive after we have read the progress.
    const { text, values } = this.#position.lock(this.#applied);
    this.#pipe.execute(text, values, 1, context);
  }

  #barrier(table: StreamedTable): void {
    this.#begin();
    if (this.#again || !this.#sets.has(table)) return;
    this.#flushRun(); // what it holds of this table came before
    this.#sets.write(table);
  }

  #note(table: StreamedTable, before: Tuple | null, after: Tuple | null): void {
    const { keyPositions, columns } = table;
    const asText = (row: Tuple): Tuple =>
      row.map((value, position) =>
        keyPositions.includes(position) ? textOf(columns[position]?.type ?? '', value) : value,
      );
    this.#changed.noteRow(table, before && asText(before), after && asText(after));
  }

  #sendChangedKeys(): void {
    for (const { text, values } of this.#changed.take())
      this.#pipe.execute(text, values, null, { operation: 'progress' });
  }

  #sendHeld(ended: boolean): void {
    for (const { relation, lastCommit, messages } of this.#held.take(ended)) {
      this.#begin();
      this.#pipe.execute(
        'insert into dts.held_change (task_id, relation, last_commit, messages) values ($1, $2, $3::pg_lsn, $4::bytea)',
        [this.#scope.taskId, relation, lastCommit, messages],
        1,
        { operation: 'progress' },
      );
    }
  }

  #flushRun(): void {
    const run = this.#run;
    if (!run) return;
    this.#run = null;
    const { table, rows, transaction } = run;
    for (let at = 0; at < rows.length; ) {
      const size = INSERT_SIZES.find((each) => each <= rows.length - at) ?? 1;
      const chunk = rows.slice(at, at + size);
      const row = chunk[0];
      this.#send(insertRows(table, chunk), size, {
        operation: 'insert',
        table,
        commitLsn: transaction.commitLsn,
        ...(row === undefined ? {} : { row }),
      });
      at += size;
    }
  }

  #send(statement: Statement, expectedRows: number | null, context: ChangeContext): void {
    this.#pipe.execute(statement.text, statement.values, expectedRows, context);
  }
}

function sizeOf(row: Tuple): number {
  let bytes = 0;
  for (const value of row) if (value !== null && typeof value !== 'symbol') bytes += value.length;
  return bytes;
}
