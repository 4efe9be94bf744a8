// Builds keys and indexes on the target while other tables are still copied. Made by copy-tables.ts. At most indexJobs
// statements run at once, keys before indexes; each commits together with its journal row, so it runs once.
import { relationKey } from '../model/relation.ts';
import { retryDelayMs } from '../model/retry.ts';
import type { PlannedStatement, SchemaPlan } from '../model/schema-plan.ts';
import { asMigrationError, MigrationError } from '../model/errors.ts';
import { defaultIndexJobs, type Host } from '../postgres/host.ts';
import type { Session } from '../postgres/connections.ts';
import { runStatement, statementsDone } from '../postgres/statement-journal.ts';
import type { IndexProgress } from '../model/progress.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';
import { buildMemoryBytes, memoryOfBuild } from './build-memory.ts';
import { planIndexes, splitUnique, type IndexPlan } from './index-plan.ts';
import type { Waits } from './waits.ts';

const MAX_FAILURES = 5;
const WATCH_INTERVAL_MS = 1_000;

/** What a build may take of the target's machine. */
export interface BuildLimits {
  readonly jobs: number;
  /** Null: unknown. */
  readonly cores: number | null;
  /** `max_parallel_maintenance_workers`. */
  readonly maxWorkers: number;
  /** Most of `maintenance_work_mem` that one build may have, in bytes. */
  readonly memoryBytes: number;
}

/**
 * Parallel workers of one build beside `busy - 1` other builds and parts: cores that nobody else uses. A build of several
 * processes takes about half as much CPU again as one that sorts alone, so it must not take the cores from the others.
 * Null leaves the server's setting, where its cores are unknown.
 */
export function buildWorkers(
  { cores, maxWorkers }: Pick<BuildLimits, 'cores' | 'maxWorkers'>,
  busy: number,
): number | null {
  if (cores === null) return null;
  return Math.max(0, Math.min(maxWorkers, Math.floor(cores / Math.max(1, busy)) - 1));
}

export class IndexBuilder {
  readonly #scope: TaskScope;
  readonly #plan: IndexPlan;
  readonly #signal: AbortSignal;
  readonly #waits: Waits;
  readonly #limits: BuildLimits;
  /** Estimated, by `relationKey`. */
  readonly #tableBytes: ReadonlyMap<string, number>;
  readonly #idle: Session[] = [];
  readonly #unique = new Map<string, readonly PlannedStatement[]>();
  readonly #queue: { readonly isKey: boolean; readonly start: () => void }[] = [];
  /** By the pid of the session that runs it. */
  readonly #building = new Map<number, PlannedStatement>();
  /** Ends the look at the builds; null: nobody looks. */
  #watch: AbortController | null = null;
  #running = 0;
  /** Parts that are copied at the same time. */
  #copying: number;

  constructor(
    scope: TaskScope,
    plan: IndexPlan,
    limits: BuildLimits,
    tableBytes: ReadonlyMap<string, number>,
    copyJobs: number,
    waits: Waits,
    signal: AbortSignal,
  ) {
    this.#scope = scope;
    this.#plan = plan;
    this.#limits = limits;
    this.#tableBytes = tableBytes;
    this.#copying = copyJobs;
    this.#waits = waits;
    this.#signal = signal;
  }

