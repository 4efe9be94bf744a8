// A stream without the rest of a task: tables of the same DDL on both sides, a plan read from the source's catalog,
// copies made by hand under a real snapshot, and a running stream that the test stops. Teardown removes slot,
// publication and bookkeeping.
import { onTestFinished } from 'vitest';
import type { MigrationError } from '../../src/model/errors.ts';
import { relationKey } from '../../src/model/relation.ts';
import type { PlannedTable, SchemaPlan } from '../../src/model/schema-plan.ts';
import type { StreamEvent } from '../../src/model/stream.ts';
import { ensureBookkeeping, removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import type { CatchUpSizes } from '../../src/postgres/call-size.ts';
import { readSelection } from '../../src/postgres/catalog.ts';
import { markCopyComplete } from '../../src/postgres/copy-state.ts';
import { emitMarker } from '../../src/postgres/marker.ts';
import { dropPublication } from '../../src/postgres/publication.ts';
import { dropSlot } from '../../src/postgres/slot-removal.ts';
import { slotOf } from '../../src/postgres/slot-record.ts';
import { ident, identRelation } from '../../src/postgres/sql.ts';
import { saveSchemaPlan, schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { runStream } from '../../src/sync/stream.ts';
import { waitFor, type DatabasePair, type TestDatabase } from './databases.ts';
import { makeScope, type TestScope } from './scope.ts';

/** Runs `ddl` on both sides and plans every table of schema public. */
export async function prepare(
  pair: DatabasePair,
  ddl: string,
  over: Parameters<typeof makeScope>[1] = {},
): Promise<TestScope> {
  await pair.source.query(ddl);
  await pair.target.query(ddl);
  const scope = makeScope(pair, over);
  const { tables } = await readSelection(scope.source, ['*']);
  const plan: SchemaPlan = {
    tables: tables
      .filter((table) => table.kind !== 'partitioned')
      .map(
        (table): PlannedTable => ({
          source: table.relation,
          target: table.relation,
          columns: table.columns,
          keyColumns: table.keyColumns,
          replicaIdentity: table.replicaIdentity === 'nothing' ? 'default' : table.replicaIdentity,
          rowsEstimated: table.rowsEstimated,
          bytesEstimated: table.bytesEstimated,
        }),
      ),
    roots: [],
    sequences: [],
    statements: [],
    findings: [],
  };
  saveSchemaPlan(scope, plan);
  await ensureBookkeeping(scope);
  onTestFinished(async () => {
    const cleaner = makeScope(pair, {}, scope);
    await dropSlot(cleaner);
    await dropPublication(cleaner);
    await removeBookkeeping(cleaner);
    await cleaner.connections.closeAll();
  });
  return scope;
}

/** Copies one table under a snapshot of its own; `meanwhile` runs between the snapshot and the read. */
export async function copyTable(
  scope: TestScope,
  pair: DatabasePair,
  table: PlannedTable,
  meanwhile: () => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const reader = await pair.source.connect();
  await reader.query('begin isolation level repeatable read read only');
  // Before the snapshot: TRUNCATE is not MVCC-safe, the old snapshot would read the new, empty file.
  await reader.query(`lock table only ${identRelation(table.source)} in access share mode`);
  const { rows: snapshots } = await reader.query<{ snapshot: string }>(
    'select pg_current_snapshot()::text as snapshot',
  );
  const { rows: horizons } = await reader.query<{ horizon: string }>(
    'select pg_current_wal_insert_lsn()::text as horizon',
  );
  await meanwhile();
  const columns = table.columns.filter((column) => !column.generated);
  const list = columns.map((column) => `${ident(column.name)}::text`).join(', ');
  const { rows } = await reader.query<(string | null)[]>({
    text: `select ${list} from only ${identRelation(table.source)}`,
    rowMode: 'array',
  });
  await reader.query('commit');
  await reader.end();
  const writer = await pair.target.connect();
  await writer.query('begin');
  const names = columns.map((column) => ident(column.name)).join(', ');
  const values = columns.map((column, n) => `$${n + 1}::${column.type}`).join(', ');
  for (const row of rows)
    await writer.query(
      `insert into ${identRelation(table.target)} (${names}) overriding system value values (${values})`,
      row,
    );
  await writer.query(
    `insert into dts.part (task_id, slot_incarnation, relation, part, pg_snapshot, horizon_lsn, rows, bytes, epoch)
     values ($1, $2, $3, 0, $4, $5::pg_lsn, $6, 0, 0)`,
    [
      scope.taskId,
      slotOf(scope).incarnation,
      relationKey(table.source),
      snapshots[0]?.snapshot,
      horizons[0]?.horizon,
      rows.length,
    ],
  );
  await writer.query('commit');
  await writer.end();
}

/** Copies every table of the plan and says that the copy is complete. */
export async function copyAll(scope: TestScope, pair: DatabasePair): Promise<void> {
  for (const table of schemaPlanOf(scope).tables) await copyTable(scope, pair, table);
  markCopyComplete(scope);
}

export interface RunningStream {
  readonly events: StreamEvent[];
  /** Set when the stream threw. */
  readonly failure: () => MigrationError | null;
  /** Resolves with the error that ends the stream. */
  readonly failed: Promise<MigrationError>;
  /** Aborts and waits; returns the milliseconds it took. */
  stop(): Promise<number>;
}

export function startStream(scope: TestScope, sizes?: CatchUpSizes): RunningStream {
  const events: StreamEvent[] = [];
  let failure: MigrationError | null = null;
  let onFailed: (error: MigrationError) => void = () => undefined;
  const failed = new Promise<MigrationError>((resolve) => (onFailed = resolve));
  const ended = runStream(scope, (event) => void events.push(event), sizes).catch((error: unknown) => {
    failure = error as MigrationError;
    onFailed(failure);
  });
  const stop = async (): Promise<number> => {
    const started = Date.now();
    scope.controller.abort();
    await ended;
    return Date.now() - started;
  };
  onTestFinished(async () => void (await stop()));
  return { events, failure: () => failure, failed, stop };
}

/** Waits for an event of the stream; fails at once when the stream has failed. */
export async function untilEvent(stream: RunningStream, type: StreamEvent['type']): Promise<void> {
  await waitFor(
    () => {
      const error = stream.failure();
      if (error) throw error;
      return stream.events.some((event) => event.type === type);
    },
    30_000,
    type,
  );
}

let markers = 0;

/** Emits a marker and waits until the target has it, with everything before it. */
export async function drainStream(
  scope: TestScope,
  pair: DatabasePair,
  stream: RunningStream,
  timeoutMs = 60_000,
): Promise<void> {
  const id = `marker-${++markers}`;
  await emitMarker(scope, id);
  await waitFor(
    async () => {
      const error = stream.failure();
      if (error) throw error;
      const { rows } = await pair.target.query('select marker from dts.progress where task_id = $1', [
        scope.taskId,
      ]);
      return (rows[0] as { marker: string | null } | undefined)?.marker === id;
    },
    timeoutMs,
    'the marker',
  );
}

/** Every row of every planned table as text, ordered. */
export async function contents(
  scope: TestScope,
  database: TestDatabase,
  side: 'source' | 'target',
): Promise<Record<string, string[]>> {
  const client = await database.connect();
  await client.query(`set extra_float_digits = 3; set timezone = 'UTC'; set bytea_output = 'hex';
    set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'`);
  const result: Record<string, string[]> = {};
  for (const table of schemaPlanOf(scope).tables) {
    const { rows } = await client.query<{ row: string }>(
      `select t::text as row from only ${identRelation(table[side])} t order by 1`,
    );
    result[relationKey(table.source)] = rows.map((each) => each.row);
  }
  await client.end();
  return result;
}
