// DDL on the source while the first copy runs: a task that may follow it pauses with the remedy that is right, and goes on by
// it; parts from before the DDL stay, and no row is lost.
import { expect, test } from 'vitest';
import { expectEqualTables } from '../support/compare.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { reaches, startLibrary } from '../support/library.ts';

const SLOW = 65_536;

test('a column that comes while tables are copied is carried after a plain resume (on_ddl: apply-additive)', async () => {
  const pair = await makePair();
  await pair.source.query(`create table t (id int primary key, v text);
    insert into t select g, (select string_agg(md5((g * 100 + n)::text), '') from generate_series(1, 30) n)
      from generate_series(1, 1500) g`);
  const service = startLibrary();
  const { task } = await service.createTask({
    sourceDb: pair.source.connection,
    targetDb: pair.target.connection,
    tables: ['t'],
    options: {
      onDdl: 'apply-additive',
      copyJobs: 1,
      partBytes: 250_000,
      maxBytesPerSecond: SLOW,
      keepFence: false,
    },
  });
  const { id } = task;
  await service.startTask(id);
  const parts = 'select part, done_at::text from dts.part order by part';
  const isCopying = async (): Promise<boolean> =>
    (await pair.target.query(`select to_regclass('dts.part') is not null as made`)).rows[0]?.['made'] ===
      true && (await pair.target.query(parts)).rowCount !== 0;
  await waitFor(isCopying, 60_000, 'a part');
  // the copy's generation gives way
  await pair.source.query(
    `alter table t add column w int not null default 7; update t set w = id where id % 3 = 0`,
  );
  const paused = await reaches(service, id, 'paused');
  expect(paused.error).toMatchObject({
    code: 'source_ddl',
    hint: expect.stringMatching(/^resume: /) as string,
  });
  const done = (await pair.target.query(parts)).rows;
  await service.changeOptions(id, { maxBytesPerSecond: null });
  await service.resumeTask(id);
  await reaches(service, id, 'syncingWal');
  expect((await pair.target.query(parts)).rows).toEqual(expect.arrayContaining(done)); // read once
  await pair.source.query(
    `insert into t (id, v) values (-1, 'later'); update t set v = 'later' where id < 10`,
  );
  await service.cutover(id);
  await reaches(service, id, 'completed');
  await expectEqualTables(pair.source, pair.target, [['t', 't']]);
});
