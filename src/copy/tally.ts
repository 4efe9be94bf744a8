// What the tables of a copy show: the finished parts of each, and what has been read of the running ones, beside
// estimates that finished parts correct. Told by copy-parts.ts; says when a table is complete.
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
  readonly bytesOnDisk: number;
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
        bytesOnDisk: table.bytesEstimated,
        partsDone: 0,
        partsTotal: (known?.partsTotal ?? 0) + 1,
        format: null,
        formatReason: null,
      });
    }
    if (isLive) scope.progress.addTables([...tables.values()]);
    else scope.progress.setTables([...tables.values()]);
    for (const { table, partsTotal: total, rowsEstimated, bytesEstimated: bytesOnDisk } of tables.values()) {
      this.#tables.set(table, { total, rowsEstimated, bytesOnDisk, done: new Map(), running: new Map() });
      // what a former run showed of parts that were not finished is not true any more
      this.#show(table, { state: 'pending', partsTotal: total, bytesOnDisk });
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
    const bytesCopied = sumOf(all, 'bytes');
    this.#scope.progress.updateTable(
      relation,
      {
        ...patch,
        partsDone: done.size,
        rowsEstimated: expected(table, 'rows') ?? table.rowsEstimated,
        rowsCopied: sumOf(all, 'rows'),
        // what is compressed on the disk is sent as it is, and may be more
        bytesEstimated: expected(table, 'bytes') ?? Math.max(table.bytesOnDisk, bytesCopied),
        bytesCopied,
      },
      durable,
    );
  }

  #of(relation: string): TableTally {
    const table = this.#tables.get(relation);
    if (table) return table;
    const made: TableTally = {
      total: 1,
      rowsEstimated: 0,
      bytesOnDisk: 0,
      done: new Map(),
      running: new Map(),
    };
    this.#tables.set(relation, made);
    return made;
  }
}

function sumOf(counts: Iterable<Counts>, figure: keyof Counts): number {
  return [...counts].reduce((sum, each) => sum + each[figure], 0);
}

/**
 * Of the whole table: parts are cut into equal shares, so those that are finished tell better than the statistics what is
 * in the others. Null while none is.
 */
function expected({ total, done, running }: TableTally, figure: keyof Counts): number | null {
  if (done.size === 0) return null;
  const finished = sumOf(done.values(), figure);
  const share = finished / done.size;
  const begun = [...running.values()].reduce((sum, each) => sum + Math.max(each[figure], share), 0);
  return Math.round(finished + begun + share * (total - done.size - running.size));
}
