// Tells somebody else that a side is about to open, or has opened: a pooler to be repointed, an application to be
// restarted. One POST, or one command of the operator's, with the certificate so far; secrets come from the service's
// environment or a file when the call is made, and are kept nowhere. A kill may repeat the call: the idempotency key
// stays the same. A rollback is told, too: it opens the other side.
import { readFile } from 'node:fs/promises';
import { snakeName, toSnake } from '../model/case.ts';
import { MigrationError } from '../model/errors.ts';
import type { Certificate } from '../model/certificate.ts';
import { directionOf } from '../model/reverse.ts';
import type { Hook, HookName } from '../model/task-options.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';

/** Calls of `after_open`, which cannot be undone by failing. */
const AFTER_OPEN_ATTEMPTS = 3;
const BETWEEN_ATTEMPTS_MS = 1_000;

interface Call {
  readonly hook: Hook;
  readonly title: string;
  readonly timeoutMs: number;
  /** JSON. */
  readonly body: string;
  readonly idempotencyKey: string;
  readonly env: Readonly<Record<string, string>>;
}

/**
 * Calls the hook where the task has it; false where it has none. At `deadline`, ms since the epoch, it is late, whatever its
 * own timeout. Errors: `hook_failed`, `secret_unavailable`, `aborted`.
 */
export async function callHook(
  scope: TaskScope,
  name: HookName,
  certificate: Partial<Certificate>,
  deadline = Number.POSITIVE_INFINITY,
): Promise<boolean> {
  const configured = scope.spec.options.hooks[name];
  if (!configured) return false;
  const timeoutMs = Math.max(1, Math.min(configured.timeoutMs, Math.floor(deadline - Date.now())));
  const hook = { ...configured, timeoutMs };
  const call = callOf(scope, hook, name, certificate);
  const headers = await headersOf(hook);
  const attempts = name === 'afterOpen' ? AFTER_OPEN_ATTEMPTS : 1;
  for (let attempt = 1; ; attempt++) {
    try {
      scope.progress.setWaitingFor(`the hook ${call.title}`);
      if (hook.command === undefined) await post(scope, call, headers);
      else await run(scope, call, hook.command);
      return true;
    } catch (error) {
      if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
      if (attempt === attempts) throw error;
    } finally {
      scope.progress.setWaitingFor(null);
    }
    await sleep(BETWEEN_ATTEMPTS_MS * attempt, scope.signal);
  }
}

/** The hook with where it leads, for people. */
export function titleOf({ command, url }: Hook, name: HookName): string {
  const where = command === undefined ? `at ${new URL(url ?? '').host}` : `(command ${command})`;
  return `${snakeName(name)} ${where}`;
}

function callOf(scope: TaskScope, hook: Hook, name: HookName, certificate: Partial<Certificate>): Call {
  const { taskId, incarnation, spec } = scope;
  const { host, port, dbname } = spec.targetDb;
  const direction = directionOf(spec);
  const idempotencyKey = `${incarnation}/${certificate.fenceLsn ?? ''}/${name}`;
  const moment = snakeName(name);
  return {
    hook,
    title: titleOf(hook, name),
    timeoutMs: hook.timeoutMs,
    body: JSON.stringify(
      toSnake({ hook: moment, taskId, direction, opens: { host, port, dbname }, certificate }),
    ),
    idempotencyKey,
    env: {
      DTS_HOOK: moment,
      DTS_TASK_ID: taskId,
      DTS_DIRECTION: direction,
      DTS_OPENS_HOST: host,
      DTS_OPENS_PORT: String(port),
      DTS_OPENS_DBNAME: dbname,
      DTS_IDEMPOTENCY_KEY: idempotencyKey,
    },
  };
}

function failed({ title }: Call, what: string, hint: string, cause?: unknown): MigrationError {
  return new MigrationError('hook_failed', `the hook ${title} ${what}`, {
    hint: `${hint}; the cutover can be requested again`,
    details: { hook: title },
    ...(cause === undefined ? {} : { cause }),
  });
}

async function run(scope: TaskScope, call: Call, command: string): Promise<void> {
  const { timeoutMs } = call;
  try {
    await scope.hookCommands.run(command, call.body, call.env, { timeoutMs, signal: scope.signal });
  } catch (error) {
    const said = error instanceof Error ? error.message : String(error);
    throw failed(call, said, 'look into what the command does', error);
  }
}

async function post(scope: TaskScope, call: Call, headers: Readonly<Record<string, string>>): Promise<void> {
  const hint = 'look into what answers there';
  let response: Response;
  try {
    response = await fetch(call.hook.url ?? '', {
      method: 'POST',
      redirect: 'error',
      headers: { 'content-type': 'application/json', 'idempotency-key': call.idempotencyKey, ...headers },
      body: call.body,
      signal: AbortSignal.any([scope.signal, AbortSignal.timeout(call.timeoutMs)]),
    });
    await response.body?.cancel();
  } catch (error) {
    const late = error instanceof Error && error.name === 'TimeoutError';
    throw failed(
      call,
      late ? `did not answer within ${call.timeoutMs} ms` : 'cannot be reached',
      hint,
      error,
    );
  }
  if (!response.ok) throw failed(call, `answered ${response.status}`, hint);
}

async function headersOf(hook: Hook): Promise<Record<string, string>> {
  const headers: Record<string, string> = {};
  for (const { name, env, file } of hook.headers) {
    const value = env === undefined ? await readFile(file ?? '', 'utf8').catch(() => '') : process.env[env];
    if (value === undefined || value.trim() === '')
      throw new MigrationError(
        'secret_unavailable',
        `the value of the hook's header ${name} cannot be read`,
        {
          hint: env === undefined ? `the service reads it from ${file}` : `set ${env} for the service`,
          details: { header: name },
        },
      );
    headers[name] = value.trim();
  }
  return headers;
}
