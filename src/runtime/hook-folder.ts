// The commands that hooks may name: executable files of one folder that the operator gives the service. Whoever may use
// the API can choose among them and nothing else: no path, no arguments, no shell, no environment of ours.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:fs';
import { access, realpath, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { HookCommands } from '../postgres/task-scope.ts';

/** Of what a command writes to its standard error, the end. */
const STDERR_KEPT_BYTES = 2_000;
/** For what it has written to arrive, when it has ended. */
const DRAIN_MS = 500;
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
const WRITABLE_BY_OTHERS = 0o022;

interface Fault {
  readonly fault: string;
  readonly remedy: string;
}

export class HookFolder implements HookCommands {
  readonly #folder: string | null;

  /** `folder`: null when the operator has given none. */
  constructor(folder: string | null) {
    this.#folder = folder;
  }

  get isOff(): boolean {
    return this.#folder === null;
  }

  async faultOf(command: string): Promise<Fault | null> {
    const found = await this.#find(command);
    return 'fault' in found ? found : null;
  }

  async run(
    command: string,
    input: string,
    env: Readonly<Record<string, string>>,
    { timeoutMs, signal }: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<void> {
    const found = await this.#find(command);
    if ('fault' in found) throw new Error(`${found.fault}: ${found.remedy}`);
    signal.throwIfAborted();
    // a process group of its own: what it starts is killed with it
    const child = spawn(found.path, [], {
      cwd: dirname(found.path),
      env: { PATH, LANG: 'C.UTF-8', ...env },
      detached: true,
      stdio: ['pipe', 'ignore', 'pipe'],
    });
    let told = Buffer.alloc(0);
    child.stderr.on('data', (chunk: Buffer) => {
      told = Buffer.concat([told, chunk]).subarray(-STDERR_KEPT_BYTES);
    });
    const drained = once(child.stderr, 'close').catch(() => undefined);
    // it need not read its input
    child.stdin.on('error', () => undefined);
    child.stdin.end(input);
    let ended: 'late' | 'stopped' | null = null;
    const kill = (why: 'late' | 'stopped'): void => {
      ended ??= why;
      if (child.pid === undefined) return;
      try {
        process.kill(-child.pid, 'SIGKILL');
      } catch {
        // the whole group has ended
      }
    };
    const stop = (): void => kill('stopped');
    const timer = setTimeout(() => kill('late'), timeoutMs);
    signal.addEventListener('abort', stop, { once: true });
    try {
      // `exit`, not `close`: something that it leaves running may keep its standard error open
      const outcome = await new Promise<{ code: number | null; by: NodeJS.Signals | null }>(
        (resolve, reject) => {
          child.once('error', (error) =>
            reject(new Error(`cannot be started: ${error.message}`, { cause: error })),
          );
          child.once('exit', (code, by) => resolve({ code, by }));
        },
      );
      signal.throwIfAborted();
      if (outcome.code === 0 && ended === null) return;
      kill('stopped'); // what a failed command has left behind, which ends its standard error, too
      await Promise.race([drained, sleep(DRAIN_MS, undefined, { ref: false })]);
      const tail = told.toString('utf8').trim();
      const said = tail === '' ? '' : `: ${tail}`;
      if (ended === 'late') throw new Error(`did not end within ${timeoutMs} ms and was killed${said}`);
      throw new Error(
        outcome.code === null
          ? `was ended by ${outcome.by ?? 'a signal'}${said}`
          : `ended with exit code ${outcome.code}${said}`,
      );
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', stop);
      child.stderr.destroy();
    }
  }

  async #find(command: string): Promise<{ readonly path: string } | Fault> {
    if (this.#folder === null)
      return {
        fault: 'the service has no folder of commands',
        remedy: 'its operator sets DTS_HOOKS_DIR (--hooks-dir), or give the hook a url',
      };
    let folder: string;
    try {
      folder = await realpath(this.#folder);
    } catch {
      return { fault: 'the folder of commands is not there', remedy: `make ${this.#folder}` };
    }
    const shown = join(this.#folder, command);
    let path: string;
    try {
      path = await realpath(join(folder, command));
    } catch {
      return { fault: 'there is no such command', remedy: `put an executable file at ${shown}` };
    }
    // a symbolic link, or a name that was never checked
    if (dirname(path) !== folder)
      return {
        fault: 'it lies outside the folder of commands',
        remedy: `put a copy at ${shown}, not a link`,
      };
    const [file, parent] = await Promise.all([stat(path), stat(folder)]);
    if (!file.isFile()) return { fault: 'it is not a file', remedy: `put an executable file at ${shown}` };
    const writable = [
      { mode: file.mode, path: shown },
      { mode: parent.mode, path: this.#folder },
    ].find(({ mode }) => (mode & WRITABLE_BY_OTHERS) !== 0);
    if (writable)
      return { fault: 'others than its owner may write to it', remedy: `chmod go-w ${writable.path}` };
    try {
      await access(path, constants.X_OK);
    } catch {
      return { fault: 'the service may not execute it', remedy: `chmod u+x ${shown}` };
    }
    return { path };
  }
}
