// Writes one batch of changes to the target: one transaction on one pipelined session, statements sent without waiting
// for answers, consecutive inserts into one table as multi-row statements, every row count checked. The batch's position
// is committed with its rows, so each source transaction is applied exactly once, whatever dies when. Driven by replay.ts.
import type { Duplex } from 'node:stream';
import { MigrationError } from '../model/errors.ts';
import type { Lsn } from '../model/lsn.ts';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import type { DeleteMessage, Tuple, UpdateMessage } from '../postgres/pgoutput.ts';
import type { SlotRecord } from '../postgres/slot.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { classify, unexpectedRow, type ChangeContext } from './apply-errors.ts';
import { ChangedKeys } from './changed-keys.ts';
import type { SourceTransaction, TruncateVerdict } from './filter.ts';
import type { StreamedTable } from './relations.ts';
import {
  deleteParts,
  deleteRow,
  insertRows,
  oldRowOf,
  truncateTables,
  updateRow,
  type Statement,
} from './statements.ts';

/** Rows of one INSERT. Few sizes, so that few statements are prepared; a run is cut greedily. */
const INSERT_SIZES = [128, 16, 1] as const;
const MAX_INSERT_PARAMETERS = 8_192;
const MAX_INSERT_BYTES = 1024 * 1024;
/** Sent and not answered yet: bounds our memory and the server's when the source sends faster than the target takes. */
const MAX_UNANSWERED = 2_000;
const MAX_UNANSWERED_BYTES = 16 * 1024 * 1024;
const MAX_PREPARED = 500;

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
  readonly #session: Session;
  readonly #slot: SlotRecord;
  readonly #prepared = new Map<string, string>();
  readonly #changed: ChangedKeys;
  #applied: Lsn;
  #open = false;
  #run: {
    readonly table: StreamedTable;
    rows: Tuple[];
    bytes: number;
    transaction: SourceTransaction;
  } | null = null;
  #unanswered = 0;
  #unansweredBytes = 0;
  #failure: MigrationError | null = null;
  #locked: Promise<void> = Promise.resolve();
  #wake: (() => void) | null = null;
  #corked = false;
  #waitingSince: number | null = null;

  /** `appliedLsn`: what dts.progress said when this connection began. */
  constructor(scope: TaskScope, session: Session, slot: SlotRecord, appliedLsn: Lsn) {
    this.#scope = scope;
    this.#session = session;
    this.#slot = slot;
    this.#applied = appliedLsn;
    this.#changed = new ChangedKeys(scope.taskId);
  }

  /** Whether a target transaction is open. */
  get isOpen(): boolean {
    return this.#open;
  }

  /** The position that is durable on the target. */
  get appliedLsn(): Lsn {
    return this.#applied;
  }

  /** How long we have been waiting for the target to answer; 0 when we are not. */
  get waitingMs(): number {
    return this.#waitingSince === null ? 0 : Date.now() - this.#waitingSince;
  }

  get pid(): number {
    return this.#session.pid;
  }

  /** Begins the batch now; for one that carries a marker and no rows. */
  open(): void {
    this.#begin();
  }

  insert(table: StreamedTable, row: Tuple, transaction: SourceTransaction): void {
    this.#begin();
    this.#changed.noteRow(table, null, row);
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
    this.#begin();
    this.#changed.noteRow(table, message.old, message.new);
    this.#flushRun();
    this.#send(updateRow(table, message), 1, {
      operation: 'update',
      table,
      row: oldRowOf(message),
      commitLsn: transaction.commitLsn,
    });
  }

  delete(table: StreamedTable, message: DeleteMessage, transaction: SourceTransaction): void {
    this.#begin();
    this.#changed.noteRow(table, message.old, null);
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
    this.#begin();
    this.#changed.noteTruncate(tables);
    this.#flushRun();
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
    this.#begin();
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
    this.#begin();
    this.#flushRun();
    this.#send(marker, 1, { operation: 'insert', table, commitLsn });
  }

  /** Waits while too much is unanswered; throws the first failure of the batch. Call it between changes. */
  async throttle(): Promise<void> {
    if (this.#failure) await this.#raise(this.#failure);
    if (this.#changed.isFull) this.#sendChangedKeys();
    if (this.#unanswered < MAX_UNANSWERED && this.#unansweredBytes < MAX_UNANSWERED_BYTES) return;
    await this.#answered(MAX_UNANSWERED / 2, MAX_UNANSWERED_BYTES / 2);
  }

  /** Sends what is buffered; the changes of a long transaction must not wait for its end. */
  push(): void {
    this.#uncork();
  }

  /**
   * Ends the batch: inserts still collected, the position, COMMIT. Resolves when the commit is durable.
   * Errors: `unexpected_row`, what fromPostgres says, `connection_failed` of kind `ambiguous` when another session moved
   * the progress.
   */
  async commit(end: BatchEnd): Promise<void> {
    this.#begin();
    this.#flushRun();
    this.#sendChangedKeys();
    this.#send(
      {
        text: `update dts.progress set applied_lsn = $3::pg_lsn, acked_lsn = $3::pg_lsn, updated_at = now(),
                 marker = coalesce($4, marker), marker_lsn = coalesce($5::pg_lsn, marker_lsn)
               where task_id = $1 and slot_incarnation = $2`,
        values: [
          this.#scope.taskId,
          this.#slot.incarnation,
          end.position,
          end.marker?.id ?? null,
          end.marker?.lsn ?? null,
        ],
      },
      1,
      { operation: 'progress' },
    );
    await this.#answered(0, 0);
    this.#scope.failpoint('sync.before-target-commit');
    this.#waitingSince = Date.now();
    try {
      const { command } = await this.#session.client.query('commit');
      // COMMIT of a failed transaction succeeds as ROLLBACK
      if (command !== 'COMMIT')
        throw new MigrationError('internal', `target: COMMIT of a batch ended as ${command}`);
    } catch (error) {
      throw fromPostgres(error, { role: 'target', position: end.position });
    } finally {
      this.#waitingSince = null;
    }
    this.#open = false;
    this.#applied = end.position;
  }

  #begin(): void {
    if (this.#open) return;
    this.#open = true;
    this.#cork();
    void this.#track(this.#session.client.query('begin'), 0, null, { operation: 'progress' });
    void this.#track(this.#session.client.query('set constraints all deferred'), 0, null, {
      operation: 'progress',
    });
    // The lock, and the comparison, shut out a session of ours that the server still runs after its connection broke:
    // its COMMIT may arrive after we have read the progress.
    const expected = this.#applied;
    const locking = this.#session.client.query<{ applied: Lsn }>(
      `select applied_lsn::text as applied from dts.progress where task_id = $1 and slot_incarnation = $2 for update`,
      [this.#scope.taskId, this.#slot.incarnation],
    );
    this.#locked = locking.then((result) => {
      const found = result.rows[0]?.applied ?? null;
      if (found === expected) return;
      throw new MigrationError(
        'connection_failed',
        `target: the progress is at ${found ?? 'nothing'}, expected ${expected}`,
        { kind: 'ambiguous', details: { found, expected } },
      );
    });
    void this.#track(
      this.#locked.then(() => ({ rowCount: null })),
      0,
      null,
      { operation: 'progress' },
    );
  }

  #sendChangedKeys(): void {
    for (const statement of this.#changed.take()) this.#send(statement, null, { operation: 'progress' });
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
    this.#cork();
    let bytes = statement.text.length;
    for (const value of statement.values) bytes += value?.length ?? 0;
    const { client } = this.#session;
    const values = [...statement.values];
    const name = values.length === 0 ? undefined : this.#nameOf(statement.text);
    const query =
      name === undefined ? { text: statement.text, values } : { name, text: statement.text, values };
    void this.#track(client.query(query), bytes, expectedRows, context);
  }

  #nameOf(text: string): string | undefined {
    const known = this.#prepared.get(text);
    if (known !== undefined) return known;
    if (this.#prepared.size >= MAX_PREPARED) return undefined;
    const name = `dts_${this.#prepared.size}`;
    this.#prepared.set(text, name);
    return name;
  }

  /** Never rejects: the first failure is kept for whoever waits next. */
  async #track(
    answer: Promise<{ readonly rowCount: number | null }>,
    bytes: number,
    expectedRows: number | null,
    context: ChangeContext,
  ): Promise<void> {
    this.#unanswered++;
    this.#unansweredBytes += bytes;
    try {
      const { rowCount } = await answer;
      if (expectedRows !== null && rowCount !== expectedRows)
        this.#failure ??= unexpectedRow(context, `${rowCount ?? 0} rows instead of ${expectedRows}`);
    } catch (error) {
      this.#failure ??= classify(error, context);
    }
    this.#unanswered--;
    this.#unansweredBytes -= bytes;
    this.#wake?.();
  }

  async #answered(most: number, mostBytes: number): Promise<void> {
    this.#uncork();
    this.#waitingSince = Date.now();
    try {
      while (!this.#failure && (this.#unanswered > most || this.#unansweredBytes > mostBytes))
        await new Promise<void>((resolve) => (this.#wake = resolve));
      this.#wake = null;
    } finally {
      this.#waitingSince = null;
    }
    if (this.#failure) await this.#raise(this.#failure);
  }

  // A batch on top of a position that had moved fails in its rows too; the reason is what counts.
  async #raise(failure: MigrationError): Promise<never> {
    await this.#locked;
    throw failure;
  }

  // `pg` writes every statement by itself; between cork and uncork many leave in one write.
  #cork(): void {
    if (this.#corked) return;
    this.#corked = true;
    this.#socket().cork();
  }

  #uncork(): void {
    if (!this.#corked) return;
    this.#corked = false;
    this.#socket().uncork();
  }

  #socket(): Duplex {
    return (this.#session.client as unknown as { connection: { stream: Duplex } }).connection.stream;
  }
}

function sizeOf(row: Tuple): number {
  let bytes = 0;
  for (const value of row) if (value !== null && typeof value !== 'symbol') bytes += value.length;
  return bytes;
}
