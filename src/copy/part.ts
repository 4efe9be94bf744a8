// One part: its rows and its marker in one transaction of the target. Called by copy-parts.ts with two sessions that
// are reused over parts. Whatever happens in between, the target has the whole part or nothing of it.
import { MigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import { waitForFlush } from '../postgres/copy-flush.ts';
import { copyError, copyStream } from '../postgres/copy-stream.ts';
import type { Session } from '../postgres/connections.ts';
import { ident, identRelation, literal } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { CopyFormat } from '../postgres/binary-form.ts';
import type { Generation } from './generation.ts';
import { findMarker, writeMarker } from './markers.ts';
import type { CopyPart, Marker } from './plan.ts';
import type { Waits } from './waits.ts';

const PROGRESS_INTERVAL_MS = 100;

export interface PartSessions {
  readonly source: Session;
  readonly target: Session;
}

export interface PartOptions {
  readonly part: CopyPart;
  readonly format: CopyFormat;
  readonly generation: Generation;
  readonly slotIncarnation: string;
  readonly waits: Waits;
}

/** `copy … to stdout` and `copy … from stdin` of a part. Columns are named; generated ones are computed by the target. */
export function copyStatements(
  part: CopyPart,
  format: 'binary' | 'text',
): { readonly copyOut: string; readonly copyIn: string } {
  const names = part.table.columns.filter((column) => !column.generated).map(({ name }) => ident(name));
  const list = names.length === 0 ? '' : ` (${names.join(', ')})`; // a table may have no column at all
  return {
    copyOut: `copy ${identRelation(part.table.source)}${list} to stdout (format ${format})`,
    copyIn: `copy ${identRelation(part.table.target)}${list} from stdin (format ${format})`,
  };
}

/**
 * Copies one part and returns its marker; one that is there already is returned as it is. After an error the caller
 * closes both sessions, which rolls back.
 * Errors: those of `copyStream`, `target_conflict` when rows without a marker are there, `lock_timeout`.
 */
export async function copyPart(
  scope: TaskScope,
  sessions: PartSessions,
  options: PartOptions,
): Promise<Marker> {
  const { part, generation, waits, slotIncarnation } = options;
  const { source, target } = sessions;
  const context = { relation: part.relation, part: part.part };
  const relation = identRelation(part.table.target);
  try {
    await target.client.query('begin');
    // A killed predecessor's backend may still be at it: behind its lock we see its marker, or its rows are gone.
    await target.client.query(`set local lock_timeout = '30s'`);
    await waits.during(
      `lock ${part.relation}`,
      `the copy waits for a lock on the target's ${relationKey(part.table.target)}`,
      target.client.query(`lock table only ${relation} in share row exclusive mode`),
    );
    const known = await findMarker(scope, slotIncarnation, part, target);
    if (known) {
      await target.client.query('rollback');
      return known;
    }
    const rows = await target.client.query(`select 1 from only ${relation} limit 1`);
    if (rows.rowCount !== 0) throw strangeRows(part);
  } catch (error) {
    throw copyError(error, 'target', context);
  }
  try {
    await source.client.query('begin isolation level repeatable read read only');
    await source.client.query(`set transaction snapshot ${literal(generation.exportedAs)}`);
  } catch (error) {
    throw copyError(error, 'source', context);
  }
  const counts = await streamPart(scope, sessions, options, context);
  const marker: Marker = {
    ...counts,
    relation: part.relation,
    part: part.part,
    generation: generation.number,
  };
  try {
    await source.client.query('commit');
    const flushing = (reason: string | null): void => waits.set(`flush ${source.pid}`, reason);
    await waitForFlush(scope, generation.horizonLsn, flushing, generation.signal);
  } catch (error) {
    throw copyError(error, 'source', context);
  }
  try {
    await writeMarker(scope, slotIncarnation, part, generation, marker, target);
    scope.failpoint('copy.before-marker-commit');
    await target.client.query('commit');
  } catch (error) {
    throw copyError(error, 'target', context);
  }
  scope.failpoint('copy.marker-committed');
  return marker;
}

async function streamPart(
  scope: TaskScope,
  sessions: PartSessions,
  options: PartOptions,
  context: { readonly relation: string; readonly part: number },
): Promise<{ rows: number; bytes: number }> {
  const { part, format, generation, waits } = options;
  const stallKey = `stall ${part.relation}`;
  let shownAt = 0;
  let begun = false;
  try {
    return await copyStream({
      ...sessions,
      ...copyStatements(part, format.format),
      signal: generation.signal,
      context,
      onChunk: (rowsCopied, bytesCopied) => {
        if (!begun) scope.failpoint('copy.mid-table');
        begun = true;
        const now = Date.now();
        if (now - shownAt < PROGRESS_INTERVAL_MS) return;
        shownAt = now;
        waits.set(stallKey, null);
        scope.progress.updateTable(part.relation, { rowsCopied, bytesCopied });
      },
      onStall: (ms, role) => {
        const seconds = Math.round(ms / 1_000);
        if (seconds >= 5)
          waits.set(stallKey, `${part.relation}: the ${role} has moved no byte for ${seconds} s`);
      },
    });
  } finally {
    waits.set(stallKey, null);
  }
}

function strangeRows(part: CopyPart): MigrationError {
  const name = relationKey(part.table.target);
  return new MigrationError('target_conflict', `target: ${name} has rows that this task did not copy`, {
    hint: `empty it (truncate ${identRelation(part.table.target)}) or choose another suffix, then resume`,
    details: { role: 'target', relation: part.relation, target: name, part: part.part },
  });
}
