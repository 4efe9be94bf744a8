// Tells somebody else that the target is about to open, or has opened: a pooler to be repointed, an application to be
// restarted. One POST with the certificate so far; secrets come from the service's environment or a file when the call is
// made, and are kept nowhere. A kill may repeat the call: `idempotency-key` stays the same.
import { readFile } from 'node:fs/promises';
import { toSnake } from '../model/case.ts';
import { MigrationError } from '../model/errors.ts';
import type { Certificate } from '../model/certificate.ts';
import type { Hook, HookName } from '../model/task-options.ts';
import { sleep, type TaskScope } from '../postgres/task-scope.ts';

/** Calls of `after_open`, which cannot be undone by failing. */
const AFTER_OPEN_ATTEMPTS = 3;
const BETWEEN_ATTEMPTS_MS = 1_000;

/** Calls the hook where the task has it. Errors: `hook_failed`, `secret_unavailable`, `aborted`. */
export async function callHook(
  scope: TaskScope,
  name: HookName,
  certificate: Partial<Certificate>,
): Promise<void> {
  const hook = scope.spec.options.hooks[name];
  if (!hook) return;
  const headers = await headersOf(hook);
  const attempts = name === 'afterOpen' ? AFTER_OPEN_ATTEMPTS : 1;
  for (let attempt = 1; ; attempt++) {
    try {
      scope.progress.setWaitingFor(`the hook ${name} at ${new URL(hook.url).host}`);
      await post(scope, hook, name, headers, certificate);
      return;
    } catch (error) {
      if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
      if (attempt === attempts) throw error;
    } finally {
      scope.progress.setWaitingFor(null);
    }
    await sleep(BETWEEN_ATTEMPTS_MS * attempt, scope.signal);
  }
}

async function post(
  scope: TaskScope,
  hook: Hook,
  name: HookName,
  headers: Readonly<Record<string, string>>,
  certificate: Partial<Certificate>,
): Promise<void> {
  const { host } = new URL(hook.url);
  const failed = (what: string, cause?: unknown): MigrationError =>
    new MigrationError('hook_failed', `the hook ${name} at ${host} ${what}`, {
      hint: 'look into what answers there; the cutover can be requested again',
      details: { hook: name, host },
      ...(cause === undefined ? {} : { cause }),
    });
  let response: Response;
  try {
    response = await fetch(hook.url, {
      method: 'POST',
      redirect: 'error',
      headers: {
        'content-type': 'application/json',
        'idempotency-key': `${scope.incarnation}/${certificate.fenceLsn ?? ''}/${name}`,
        ...headers,
      },
      body: JSON.stringify(toSnake({ hook: name, taskId: scope.taskId, certificate })),
      signal: AbortSignal.any([scope.signal, AbortSignal.timeout(hook.timeoutMs)]),
    });
    await response.body?.cancel();
  } catch (error) {
    const late = error instanceof Error && error.name === 'TimeoutError';
    throw failed(late ? `did not answer within ${hook.timeoutMs} ms` : 'cannot be reached', error);
  }
  if (!response.ok) throw failed(`answered ${response.status}`);
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
