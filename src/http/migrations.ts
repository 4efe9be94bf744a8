// Routes under /api/v1, mounted by the app: each reads its input, calls the library once and answers what it says.
// Names are snake_case on the wire; unknown fields and parameters are refused, never ignored.
import { Hono, type Context, type Handler } from 'hono';
import * as z from 'zod';
import { isBlocked } from '../model/finding.ts';
import { MigrationError } from '../model/errors.ts';
import { taskIdPattern, type TaskRequest } from '../model/request.ts';
import type { OptionsPatch, TablesAddition } from '../model/request-changes.ts';
import type { RepairRequest } from '../model/validation.ts';
import type { CommandResult, Service } from '../model/service.ts';
import { taskStates } from '../model/task-state.ts';
import type { TaskView } from '../model/task.ts';
import { toSnake } from '../model/case.ts';
import { EVENT_STREAM_HEADERS, eventStream, type EventStreamOptions } from './events.ts';
import { flag, readFields, readJson, readQuery, wholeNumber } from './input.ts';
import { Refusal } from './problem.ts';
import { path } from './route.ts';

export interface ApiOptions extends EventStreamOptions {
  /** Of the service, as `GET /health` tells it. */
  readonly version: string;
}

/** Ids of another form cannot exist; asking the store for them is pointless. */
function idOf(c: Context): string {
  const id = c.req.param('id') ?? '';
  if (!taskIdPattern.test(id)) throw new MigrationError('task_not_found', 'no task can have this id');
  return id;
}

function answer(c: Context, body: unknown, status: 200 | 201 = 200): Response {
  return c.json(toSnake(body) as object, status);
}

const noFields = z.strictObject({});
const endFields = z.strictObject({ dropTarget: z.boolean().optional() });

/** What `endFields` says, without an explicit undefined. */
async function readEnd(c: Context): Promise<{ readonly dropTarget?: boolean }> {
  const { dropTarget } = await readFields(c, endFields);
  return dropTarget === undefined ? {} : { dropTarget };
}

type Command = (service: Service, id: string, c: Context) => Promise<CommandResult>;

const plain =
  (run: (service: Service, id: string) => Promise<CommandResult>): Command =>
  async (service, id, c) => {
    await readFields(c, noFields);
    return run(service, id);
  };

const commands: Readonly<Record<string, Command>> = {
  start: plain((service, id) => startOrShow(service, id)),
  pause: plain((service, id) => service.pauseTask(id)),
  resume: plain((service, id) => service.resumeTask(id)),
  validate: plain((service, id) => service.validateTask(id)),
  recopy: plain((service, id) => service.recopyTask(id)),
  unfence: plain((service, id) => service.unfenceTask(id)),
  rollback: plain((service, id) => service.rollback(id)),
  finish: plain((service, id) => service.finish(id)),
  cancel: async (service, id, c) => service.cancelTask(id, await readEnd(c)),
  abandon: async (service, id, c) => service.abandonTask(id, await readEnd(c)),
};

/** The library refuses to start a running task; over HTTP a repeated request must be harmless. */
async function startOrShow(service: Service, id: string): Promise<CommandResult> {
  try {
    return await service.startTask(id);
  } catch (error) {
    if (!(error instanceof MigrationError) || error.code !== 'task_already_running') throw error;
    return { task: await service.getTask(id), changed: false };
  }
}

/** The part of a task that is worth polling. */
function statusOf(task: TaskView): object {
  const { detail } = task;
  return {
    id: task.id,
    state: task.state,
    progress: task.progress,
    error: task.error,
    lagBytes: task.lagBytes,
    connections: task.connections,
    resumesAt: task.resumesAt,
    retryAt: task.retryAt,
    fenced: task.fenced,
    reverseTask: task.reverseTask,
    cleanupPending: task.cleanupPending,
    waitingFor: detail.waitingFor,
    allowedCommands: task.allowedCommands,
    cutoverWaitsFor: task.cutoverWaitsFor,
    writeStopMs: task.writeStopMs,
    bytesCopied: detail.bytesCopied,
    bytesEstimated: detail.bytesEstimated,
    rowsCopied: detail.rowsCopied,
    bytesPerSecond: detail.bytesPerSecond,
    etaSeconds: detail.etaSeconds,
    copying: detail.copying,
    sync: detail.sync,
    restingSlot: task.restingSlot,
    createdAt: task.createdAt,
    startedAt: task.startedAt,
    endedAt: task.endedAt,
  };
}

const pageParameters = {
  limit: wholeNumber(1, 1000).optional(),
  offset: wholeNumber(0, Number.MAX_SAFE_INTEGER).optional(),
  state: z.enum(taskStates).optional(),
};
const DEFAULT_LIMIT = 50;

const sequence = wholeNumber(0, Number.MAX_SAFE_INTEGER).optional();

/** Where an event stream goes on. The header wins: a browser that reconnects repeats the first URL. */
function sinceSeqOf(c: Context): { readonly sinceSeq?: number } {
  const { lastEventId } = readQuery(c, { lastEventId: sequence });
  const header = c.req.header('last-event-id');
  if (header !== undefined && header !== '') {
    const parsed = sequence.safeParse(header);
    if (!parsed.success || parsed.data === undefined)
      throw new Refusal(400, 'invalid_request', 'Last-Event-ID: must be the id of an event', {
        members: { fields: [{ field: 'Last-Event-ID', message: 'must be the id of an event' }] },
      });
    return { sinceSeq: parsed.data };
  }
  return lastEventId === undefined ? {} : { sinceSeq: lastEventId };
}

