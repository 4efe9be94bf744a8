// Hooks that are commands: which files the operator's folder offers, how they are run, and what a cutover and a rollback
// make of them.
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { HookFolder } from '../../src/runtime/hook-folder.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';

function makeFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'dts-hooks-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A shell script. */
function addCommand(folder: string, name: string, script: string, mode = 0o755): void {
  writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`);
  chmodSync(join(folder, name), mode);
}

async function runIn(
  folder: string,
  command: string,
  { timeoutMs = 20_000, signal = new AbortController().signal } = {},
): Promise<string> {
  return new HookFolder(folder)
    .run(command, '{"task_id": "t"}', { DTS_HOOK: 'before_open' }, { timeoutMs, signal })
    .then(
      () => 'done',
      (error: unknown) => (error as Error).message,
    );
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    // a zombie is dead, too
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

describe('a command', () => {
  test('gets JSON on its standard input, the environment that it is given and nothing of ours', async () => {
    const folder = makeFolder();
    vi.stubEnv('DTS_SECRET_KEY', 'key of the service');
    vi.stubEnv('HOOK_SECRET', 'of the service');
    onTestFinished(() => void vi.unstubAllEnvs());
    addCommand(folder, 'tell', 'cat > input; env > environment; pwd > where; echo "$#" > arguments');
    expect(await runIn(folder, 'tell')).toBe('done');
    const read = (name: string): string => readFileSync(join(folder, name), 'utf8');
    expect(read('input')).toBe('{"task_id": "t"}');
    expect(read('where').trim()).toBe(folder);
    expect(read('arguments')).toBe('0\n');
    const names = read('environment')
      .split('\n')
      .map((line) => line.split('=')[0])
      .filter((name) => name !== '');
    expect(
      names
        .toSorted((a = '', b = '') => (a < b ? -1 : 1))
        .filter((name) => !['PWD', 'SHLVL', '_', 'OLDPWD'].includes(name ?? '')),
    ).toEqual(['DTS_HOOK', 'LANG', 'PATH']);
  });

  test('that fails is told with its exit code and the end of its standard error', async () => {
    const folder = makeFolder();
    addCommand(folder, 'fail', 'seq 1 100000 >&2; echo "pooler is away" >&2; exit 3');
    const message = await runIn(folder, 'fail');
    expect(message).toMatch(/^ended with exit code 3: [\d\s]+pooler is away$/);
    expect(message.length).toBeLessThan(2_100);
    addCommand(folder, 'dies', 'kill -9 $$');
    expect(await runIn(folder, 'dies')).toBe('was ended by SIGKILL');
    writeFileSync(join(folder, 'no-interpreter'), '#!/no/such/shell\n');
    chmodSync(join(folder, 'no-interpreter'), 0o755);
    expect(await runIn(folder, 'no-interpreter')).toMatch(/^cannot be started: /);
  });

  test.each(['its deadline', 'the end of the cutover'])(
    'that hangs is killed with its children at %s',
    async (when) => {
      const folder = makeFolder();
      addCommand(
        folder,
        'hang',
        'sleep 1000 & echo "$$ $!" > pids.tmp; mv pids.tmp pids; echo waiting >&2; wait',
      );
      const controller = new AbortController();
      const running = runIn(
        folder,
        'hang',
        when === 'its deadline' ? { timeoutMs: 1_000 } : { signal: controller.signal },
      );
      const pids = await waitFor(() => {
        try {
          return readFileSync(join(folder, 'pids'), 'utf8').trim().split(' ').map(Number);
        } catch {
          return null;
        }
      });
      expect(pids.length).toBe(2);
      controller.abort(new Error('the cutover is over'));
      expect(await running).toBe(
        when === 'its deadline'
          ? 'did not end within 1000 ms and was killed: waiting'
          : 'the cutover is over',
      );
      await waitFor(() => pids.every((pid) => !isAlive(pid)));
    },
  );

  test('that fails leaves nothing running', async () => {
    const folder = makeFolder();
    addCommand(folder, 'fork', 'sleep 1000 & echo "$!" > pid; exit 1');
    expect(await runIn(folder, 'fork')).toBe('ended with exit code 1');
    const pid = Number(readFileSync(join(folder, 'pid'), 'utf8'));
    await waitFor(() => !isAlive(pid));
  });

  test('need not read its input, nor wait for what it leaves running', async () => {
    const folder = makeFolder();
    addCommand(folder, 'deaf', 'exec 0<&-; (sleep 1000 & echo "$!" > pid) >&2');
    expect(await runIn(folder, 'deaf')).toBe('done');
    process.kill(Number(readFileSync(join(folder, 'pid'), 'utf8')), 'SIGKILL');
  });
});

test('only executable files of the folder are offered, that nobody else may write', async () => {
  const outside = makeFolder();
  addCommand(outside, 'evil', 'touch ran');
  const folder = makeFolder();
  mkdirSync(join(folder, 'inner'));
  addCommand(join(folder, 'inner'), 'deeper', 'true');
  symlinkSync(join(outside, 'evil'), join(folder, 'link'));
  addCommand(folder, 'plain', 'true', 0o644);
  addCommand(folder, 'shared', 'true', 0o775);
  addCommand(folder, 'good', 'true');
  symlinkSync('good', join(folder, 'alias'));
  const commands = new HookFolder(folder);
  const fault = async (name: string): Promise<string | undefined> => (await commands.faultOf(name))?.fault;
  expect(await fault('missing')).toBe('there is no such command');
  expect(await fault('inner')).toBe('it is not a file');
  expect(await fault('link')).toBe('it lies outside the folder of commands');
  expect(await fault(join('..', outside.split('/').at(-1) ?? '', 'evil'))).toBe(
    'it lies outside the folder of commands',
  );
  expect(await fault('inner/deeper')).toBe('it lies outside the folder of commands');
  expect(await fault('plain')).toBe('the service may not execute it');
  expect(await fault('shared')).toBe('others than its owner may write to it');
  expect(await fault('good')).toBeUndefined();
  expect(await fault('alias')).toBeUndefined();
  expect(await runIn(folder, 'link')).toMatch(/outside/);
  expect(() => readFileSync(join(outside, 'ran'))).toThrow();
  chmodSync(folder, 0o777);
  expect(await commands.faultOf('good')).toEqual({
    fault: 'others than its owner may write to it',
    remedy: `chmod go-w ${folder}`,
  });
  expect(await new HookFolder(join(folder, 'nowhere')).faultOf('good')).toMatchObject({
    fault: 'the folder of commands is not there',
  });
});

test('without a folder a command is refused where it is asked for, and preflight names one that is not there', async () => {
  const pair = await makePair();
  const request = (command: string) => ({
    id: 'shop',
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    options: { hooks: { afterOpen: { command } } },
  });
  const without = startLibrary();
  for (const work of [without.createTask(request('repoint')), without.preflight(request('repoint'))])
    await expect(work).rejects.toMatchObject({
      code: 'invalid_request',
      message: expect.stringContaining('DTS_HOOKS_DIR') as string,
      details: { fields: [{ field: 'options.hooks.afterOpen.command' }] },
    });
  const folder = makeFolder();
  const service = startLibrary({ DTS_HOOKS_DIR: folder });
  for (const command of ['../repoint', '/bin/sh', 'repoint now', '.hidden', ''])
    await expect(service.createTask(request(command)), command).rejects.toMatchObject({
      code: 'invalid_request',
    });
  await expect(
    service.createTask({
      ...request('a'),
      options: { hooks: { afterOpen: { command: 'a', url: 'http://h/' } } },
    }),
  ).rejects.toMatchObject({ code: 'invalid_request' });
  const findings = await service.preflight(request('repoint'));
  expect(findings.filter(({ code }) => code === 'hook_command_unusable')).toEqual([
    {
      code: 'hook_command_unusable',
      severity: 'blocking',
      object: 'hooks.after_open',
      message: 'the command repoint of the hook after_open cannot be run: there is no such command',
      remedy: `put an executable file at ${join(folder, 'repoint')}`,
    },
  ]);
});

test('a cutover and its rollback call the commands, each with the side that opens; one that fails gives writes back', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key); insert into t select generate_series(1, 10)');
  const folder = makeFolder();
  addCommand(
    folder,
    'repoint',
    `if [ -e refuse ]; then echo "the pooler is away" >&2; exit 1; fi
     echo "$DTS_HOOK $DTS_DIRECTION $DTS_TASK_ID $DTS_OPENS_HOST:$DTS_OPENS_PORT/$DTS_OPENS_DBNAME" >> calls; cat >> bodies; echo >> bodies`,
  );
  writeFileSync(join(folder, 'refuse'), '');
  const service = startLibrary({ DTS_HOOKS_DIR: folder });
  await service.createTask({
    id: 'shop',
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    options: {
      reverse: true,
      hooks: { beforeOpen: { command: 'repoint' }, afterOpen: { command: 'repoint' } },
    },
  });
  await service.startTask('shop');
  await reaches(service, 'shop', 'syncingWal');
  await service.cutover('shop');
  const failed = await waitFor(async () => {
    const task = await service.getTask('shop');
    return task.error?.code === 'hook_failed' && task.state === 'syncingWal' ? task : null;
  });
  expect(failed).toMatchObject({
    fenced: false,
    error: {
      message: 'the hook before_open (command repoint) ended with exit code 1: the pooler is away',
      hint: 'look into what the command does; the cutover can be requested again',
    },
  });
  await pair.source.query('insert into t values (11)');

  rmSync(join(folder, 'refuse'));
  await service.cutover('shop');
  await reaches(service, 'shop', 'completed');
  await reaches(service, 'shop_reverse', 'syncingWal');
  await service.rollback('shop');
  await reaches(service, 'shop_reverse', 'completed');
  const at = ({ connection: { host, port, dbname } }: (typeof pair)['source']): string =>
    `${host}:${port}/${dbname}`;
  expect(readFileSync(join(folder, 'calls'), 'utf8').trim().split('\n')).toEqual([
    `before_open forward shop ${at(pair.target)}`,
    `after_open forward shop ${at(pair.target)}`,
    `before_open reverse shop_reverse ${at(pair.source)}`,
    `after_open reverse shop_reverse ${at(pair.source)}`,
  ]);
  const bodies = readFileSync(join(folder, 'bodies'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as object);
  expect(bodies[2]).toMatchObject({
    hook: 'before_open',
    task_id: 'shop_reverse',
    direction: 'reverse',
    opens: {
      host: pair.source.connection.host,
      port: pair.source.connection.port,
      dbname: pair.source.dbname,
    },
    certificate: { equal: true, fence: 'triggers' },
  });
  await service.finish('shop');
  await reaches(service, 'shop_forward_2', 'completed');
  await service.unfenceTask('shop_reverse');
});
