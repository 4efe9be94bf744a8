// A source that fails over to a standby with a synchronised slot: the stream goes on there if, and only if, the target has
// nothing that the promoted server never got.
import { cpSync, rmSync, chownSync, readdirSync, statSync, writeFileSync, appendFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { expect, it, onTestFinished } from 'vitest';
import type { EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import { relationKey } from '../../src/model/relation.ts';
import { leftTimelineAt } from '../../src/postgres/promotion.ts';
import { dropPublication } from '../../src/postgres/publication.ts';
import { dropSlot } from '../../src/postgres/slot-removal.ts';
import { findSlot } from '../../src/postgres/slot-record.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { contents, copyAll, drainStream, prepare, startStream, untilEvent } from '../support/replication.ts';
import { makeScope } from '../support/scope.ts';
import { startServer } from '../support/servers.ts';

const settings = { fsync: 'off', synchronized_standby_slots: 'standby', wal_keep_size: '1GB' };

/** `server` as a test's source; `port` decides which server answers. */
function sourceOf(pair: DatabasePair, server: EmbeddedServer): TestDatabase {
  const pool = new pg.Pool({ connectionString: server.url('postgres'), ssl: false });
  pool.on('error', () => undefined);
  onTestFinished(() => pool.end());
  const { host, port, user, password } = server;
  return {
    ...pair.source,
    connection: { host, port, user, password, dbname: 'postgres', sslmode: 'disable' },
    query: (sql: string, params?: unknown[]) => pool.query(sql, params),
    connect: async () => {
      const client = new pg.Client({ connectionString: server.url('postgres'), ssl: false });
      client.on('error', () => undefined);
      await client.connect();
      onTestFinished(() => client.end());
      return client;
    },
  } as TestDatabase;
}

function own(path: string, uid: number, gid: number): void {
  chownSync(path, uid, gid);
  if (statSync(path).isDirectory()) for (const name of readdirSync(path)) own(join(path, name), uid, gid);
}

/** A primary and its standby, which synchronises slots. */
async function cluster(major: 17 | 18): Promise<{ primary: EmbeddedServer; standby: EmbeddedServer }> {
  const primary = await startServer({ major, settings });
  onTestFinished(() => primary.stop());
  const standby = await startServer({
    major,
    settings: { ...settings, synchronized_standby_slots: '' },
  });
  onTestFinished(() => standby.stop());
  await standby.crash();
  const client = new pg.Client({ connectionString: primary.url('postgres'), ssl: false });
  await client.connect();
  await client.query(`alter role postgres password '${standby.password}'`);
  await client.query(`select pg_create_physical_replication_slot('standby', true)`);
  await client.query(`select pg_backup_start('copy', true)`);
  const data = join(standby.directory, 'data');
  const { uid, gid } = statSync(data);
  rmSync(data, { recursive: true, force: true });
  cpSync(join(primary.directory, 'data'), data, {
    recursive: true,
    filter: (path) => !/postmaster\.(pid|opts)$|pg_replslot\/./.test(path),
  });
  const { rows } = await client.query<{ labelfile: string }>('select labelfile from pg_backup_stop(false)');
  await client.end();
  writeFileSync(join(data, 'backup_label'), rows[0]?.labelfile ?? '');
  writeFileSync(join(data, 'standby.signal'), '');
  const conninfo = `host=127.0.0.1 port=${primary.port} user=postgres password=${standby.password} dbname=postgres`;
  appendFileSync(
    join(data, 'postgresql.auto.conf'),
    `primary_conninfo = '${conninfo}'\nprimary_slot_name = 'standby'\nhot_standby_feedback = on\nsync_replication_slots = on\n`,
  );
  own(data, uid, gid);
  await standby.restart();
  return { primary: Object.assign(primary, { password: standby.password }), standby };
}

it.each([17, 18] as const)(
  'goes on at a promoted standby that has everything, and nowhere else: %i',
  async (major) => {
    const { primary, standby } = await cluster(major);
    const pair = await makePair();
    const before: DatabasePair = {
      source: sourceOf(pair, {
        ...primary,
        password: standby.password,
        url: (name) => standby.url(name).replace(`:${standby.port}/`, `:${primary.port}/`),
      }),
      target: pair.target,
    };
    const after: DatabasePair = { source: sourceOf(pair, standby), target: pair.target };
    const scope = await prepare(before, 'create table public.t (id int primary key, v text)');
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await before.source.query(`insert into public.t select g, 'a' from generate_series(1, 100) g`);
    await copyAll(scope, before);
    await untilEvent(stream, 'CAUGHT_UP');
    await before.source.query(`update public.t set v = 'b' where id <= 50`);
    await drainStream(scope, before, stream);
    expect(findSlot(scope)).toMatchObject({ failover: true, system: { timeline: 1 } });
    const name = findSlot(scope)?.name;
    await waitFor(
      async () => {
        const { rows } = await after.source.query<{ ready: boolean }>(
          'select synced and not temporary and invalidation_reason is null as ready from pg_replication_slots where slot_name = $1',
          [name],
        );
        return rows[0]?.ready === true;
      },
      60_000,
      'a synchronised slot',
    );
    await stream.stop();
    // nobody reads it any more, and the standby gets it
    await before.source.query(`insert into public.t values (101, 'late')`);
    const { rows: written } = await before.source.query<{ lsn: string }>(
      'select pg_current_wal_lsn()::text as lsn',
    );
    await waitFor(async () => {
      const { rows } = await after.source.query<{ there: boolean }>(
        'select pg_last_wal_replay_lsn() >= $1::pg_lsn as there',
        [written[0]?.lsn],
      );
      return rows[0]?.there === true;
    });
    await primary.crash();
    const ahead = makeScope({ ...after }, {}, scope);
    await after.source.query('select pg_promote()');
    await after.source.query(`insert into public.t values (102, 'new')`);
    // a target that is ahead of the promoted server has what never was: refused, with the reason
    const { rows: progress } = await pair.target.query<{ lsn: string }>(
      'select applied_lsn::text as lsn from dts.progress where task_id = $1',
      [scope.taskId],
    );
    const set = (lsn: string | undefined): Promise<unknown> =>
      pair.target.query('update dts.progress set applied_lsn = $2::pg_lsn where task_id = $1', [
        scope.taskId,
        lsn,
      ]);
    await set('F/0');
    const refused = startStream(ahead);
    const error = await refused.failed;
    expect(error).toMatchObject({ code: 'source_replaced', kind: 'operator' });
    expect(error.message).toContain('the target has changes up to F/0');
    expect(error.hint).toContain('/recopy');
    await set(progress[0]?.lsn);
    // as it really is, the target is a part of the promoted server's history
    const again = makeScope(after, {}, scope);
    const second = startStream(again);
    await drainStream(again, after, second);
    expect(findSlot(again)).toMatchObject({ failover: true, system: { timeline: 2 } });
    const target = await contents(again, pair.target, 'target');
    expect(target).toEqual(await contents(again, after.source, 'source'));
    expect(schemaPlanOf(again).tables.map(({ source }) => target[relationKey(source)]?.length)).toEqual([
      102,
    ]);
    await second.stop();
    await dropSlot(again);
    await dropPublication(again);
  },
);

it('a history file tells where a timeline was left, also several promotions later', () => {
  const history =
    '1\t0/3000148\tno recovery target specified\n\n2\t1/5000000\tbefore 2026-01-01 00:00:00+00\n';
  expect(leftTimelineAt(history, 1)).toBe('0/3000148');
  expect(leftTimelineAt(history, 2)).toBe('1/5000000');
  expect(leftTimelineAt(history, 3)).toBeNull();
  expect(leftTimelineAt('', 1)).toBeNull();
});
