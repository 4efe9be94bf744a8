// The notes of the online validation: read and written by online.ts and key-check.ts, read by the comparison under the
// fence and by the API. One checkpoint a table, so that a range costs one small write.
import { MigrationError } from '../model/errors.ts';
import { compareLsn, type Lsn } from '../model/lsn.ts';
import { relationKey } from '../model/relation.ts';
import type { SchemaPlan } from '../model/schema-plan.ts';
import {
  validationNotes,
  type DifferenceKind,
  type Repair,
  type RepairRequest,
  type RepairView,
  type TableValidation,
  type ValidationRun,
  type ValidationView,
} from '../model/validation.ts';
import type { Checkpoints } from '../postgres/task-scope.ts';

const SAMPLES = 20;

export const unread: TableValidation = {
  state: 'pending',
  cursor: null,
  rows: 0,
  ranges: 0,
  verifiedLsn: null,
  differences: [],
};

export function findRun(checkpoints: Pick<Checkpoints, 'get'>): ValidationRun | undefined {
  return checkpoints.get<ValidationRun>(validationNotes.run);
}

export function tableNote(checkpoints: Pick<Checkpoints, 'get'>, relation: string): TableValidation {
  return checkpoints.get<TableValidation>(validationNotes.table(relation)) ?? unread;
}

export function saveTableNote(checkpoints: Checkpoints, relation: string, note: TableValidation): void {
  checkpoints.set(validationNotes.table(relation), note);
}

/**
 * Up to which position of the source the table is known to be equal. It does not go forward while something of it differs, or is
 * left to read.
 */
export function verifiedUpTo(
  run: ValidationRun | undefined,
  relation: string,
  { state, verifiedLsn }: TableValidation,
): Lsn | null {
  const known = run?.verified;
  if (!known || state !== 'verified' || known.except.includes(relation)) return verifiedLsn;
  // a table that was read after that look is known further
  return verifiedLsn !== null && compareLsn(verifiedLsn, known.lsn) > 0 ? verifiedLsn : known.lsn;
}

const MAX_REPAIRS = 20;

export function repairsOf(checkpoints: Pick<Checkpoints, 'get'>): readonly Repair[] {
  return checkpoints.get<readonly Repair[]>(validationNotes.repairs) ?? [];
}

/** Notes a request that the running validation carries out; the oldest ended ones are forgotten. */
export function requestRepair(checkpoints: Checkpoints, request: RepairRequest): RepairView {
  const known = repairsOf(checkpoints);
  const repair: Repair = {
    id: Math.max(0, ...known.map(({ id }) => id)) + 1,
    table: request.table,
    keys: request.keys ?? null,
    ranges: request.ranges ?? null,
    state: 'pending',
    rowsWritten: 0,
    rowsRemoved: 0,
    keysUnsettled: 0,
    error: null,
    requestedAt: new Date().toISOString(),
    endedAt: null,
  };
  const ended = known.filter(({ state }) => state !== 'pending').slice(0, MAX_REPAIRS);
  const pending = known.filter(({ state }) => state === 'pending');
  if (pending.length >= MAX_REPAIRS)
    throw new MigrationError('event_not_accepted', `${pending.length} repairs wait already`, {
      hint: 'wait until they are done; the answer of `validation` tells',
    });
  checkpoints.set(
    validationNotes.repairs,
    [repair, ...pending, ...ended].toSorted((a, b) => b.id - a.id),
  );
  return repairView(repair);
}

export function saveRepair(checkpoints: Checkpoints, repair: Repair): void {
  checkpoints.set(
    validationNotes.repairs,
    repairsOf(checkpoints).map((known) => (known.id === repair.id ? repair : known)),
  );
}

function repairView({ keys, ranges, position: _, ...rest }: Repair): RepairView {
  return { ...rest, keysNamed: keys?.length ?? null, rangesNamed: ranges?.length ?? null };
}

/** Whether the online validation has nothing left to read of the table. */
export function isRead({ state }: TableValidation): boolean {
  return state !== 'pending' && state !== 'scanning';
}

/** Whether everything was compared, where it can be before the cutover, and nothing differs. */
export function isClean(notes: readonly TableValidation[]): boolean {
  return notes.every(
    (note) => (note.state === 'verified' || note.state === 'atCutover') && note.differences.length === 0,
  );
}

/** What the API shows. */
export function validationView(
  checkpoints: Pick<Checkpoints, 'get'>,
  plan: SchemaPlan | undefined,
): ValidationView {
  const run = findRun(checkpoints);
  const tables = (plan?.tables ?? []).map((table) => ({
    table,
    note: tableNote(checkpoints, relationKey(table.source)),
  }));
  return {
    startedAt: run?.startedAt ?? null,
    settledAt: run?.settledAt ?? null,
    keysInDoubt: run?.keysInDoubt ?? 0,
    keysWaiting: run?.keysWaiting ?? 0,
    clean: (run?.settledAt ?? null) !== null && isClean(tables.map(({ note }) => note)),
    error: run?.error ?? null,
    repairs: repairsOf(checkpoints).map(repairView),
    tables: tables.map(({ table, note }) => {
      const count = (kind: DifferenceKind): number =>
        note.differences.filter((difference) => difference.kind === kind).length;
      return {
        table: relationKey(table.source),
        target: relationKey(table.target),
        state: note.state,
        rows: note.rows,
        rowsEstimated: table.rowsEstimated,
        ranges: note.ranges,
        verifiedLsn: verifiedUpTo(run, relationKey(table.source), note),
        differences: {
          missing: count('missing'),
          extra: count('extra'),
          changed: count('changed'),
          samples: note.differences.slice(0, SAMPLES).map(({ key, kind, columns }) => ({
            key: Object.fromEntries(key.map((value, n) => [table.keyColumns[n] ?? String(n), value])),
            kind,
            columns: columns ?? null,
          })),
        },
      };
    }),
  };
}
