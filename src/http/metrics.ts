// GET /metrics: the figures of the tasks that have not ended in Prometheus' text format, read anew for every scrape, so that
// nothing is left of a task that is gone. Mounted by the app behind the same rules as the API. Labels are task ids and
// words of ours: never a message, a name of the database's or a secret. What is not known has no sample; what never
// comes is +Inf.
import { Counter, Gauge, Registry } from 'prom-client';
import { lagBytes, type Lsn } from '../model/lsn.ts';
import type { RestingSlot, SyncStatus } from '../model/progress.ts';
import type { Service } from '../model/service.ts';
import { isEnded, taskStates } from '../model/task-state.ts';
import type { TaskView } from '../model/task.ts';

/** Of each state that is not an end; more are counted, and not shown one by one. */
const MAX_TASKS = 1_000;

export interface Metrics {
  readonly contentType: string;
  readonly text: string;
}

/** Asks the service once for every state. */
export async function readMetrics(service: Service, version: string): Promise<Metrics> {
  const registry = new Registry();
  new Gauge({
    name: 'dts_info',
    help: 'The running service.',
    labelNames: ['version'],
    registers: [registry],
  })
    .labels(version)
    .set(1);
  const counts = new Gauge({
    name: 'dts_tasks',
    help: 'Migrations by state.',
    labelNames: ['state'],
    registers: [registry],
  });
  const figures = new TaskFigures(registry);
  for (const state of taskStates) {
    const ended = isEnded(state);
    const { tasks, total } = await service.listTasks({ state, limit: ended ? 1 : MAX_TASKS });
    counts.labels(state).set(total);
    if (!ended) for (const task of tasks) figures.add(task);
  }
  return { contentType: registry.contentType, text: await registry.metrics() };
}

