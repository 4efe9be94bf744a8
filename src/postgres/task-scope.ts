// What a domain step (preflight, schema, copy, sync, cutover, validate) gets to work with. The runtime makes one per
// running activity; tests make their own. Domain code knows neither actors nor SQLite nor HTTP.
import type { Failpoint } from '../model/failpoints.ts';
import { withNumbers, type NumberRange } from '../model/number-ranges.ts';
import type { SchemaPlan, SchemaVerdict, SchemaView } from '../model/schema-plan.ts';
import type { SyncStatus, TableProgress } from '../model/progress.ts';
import type { TaskSpec } from '../model/task.ts';
import { MigrationError } from '../model/errors.ts';
import type { Side } from './connections.ts';

/** A step's own durable notes, by task; JSON values. A write is on disk when `set` returns. */
export interface Checkpoints {
  get<T>(key: string): T | undefined;
  set(key: string, value: unknown): void;
  delete(key: string): void;
}

/** Live figures for API, console and SSE. Calls are cheap: they may be made for every chunk. */
export interface ProgressPort {
  /** Replaces the list of tables; figures of tables already known by key are kept. */
  setTables(tables: readonly TableProgress[]): void;
  /** Adds those that are not known by key. */
  addTables(tables: readonly TableProgress[]): void;
  /** Tables that are copied while the stream goes on, and bytes of their changes that are set aside; null: none. */
  setCopying(copying: { readonly tables: readonly string[]; readonly heldBytes: number } | null): void;
  /** Changes figures of one table; `durable` also saves the row (part done, table ready). */
  updateTable(table: string, patch: Partial<TableProgress>, durable?: boolean): void;
  setSync(status: SyncStatus): void;
  /** Whether the online validation has found everything equal, as recently as the task demands. */
  setValidationClean(clean: boolean): void;
  /** Why the task stands still (`slot waits for pid 4711 …`); null when it does not. */
  setWaitingFor(reason: string | null): void;
}

export interface Log {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/** Programs that the operator lets the service run. */
export interface HookCommands {
  /** The operator lets it run none. */
  readonly isOff: boolean;
  /** Why `command` cannot be run, and the remedy; null when it can. */
  faultOf(command: string): Promise<{ readonly fault: string; readonly remedy: string } | null>;
  /**
   * Runs it with `input` on its standard input and nothing of our environment but `env`. It is killed, with all that it
   * has started, after `timeoutMs` and when the signal aborts. Throws what went wrong in words that fit behind its name.
   */
  run(
    command: string,
    input: string,
    env: Readonly<Record<string, string>>,
    options: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<void>;
}

export interface TaskScope {
  readonly taskId: string;
  /** Unique per created task, so that leftovers of a deleted task of the same id are recognised as strangers. */
  readonly incarnation: string;
  readonly spec: TaskSpec;
  readonly source: Side;
  readonly target: Side;
  readonly checkpoints: Checkpoints;
  readonly progress: ProgressPort;
  readonly hookCommands: HookCommands;
  /** For files of ours that have no name, of what a stream cannot keep in memory. */
  readonly spillFolder: string;
  readonly log: Log;
  /** Aborted on pause, cancel, deadline and shutdown. Check it in loops; hand it to sessions. */
  readonly signal: AbortSignal;
  /** Returns at once unless the process was told to die here. */
  failpoint(name: Failpoint): void;
}

/** Checkpoint of the SchemaPlan. */
export const schemaPlanNote = 'schemaPlan';

export function saveSchemaPlan(scope: TaskScope, plan: SchemaPlan): void {
  scope.checkpoints.set(schemaPlanNote, plan);
}

const turns = new Map<string, Promise<unknown>>();

/** Runs what reads the plan and saves another one behind whoever does so for the same task. */
export async function inTurn<T>({ taskId }: TaskScope, work: () => Promise<T>): Promise<T> {
  const turn = (turns.get(taskId) ?? Promise.resolve()).then(work, work);
  turns.set(taskId, turn);
  try {
    return await turn;
  } finally {
    if (turns.get(taskId) === turn) turns.delete(taskId);
  }
}

export function findSchemaPlan(scope: {
  readonly checkpoints: Pick<Checkpoints, 'get'>;
}): SchemaPlan | undefined {
  return scope.checkpoints.get<SchemaPlan>(schemaPlanNote);
}

/** For the API: what is committed on the target, as `[first, last]` numbers; the journal there is the truth. */
const STATEMENTS_DONE = 'statementsDone';
export const SCHEMA_VERDICT = 'schemaVerdict';

/** Every checkpoint waits for the disk: single statements are noted together. */
const NOTE_AFTER_MS = 200;
const unnoted = new WeakMap<Checkpoints, number[]>();

export function noteStatements(scope: TaskScope, numbers: readonly number[], replace: boolean): void {
  const { checkpoints } = scope;
  if (replace) {
    unnoted.delete(checkpoints);
    checkpoints.set(STATEMENTS_DONE, withNumbers([], numbers));
    return;
  }
  const waiting = unnoted.get(checkpoints);
  if (waiting) {
    waiting.push(...numbers);
    return;
  }
  unnoted.set(checkpoints, [...numbers]);
  setTimeout(() => noteWaiting(scope), NOTE_AFTER_MS).unref();
}

function noteWaiting({ checkpoints, log }: TaskScope): void {
  const numbers = unnoted.get(checkpoints);
  unnoted.delete(checkpoints);
  if (!numbers) return;
  try {
    const known = checkpoints.get<NumberRange[]>(STATEMENTS_DONE) ?? [];
    checkpoints.set(STATEMENTS_DONE, withNumbers(known, numbers));
  } catch (error) {
    log.debug({ error }, 'statements that are done could not be noted'); // the store may be closed by now
  }
}

/** The schema work of a task as its checkpoints tell it; `get` reads one. */
export function schemaViewOf(get: (key: string) => unknown): SchemaView {
  const plan = get(schemaPlanNote) as SchemaPlan | undefined;
  const done = (get(STATEMENTS_DONE) as NumberRange[] | undefined) ?? [];
  return {
    planned: plan !== undefined,
    tables: [...(plan?.tables ?? []), ...(plan?.unlogged ?? [])].map(({ source, target }) => ({
      source,
      target,
    })),
    roots: plan?.roots ?? [],
    sequences: plan?.sequences ?? [],
    findings: plan?.findings ?? [],
    statements: (plan?.statements ?? []).map(({ n, phase, object, table, sql }) => ({
      n,
      phase,
      object,
      table,
      state: done.some(([first, last]) => n >= first && n <= last) ? 'done' : 'pending',
      sql,
    })),
    comparison: (get(SCHEMA_VERDICT) as SchemaVerdict | undefined) ?? null,
  };
}

/** The plan that creatingTables made; every later step relies on it. */
export function schemaPlanOf(scope: TaskScope): SchemaPlan {
  const plan = findSchemaPlan(scope);
  if (!plan) throw new MigrationError('internal', 'the schema plan is missing: creatingTables has not run');
  return plan;
}

/** Resolves after `ms`, rejects with `aborted` when the signal fires. */
export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(new MigrationError('aborted', 'stopped on request'));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', stop);
      resolve();
    }, ms);
    if (signal.aborted) stop();
    else signal.addEventListener('abort', stop, { once: true });
  });
}
