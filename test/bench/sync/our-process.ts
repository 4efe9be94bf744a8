// Our stream as the bench runs it: makes publication, slot and markers of tables that are equal on both sides, says
// `ready`, waits for a line, and then streams until it is ended. argv: source URL, target URL.
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { parseRequest } from '../../../src/model/request.ts';
import { relationKey } from '../../../src/model/relation.ts';
import type { PlannedTable } from '../../../src/model/schema-plan.ts';
import { ensureBookkeeping } from '../../../src/postgres/bookkeeping.ts';
import { readSelection } from '../../../src/postgres/catalog.ts';
import { TaskConnections } from '../../../src/postgres/task-connections.ts';
import { markCopyComplete } from '../../../src/postgres/copy-state.ts';
import { ensurePublication } from '../../../src/postgres/publication.ts';
import { ensureSlot } from '../../../src/postgres/slot.ts';
import { saveSchemaPlan, type TaskScope } from '../../../src/postgres/task-scope.ts';
import { HookFolder } from '../../../src/runtime/hook-folder.ts';
import { runStream } from '../../../src/sync/stream.ts';

const [, , sourceDb = '', targetDb = ''] = process.argv;
const { spec, secrets } = parseRequest({ sourceDb, targetDb });
const connections = new TaskConnections('bench', { source: spec.sourceDb, target: spec.targetDb }, (role) =>
  Promise.resolve(secrets[role]),
);
const notes = new Map<string, string>();
const controller = new AbortController();
const ignore = (): void => undefined;
const tell = (fields: object, message: string): void =>
  void process.stderr.write(`${message} ${JSON.stringify(fields)}\n`);
const scope: TaskScope = {
  taskId: 'bench',
  incarnation: 'bench',
  spec,
  source: connections.source,
  target: connections.target,
  checkpoints: {
    get: <T>(key: string): T | undefined => {
      const note = notes.get(key);
      return note === undefined ? undefined : (JSON.parse(note) as T);
    },
    set: (key, value) => void notes.set(key, JSON.stringify(value)),
    delete: (key) => void notes.delete(key),
  },
  progress: {
    setTables: ignore,
    addTables: ignore,
    setCopying: ignore,
    updateTable: ignore,
    setSync: ignore,
    setWaitingFor: ignore,
    setValidationClean: ignore,
  },
  hookCommands: new HookFolder(null),
  spillFolder: tmpdir(),
  log: { debug: ignore, info: tell, warn: tell, error: tell },
  signal: controller.signal,
  failpoint: ignore,
};

const { tables } = await readSelection(scope.source, ['*']);
saveSchemaPlan(scope, {
  tables: tables.map((each): PlannedTable => {
    const { relation, columns, keyColumns, rowsEstimated, bytesEstimated } = each;
    return {
      source: relation,
      target: relation,
      columns,
      keyColumns,
      replicaIdentity: 'default',
      rowsEstimated,
      bytesEstimated,
    };
  }),
  roots: [],
  sequences: [],
  statements: [],
  findings: [],
});
await ensureBookkeeping(scope);
await ensurePublication(scope);
const slot = await ensureSlot(scope);
for (const { relation } of tables) {
  const { rows } = await scope.source.query<{ seen: string; horizon: string }>(
    'select pg_current_snapshot()::text as seen, pg_current_wal_insert_lsn()::text as horizon',
  );
  await scope.target.query(
    `insert into dts.part (task_id, slot_incarnation, relation, part, pg_snapshot, horizon_lsn, rows, bytes, epoch)
     values ('bench', $1, $2, 0, $3, $4, 0, 0, 0)`,
    [slot.incarnation, relationKey(relation), rows[0]?.seen, rows[0]?.horizon],
  );
}
markCopyComplete(scope);
process.stdout.write('ready\n');
await once(process.stdin, 'data');
process.stdin.destroy();
process.once('SIGTERM', () => controller.abort());
await runStream(scope, ignore);
await connections.closeAll();
