// SIGKILL of the service while it gathers transactions that the source has not committed, and while it gives one on: the
// next service is sent them again, and nothing of a file is left.
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { expectEqualTables } from '../support/compare.ts';
import { leaksOf, makePair } from '../support/databases.ts';
import { completes, KilledService } from '../support/kills.ts';
import { migrationBody, startMigration } from '../support/service-process.ts';

const rows = (from: number, to: number): string =>
  `insert into t select g, repeat(chr(97 + g % 26), 400) from generate_series(${from}, ${to}) g`;

test('killed while it has written transactions in progress to its disk, it loses and doubles none', async () => {
  const pair = await makePair();
  const { dbname } = pair.source;
  await pair.source.query('create table t (id int primary key, v text)');
  await pair.source.query(`alter database ${dbname} set logical_decoding_work_mem = '64kB'`);
  const id = dbname;
  const body = migrationBody(pair, { id, tables: ['t'], table_suffix: '_m' });
  const killed = new KilledService();
  const committed = await pair.source.connect();
  const rolledBack = await pair.source.connect();
  await killed.killedAt('sync.spilled', async (service) => {
    await startMigration(service, body);
    await service.reaches(id, 'syncingWal');
    for (const client of [committed, rolledBack]) await client.query('begin');
    await committed.query(rows(1, 20_000));
    await rolledBack.query(rows(100_001, 120_000));
  });
  // again, and of what comes later too
  await killed.killedAt(['sync.spilled', 2], async (service) => {
    await service.reaches(id, 'syncingWal');
    await committed.query(rows(20_001, 40_000));
    await rolledBack.query(rows(120_001, 140_000));
    await pair.source.query('insert into t select g from generate_series(200001, 200500) g');
  });
  const { rows: early } = await pair.target.query('select from t_m where id < 200000');
  expect(early).toHaveLength(0);
  await rolledBack.query('rollback');
  // while it is given on, as parts that are too large for a batch
  await killed.killedAt(['sync.batch-applied', 1], async () => {
    await committed.query('delete from t where id % 3 = 0');
    await committed.query('commit');
  });
  const service = await killed.start();
  expect(existsSync(join(killed.dataDir, 'spill')) ? readdirSync(join(killed.dataDir, 'spill')) : []).toEqual(
    [],
  );
  await completes(service, id);
  await expectEqualTables(pair.source, pair.target, [['t', 't_m']]);
  expect((await pair.target.query('select count(*)::int as n from t_m')).rows).toEqual([{ n: 27_000 }]);
  expect((await service.call('POST', `/migrations/${id}/unfence`)).status).toBe(200);
  expect([...(await leaksOf(pair.source)), ...(await leaksOf(pair.target))]).toEqual([]);
});
