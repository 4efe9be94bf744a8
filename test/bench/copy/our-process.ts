// DTS as a bench runs it: a process of its own that migrates one database until every part and index stands on the
// target, then ends. argv: source URL, target URL, data folder, options as JSON (library spelling).
import { createService, parseConfig } from 'dts'; // as it is shipped
import type { TaskRequest } from '../../../src/model/request.ts';

const [, , sourceDb = '', targetDb = '', dataDir = '', options = '{}'] = process.argv;
const service = createService(parseConfig({ DTS_DATA_DIR: dataDir, DTS_LOG_LEVEL: 'warn' }));
try {
  const { task } = await service.createTask({
    id: 'bench',
    sourceDb,
    targetDb,
    options: JSON.parse(options) as NonNullable<TaskRequest['options']>,
  });
  if (task.state === 'created') await service.startTask(task.id);
  for await (const { state } of service.events({ id: task.id, signal: new AbortController().signal })) {
    if (state === 'syncingWal') break;
    if (['paused', 'failed', 'cancelled'].includes(state))
      throw new Error(`the task is ${state}: ${JSON.stringify((await service.getTask(task.id)).error)}`);
  }
} finally {
  await service.stop();
}
