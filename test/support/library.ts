// The service in the test's own process, as a library.
import { onTestFinished } from 'vitest';
import { createService, parseConfig, type Service } from '../../src/index.ts';
import type { TaskState } from '../../src/model/task-state.ts';
import type { TaskView } from '../../src/model/task.ts';
import { waitFor } from './databases.ts';
import { makeDataDir } from './service-process.ts';

/** Stopped when the test ends. `env` as the service's environment. */
export function startLibrary(env: Record<string, string> = {}): Service {
  const service = createService(parseConfig({ DTS_DATA_DIR: makeDataDir(), ...env }));
  onTestFinished(() => service.stop());
  return service;
}

/** Waits for a state; fails at once when the task pauses or fails instead. */
export async function reaches(
  service: Service,
  id: string,
  state: TaskState,
  timeoutMs = 60_000,
): Promise<TaskView> {
  return waitFor(
    async () => {
      const task = await service.getTask(id);
      if (task.state !== state && ['failed', 'paused'].includes(task.state))
        throw new Error(`${task.state}: ${JSON.stringify(task.error)}`);
      return task.state === state ? task : null;
    },
    timeoutMs,
    state,
  );
}

/** Waits until what is copied beside the stream is done; fails at once when the task pauses or fails instead. */
export async function copied(service: Service, id: string, timeoutMs = 60_000): Promise<TaskView> {
  const deadline = Date.now() + timeoutMs;
  return waitFor(async () => {
    const task = await service.getTask(id);
    const { state, detail, error } = task;
    if (['failed', 'paused'].includes(state) || Date.now() > deadline)
      throw new Error(`${state}: ${JSON.stringify({ error, ...detail, tables: null })}`);
    return state === 'syncingWal' && detail.copying === null ? task : null;
  }, timeoutMs + 10_000);
}
