// DDL that changes rows and that neither the stream nor the names and types of columns tell of: what was found equal
// before is compared again, so the target never opens with the old rows.
import { expect, test } from 'vitest';
import type { Service } from '../../src/index.ts';
import { expectEqualTables } from '../support/compare.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';

const schema = `
  create type public.mood as enum ('a', 'b');
  create domain public.feeling as public.mood;
  create table public.t (id int primary key, m public.feeling, v text);
  insert into public.t select i, 'a', 'v' || i from generate_series(1, 500) i`;

async function follow(pair: DatabasePair): Promise<Service> {
  await pair.source.query(schema);
  const service = startLibrary();
  await service.createTask({
    id: 'hidden',
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tables: ['t'],
  });
  await service.startTask('hidden');
  await reaches(service, 'hidden', 'syncingWal');
  return service;
}

test.each([
  ['a column retyped in its own type', 'alter table t alter column v type text using v || 1', 'v'],
  [
    'enum labels that change places',
    `alter type mood rename value 'a' to 'x'; alter type mood rename value 'b' to 'a'; alter type mood rename value 'x' to 'b'`,
    'm',
  ],
  ['a column dropped and added again', 'alter table t drop column v; alter table t add column v text', 'v'],
])('%s is found before the target opens', async (_, change, column) => {
  const pair = await makePair({ source: 16, target: 18 });
  const service = await follow(pair);
  const isClean = async (): Promise<boolean> => (await service.getValidation('hidden')).clean;
  await waitFor(isClean, 30_000, 'a clean validation');

  await pair.source.query(change);
  await service.cutover('hidden');
  const refused = await waitFor(async () => {
    const task = await service.getTask('hidden');
    return task.state === 'completed' || (task.state === 'syncingWal' && task.error) ? task : null;
  });
  expect(refused.error).toMatchObject({ code: 'validation_failed', details: { tables: ['public.t'] } });

  const [table] = (
    await waitFor(async () => {
      const found = await service.getValidation('hidden');
      return found.tables[0]?.differences.changed === 500 ? found : null;
    }, 30_000)
  ).tables;
  expect(table?.differences.samples[0]?.columns).toEqual([column]);
  await service.repairTask('hidden', { table: 'public.t' });
  await waitFor(isClean, 30_000, 'a clean validation');
  await service.cutover('hidden');
  const task = await reaches(service, 'hidden', 'completed');
  expect(task.certificate?.equal).toBe(true);
  await expectEqualTables(pair.source, pair.target, [['public.t', 'public.t']]);
  await service.unfenceTask('hidden');
});

test('a target that somebody else has written to is told when the task has completed', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  const service = await follow(pair);
  await waitFor(async () => (await service.getValidation('hidden')).clean, 30_000, 'a clean validation');
  await pair.target.query(`update t set v = 'a stranger''s' where id = 7`);
  await service.cutover('hidden');
  expect(await reaches(service, 'hidden', 'completed')).toMatchObject({
    error: { code: 'validation_failed', kind: 'divergence', details: { tables: ['public.t'] } },
    certificate: { equal: false },
  });
  await service.unfenceTask('hidden');
});
