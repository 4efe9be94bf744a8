// A row that an update brings into the row filter arrives as an insert without the large values that the update did not
// touch. It is read again, and what the read has seen already is not applied a second time.
import { expect, onTestFinished, test } from 'vitest';
import { formatRange, type KeyRange } from '../../src/model/part-range.ts';
import { saveSchemaPlan, schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { expectEqual, listening } from '../support/backlog.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import { copyAll, drainStream, prepare, startStream, untilEvent } from '../support/replication.ts';
import { makeScope } from '../support/scope.ts';

startServers(15);

const ddl = `create table public.t (tenant int, id int, n int, big text, primary key (tenant, id));
  alter table public.t alter column big set storage external`;

test.each([15, 16, 18] as const)(
  'a row that comes into the filter of %i keeps its large value, and what it became afterwards',
  async (major) => {
    const pair = await makePair({ source: major, target: 18 });
    const { scope, said } = listening(await prepare(pair, ddl));
    const plan = schemaPlanOf(scope);
    saveSchemaPlan(scope, {
      ...plan,
      tables: plan.tables.map((table) => ({ ...table, where: 'tenant = 1' })),
    });
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, pair);
    await drainStream(scope, pair, stream);
    // the applier waits here, so that everything below is behind it when the row is read again
    const blocker = await pair.target.connect();
    await blocker.query('begin; lock table public.t in share mode');
    await pair.source.query(`
      insert into t select 1, i, 0, 'small' from generate_series(1, 3) i;
      insert into t select 2, i, 0, repeat(i::text, 9000) from generate_series(11, 14) i`);
    await pair.source.query(`
      begin; update t set tenant = 1 where id in (11, 12, 13, 14); update t set n = n + 1 where id in (1, 11, 12, 13, 14); commit`);
    await pair.source.query(`
      begin; update t set n = n + 1 where id in (2, 11); delete from t where id = 12; update t set tenant = 3 where id = 13; commit;
      update t set n = n + 1 where id in (3, 11); update t set big = 'no longer' where id = 14`);
    await blocker.query('commit');
    await drainStream(scope, pair, stream);
    const rows = `select tenant, id, n, md5(big) as big from public.t where tenant = 1 order by id`;
    expect((await pair.target.query(rows.replace('where tenant = 1', ''))).rows).toEqual(
      (await pair.source.query(rows)).rows,
    );
    // and afterwards the table goes on as before
    await pair.source.query(
      `update t set n = n + 1; delete from t where id = 1; update t set tenant = 1 where id = 13`,
    );
    await drainStream(scope, pair, stream);
    expect((await pair.target.query(rows.replace('where tenant = 1', ''))).rows).toEqual(
      (await pair.source.query(rows)).rows,
    );
    expect(said.binary).toBe(true);
    await stream.stop();
  },
);

test('parts of another table that are cut by dates are still asked behind a row that was read again', async () => {
  const pair = await makePair({ source: 15, target: 18 });
  // under identity full no key is written down: nothing else keeps the stream from sending bytes
  const days = `create table public.days (day date primary key, n int); alter table public.days replica identity full`;
  const first = await prepare(pair, `${ddl}; ${days}`);
  const plan = schemaPlanOf(first);
  saveSchemaPlan(first, {
    ...plan,
    tables: plan.tables.map((table) =>
      table.source.name === 't' ? { ...table, where: 'tenant > 0' } : table,
    ),
  });
  await pair.source.query(`insert into days select date '2024-01-01' + i, 0 from generate_series(0, 9) i`);
  const copying = startStream(first);
  await untilEvent(copying, 'SLOT_READY');
  await copyAll(first, pair);
  const halves: KeyRange[] = [
    { kind: 'key', column: 'day', type: 'date', from: null, to: '2024-01-06' },
    { kind: 'key', column: 'day', type: 'date', from: '2024-01-06', to: null },
  ];
  const [lower, upper] = halves.map(formatRange);
  await pair.target.query(`update dts.part set range = '${lower}' where relation = 'public.days';
    insert into dts.part (task_id, slot_incarnation, relation, part, range, pg_snapshot, horizon_lsn, rows, bytes, epoch)
      select task_id, slot_incarnation, relation, 1, '${upper}', pg_snapshot, horizon_lsn, rows, bytes, epoch
        from dts.part where relation = 'public.days'`);
  await drainStream(first, pair, copying);
  await copying.stop();
  await pair.source.query(
    `insert into t select -1, i, 0, repeat(i::text, 9000) from generate_series(11, 14) i`,
  );
  // the copy's horizons are passed by now
  const { scope, said } = listening(makeScope(pair, {}, first));
  const stream = startStream(scope);
  await drainStream(scope, pair, stream);
  const blocker = await pair.target.connect();
  await blocker.query('begin; lock table public.t in share mode');
  await pair.source.query(`update t set tenant = 1`);
  await pair.source.query(`update days set n = n + 1; delete from days where day = '2024-01-03'`);
  await blocker.query('commit');
  await drainStream(scope, pair, stream);
  expect(await expectEqual(scope, pair)).toBe(4 + 9);
  expect(said.binary).toBe(true);
  await stream.stop();
});

test('a row that comes into the filter is not read before its transaction is visible', async () => {
  const pair = await makePair({ source: 15, target: 18 });
  const scope = await prepare(pair, ddl);
  const plan = schemaPlanOf(scope);
  saveSchemaPlan(scope, { ...plan, tables: plan.tables.map((table) => ({ ...table, where: 'tenant = 1' })) });
  await pair.source.query(`insert into t values (2, 11, 0, repeat('11', 9000)), (2, 12, 0, 'small')`);
  const stream = startStream(scope);
  await untilEvent(stream, 'SLOT_READY');
  await copyAll(scope, pair);
  await pair.target.query('delete from t'); // the copy made by hand knows no filter
  // commits wait for a standby that is not there: in the WAL, hence in the stream, and invisible for as long as we want
  const configure = async (names: string): Promise<void> => {
    await pair.source.query(`alter system set synchronous_standby_names = '${names}'`);
    await pair.source.query('select pg_reload_conf()');
  };
  onTestFinished(() => configure(''));
  const [probe, writer] = [await pair.source.connect(), await pair.source.connect()];
  await configure('nobody');
  let probing = true;
  const probed = (async () => {
    while (probing) await probe.query('update t set n = n + 1 where id = 12');
  })();
  await waitFor(async () => {
    const { rowCount } = await pair.source.query(
      `select from pg_stat_activity where datname = current_database() and wait_event = 'SyncRep'`,
    );
    return rowCount === 1;
  });
  probing = false;
  const updated = writer.query('update t set tenant = 1 where id = 11');
  await waitFor(
    () => scope.waits.some((wait) => wait?.includes('to become visible')),
    30_000,
    'a read that came too early',
  );
  await configure('');
  await Promise.all([probed, updated]);
  await drainStream(scope, pair, stream);
  const rows = `select tenant, id, n, md5(big) as big from public.t where tenant = 1`;
  expect((await pair.target.query(rows)).rows).toEqual((await pair.source.query(rows)).rows);
  await stream.stop();
});