  /**
   * Runs the statements of one complete table. `isOneSnapshot`: all of its rows were read under one; otherwise unique
   * constraints are left for `finishUnique`. Errors: `schema_failed`, `disk_full`, `aborted` …
   */
  async build(table: string, isOneSnapshot: boolean): Promise<void> {
    const groups = this.#plan.byTable.get(table) ?? [];
    const { now, later } = isOneSnapshot ? { now: groups, later: [] } : splitUnique(groups);
    if (later.length > 0) this.#unique.set(table, later);
    if (groups.length > 0) this.#scope.progress.updateTable(table, { state: 'indexing' });
    // all of a group are awaited, so that none runs on after an error
    for (const group of now) {
      const results = await Promise.allSettled(group.map((statement) => this.#run(statement)));
      for (const result of results) if (result.status === 'rejected') throw asMigrationError(result.reason);
    }
    if (later.length === 0 && this.#plan.last.every((statement) => statement.table !== table))
      this.#scope.progress.updateTable(table, { state: 'ready' }, true);
  }

  /** Tables whose unique constraints wait for the stream. */
  get waiting(): readonly string[] {
    return [...this.#unique.keys()];
  }

  /** Whether tables are still to become partitions of ones that the task had before. */
  get attaches(): boolean {
    return this.#plan.last.some(({ attaches }) => attaches !== undefined);
  }

  /** Runs what waited for the stream to pass the horizons of `waiting`. */
  async finishUnique(): Promise<void> {
    for (const [table, statements] of this.#unique) {
      for (const statement of statements) await this.#run(statement);
      if (this.#plan.last.every((statement) => statement.table !== table))
        this.#scope.progress.updateTable(table, { state: 'ready' }, true);
    }
    this.#unique.clear();
  }

  /** Runs what had to wait for every table. */
  async finish(): Promise<void> {
    for (const statement of this.#plan.last) await this.#run(statement);
    for (const table of new Set(this.#plan.last.map((statement) => statement.table)))
      if (table !== null) this.#scope.progress.updateTable(table, { state: 'ready' }, true);
  }

  /** No part is copied any more: the builds have the machine for themselves. */
  copyEnded(): void {
    this.#copying = 0;
  }

  /** Closes the idle sessions; running statements are ended by the signal, not here. */
  async close(): Promise<void> {
    await Promise.all(this.#idle.splice(0).map((session) => session.close()));
  }

  async #run(statement: PlannedStatement): Promise<void> {
    await this.#enter(statement.phase === 'key');
    try {
      for (let failures = 1; ; failures++) {
        this.#throwIfAborted();
        try {
          await this.#runOnce(statement);
          return;
        } catch (error) {
          this.#throwIfAborted();
          const failure = asMigrationError(error);
          if (failure.kind !== 'transient' || failures > MAX_FAILURES) throw failure;
          const ms = retryDelayMs(failures, Math.random());
          const reason = `${failure.message}; next attempt in ${Math.ceil(ms / 1_000)} s`;
          await this.#waits.pause(`statement ${statement.n}`, reason, ms, this.#signal);
          // the connection may have broken after COMMIT had been sent
          if ((await statementsDone(this.#scope)).has(statement.n)) return;
        }
      }
    } finally {
      this.#leave();
    }
  }

  async #runOnce(statement: PlannedStatement): Promise<void> {
    const session =
      this.#idle.pop() ?? (await this.#scope.target.session({ purpose: 'index', signal: this.#signal }));
    try {
      this.#scope.failpoint('copy.before-index');
      this.#building.set(session.pid, statement);
      if (this.#watch === null) {
        this.#watch = new AbortController();
        void this.#look(AbortSignal.any([this.#signal, this.#watch.signal]));
      }
      await runStatement(this.#scope, session, statement, this.#settings(statement));
    } catch (error) {
      await session.close();
      throw error;
    } finally {
      this.#building.delete(session.pid);
      if (this.#building.size === 0) {
        this.#watch?.abort();
        this.#watch = null;
      }
    }
    this.#idle.push(session);
  }

  #settings(statement: PlannedStatement): Record<string, string> {
    const workers = buildWorkers(this.#limits, this.#copying + this.#running + this.#queue.length);
    const memoryBytes = memoryOfBuild(
      statement,
      this.#tableBytes.get(statement.table ?? '') ?? Infinity, // a root's own statements have no size
      1 + (workers ?? this.#limits.maxWorkers),
      this.#limits.memoryBytes,
    );
    return {
      maintenance_work_mem: `${Math.floor(memoryBytes / 1024)}kB`,
      lock_timeout: '60s', // then the statement is tried again, with the reason shown
      synchronous_commit: 'on',
      ...(workers === null ? {} : { max_parallel_maintenance_workers: String(workers) }),
    };
  }

  /** Shows how far the builds are, until told to stop. */
  async #look(signal: AbortSignal): Promise<void> {
    const shown = new Set<string>();
    const show = (table: string, indexProgress: IndexProgress | null): void => {
      if (indexProgress === null) shown.delete(table);
      else shown.add(table);
      this.#scope.progress.updateTable(table, { indexProgress });
    };
    try {
      for (;;) {
        await sleep(WATCH_INTERVAL_MS, signal);
        const { rows } = await this.#scope.target.query<{ pid: number; phase: string; share: number | null }>(
          `select pid, phase, coalesce(blocks_done::float8 / nullif(blocks_total, 0),
                                       tuples_done::float8 / nullif(tuples_total, 0)) as share
             from pg_stat_progress_create_index where pid = any($1::int[])`,
          [[...this.#building.keys()]],
        );
        if (signal.aborted) return;
        const now = new Set<string>();
        for (const { pid, phase, share } of rows) {
          const statement = this.#building.get(pid);
          if (!statement || statement.table === null) continue;
          now.add(statement.table);
          show(statement.table, { object: statement.object, phase, share });
        }
        for (const table of shown) if (!now.has(table)) show(table, null);
      }
    } catch (error) {
      if (!signal.aborted) this.#scope.log.debug({ error }, 'could not look at the index builds');
    } finally {
      for (const table of shown) show(table, null);
    }
  }

  async #enter(isKey: boolean): Promise<void> {
    if (this.#running < this.#limits.jobs) {
      this.#running++;
      return;
    }
    await new Promise<void>((start) => {
      const before = isKey ? this.#queue.findIndex((waiting) => !waiting.isKey) : -1;
      this.#queue.splice(before === -1 ? this.#queue.length : before, 0, { isKey, start });
    });
  }

  #leave(): void {
    const next = this.#queue.shift();
    if (next) next.start();
    else this.#running--;
  }

  #throwIfAborted(): void {
    if (this.#signal.aborted) throw new MigrationError('aborted', 'stopped on request');
  }
}

/** Asks the target for its journal. `host`: of the target; `copyJobs`: parts that are copied beside the builds. */
export async function makeIndexBuilder(
  scope: TaskScope,
  plan: SchemaPlan,
  {
    host,
    copyJobs,
    waits,
    signal,
  }: {
    readonly host: Host;
    readonly copyJobs: number;
    readonly waits: Waits;
    readonly signal: AbortSignal;
  },
): Promise<IndexBuilder> {
  const done = await statementsDone(scope);
  const { rows } = await scope.target.query<{ shared: string; present: string; workers: number }>(
    `select pg_size_bytes(current_setting('shared_buffers'))::text as shared,
            pg_size_bytes(current_setting('maintenance_work_mem'))::text as present,
            current_setting('max_parallel_maintenance_workers')::int as workers`,
  );
  const jobs = scope.spec.options.indexJobs ?? defaultIndexJobs(host);
  const { shared = '0', present = '0', workers = 0 } = rows[0] ?? {};
  const memory = { ...host, sharedBuffers: Number(shared), present: Number(present) };
  const limits: BuildLimits = {
    jobs,
    cores: host.cores,
    maxWorkers: workers,
    memoryBytes: buildMemoryBytes(memory, jobs),
  };
  scope.log.info({ ...limits, copyJobs }, 'what the copy takes of the target');
  const tableBytes = new Map(plan.tables.map((table) => [relationKey(table.source), table.bytesEstimated]));
  const indexes = planIndexes(plan.statements, new Set(tableBytes.keys()), done);
  return new IndexBuilder(scope, indexes, limits, tableBytes, copyJobs, waits, signal);
}
