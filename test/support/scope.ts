// A TaskScope without runtime: real connections, checkpoints and progress in memory. For tests of domain steps.
import { randomUUID } from 'node:crypto';
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { parseRequest, type TaskRequest } from '../../src/model/request.ts';
import type { SyncStatus, TableProgress } from '../../src/model/progress.ts';
import { TaskConnections } from '../../src/postgres/task-connections.ts';
import { HookFolder } from '../../src/runtime/hook-folder.ts';
import type { TaskScope } from '../../src/postgres/task-scope.ts';
import type { DatabasePair } from './databases.ts';

export interface TestScope extends TaskScope {
  readonly connections: TaskConnections;
  readonly controller: AbortController;
  readonly tables: Map<string, TableProgress>;
  readonly sync: SyncStatus[];
  readonly waits: (string | null)[];
  readonly cleans: boolean[];
  readonly failpointsHit: string[];
}

/** `over` replaces parts of the create request; `taskId` lets two scopes share one task (a restart). */
export function makeScope(
  pair: DatabasePair,
  over: Partial<TaskRequest> = {},
  previous?: TestScope,
): TestScope {
  const { spec, secrets, id } = parseRequest({
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tables: ['*'],
    ...over,
  });
  const taskId = previous?.taskId ?? id ?? `t${randomUUID().slice(0, 8)}`;
  const connections = new TaskConnections(taskId, { source: spec.sourceDb, target: spec.targetDb }, (role) =>
    Promise.resolve(secrets[role]),
  );
  onTestFinished(async () => void (await connections.closeAll()));
  const controller = new AbortController();
  const notes: Map<string, string> = previous
    ? (previous as TestScope & { notes: Map<string, string> }).notes
    : new Map<string, string>();
  const tables = new Map<string, TableProgress>();
  const sync: SyncStatus[] = [];
  const waits: (string | null)[] = [];
  const cleans: boolean[] = [];
  const failpointsHit: string[] = [];
  const spillFolder = join(tmpdir(), `dts-spill-${randomUUID()}`);
  onTestFinished(() => rmSync(spillFolder, { recursive: true, force: true }));
  const silent = (): void => undefined;
  const scope = {
    taskId,
    incarnation: previous?.incarnation ?? randomUUID(),
    spec,
    connections,
    controller,
    tables,
    sync,
    waits,
    cleans,
    failpointsHit,
    notes,
    source: connections.source,
    target: connections.target,
    checkpoints: {
      get: <T>(key: string): T | undefined =>
        notes.has(key) ? (JSON.parse(notes.get(key) ?? 'null') as T) : undefined,
      set: (key: string, value: unknown) => void notes.set(key, JSON.stringify(value)),
      delete: (key: string) => void notes.delete(key),
    },
    progress: {
      setTables: (list: readonly TableProgress[]) => {
        for (const table of list) if (!tables.has(table.table)) tables.set(table.table, table);
      },
      addTables: (list: readonly TableProgress[]) => {
        for (const table of list) if (!tables.has(table.table)) tables.set(table.table, table);
      },
      setCopying: silent,
      updateTable: (table: string, patch: Partial<TableProgress>) => {
        const known = tables.get(table);
        if (known) tables.set(table, { ...known, ...patch });
      },
      setSync: (status: SyncStatus) => void sync.push(status),
      setValidationClean: (clean: boolean) => void cleans.push(clean),
      setWaitingFor: (reason: string | null) => void waits.push(reason),
    },
    hookCommands: new HookFolder(null),
    spillFolder,
    log: { debug: silent, info: silent, warn: silent, error: silent },
    signal: controller.signal,
    failpoint: (name: string) => void failpointsHit.push(name),
  };
  return scope;
}