class TaskFigures {
  readonly #registry: Registry;
  readonly #gauges = new Map<string, Gauge>();
  readonly #counters = new Map<string, Counter>();

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  add(task: TaskView): void {
    const { id, detail, error } = task;
    this.#set(id, 'state', 'The state of the migration: 1 with its name.', 1, { state: task.state });
    this.#set(id, 'progress_ratio', 'Share of the bytes that is copied, 0 to 1.', task.progress / 100);
    this.#set(id, 'copied_rows', 'Rows that are copied.', detail.rowsCopied);
    this.#set(id, 'copied_bytes', 'Bytes that are copied, as COPY sent them.', detail.bytesCopied);
    this.#set(
      id,
      'estimated_bytes',
      'Bytes that COPY will have sent: the size on the source, corrected by what is copied.',
      detail.bytesEstimated,
    );
    this.#set(id, 'copy_bytes_per_second', 'Rate of the copy.', detail.bytesPerSecond);
    this.#set(id, 'copy_eta_seconds', 'Until the copy is done at this rate.', detail.etaSeconds);
    this.#set(
      id,
      'connections',
      'Open PostgreSQL connections, walsender and COPY included.',
      task.connections,
    );
    this.#set(
      id,
      'fenced',
      '1 while the source refuses writes because of this migration.',
      Number(task.fenced),
    );
    this.#set(id, 'cleanup_pending', '1 while objects are left on a server.', Number(task.cleanupPending));
    this.#set(
      id,
      'write_stop_seconds',
      'Length of the last write stop.',
      task.writeStopMs === null ? null : task.writeStopMs / 1_000,
    );
    if (error !== null)
      this.#set(id, 'error', 'The last error, until a later step succeeds: 1 with its code.', 1, {
        code: error.code,
        kind: error.kind,
      });
    if (detail.sync !== null) this.#addSync(id, detail.sync);
    else if (task.restingSlot !== null) this.#addSlot(id, task.restingSlot);
  }

  #addSync(id: string, sync: SyncStatus): void {
    const { sourceLsn } = sync;
    const positions: readonly (readonly [behind: string, lsn: Lsn | null, seconds: number | null])[] = [
      ['sent', sync.sentLsn, sync.sentLagSeconds],
      ['received', sync.receivedLsn, sync.receivedLagSeconds],
      ['applied', sync.appliedLsn, sync.lagSeconds],
      ['flushed', sync.flushedLsn, sync.flushedLagSeconds],
    ];
    const between = 'WAL of the source between its current position and the one named.';
    const ago = 'How long ago the source stood at the position named.';
    for (const [behind, lsn, seconds] of positions) {
      const labels = { ahead: 'source', behind };
      this.#set(id, 'lag_bytes', between, lsn === null ? null : lagBytes(sourceLsn, lsn), labels);
      this.#set(id, 'lag_seconds', ago, seconds, labels);
    }
    if (sync.feed !== null)
      this.#set(id, 'feed', 'What the stream reads from: 1 with its name.', 1, { feed: sync.feed });
    this.#set(id, 'source_wal_bytes_per_second', 'WAL that the source writes.', sync.sourceBytesPerSecond);
    this.#set(id, 'applied_wal_bytes_per_second', 'WAL that is applied.', sync.appliedBytesPerSecond);
    this.#set(id, 'applied_changes_per_second', 'Changes of rows that are applied.', sync.changesPerSecond);
    this.#count(id, 'applied_changes_total', 'Changes applied since the stream began.', sync.changesApplied);
    this.#count(
      id,
      'applied_transactions_total',
      'Transactions applied since the stream began.',
      sync.transactionsApplied,
    );
    this.#set(
      id,
      'catch_up_seconds',
      'Until the target meets the source at these rates; +Inf: never.',
      sync.catchUpSeconds ?? Infinity,
    );
    if (sync.limitedBy !== null)
      this.#set(id, 'limited_by', 'The side that is waited for while behind: 1.', 1, {
        side: sync.limitedBy,
      });
    if (sync.inProgress !== null) {
      const { transactions, bytes, spilledBytes } = sync.inProgress;
      const sent = 'Transactions that the source has sent and not committed';
      this.#set(id, 'transactions_in_progress', `${sent}.`, transactions);
      this.#set(id, 'transactions_in_progress_bytes', `${sent}: their size.`, bytes);
      this.#set(id, 'transactions_in_progress_spilled_bytes', `${sent}: what is on our disk.`, spilledBytes);
    }
    if (sync.slot !== null) this.#addSlot(id, sync.slot);
  }

  #addSlot(id: string, slot: NonNullable<SyncStatus['slot']> | RestingSlot): void {
    this.#set(id, 'slot_retained_bytes', 'WAL that the source keeps for the slot.', slot.retainedBytes);
    this.#set(
      id,
      'slot_safe_wal_bytes',
      'WAL that may still be written before the slot is lost; +Inf: any.',
      slot.safeWalBytes ?? Infinity,
    );
    this.#set(
      id,
      'slot_seconds_until_lost',
      'Until the slot is lost at the present rate; +Inf: never.',
      slot.secondsUntilLost ?? Infinity,
    );
    if (slot.walStatus !== null)
      this.#set(id, 'slot_wal_status', 'wal_status of the slot: 1 with its word.', 1, {
        status: slot.walStatus,
      });
    if ('spillBytes' in slot)
      this.#set(id, 'slot_spilled_bytes', 'Written to disk by decoding on the source.', slot.spillBytes);
  }

  #set(
    task: string,
    name: string,
    help: string,
    value: number | null,
    labels: Readonly<Record<string, string>> = {},
  ): void {
    if (value === null) return;
    let gauge = this.#gauges.get(name);
    if (!gauge) {
      const labelNames = ['task', ...Object.keys(labels)];
      gauge = new Gauge({ name: `dts_task_${name}`, help, labelNames, registers: [this.#registry] });
      this.#gauges.set(name, gauge);
    }
    gauge.set({ task, ...labels }, value);
  }

  #count(task: string, name: string, help: string, value: number): void {
    let counter = this.#counters.get(name);
    if (!counter) {
      counter = new Counter({
        name: `dts_task_${name}`,
        help,
        labelNames: ['task'],
        registers: [this.#registry],
      });
      this.#counters.set(name, counter);
    }
    counter.inc({ task }, value);
  }
}
