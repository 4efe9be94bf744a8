// What pg_dump prints of a database, line by line: a comparison that shares no code with the product's own.
import { dumpSchema } from '../../src/schema/dump.ts';
import type { TestDatabase } from './databases.ts';
import { makeScope } from './scope.ts';

/** Lines of the dump without user mappings, which hold passwords, and what DTS keeps there. */
export async function linesOf(database: TestDatabase): Promise<string[]> {
  const scope = makeScope({ source: database, target: database });
  const entries = await dumpSchema(scope, 'bundled', { role: 'source', schemas: null, extensions: [] });
  await scope.connections.closeAll();
  return entries
    .filter(({ schema, tag, kind }) => schema !== 'dts' && tag !== 'dts' && kind !== 'USER MAPPING')
    .flatMap(({ statements }) => statements.flatMap(({ text }) => text.split('\n')));
}

/** `-` only the source prints it, `+` only the target does. */
export function lineDifference(source: readonly string[], target: readonly string[]): string[] {
  const counts = new Map<string, number>();
  for (const line of source) counts.set(line, (counts.get(line) ?? 0) + 1);
  for (const line of target) counts.set(line, (counts.get(line) ?? 0) - 1);
  return [...counts]
    .flatMap(([line, count]) =>
      Array.from({ length: Math.abs(count) }, () => `${count > 0 ? '-' : '+'} ${line}`),
    )
    .sort();
}
