// One part: its rows and its marker in one transaction of the target. Called by copy-parts.ts with two sessions that
// are reused over parts. Whatever happens in between, the target has the whole part or nothing of it. A small table costs
// five round trips: statements that need no answer of each other travel together. A larger one that is copied whole gets
// its rows frozen: they are written once, while others are written again by the first index build, which marks them as
// committed (and, with checksums, logs the pages once more), and a third time by a later VACUUM.
import { MigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import { rangeCondition } from '../postgres/copy-range.ts';
import { copyError, copyStream, type StreamPace } from '../postgres/copy-stream.ts';
import type { Session } from '../postgres/connections.ts';
import { deleteAllSql, emptyTable, writesExisting } from '../postgres/existing-tables.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { CopyFormat } from '../postgres/binary-form.ts';
import type { Generation } from './generation.ts';
import {
  findMarkerSql,
  markerFromRow,
  tableIsStrangeSql,
  writeMarkerSql,
  type MarkerRow,
} from './markers.ts';
import type { CopyPart, Marker } from './plan.ts';
import type { Tally } from './tally.ts';
import type { Waits } from './waits.ts';

const PROGRESS_INTERVAL_MS = 100;
/** Parts that a source session reads before it lets go of their tables' locks; the holder keeps its own. */
const PARTS_A_TRANSACTION = 100;
/** Of a smaller table the new file that freezing takes costs more than its pages do. */
const FREEZE_FROM_BYTES = 1024 ** 2;

export interface PartSessions {
  readonly source: Session;
  readonly target: Session;
  /** Parts read in the source's open transaction; 0: none is open. */
  partsRead: number;
}

export interface PartOptions {
  readonly part: CopyPart;
  readonly format: CopyFormat;
  readonly generation: Generation;
  readonly slotIncarnation: string;
  /** Tables whose parts replace the rows that are there. */
  readonly replaced: ReadonlySet<string>;
  readonly tally: Tally;
  readonly pace: StreamPace;
  readonly waits: Waits;
}

/**
 * `copy … to stdout` and `copy … from stdin` of a part. Columns are named; generated ones are computed by the target.
 * `freeze`: the transaction has truncated the table.
 */
export function copyStatements(
  { table, range }: Pick<CopyPart, 'table' | 'range'>,
  format: 'binary' | 'text',
  freeze: boolean,
): { readonly copyOut: string; readonly copyIn: string } {
  const names = table.columns.filter((column) => !column.generated).map(({ name }) => ident(name));
  const list = names.length === 0 ? '' : ` (${names.join(', ')})`; // a table may have no column at all
  const source = identRelation(table.source);
  const conditions = [
    ...(range === null ? [] : [rangeCondition(range, new Map())]),
    ...(table.where === undefined ? [] : [`(${table.where})`]),
  ];
  const rows =
    conditions.length === 0
      ? `${source}${list}`
      : `(select ${names.join(', ')} from only ${source} where ${conditions.join(' and ')})`;
  return {
    copyOut: `copy ${rows} to stdout (format ${format})`,
    copyIn: `copy ${identRelation(table.target)}${list} from stdin (format ${format}${freeze ? ', freeze' : ''})`,
  };
}

/**
 * Whether the part's rows are frozen: of a table that is copied whole, by us alone, into one that we made. Until its part
 * is done the stream leaves it alone, and no snapshot is compared that would see the rows too early.
 */
export function mayFreeze(
  { table, range }: Pick<CopyPart, 'table' | 'range'>,
  isEmptyAndOurs: boolean,
): boolean {
  return isEmptyAndOurs && range === null && table.bytesEstimated >= FREEZE_FROM_BYTES;
}

/**
 * Copies one part and returns its marker; one that is there already is returned as it is, unless it is of a part by blocks
 * and of another generation: its table must be of one. After an error the caller closes both sessions, which rolls back.
 * Errors: those of `copyStream`, `target_conflict` when rows without a marker are there, `lock_timeout`.
 */
export async function copyPart(
  scope: TaskScope,
  sessions: PartSessions,
  options: PartOptions,
): Promise<Marker> {
  const { part, generation, waits, slotIncarnation } = options;
  // parts by blocks come into a table that was emptied
  const replaces = options.replaced.has(part.relation) && part.range?.kind !== 'ctid';
  const freeze = mayFreeze(part, !replaces && !writesExisting(scope));
  const { source, target } = sessions;
  const context = { relation: part.relation, part: part.part };
  try {
    const known = await waits.during(
      `lock ${part.relation} ${part.part}`,
      `the copy waits for a lock on the target's ${relationKey(part.table.target)}`,
      beginPart(scope, slotIncarnation, part, target, { replaces, freeze }),
    );
    if (known) {
      await target.client.query('rollback');
      if (part.range?.kind === 'ctid' && known.generation !== generation.number)
        throw generation.committedLate(known);
      return known;
    }
    if (freeze) await emptyTable(scope, target.client, part.table.target);
    if (replaces)
      await waits.during(
        `replace ${part.relation} ${part.part}`,
        `the copy removes the old rows of ${relationKey(part.table.target)}`,
        target.client.query(
          `delete from only ${identRelation(part.table.target)} where ${rangeCondition(part.range, new Map())}`,
        ),
      );
  } catch (error) {
    throw copyError(error, 'target', context);
  }
  try {
    await lockPart(part, sessions, generation);
    sessions.partsRead++;
  } catch (error) {
    throw copyError(error, 'source', context);
  }
  const counts = await streamPart(scope, sessions, options, freeze, context);
  const marker: Marker = {
    ...counts,
    relation: part.relation,
    part: part.part,
    generation: generation.number,
  };
  try {
    if (sessions.partsRead >= PARTS_A_TRANSACTION) {
      await source.client.query('commit');
      sessions.partsRead = 0;
    }
    await generation.flushed();
  } catch (error) {
    throw copyError(error, 'source', context);
  }
  try {
    scope.failpoint('copy.before-marker-commit');
    await target.client.query(`${writeMarkerSql(scope, slotIncarnation, part, generation, marker)}; commit`);
  } catch (error) {
    throw copyError(error, 'target', context);
  }
  scope.failpoint('copy.marker-committed');
  return marker;
}

/**
 * Takes the table over from the holder: our lock first, then a look whether the holder still had its own. Had it not, a
 * rewriting ALTER may have come in between, and the rewritten table is empty for the older snapshot.
 */
async function lockPart(
  part: CopyPart,
  { source, partsRead }: PartSessions,
  generation: Generation,
): Promise<void> {
  const begin =
    partsRead > 0
      ? ''
      : `begin isolation level repeatable read read only; set transaction snapshot ${literal(generation.exportedAs)};`;
  const results = (await source.client.query(
    `${begin} lock table only ${identRelation(part.table.source)} in access share mode;
     select pg_try_advisory_xact_lock_shared(hashtextextended(${literal(generation.holderKey)}, 0)) as gone`,
  )) as unknown as readonly { readonly rows: readonly { readonly gone: boolean }[] }[];
  if (results.at(-1)?.rows[0]?.gone !== false) throw generation.holderLost();
}

/** Opens the target's transaction behind a killed predecessor's: its marker is returned, or its rows are gone. */
async function beginPart(
  scope: TaskScope,
  slotIncarnation: string,
  part: CopyPart,
  target: Session,
  { replaces, freeze }: { readonly replaces: boolean; readonly freeze: boolean },
): Promise<Marker | null> {
  const relation = identRelation(part.table.target);
  const lock =
    part.range === null
      ? `lock table only ${relation} in ${freeze ? 'access' : 'share row'} exclusive mode`
      : `select pg_advisory_xact_lock(hashtextextended(${literal(`dts ${scope.taskId} ${part.relation} ${part.part}`)}, 0))`;
  const results = (await target.client.query(
    `begin; set local lock_timeout = '30s'; ${lock}; ${findMarkerSql(scope, slotIncarnation, part)};
     ${tableIsStrangeSql(scope, slotIncarnation, part.relation, relation)}`,
  )) as unknown as readonly { readonly rows: readonly unknown[] }[];
  const [known] = (results[3]?.rows ?? []) as readonly MarkerRow[];
  if (known) return markerFromRow(known);
  const [found] = (results[4]?.rows ?? []) as readonly { readonly strange: boolean }[];
  if (found?.strange !== false && !replaces) throw strangeRows(scope, part);
  return null;
}

async function streamPart(
  scope: TaskScope,
  sessions: PartSessions,
  options: PartOptions,
  freeze: boolean,
  context: { readonly relation: string; readonly part: number },
): Promise<{ rows: number; bytes: number }> {
  const { part, format, generation, tally, waits } = options;
  const stallKey = `stall ${part.relation} ${part.part}`;
  let shownAt = 0;
  let begun = false;
  try {
    return await copyStream({
      ...sessions,
      sourceSide: scope.source,
      ...copyStatements(part, format.format, freeze),
      signal: generation.signal,
      pace: options.pace,
      context,
      onChunk: (rows, bytes) => {
        if (!begun) scope.failpoint('copy.mid-table');
        begun = true;
        const now = Date.now();
        if (now - shownAt < PROGRESS_INTERVAL_MS) return;
        shownAt = now;
        waits.set(stallKey, null);
        tally.moved(part, { rows, bytes });
      },
      onStall: (ms, role, isAtWork) => {
        const seconds = Math.round(ms / 1_000);
        const why = isAtWork ? ', but is still at work on this COPY' : '';
        if (seconds >= 5)
          waits.set(stallKey, `${part.relation}: the ${role} has moved no byte for ${seconds} s${why}`);
      },
    });
  } finally {
    waits.set(stallKey, null);
  }
}

function strangeRows(scope: TaskScope, part: CopyPart): MigrationError {
  const name = relationKey(part.table.target);
  // TRUNCATE is refused where a foreign key of another table names this one
  const empty = writesExisting(scope)
    ? deleteAllSql(part.table.target)
    : `truncate ${identRelation(part.table.target)}`;
  return new MigrationError('target_conflict', `target: ${name} has rows that this task did not copy`, {
    hint: `empty it (${empty}) or choose another suffix, then resume`,
    details: { role: 'target', relation: part.relation, target: name, part: part.part },
  });
}
