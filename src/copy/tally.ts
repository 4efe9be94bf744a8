// What the tables of a copy show: the finished parts of each, and what has been read of the running ones. Told by
// copy-parts.ts; says when a table is complete.
import { relationKey } from '../model/relation.ts';
import type { TableProgress } from '../model/progress.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { CopyFormat } from '../postgres/binary-form.ts';
import type { CopyPart, Marker } from './plan.ts';

interface Counts {
  readonly rows: number;
  readonly bytes: number;
}

interface TableTally {
  readonly total: number;
  /** By the statistics. */
  readonly rowsEstimated: number;
  readonly done: Map<number, Marker>;
  readonly running: Map<number, Counts>;
}

export class Tally {
  readonly #scope: TaskScope;
  readonly #tables = new Map<string, TableTally>();

  /** Shows every table as it is before the first marker is read. `isLive`: beside others that are copied. */
  constructor(scope: TaskScope, parts: readonly CopyPart[], isLive = false) {
    this.#scope = scope;
    const tables = new Map<string, TableProgress>();
    for (const { relation, table } of parts) {
      const known = tables.get(relation);
      tables.set(relation, {
        table: relation,
        target: relationKey(table.target),
        state: 'pending',
        rowsCopied: 0,
        rowsEstimated: table.rowsEstimated,
        bytesCopied: 0,
        bytesEstimated: table.bytesEstimated,
        partsDone: 0,
        partsTotal: (known?.partsTotal ?? 0) + 1,
        format: null,
        formatReason: null,
      });
    }
    if (isLive) scope.progress.addTables([...tables.values()]);
    else scope.progress.setTables([...tables.values()]);
    for (const { table, partsTotal, rowsEstimated } of tables.values()) {
      this.#tables.set(table, { total: partsTotal, rowsEstimated, done: new Map(), running: new Map() });
      // what a former run showed of parts that were not finished is not true any more
      this.#show(table, { state: 'pending', partsTotal });
    }
  }

  isDone({ relation, part }: CopyPart): boolean {
    return this.#of(relation).done.has(part);
  }

  begin({ relation, part }: CopyPart, { format, reason: formatReason }: CopyFormat): void {
    this.#of(relation).running.set(part, { rows: 0, bytes: 0 });
    this.#show(relation, { state: 'copying', format, formatReason });
  }

  moved({ relation, part }: CopyPart, counts: Counts): void {
    this.#of(relation).running.set(part, counts);
    this.#show(relation, {});
  }

  undo({ relation, part }: CopyPart): void {
    const table = this.#of(relation);
    table.running.delete(part);
    this.#show(relation, table.running.size === 0 ? { state: 'pending' } : {});
  }

  /** True when it was the table's last part. */
  done({ relation, part }: CopyPart, marker: Marker): boolean {
    const table = this.#of(relation);
    table.running.delete(part);
    table.done.set(part, marker);
    const complete = table.done.size === table.total;
    this.#show(relation, complete ? { state: 'copied' } : {}, true);
    return complete;
  }

  /** Of a complete table: whether one generation read all of it. */
  isOneSnapshot(relation: string): boolean {
    return new Set([...this.#of(relation).done.values()].map((marker) => marker.generation)).size <= 1;
  }

  /** The table starts over. */
  reset(relation: string): void {
    const table = this.#of(relation);
    table.done.clear();
    table.running.clear();
    this.#show(relation, { state: 'pending' });
  }

  #show(relation: string, patch: Partial<TableProgress>, durable = false): void {
    const table = this.#of(relation);
    const { done, running } = table;
    const all: Counts[] = [...done.values(), ...running.values()];
    this.#scope.progress.updateTable(
      relation,
      {
        ...patch,
        partsDone: done.size,
        rowsEstimated: rowsExpected(table),
        rowsCopied: all.reduce((sum, { rows }) => sum + rows, 0),
        bytesCopied: all.reduce((sum, { bytes }) => sum + bytes, 0),
      },
      durable,
    );
  }

  #of(relation: string): TableTally {
    const table = this.#tables.get(relation);
    if (table) return table;
    const made: TableTally = { total: 1, rowsEstimated: 0, done: new Map(), running: new Map() };
    this.#tables.set(relation, made);
    return made;
  }
}

/** Parts are cut into equal shares: those that are finished tell better than the statistics what is in the others. */
function rowsExpected({ total, rowsEstimated, done, running }: TableTally): number {
  if (done.size === 0) return rowsEstimated;
  const rows = (counts: Iterable<Counts>): number[] => [...counts].map((each) => each.rows);
  const finished = rows(done.values()).reduce((sum, count) => sum + count, 0);
  const share = finished / done.size;
  const begun = rows(running.values()).reduce((sum, count) => sum + Math.max(count, share), 0);
  return Math.round(finished + begun + share * (total - done.size - running.size));
}
