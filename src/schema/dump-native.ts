// pg_dump of the machine, when it is new enough. It reaches the server only through us: over a Unix socket in a folder
// that only this user may enter, to a session of the task. So it needs no host, no password and no certificate, and none
// shows in its environment or in the list of processes.
import { execFile, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MigrationError } from '../model/errors.ts';
import { LentConnection } from './dump-wire.ts';
import type { LentSession } from './lent-session.ts';

const SOCKET_PORT = '5432';
const STDERR_KEPT = 4_000;

/** Tasks that start together ask once; somebody who installs a pg_dump is believed soon after. */
const ASK_AGAIN_MS = 10_000;
let asked: {
  readonly atMs: number;
  readonly path: string | undefined;
  readonly major: Promise<number | null>;
} | null = null;

/** The major of `pg_dump` on PATH; null when there is none. */
export function nativeMajor(): Promise<number | null> {
  const now = performance.now();
  const path = process.env['PATH'];
  if (asked === null || asked.path !== path || now - asked.atMs > ASK_AGAIN_MS)
    asked = { atMs: now, path, major: askMajor() };
  return asked.major;
}

async function askMajor(): Promise<number | null> {
  if (process.platform === 'win32') return null; // libpq has no Unix sockets in folders there
  try {
    const { stdout } = await promisify(execFile)('pg_dump', ['--version'], { timeout: 10_000 });
    const major = Number(/\(PostgreSQL\) (\d+)/.exec(stdout)?.[1]);
    return Number.isInteger(major) ? major : null;
  } catch {
    return null;
  }
}

/** Runs `pg_dump` with `args` and returns what it printed. Errors: `schema_failed` with its last words. */
export async function runNativeDump(
  lent: LentSession,
  args: readonly string[],
  signal: AbortSignal,
): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'dts-dump-')); // made 0700
  const server = relay(lent);
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(join(folder, `.s.PGSQL.${SOCKET_PORT}`), resolve);
    });
    return await run([...args, `--host=${folder}`, `--port=${SOCKET_PORT}`], signal, lent);
  } finally {
    server.close();
    await rm(folder, { recursive: true, force: true });
  }
}

/** A server that hands its first client's messages to the lent session, and turns away everybody else. */
function relay(lent: LentSession): Server {
  let taken = false;
  return createServer((socket) => {
    if (taken) return void socket.destroy();
    taken = true;
    socket.on('error', () => socket.destroy()); // pg_dump's exit says why
    const connection = new LentConnection(lent.parameters);
    socket.on('data', (bytes) => {
      const { toLibpq, toServer } = connection.write(bytes);
      if (toLibpq) socket.write(toLibpq);
      if (toServer) lent.send(toServer);
    });
    socket.on('drain', () => lent.resume());
    lent.receive((chunk) => {
      if (!socket.write(chunk)) lent.pause();
    });
  });
}

function run(args: readonly string[], signal: AbortSignal, lent: LentSession): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn('pg_dump', [...args, '--username=dts', '--dbname=dts', '--no-password'], {
      stdio: ['ignore', 'pipe', 'pipe'],
      signal,
      killSignal: 'SIGKILL',
      env: {
        PATH: process.env['PATH'],
        LC_ALL: 'C',
        PGSSLMODE: 'disable',
        PGGSSENCMODE: 'disable',
        PGPASSFILE: '/dev/null',
        PGSYSCONFDIR: '/dev/null',
      },
    });
    const output: Buffer[] = [];
    let lastWords = '';
    child.stdout.on('data', (chunk: Buffer) => output.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => {
      lastWords = (lastWords + chunk.toString()).slice(-STDERR_KEPT);
    });
    child.once('error', reject);
    child.once('close', (code) => {
      if (code === 0) resolve(Buffer.concat(output).toString());
      else reject(new MigrationError('schema_failed', `pg_dump ended with ${code}: ${errorsIn(lastWords)}`));
    });
    lent.onClose(() => {
      reject(new Error('Connection terminated unexpectedly'));
      child.kill('SIGKILL');
    });
  });
}

/** With --verbose every step is reported there too. */
function errorsIn(text: string): string {
  const errors = text.split('\n').filter((line) => /error|detail|hint/i.test(line));
  return (errors.length > 0 ? errors.join(' ') : text).trim();
}
