// The DTS service as a child process that the demo starts, kills without warning, and starts again.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const HEALTH_DEADLINE_MS = 20_000;
const STOP_DEADLINE_MS = 10_000;
const KEPT_LOG_CHARACTERS = 6_000;

/** Preloaded into the child: its stdin ends when the demo dies, however it dies, and then it must not stay behind. */
const dieWithParent = `data:text/javascript,${encodeURIComponent(
  "process.stdin.on('end', () => process.kill(process.pid, 'SIGTERM')).resume(); process.stdin.unref();",
)}`;

export interface DtsProcess {
  readonly url: string;
  /** Starts it and waits until its health route answers; how long that took, in ms. */
  start(signal: AbortSignal): Promise<number>;
  /** SIGKILL; resolves when the process is gone. */
  kill(): Promise<void>;
  /** SIGTERM, and SIGKILL after a while. */
  stop(): Promise<void>;
  /** End of what it has written, for error reports. */
  log(): string;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no free port');
  return address.port;
}

/** Prepares a service on a free loopback port that keeps its state in `dataDir`; nothing runs yet. */
export async function createDtsProcess(dataDir: string): Promise<DtsProcess> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const main = process.argv[1] ?? ''; // the demo is a command of it
  let child: ChildProcess | null = null;
  let output = '';

  const gone = async (running: ChildProcess): Promise<void> => {
    if (running.exitCode === null && running.signalCode === null) await once(running, 'exit');
  };
  const end = async (how: 'SIGKILL' | 'SIGTERM'): Promise<void> => {
    const running = child;
    child = null;
    if (running === null) return;
    const timer = setTimeout(() => running.kill('SIGKILL'), how === 'SIGKILL' ? 0 : STOP_DEADLINE_MS);
    running.kill(how);
    await gone(running);
    clearTimeout(timer);
  };
  return {
    url,
    log: () => output,
    kill: () => end('SIGKILL'),
    stop: () => end('SIGTERM'),
    async start(signal) {
      const startedAt = performance.now();
      const running = spawn(process.execPath, ['--import', dieWithParent, main, 'serve'], {
        env: {
          ...process.env,
          DTS_HOST: '127.0.0.1',
          DTS_PORT: String(port),
          DTS_DATA_DIR: dataDir,
          DTS_LOG_LEVEL: process.env['DTS_LOG_LEVEL'] ?? 'info',
        },
        stdio: ['pipe', 'pipe', 'pipe'],
      });
      child = running;
      for (const stream of [running.stdout, running.stderr])
        stream.on(
          'data',
          (chunk: Buffer) => (output = (output + chunk.toString()).slice(-KEPT_LOG_CHARACTERS)),
        );
      const failed = once(running, 'error'); // resolves with the error that kept it from starting
      for (const deadline = startedAt + HEALTH_DEADLINE_MS; ; ) {
        const healthy = await fetch(`${url}/api/v1/health`, { signal })
          .then((response) => response.body?.cancel().then(() => response.ok) ?? response.ok)
          .catch(() => false);
        if (healthy) return performance.now() - startedAt;
        signal.throwIfAborted();
        if (running.exitCode !== null || running.signalCode !== null || performance.now() > deadline)
          throw new Error('the DTS service did not start');
        await Promise.race([sleep(50), failed.then(([error]) => Promise.reject(error as Error))]);
      }
    },
  };
}
