// The online comparison reads a table strip by strip: no row lies between two of them, whatever the key is made of.
import { expect, test } from 'vitest';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { RangeReader, tablePair } from '../../src/validate/ranges.ts';
import { BY_KEY, closePair, openPair, rowFormOf } from '../../src/validate/sessions.ts';
import { makePair, type DatabasePair } from '../support/databases.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makeScope } from '../support/scope.ts';

/** The keys that are found to differ, by table. */
async function differences(pair: DatabasePair): Promise<Record<string, string[]>> {
  const scope = makeScope(pair);
  await planFromCatalog(scope);
  const form = await rowFormOf(scope);
  const sessions = await openPair(scope, scope.signal, BY_KEY, true);
  const found: Record<string, string[]> = {};
  for (const plan of schemaPlanOf(scope).tables) {
    const reader = new RangeReader(sessions);
    const keys: string[] = [];
    for (let after: readonly string[] | null = null; ; ) {
      const verdict = await reader.read(tablePair(plan, form), after, true);
      keys.push(...verdict.keys.map((key) => key.join(' ')));
      if (verdict.upTo === null) break;
      after = verdict.upTo;
    }
    found[plan.source.name] = keys;
  }
  await closePair(sessions);
  return found;
}

test.each([
  [13, 18],
  [16, 18],
] as const)(
  'source %i, target %i: the row behind a strip is missed where the key has several columns, or an array',
  async (source, target) => {
    const pair = await makePair({ source, target });
    for (const side of [pair.source, pair.target])
      await side.query(
        `create table lines (order_id int, line_no int, v text, primary key (order_id, line_no));
         insert into lines select o, l, 'v' from generate_series(1, 1000) o, generate_series(1, 3) l
           where (o, l) <> (334, 3);
         create table days (a int, b date, primary key (a, b));
         insert into days select o, date '2000-01-01' + l from generate_series(1, 1000) o, generate_series(1, 3) l;
         create table paths (path int[] primary key);
         insert into paths select array[i / 7, i] from generate_series(1, 3000) i`,
      );
    // the 1,000th line is (334, 1), and no line of its order has a greater number than the next one
    await pair.target.query(
      `delete from lines where (order_id, line_no) = (334, 2); delete from days where (a, b) = (334, '2000-01-03');
       delete from paths where path = array[143, 1001]`,
    );
    expect(await differences(pair)).toEqual({
      lines: ['334 2'],
      days: ['334 2000-01-03'],
      paths: ['{143,1001}'],
    });
  },
);

test('the row behind a strip is missed where the key has an order of its own', async () => {
  const pair = await makePair({ source: 18, target: 18 });
  for (const side of [pair.source, pair.target])
    await side.query(
      `create extension citext;
       create table words (word citext collate "C" primary key);
       insert into words select 'a' || lpad(i::text, 5, '0') from generate_series(1, 3000) i`,
    );
  // behind all others in the order of its type, before them in that of its text
  await pair.source.query(`insert into words values ('B')`);
  expect(await differences(pair)).toEqual({ words: ['B'] });
});
