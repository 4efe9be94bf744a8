// The way back (options.reverse): what a task notes of the task that will stream in the other direction, and how that
// one's request and plan follow from its own. Pure. The first task is leg 1, its reverse leg 2, forward again leg 3 …
import type { PlannedTable, SchemaPlan } from './schema-plan.ts';
import type { TableMapping } from './relation.ts';
import type { TableProgress } from './progress.ts';
import type { TaskSpec } from './task.ts';

/** The first task's id is at most so long: those of its legs must be ids, too. */
export const MAX_REVERSIBLE_ID = 28;

/** Checkpoint keys of the task whose cutover can be undone. */
export const reverseNotes = {
  /** ReverseNote. */
  reverse: 'reverse',
  /** Before the key of a checkpoint that the reverse task will have. */
  prefix: 'reverse/',
} as const;

/** Checkpoint keys of a reverse task. */
export const legNotes = {
  /** Lets the sessions on its target through the fence that is there. */
  fencePass: 'fencePass',
  /** Before the key of a checkpoint of the task that fenced its target. */
  originPrefix: 'origin/',
} as const;

export interface ReverseNote {
  /** Id and incarnation of the reverse task. */
  readonly taskId: string;
  readonly incarnation: string;
  /** What lets its sessions through our fence: a random word that nobody else is told. */
  readonly pass: string;
  /** The reverse task has been made; its slot and publication are its own from then on. */
  readonly handedOver: boolean;
}

/** Leg 2 of `shop` is `shop_reverse`, leg 3 `shop_forward_2`, leg 4 `shop_reverse_2` … */
function legId(firstId: string, leg: number): string {
  const round = Math.ceil(leg / 2);
  const [way, count] = leg % 2 === 0 ? ['reverse', leg / 2] : ['forward', round];
  return `${firstId}_${way}${count === 1 ? '' : `_${count}`}`;
}

/** The id of the first task, when `id` has the form of a later leg's; else null. */
export function firstIdOf(id: string): string | null {
  return /^(.+)_(?:reverse|forward)(?:_[1-9]\d*)?$/.exec(id)?.[1] ?? null;
}

export function nextLegId(taskId: string, { origin }: Pick<TaskSpec, 'origin'>): string {
  return legId(origin?.firstTaskId ?? taskId, (origin?.leg ?? 1) + 1);
}

/** Which way a cutover leads: `reverse` is a rollback. */
export function directionOf({ origin }: Pick<TaskSpec, 'origin'>): 'forward' | 'reverse' {
  return (origin?.leg ?? 1) % 2 === 0 ? 'reverse' : 'forward';
}

/** Endpoints swapped; the tables stand on both sides; a person asks for the cutover. Hooks are called on either way. */
export function reverseSpec(taskId: string, incarnation: string, spec: TaskSpec): TaskSpec {
  return {
    ...spec,
    sourceDb: spec.targetDb,
    targetDb: spec.sourceDb,
    origin: {
      taskId,
      incarnation,
      firstTaskId: spec.origin?.firstTaskId ?? taskId,
      leg: (spec.origin?.leg ?? 1) + 1,
    },
    options: {
      ...spec.options,
      cutover: 'manual',
      schema: 'existing',
      largeObjects: false,
    },
  };
}

const swapped = ({ source, target }: TableMapping): TableMapping => ({ source: target, target: source });

/** The same tables and sequences from target to source; nothing is made or copied, so it has no statements. */
export function reversePlan(plan: SchemaPlan): SchemaPlan {
  const tables = (list: readonly PlannedTable[]): PlannedTable[] =>
    list.map((table) => ({
      ...table,
      ...swapped(table),
      // a position of the server that is the target from now on
      columns: table.columns.map(({ widenedUntil: _, ...column }) => column),
    }));
  return {
    tables: tables(plan.tables),
    ...(plan.unlogged && { unlogged: tables(plan.unlogged) }),
    roots: plan.roots.map(swapped),
    sequences: plan.sequences.map(({ source, target }) => ({ source: target, target: source })),
    statements: [],
    findings: [],
  };
}

/** Figures of tables that need no copy. */
export function reverseFigures(figures: readonly TableProgress[]): TableProgress[] {
  return figures.map((table) => ({
    ...table,
    table: table.target,
    target: table.table,
    state: 'ready',
    rowsCopied: 0,
    bytesCopied: 0,
    partsDone: 0,
    partsTotal: 0,
    format: null,
    formatReason: null,
    indexProgress: null,
  }));
}
