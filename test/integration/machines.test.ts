// How often the servers are asked for their machines: a task asks each once, and never while it holds writes back.
import { expect, test } from 'vitest';
import { copyTables } from '../../src/copy/copy-tables.ts';
import type { Side } from '../../src/postgres/connections.ts';
import { copyJobsOf, ensureCopyJobs } from '../../src/postgres/host.ts';
import { compareTables } from '../../src/validate/compare.ts';
import { makePlan, onBoth, prepareCopy } from '../support/copy-plan.ts';
import { makePair } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

/** Counts, from now on, how often each side is asked for its files. */
function countAsked(scope: TestScope): { source: number; target: number } {
  const asked = { source: 0, target: 0 };
  for (const role of ['source', 'target'] as const) {
    const side: Side = scope[role];
    const query = side.query.bind(side);
    Object.assign(side, {
      query: (sql: string, ...rest: [unknown[]?]) => {
        if (sql.includes('pg_read_file(path')) asked[role]++;
        return query(sql, ...rest);
      },
    });
  }
  return asked;
}

test('the copy asks each machine once, the comparison after it none', async () => {
  const pair = await makePair();
  await onBoth(pair, 'create table a (id int primary key); create table b (id int primary key)');
  await pair.source.query('insert into a select generate_series(1, 100); analyze');
  const scope = makeScope(pair);
  await prepareCopy(scope, await makePlan(pair.source, ['a', 'b']));
  const asked = countAsked(scope);
  await copyTables(scope);
  expect(asked).toEqual({ source: 1, target: 1 });
  const chosen = copyJobsOf(scope);
  await ensureCopyJobs(scope);
  expect((await compareTables(scope)).tables.map(({ equal }) => equal)).toEqual([true, true]);
  expect(asked).toEqual({ source: 1, target: 1 });
  expect(copyJobsOf(makeScope(pair, {}, scope))).toBe(chosen); // also of the next process
});

test('where copy_jobs is given, the source is not asked at all', async () => {
  const pair = await makePair();
  await onBoth(pair, 'create table a (id int primary key)');
  const scope = makeScope(pair, { options: { copyJobs: 3 } });
  await prepareCopy(scope, await makePlan(pair.source, ['a']));
  const asked = countAsked(scope);
  await copyTables(scope);
  await ensureCopyJobs(scope);
  expect(copyJobsOf(scope)).toBe(3);
  expect(asked).toEqual({ source: 0, target: 1 });
});

test('a task that copies nothing asks before there is a fence', async () => {
  const pair = await makePair();
  const scope = makeScope(pair);
  const asked = countAsked(scope);
  expect(copyJobsOf(scope)).toBe(4); // nothing is known yet
  await ensureCopyJobs(scope);
  expect(asked).toEqual({ source: 1, target: 1 });
  await ensureCopyJobs(scope);
  expect(asked).toEqual({ source: 1, target: 1 });
});
