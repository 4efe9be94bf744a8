// Opens the SQLite file: WAL mode, every commit synced, migrations applied, and nobody else's as long as it is open.
import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Database from 'better-sqlite3';
import { drizzle, type BetterSQLite3Database } from 'drizzle-orm/better-sqlite3';
import { migrate } from 'drizzle-orm/better-sqlite3/migrator';
import { MigrationError } from '../src/model/errors.ts';

export interface Store {
  readonly orm: BetterSQLite3Database;
  /** Runs synchronous work in one transaction; a throw rolls back. */
  transaction<T>(work: () => T): T;
  close(): void;
}

/** The folder is beside this file in a checkout, and in the package root seen from dist/db. */
function migrationsFolder(): string {
  const here = dirname(fileURLToPath(import.meta.url));
  const beside = join(here, 'migrations');
  return existsSync(beside) ? beside : join(here, '..', '..', 'db', 'migrations');
}

/** A predecessor that is stopping has this long to let go. */
const LOCK_TIMEOUT_MS = 6_000;

/**
 * Two services on one store would each drive every task: the second one's restart lifts the fence under which the first
 * opens the target. The lock is another file's, so that the store itself can still be read; a killed process loses it.
 */
function lockStore(path: string, timeoutMs: number): Database.Database {
  const lock = new Database(`${path}.lock`, { timeout: timeoutMs });
  try {
    lock.exec('begin exclusive');
    return lock;
  } catch (error) {
    lock.close();
    if ((error as { code?: unknown }).code !== 'SQLITE_BUSY') throw error;
    throw new MigrationError('store_in_use', `another service is at work on ${path}`, {
      hint: 'stop it first, or give this one a data directory of its own',
      cause: error,
    });
  }
}

/**
 * `path` is a file, made with its folder where missing (mode 0700), or `:memory:`. Errors: `store_in_use` when another
 * process (or service of this one) does not let go of it.
 */
export function openStore(path: string, lockTimeoutMs: number = LOCK_TIMEOUT_MS): Store {
  if (path !== ':memory:') mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const lock = path === ':memory:' ? null : lockStore(path, lockTimeoutMs);
  const sqlite = new Database(path);
  sqlite.pragma('journal_mode = WAL');
  sqlite.pragma('synchronous = FULL'); // "committed before its effects" must also survive a power cut
  sqlite.pragma('foreign_keys = ON');
  sqlite.pragma('busy_timeout = 5000');
  const orm = drizzle({ client: sqlite });
  migrate(orm, { migrationsFolder: migrationsFolder() });
  return {
    orm,
    transaction: (work) => sqlite.transaction(work)(),
    close() {
      sqlite.close();
      lock?.close();
    },
  };
}
