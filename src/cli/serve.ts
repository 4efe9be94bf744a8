// `dts serve`: the service in the foreground until SIGTERM or SIGINT; tasks stay resumable.
import { readFileSync } from 'node:fs';
import { pino } from 'pino';
import type { Config } from '../config.ts';
import { startServer } from '../http/server.ts';
import { createService } from '../index.ts';

/** The whole stop must fit into five seconds; after this the process ends whatever still hangs. */
const FORCED_EXIT_MS = 4_500;

/** Runs until a signal arrives; resolves with the exit code. */
export async function serve(config: Config, version: string, failpoint: string | undefined): Promise<number> {
  const log = pino({ level: config.logLevel, redact: ['password', '*.password', 'token', '*.token'] });
  const service = createService(config, { log, ...(failpoint === undefined ? {} : { failpoint }) });
  const server = await startServer(service, {
    host: config.host,
    port: config.port,
    version,
    log,
    ...(config.token === null ? {} : { token: config.token }),
  }).catch(async (error: unknown) => {
    await service.stop();
    throw error;
  });
  log.info({ url: server.url, dataDir: config.dataDir, version }, 'DTS is listening');
  const signal = await new Promise<string>((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => resolve(name));
  });
  log.info({ signal }, 'stopping; tasks resume at the next start');
  const hung = new Promise<number>((resolve) => setTimeout(() => resolve(1), FORCED_EXIT_MS).unref());
  const stopped = server
    .close()
    .then(() => service.stop())
    .then(() => 0);
  const code = await Promise.race([stopped, hung]);
  if (code !== 0) log.error({}, 'not everything ended in time; tasks are resumable all the same');
  return code;
}

/** The package's version, from package.json beside or above this file. */
export function packageVersion(): string {
  for (const path of ['../../package.json', '../../../package.json']) {
    try {
      const { name, version } = JSON.parse(readFileSync(new URL(path, import.meta.url), 'utf8')) as {
        name: string;
        version: string;
      };
      if (name === 'dts') return version;
    } catch {
      continue; // dist/src/cli has one more level than src/cli
    }
  }
  return 'unknown';
}
