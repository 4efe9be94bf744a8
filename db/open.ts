// Opens the SQLite file: WAL mode, every commit synced, migrations applied.
import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Database from 'better-sqlite3';
import { drizzle, type BetterSQLite3Database } from 'drizzle-orm/better-sqlite3';
import { migrate } from 'drizzle-orm/better-sqlite3/migrator';

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

/** `path` is a file, made with its folder where missing (mode 0700), or `:memory:`. */
export function openStore(path: string): Store {
  if (path !== ':memory:') mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
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
    close: () => sqlite.close(),
  };
}
