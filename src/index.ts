// The library: `createService(config)` gives what the HTTP facade and the command line are made of.
import { join } from 'node:path';
import { openStore } from '../db/open.ts';
import { TaskNotes } from '../db/notes.ts';
import type { Config } from './config.ts';
import { parseConfig } from './config.ts';
import type { Service } from './model/service.ts';
import { removeSpilled } from './postgres/spill-file.ts';
import type { Log } from './postgres/task-scope.ts';
import { EventHub } from './runtime/event-hub.ts';
import { makeFailpoint } from './runtime/failpoint.ts';
import { HookFolder } from './runtime/hook-folder.ts';
import { InspectHub } from './runtime/inspect-hub.ts';
import { keyFromFile, SecretVault } from './runtime/secrets.ts';
import { MigrationService } from './runtime/service.ts';
import { Supervisor } from './runtime/supervisor.ts';

export { parseConfig, type Config } from './config.ts';
export {
  MigrationError,
  errorCodes,
  type ErrorCode,
  type ErrorKind,
  type ErrorReport,
} from './model/errors.ts';
export type { Finding } from './model/finding.ts';
export type { TaskRequest } from './model/request.ts';
export type { CommandResult, LiveTask, Service, TaskEvent, TaskManager, TaskPage } from './model/service.ts';
export type { Certificate } from './model/certificate.ts';
export type { TableProgress, TaskProgress } from './model/progress.ts';
export type { TaskState } from './model/task-state.ts';
export type { TaskView } from './model/task.ts';

const silent: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
};

export interface ServiceOptions {
  /** pino or anything shaped like it; silent when absent. */
  readonly log?: Log;
  /** Name of a failpoint, for crash tests. */
  readonly failpoint?: string;
}

/**
 * Opens the store under `config.dataDir`, restores the tasks that were at work and returns the running service. Without
 * a config: the environment's. Throws `invalid_request` for faulty settings. Call `stop()` at the end.
 */
export function createService(
  config: Config = parseConfig(process.env),
  options: ServiceOptions = {},
): Service {
  const log = options.log ?? silent;
  const store = openStore(config.databasePath);
  const spillFolder = join(config.dataDir, 'spill');
  removeSpilled(spillFolder);
  const key = config.secretKey ?? keyFromFile(config.keyPath, log);
  const vault = new SecretVault(key, new TaskNotes(store));
  const hub = new EventHub();
  const hookCommands = new HookFolder(config.hooksDir);
  const supervisor = new Supervisor({
    store,
    vault,
    hub,
    hookCommands,
    spillFolder,
    log,
    failpoint: makeFailpoint(options.failpoint),
    maxRunningTasks: config.maxRunningTasks,
    cleanupIntervalMs: config.cleanupIntervalMs,
    slotCheckIntervalMs: config.slotCheckIntervalMs,
  });
  const service = new MigrationService({
    store,
    vault,
    hub,
    supervisor,
    inspection: new InspectHub(supervisor.manager),
    hookCommands,
    log,
  });
  supervisor.start();
  return service;
}
