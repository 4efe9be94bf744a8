// Which rows the stream changes, for the validation: apply.ts collects the keys of a batch and writes them to dts.changed
// in the rows' own target transaction. So a row that was compared and has not been written down since is still as it was
// compared, whatever dies when.
//
//   1 a table with a key   one JSON array of the key's texts per row, old key and new
//   2 TRUNCATE, a key that null: the whole table is to be compared again
//     is not text, or none
import { UNCHANGED, type Tuple } from '../postgres/pgoutput-messages.ts';
import type { StreamedTable } from './relations.ts';
import type { Statement } from './statements.ts';

/** Keys held in memory before they are sent; a single transaction may change millions of rows. */
const MAX_KEYS = 10_000;

export class ChangedKeys {
  readonly #taskId: string;
  readonly #tables = new Map<string, Set<string> | null>();
  #count = 0;

  constructor(taskId: string) {
    this.#taskId = taskId;
  }

  /** Whether the keys should be sent now, before the batch ends. */
  get isFull(): boolean {
    return this.#count >= MAX_KEYS;
  }

  /** The row before and after the change; `before` may be null although the change is an update that keeps the key. */
  noteRow(table: StreamedTable, before: Tuple | null, after: Tuple | null): void {
    if (before !== null) this.#note(table, before, null);
    if (after !== null) this.#note(table, after, before);
  }

  noteTruncate(tables: readonly StreamedTable[]): void {
    for (const table of tables) this.#tables.set(table.key, null);
  }

  /**
   * The statements that write down what was collected, one a table, and forgets it. They write nothing unless the
   * validation asked for it (`dts.progress.tracking`): whoever sets that waits for the lock that the batch holds.
   */
  take(): Statement[] {
    const statements = [...this.#tables].map(([relation, keys]) => ({
      text: `insert into dts.changed (task_id, relation, keys)
             select task_id, $2, $3 from dts.progress where task_id = $1 and tracking`,
      values: [this.#taskId, relation, keys === null ? null : `[${[...keys].join(',')}]`],
    }));
    this.#tables.clear();
    this.#count = 0;
    return statements;
  }

  #note(table: StreamedTable, row: Tuple, before: Tuple | null): void {
    const known = this.#tables.get(table.key);
    if (known === null) return;
    // An out-of-line key that the update did not touch is not sent again.
    const values = table.keyPositions.map((position) =>
      row[position] === UNCHANGED ? before?.[position] : row[position],
    );
    if (values.length === 0 || !values.every((value) => typeof value === 'string')) {
      this.#tables.set(table.key, null);
      return;
    }
    const keys = known ?? new Set<string>();
    if (known === undefined) this.#tables.set(table.key, keys);
    const size = keys.size;
    keys.add(JSON.stringify(values));
    this.#count += keys.size - size;
  }
}
