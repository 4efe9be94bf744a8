// The service's settings: environment first, flags over it. Every fault is reported at once, with the variable named.
import { isAbsolute, join } from 'node:path';
import { MigrationError } from './model/errors.ts';
import { parseSecretKey } from './runtime/secrets.ts';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof logLevels)[number];

export interface Config {
  readonly host: string;
  readonly port: number;
  readonly dataDir: string;
  readonly databasePath: string;
  readonly keyPath: string;
  readonly logLevel: LogLevel;
  readonly maxRunningTasks: number;
  readonly cleanupIntervalMs: number;
  readonly slotCheckIntervalMs: number;
  /** Folder of the commands that hooks may name; null: none. */
  readonly hooksDir: string | null;
  /** 32 bytes; null: the key file. */
  readonly secretKey: Buffer | null;
  /** Bearer token of the HTTP API; required for anything but loopback. */
  readonly token: string | null;
}

export interface Setting {
  readonly variable: string;
  readonly flag: string;
  readonly placeholder: string;
  readonly fallback: string;
  readonly help: string;
}

/** Every setting of `dts serve`; `--help` and README list them in this order. Secrets have no flag: flags show in `ps`. */
export const settings = [
  {
    variable: 'DTS_HOST',
    flag: '--host',
    placeholder: '<address>',
    fallback: '127.0.0.1',
    help: 'address to listen on; anything but loopback needs DTS_TOKEN',
  },
  {
    variable: 'DTS_PORT',
    flag: '--port',
    placeholder: '<port>',
    fallback: '8080',
    help: 'port to listen on; 0 takes a free one',
  },
  {
    variable: 'DTS_DATA_DIR',
    flag: '--data-dir',
    placeholder: '<folder>',
    fallback: './data',
    help: 'SQLite file, key file, files of large transactions while they are streamed',
  },
  {
    variable: 'DTS_LOG_LEVEL',
    flag: '--log-level',
    placeholder: '<level>',
    fallback: 'info',
    help: logLevels.join(', '),
  },
  {
    variable: 'DTS_MAX_RUNNING_TASKS',
    flag: '--max-running-tasks',
    placeholder: '<n>',
    fallback: '16',
    help: 'tasks at work at once, 1 to 100; more wait in state queued',
  },
  {
    variable: 'DTS_CLEANUP_INTERVAL',
    flag: '--cleanup-interval',
    placeholder: '<duration>',
    fallback: '5m',
    help: 'how often ended tasks are cleaned up: 500ms, 30s, 5m',
  },
  {
    variable: 'DTS_SLOT_CHECK_INTERVAL',
    flag: '--slot-check-interval',
    placeholder: '<duration>',
    fallback: '15s',
    help: 'how often the slots of paused and waiting tasks are looked at',
  },
  {
    variable: 'DTS_HOOKS_DIR',
    flag: '--hooks-dir',
    placeholder: '<folder>',
    fallback: '',
    help: 'folder of the programs that hooks may name as command; none: hooks are HTTP calls only',
  },
] as const satisfies readonly Setting[];

/** Settings that come from the environment only. */
export const secretSettings = [
  {
    variable: 'DTS_SECRET_KEY',
    help: '32 bytes in base64 that seal stored passwords; without it a key file is made beside the database',
  },
  { variable: 'DTS_TOKEN', help: 'bearer token that HTTP clients must send' },
  { variable: 'DTS_FAILPOINT', help: 'for crash tests: kill the process at a named place' },
] as const;

type Values = Readonly<Record<string, string | undefined>>;

/** `given` maps variable names to values. Throws `invalid_request` naming every faulty variable. */
export function parseConfig(given: Values): Config {
  const faults: { field: string; message: string }[] = [];
  const read = <T>(
    variable: string,
    fallback: string,
    parse: (text: string) => T | undefined,
    expected: string,
  ): T => {
    const text = given[variable] === undefined || given[variable] === '' ? fallback : given[variable];
    const value = parse(text);
    if (value === undefined)
      faults.push({ field: variable, message: `${JSON.stringify(text)} is not ${expected}` });
    return value as T;
  };
  const integer = (from: number, to: number) => (text: string) => {
    const value = Number(text);
    return /^\d+$/.test(text) && value >= from && value <= to ? value : undefined;
  };
  const nonEmpty = (text: string): string | undefined => (text.trim() === '' ? undefined : text);
  const [host, port, dataDir, logLevel, maxRunning, cleanup, slotCheck, hooksDir] = settings;
  const dataDirectory = read(dataDir.variable, dataDir.fallback, nonEmpty, 'a folder');
  const config: Config = {
    host: read(host.variable, host.fallback, nonEmpty, 'an address'),
    port: read(port.variable, port.fallback, integer(0, 65_535), 'a port from 0 to 65535'),
    dataDir: dataDirectory,
    databasePath: join(dataDirectory, 'dts.sqlite'),
    keyPath: join(dataDirectory, 'secret.key'),
    logLevel: read(
      logLevel.variable,
      logLevel.fallback,
      (text) => logLevels.find((level) => level === text),
      `one of ${logLevels.join(', ')}`,
    ),
    maxRunningTasks: read(
      maxRunning.variable,
      maxRunning.fallback,
      integer(1, 100),
      'a number from 1 to 100',
    ),
    cleanupIntervalMs: read(
      cleanup.variable,
      cleanup.fallback,
      parseDuration,
      'a duration from 100ms to 24h, such as 30s or 5m',
    ),
    slotCheckIntervalMs: read(
      slotCheck.variable,
      slotCheck.fallback,
      parseDuration,
      'a duration from 100ms to 24h, such as 30s or 5m',
    ),
    hooksDir: read(
      hooksDir.variable,
      hooksDir.fallback,
      (text) => (text === '' ? null : isAbsolute(text) ? text : undefined),
      'an absolute path',
    ),
    secretKey: read(
      'DTS_SECRET_KEY',
      '',
      optionalKey,
      '32 bytes in base64 (make one with: openssl rand -base64 32)',
    ),
    token: read(
      'DTS_TOKEN',
      '',
      (text) => (text === '' ? null : text.length >= 16 ? text : undefined),
      'a token of at least 16 characters',
    ),
  };
  if (faults.length > 0) {
    // the values of secrets are not repeated
    const shown = faults.map((fault) =>
      isSecret(fault.field) ? { ...fault, message: fault.message.replace(/^".*" is/, 'is') } : fault,
    );
    throw new MigrationError(
      'invalid_request',
      shown.map(({ field, message }) => `${field}: ${message}`).join('; '),
      { details: { fields: shown } },
    );
  }
  return Object.freeze(config);
}

function isSecret(variable: string): boolean {
  return variable === 'DTS_SECRET_KEY' || variable === 'DTS_TOKEN';
}

function optionalKey(text: string): Buffer | null | undefined {
  if (text === '') return null;
  try {
    return parseSecretKey(text);
  } catch {
    return undefined;
  }
}

const unitsMs: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 };

/** `500ms`, `30s`, `5m`, `1h` → milliseconds; undefined for anything else and outside 100 ms to 24 h. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d+)(ms|s|m|h)$/.exec(text);
  if (!match) return undefined;
  const ms = Number(match[1]) * (unitsMs[match[2] ?? ''] ?? Number.NaN);
  return ms >= 100 && ms <= 24 * 3_600_000 ? ms : undefined;
}
