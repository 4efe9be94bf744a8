// Compares tables of two databases row by row, by itself: ordered text of every row under fixed settings.
import { expect } from 'vitest';
import type { TestDatabase } from './databases.ts';

const settings = `set extra_float_digits = 3; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; set timezone = 'UTC'; set bytea_output = 'hex'`;

export async function rowsOf(database: TestDatabase, table: string): Promise<string[]> {
  const client = await database.connect();
  try {
    await client.query(settings);
    // byte order of the text: the same on every server whatever its collation
    const { rows } = await client.query<{ row: string }>(
      `select t::text as row from ${table} t order by t::text collate "C"`,
    );
    return rows.map(({ row }) => row);
  } finally {
    await client.end();
  }
}

/** `pairs`: [source table, target table], quoted as SQL needs it. Samples of what differs are shown. */
export async function expectEqualTables(
  source: TestDatabase,
  target: TestDatabase,
  pairs: readonly (readonly [string, string])[],
): Promise<void> {
  for (const [from, to] of pairs) {
    const [expected, actual] = [await rowsOf(source, from), await rowsOf(target, to)];
    const [inSource, inTarget] = [new Set(expected), new Set(actual)];
    const missing = expected.filter((row) => !inTarget.has(row)).slice(0, 5);
    const extra = actual.filter((row) => !inSource.has(row)).slice(0, 5);
    expect({ table: to, rows: actual.length, missing, extra }).toEqual({
      table: to,
      rows: expected.length,
      missing: [],
      extra: [],
    });
  }
}
