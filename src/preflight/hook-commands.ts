// Check of run.ts for hooks that are commands: a cutover would only find out under the write stop that one cannot be run.
import { snakeName } from '../model/case.ts';
import type { Finding } from '../model/finding.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

export async function checkHookCommands({
  spec,
  hookCommands,
}: Pick<TaskScope, 'spec' | 'hookCommands'>): Promise<Finding[]> {
  const { hooks } = spec.options;
  const findings: Finding[] = [];
  for (const name of ['beforeOpen', 'afterOpen'] as const) {
    const command = hooks[name]?.command;
    const found = command === undefined ? null : await hookCommands.faultOf(command);
    if (found)
      findings.push({
        code: 'hook_command_unusable',
        severity: 'blocking',
        object: `hooks.${snakeName(name)}`,
        message: `the command ${command} of the hook ${snakeName(name)} cannot be run: ${found.fault}`,
        remedy: found.remedy,
      });
  }
  return findings;
}
