// The target's tables of a task that an earlier version began: they get what they lack, and the task goes on where it was.
import { expect, test } from 'vitest';
import { removeBookkeeping, upgradeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { expectEqual } from '../support/backlog.ts';
import { makePair } from '../support/databases.ts';
import { copyAll, drainStream, prepare, startStream, untilEvent } from '../support/replication.ts';
import { makeScope } from '../support/scope.ts';

/** What of schema `dts` there was before changes could be set aside. */
const asBefore = 'alter table dts.progress drop column holds; drop table dts.held_table, dts.held_change';

test('a stream whose bookkeeping was made by an earlier version goes on, and applies nothing twice', async () => {
  const pair = await makePair();
  let scope = await prepare(
    pair,
    'create table public.t (id int primary key); create table public.log (id int); alter table public.log replica identity full',
  );
  let stream = startStream(scope);
  await untilEvent(stream, 'SLOT_READY');
  await copyAll(scope, pair);
  await pair.source.query('insert into t values (1); insert into log values (1)');
  await drainStream(scope, pair, stream);
  await stream.stop();
  await scope.connections.closeAll();
  const progress = 'select applied_lsn, acked_lsn, marker, slot_incarnation from dts.progress';
  const before = (await pair.target.query(progress)).rows;
  await pair.target.query(asBefore);

  scope = makeScope(pair, {}, scope);
  await upgradeBookkeeping(scope);
  await upgradeBookkeeping(scope);
  expect((await pair.target.query(progress)).rows).toEqual(before);
  await pair.target.query(asBefore);
  await pair.source.query('insert into t values (2); insert into log values (2)');
  stream = startStream(scope); // does it by itself
  await drainStream(scope, pair, stream);
  await expectEqual(scope, pair);
  expect((await pair.target.query('select holds from dts.progress')).rows).toEqual([{ holds: 0 }]);
  await stream.stop();
});

test('bookkeeping that is gone is not made again by its upgrade', async () => {
  const pair = await makePair();
  const scope = await prepare(pair, 'create table public.t (id int primary key)');
  await removeBookkeeping(scope);
  await upgradeBookkeeping(scope);
  expect((await pair.target.query(`select to_regnamespace('dts') as dts`)).rows).toEqual([{ dts: null }]);
});
