// Findings of a request that is no task yet, and of tables to be added to one: preflight's, and what planning the schema
// has to say. Nothing is changed anywhere.
import { randomBytes, randomUUID } from 'node:crypto';
import { tmpdir } from 'node:os';
import { asMigrationError } from '../model/errors.ts';
import { isBlocked, type Finding } from '../model/finding.ts';
import { invalidRequest } from '../model/request-faults.ts';
import { parseRequest, type TaskRequest } from '../model/request.ts';
import type { TaskSpec } from '../model/task.ts';
import { TaskConnections } from '../postgres/task-connections.ts';
import { schemaPlanOf, type HookCommands, type TaskScope } from '../postgres/task-scope.ts';
import { runPreflight } from '../preflight/run.ts';
import { keysOf, resolveAddition, scopeWith } from '../schema/addition.ts';
import { additionFindings, planFindings } from '../schema/create-tables.ts';
import { referencedPassword } from './secrets.ts';

/** Over connections of its own, which are closed. Errors: `invalid_request`. */
export async function findingsOfRequest(
  request: TaskRequest,
  { hookCommands, log }: Pick<TaskScope, 'hookCommands' | 'log'>,
): Promise<readonly Finding[]> {
  const { id = `preflight_${randomBytes(4).toString('hex')}`, spec, secrets } = parseRequest(request);
  refuseCommands(spec, hookCommands);
  const endpoints = { source: spec.sourceDb, target: spec.targetDb };
  const connections = new TaskConnections(id, endpoints, async (role) => ({
    ...secrets[role],
    ...(await referencedPassword(endpoints[role], role)),
  }));
  const controller = new AbortController();
  const ignore = (): void => undefined;
  const scope: TaskScope = {
    taskId: id,
    incarnation: randomUUID(),
    spec,
    source: connections.source,
    target: connections.target,
    checkpoints: { get: () => undefined, set: ignore, delete: ignore },
    progress: {
      setTables: ignore,
      addTables: ignore,
      setCopying: ignore,
      updateTable: ignore,
      setSync: ignore,
      setValidationClean: ignore,
      setWaitingFor: ignore,
    },
    hookCommands,
    spillFolder: tmpdir(), // nothing is streamed
    log,
    signal: controller.signal,
    failpoint: ignore,
  };
  try {
    const findings = await runPreflight(scope);
    // without connections or with tables that do not exist there is nothing to plan
    return isBlocked(findings)
      ? findings
      : withoutRepeats([...findings, ...(await planned(() => planFindings(scope)))]);
  } finally {
    await connections.closeAll();
  }
}

/** Throws `invalid_request` for hooks that the service has no folder for. */
export function refuseCommands({ options: { hooks } }: TaskSpec, { isOff }: HookCommands): void {
  if (!isOff) return;
  const faults = (['beforeOpen', 'afterOpen'] as const)
    .filter((name) => hooks[name]?.command !== undefined)
    .map((name) => ({
      field: `options.hooks.${name}.command`,
      message:
        'this service runs no commands: its operator sets DTS_HOOKS_DIR (--hooks-dir) to the folder that they lie in, or give a url',
    }));
  if (faults.length > 0) throw invalidRequest(faults);
}

/** `add`: names and patterns. The tables that they mean, and what stands in their way. */
export async function findingsOfAddition(
  scope: TaskScope,
  add: readonly string[],
): Promise<{ readonly tables: readonly string[]; readonly findings: readonly Finding[] }> {
  const plan = schemaPlanOf(scope);
  const tables = await resolveAddition(scope, plan, add);
  const found = await runPreflight(scopeWith(scope, plan, tables), keysOf(plan));
  const pass = (plan.addition?.pass ?? 0) + 1;
  const more = isBlocked(found) ? [] : await planned(() => additionFindings(scope, plan, { pass, tables }));
  return { tables, findings: withoutRepeats([...found, ...more]) };
}

/** What planning the schema has to say; that it cannot be planned is said, too. */
async function planned(plan: () => Promise<Finding[]>): Promise<Finding[]> {
  try {
    return await plan();
  } catch (error) {
    const { code, message, hint } = asMigrationError(error);
    return [{ code, severity: 'blocking', object: 'schema', message, remedy: hint ?? null }];
  }
}

function withoutRepeats(findings: readonly Finding[]): Finding[] {
  const byKey = new Map(findings.map((finding) => [`${finding.code} ${finding.object}`, finding]));
  return [...byKey.values()];
}
