// Under the fence, when the online validation has read a table to its end: compares only the keys that were written down
// since. The stream stands still behind the marker, so what differs here is a difference. Called by compare.ts.
import type { TableVerdict } from '../model/certificate.ts';
import type { RowDifference } from '../model/validation.ts';
import { relationKey } from '../model/relation.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { limitsOf } from './digest.ts';
import { readChanges, streamPosition } from './changes.ts';
import { differenceOf, readHashes, withColumns } from './keys.ts';
import { findRun, saveTableNote, tableNote, verifiedUpTo } from './notes.ts';
import type { KeyTexts } from './range-sql.ts';
import { tablePair, type TablePair } from './ranges.ts';
import { BY_KEY, closePair, openPair, rowFormOf, type SidePair } from './sessions.ts';
import { readForms } from './table-forms.ts';

/** Differences of a table that are kept for the API. */
const MAX_DIFFERENCES = 1_000;

class Sums {
  readonly differences = new Map<string, RowDifference>();
  readonly rows = { source: 0, target: 0 };
  readonly sums = { source: 0n, target: 0n };

  add(role: 'source' | 'target', hash: string | undefined): void {
    if (hash === undefined) return;
    this.rows[role]++;
    this.sums[role] = BigInt.asUintN(64, this.sums[role] + BigInt(hash));
  }
}

/**
 * Verdicts of the tables whose changes are all known, by `relationKey`; the others have to be compared as a whole.
 * Differences go into the notes of the online validation too, where the API shows them.
 */
export async function compareChanges(
  scope: TaskScope,
  signal: AbortSignal,
): Promise<Map<string, TableVerdict>> {
  const tables = await verifiedTables(scope);
  if (tables.size === 0) return new Map();
  const pair = await openPair(scope, signal, BY_KEY);
  try {
    const sums = new Map([...tables.keys()].map((name) => [name, new Sums()]));
    // What differed before the fence may have been repaired since.
    for (const [name, table] of tables)
      await compareKeys(
        pair,
        table,
        sums,
        tableNote(scope.checkpoints, name).differences.map(({ key }) => key),
      );
    for (let after = '0'; ; ) {
      const { changes, waiting } = await readChanges(scope, after);
      for (const [name, keys] of byTable(changes)) {
        const table = tables.get(name);
        if (keys === null) tables.delete(name);
        else if (table) await compareKeys(pair, table, sums, keys);
      }
      if (waiting === null) break;
      after = changes.at(-1)?.n ?? after;
    }
    const verdicts = new Map<string, TableVerdict>();
    for (const [name, table] of tables) {
      const found = sums.get(name) ?? new Sums();
      await noteDifferences(scope, pair, table, found);
      verdicts.set(name, verdictOf(scope, table, found));
    }
    return verdicts;
  } finally {
    await closePair(pair);
  }
}

/** Tables that were read to the end while the present stream wrote its changes down, and that no DDL has changed since. */
export async function verifiedTables(scope: TaskScope): Promise<Map<string, TablePair>> {
  const run = findRun(scope.checkpoints);
  if (!run) return new Map();
  const position = await streamPosition(scope);
  if (!position?.tracking || position.slotIncarnation !== run.slotIncarnation) return new Map();
  const { tables } = schemaPlanOf(scope);
  const forms = await readForms(
    scope.source,
    tables.map(({ source }) => source),
  );
  const verified = tables.filter(({ source }) => {
    const { state, form } = tableNote(scope.checkpoints, relationKey(source));
    return state === 'verified' && form !== undefined && form === forms.get(relationKey(source));
  });
  const form = await rowFormOf(scope);
  return new Map(verified.map((plan) => [relationKey(plan.source), tablePair(plan, form)]));
}

function byTable(
  changes: readonly { readonly relation: string; readonly keys: readonly KeyTexts[] | null }[],
): Map<string, KeyTexts[] | null> {
  const found = new Map<string, KeyTexts[] | null>();
  for (const { relation, keys } of changes) {
    const known = found.get(relation);
    if (known === null) continue;
    if (keys === null) found.set(relation, null);
    else if (known) known.push(...keys);
    else found.set(relation, [...keys]);
  }
  return found;
}

async function compareKeys(
  pair: SidePair,
  table: TablePair,
  sums: ReadonlyMap<string, Sums>,
  keys: readonly KeyTexts[],
): Promise<void> {
  const found = sums.get(table.name);
  if (!found || keys.length === 0) return;
  const unique = new Map(keys.map((key) => [JSON.stringify(key), key]));
  const list = [...unique.values()];
  const [source, target] = await Promise.all([
    readHashes(pair, table, list, 'source'),
    readHashes(pair, table, list, 'target'),
  ]);
  for (const [n, key] of list.entries()) {
    found.add('source', source[n]);
    found.add('target', target[n]);
    const kind = differenceOf(source[n], target[n]);
    if (kind !== null) found.differences.set(JSON.stringify(key), { key, kind });
  }
}

async function noteDifferences(
  scope: TaskScope,
  pair: SidePair,
  table: TablePair,
  found: Sums,
): Promise<void> {
  const note = tableNote(scope.checkpoints, table.name);
  if (found.differences.size === 0 && note.differences.length === 0) return;
  const differences = [...found.differences.values()].slice(0, MAX_DIFFERENCES);
  const sampled = await withColumns(pair, table, differences.slice(0, 20));
  saveTableNote(scope.checkpoints, table.name, {
    ...note,
    differences: [...sampled, ...differences.slice(20)],
  });
}

function verdictOf(scope: TaskScope, table: TablePair, found: Sums): TableVerdict {
  return {
    table: table.name,
    target: relationKey(table.plan.target),
    sourceRows: found.rows.source,
    targetRows: found.rows.target,
    sourceDigest: found.sums.source.toString(),
    targetDigest: found.sums.target.toString(),
    equal: found.differences.size === 0,
    method: 'changes',
    ...limitsOf(table.plan),
    verifiedLsn: verifiedUpTo(
      findRun(scope.checkpoints),
      table.name,
      tableNote(scope.checkpoints, table.name),
    ),
  };
}