export function apiRoutes(service: Service, options: ApiOptions): Hono {
  const app = new Hono();
  const startedAt = performance.now();
  const events = (c: Context, id: { readonly id?: string }): Response => {
    const from = { ...id, ...sinceSeqOf(c) };
    const body = eventStream((signal) => service.events({ ...from, signal }), options);
    return new Response(body, { headers: EVENT_STREAM_HEADERS });
  };
  /** A handler of a path that takes no query parameters. */
  const bare =
    (work: (c: Context) => Promise<Response> | Response): Handler =>
    (c) => {
      readQuery(c, {});
      return work(c);
    };
  /** A document of the task, where there is one. */
  const ofTask = (read: (task: TaskView) => unknown): Handler =>
    bare(async (c) => answer(c, read(await service.getTask(idOf(c)))));

  path(app, '/health', {
    get: bare((c) =>
      answer(c, {
        status: 'ok',
        version: options.version,
        uptimeSeconds: Math.floor((performance.now() - startedAt) / 1000),
        tasks: service.taskManager.getTaskCount(),
      }),
    ),
  });
  path(app, '/machine', { get: bare((c) => c.json(service.machineDefinition() as object)) });
  path(app, '/events', { get: (c) => events(c, {}) });
  path(app, '/preflight', {
    post: bare(async (c) => {
      const findings = await service.preflight((await readJson(c)) as TaskRequest); // validated by the service
      return answer(c, { findings, blocked: isBlocked(findings) });
    }),
  });
  path(app, '/migrations', {
    get: async (c) => {
      const { limit = DEFAULT_LIMIT, offset = 0, state } = readQuery(c, pageParameters);
      const page = await service.listTasks({ limit, offset, ...(state === undefined ? {} : { state }) });
      return answer(c, { ...page, limit, offset });
    },
    post: bare(async (c) => {
      const { task, created } = await service.createTask((await readJson(c)) as TaskRequest);
      c.header('location', `/api/v1/migrations/${task.id}`);
      return answer(c, task, created ? 201 : 200);
    }),
  });
  path(app, '/migrations/:id', {
    get: ofTask((task) => task),
    delete: async (c) => {
      const { force } = readQuery(c, { force: flag().optional() });
      await service.deleteTask(idOf(c), force === undefined ? {} : { force });
      return c.body(null, 204);
    },
  });
  path(app, '/migrations/:id/status', { get: ofTask(statusOf) });
  path(app, '/migrations/:id/tables', {
    get: bare(async (c) => answer(c, { tables: await service.getTables(idOf(c)) })),
    post: bare(async (c) => {
      const id = idOf(c);
      await service.getTask(id); // 404 before the body is looked at
      return answer(c, (await service.addTables(id, (await readJson(c)) as TablesAddition)).task); // validated there
    }),
  });
  path(app, '/migrations/:id/schema', {
    get: bare(async (c) => answer(c, await service.getSchema(idOf(c)))),
  });
  path(app, '/migrations/:id/options', {
    patch: bare(async (c) =>
      answer(c, await service.changeOptions(idOf(c), (await readJson(c)) as OptionsPatch)),
    ),
  });
  path(app, '/migrations/:id/tables/:name/recopy', {
    post: bare(async (c) => {
      await readFields(c, noFields);
      return answer(c, (await service.recopyTable(idOf(c), c.req.param('name') ?? '')).task);
    }),
  });
  path(app, '/migrations/:id/validation', {
    get: bare(async (c) => answer(c, await service.getValidation(idOf(c)))),
  });
  path(app, '/migrations/:id/events', {
    get: async (c) => {
      const id = idOf(c);
      await service.getTask(id); // 404 before the stream begins
      return events(c, { id });
    },
  });
  path(app, '/migrations/:id/machine', {
    get: bare(async (c) => {
      await service.getTask(idOf(c));
      return c.json(service.machineDefinition() as object);
    }),
  });
  path(app, '/migrations/:id/repair', {
    post: bare(async (c) => {
      const id = idOf(c);
      await service.getTask(id); // 404 before the body is looked at
      return answer(c, await service.repairTask(id, (await readJson(c)) as RepairRequest)); // validated there
    }),
  });
  path(app, '/migrations/:id/certificate', {
    get: bare(async (c) => answer(c, await service.getCertificate(idOf(c)))),
  });
  path(app, '/migrations/:id/cutover', {
    post: bare(async (c) => {
      const { dryRun } = await readFields(c, z.strictObject({ dryRun: z.boolean().optional() }));
      if (dryRun === true) return answer(c, await service.forecastCutover(idOf(c)));
      return answer(c, (await service.cutover(idOf(c))).task);
    }),
  });
  for (const [name, run] of Object.entries(commands)) {
    path(app, `/migrations/:id/${name}`, {
      post: bare(async (c) => answer(c, (await run(service, idOf(c), c)).task)),
    });
  }
  return app;
}
