// The write fence on real sources: harmless while installed, complete when armed, gone when removed.
import type pg from 'pg';
import { describe, expect, onTestFinished, test } from 'vitest';
import { cutoverNotes, type WriteStop } from '../../src/model/cutover-notes.ts';
import { MigrationError } from '../../src/model/errors.ts';
import { reverseNotes } from '../../src/model/reverse.ts';
import { compareLsn } from '../../src/model/lsn.ts';
import { liftFence } from '../../src/cutover/clean-up.ts';
import { armFence, confirmFence, disarmFence, installFence, removeFence } from '../../src/cutover/fence.ts';
import { fenceFunction, fenceState, FENCED_SQLSTATE, setFence } from '../../src/cutover/fence-function.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { leaksOf, makePair, waitFor, type TestDatabase } from '../support/databases.ts';
import { startForgetfulServer } from '../support/extra-servers.ts';
import { makeProxy, through } from '../support/proxy.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const schema = `
  create schema "Sp ace";
  create table users (id bigserial primary key, name text);
  create table orders (id bigserial primary key, user_id bigint references users on delete cascade, n int);
  create table "Sp ace"."T""q.t" (id bigserial primary key, n int);
  create table events (id bigserial, day date not null, n int, primary key (id, day)) partition by range (day);
  create table events_1 partition of events for values from ('2020-01-01') to ('2021-01-01');
  create table events_2 partition of events for values from ('2021-01-01') to ('2022-01-01') partition by list (day);
  create table events_2_1 partition of events_2 default;
  insert into users (name) values ('a'), ('b');
  insert into orders (user_id, n) values (1, 1), (2, 2);
  insert into events (day, n) values ('2020-02-02', 1), ('2021-02-02', 2);`;

/** Code of the error that `work` rejects with; undefined when it resolves. */
async function sqlstateOf(work: Promise<unknown>): Promise<string | undefined> {
  try {
    await work;
    return undefined;
  } catch (error) {
    return (error as { code?: string }).code;
  }
}

async function errorOf(work: Promise<unknown>): Promise<MigrationError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof MigrationError) return error;
    throw error;
  }
  throw new Error('it did not fail');
}

const triggers = async (source: TestDatabase): Promise<string[]> =>
  (
    await source.query<{ name: string }>(
      `select tgrelid::regclass::text || ' ' || tgenabled::text as name from pg_trigger
       where tgname like 'dts\\_%' order by 1`,
    )
  ).rows.map((row) => row.name);

/** Writers with transactions over several tables; they count what was committed and what was refused. */
class Writers {
  committed = 0;
  refused = 0;
  readonly unexpected: string[] = [];
  #stopped = false;
  readonly #done: Promise<void>[] = [];

  async start(source: TestDatabase, count: number): Promise<void> {
    for (let n = 0; n < count; n++) {
      const client = await source.connect();
      this.#done.push(this.#write(client, n));
    }
  }

  async #write(client: pg.Client, writer: number): Promise<void> {
    for (let turn = 0; !this.#stopped; turn++) {
      const order = [
        `insert into users (name) values ('w')`,
        `insert into orders (user_id, n) values (null, ${turn})`,
        `insert into "Sp ace"."T""q.t" (n) values (${turn})`,
        `insert into events (day, n) values ('2020-03-0${1 + (turn % 9)}', 1), ('2021-03-01', 2)`,
        `insert into events_1 (day, n) values ('2020-04-04', ${turn})`,
      ];
      try {
        if (turn % 3 === 0) await client.query(order[(turn + writer) % order.length] ?? '');
        else {
          await client.query('begin');
          for (let step = 0; step < 3; step++)
            await client.query(order[(turn + writer * 2 + step * (1 + (writer % 2))) % order.length] ?? '');
          await client.query(turn % 7 === 0 ? 'rollback' : 'commit');
        }
        this.committed++;
      } catch (error) {
        const code = (error as { code?: string }).code ?? String(error);
        if (code === FENCED_SQLSTATE) this.refused++;
        else this.unexpected.push(code);
        await client.query('rollback');
      }
    }
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#done);
  }
}

const contents = async (source: TestDatabase): Promise<unknown> =>
  (
    await source.query(`select (select count(*) from users) as users, (select count(*) from orders) as orders,
      (select count(*) from "Sp ace"."T""q.t") as quoted, (select count(*) from events) as events`)
  ).rows[0];

async function fenced(major: 13 | 16 | 18): Promise<{ source: TestDatabase; scope: TestScope }> {
  const pair = await makePair({ source: major });
  await pair.source.query(schema);
  const scope = makeScope(pair, { options: { cutoverTimeoutMs: 20_000 } });
  await planFromCatalog(scope);
  return { source: pair.source, scope };
}

describe.each([13, 16, 18] as const)('source %i', (major) => {
  test('an installed fence stands on every table, leaf and parent, and hinders nobody', async () => {
    const { source, scope } = await fenced(major);
    expect(await fenceState(scope)).toBe('none');
    await installFence(scope);
    await installFence(scope);
    expect(await triggers(source)).toEqual([
      '"Sp ace"."T""q.t" A',
      'events A',
      'events_1 A',
      'events_2 A',
      'events_2_1 A',
      'orders A',
      'users A',
    ]);
    expect(await fenceState(scope)).toBe('disarmed');
    expect(scope.failpointsHit).toContain('fence.installed');
    await source.query(`insert into events (day, n) values ('2021-05-05', 1); update users set name = 'c';
      delete from orders; truncate events; truncate "Sp ace"."T""q.t"`);
    await removeFence(scope);
    await removeFence(scope);
    expect(await fenceState(scope)).toBe('none');
  });

  test('an armed fence refuses every way of writing with 25006, and reading goes on', async () => {
    const { source, scope } = await fenced(major);
    await source.query(`create table outside (id int primary key references users on delete cascade);
      create table parent (id int primary key); insert into parent values (1);
      alter table orders add foreign key (n) references parent on delete cascade not valid`);
    await installFence(scope);
    const { fenceLsn } = await armFence(scope);
    expect(compareLsn(fenceLsn, '0/0')).toBeGreaterThan(0);
    expect(await fenceState(scope)).toBe('armed');
    const statements = [
      `insert into users (name) values ('x')`,
      `insert into users (id, name) values (1, 'x') on conflict (id) do update set name = 'y'`,
      `update users set name = 'x' where false`,
      `delete from orders`,
      `truncate orders`,
      `truncate events`,
      `truncate events_1`,
      `insert into events (day, n) values ('2020-05-05', 1)`,
      `insert into events_1 (day, n) values ('2020-05-05', 1)`,
      `update events set day = '2021-06-06'`,
      `with w as (delete from users returning 1) select 1`,
      `delete from parent`, // its cascade writes orders
      `copy users (name) from program 'echo x'`,
      `set session_replication_role = replica; insert into users (name) values ('x')`,
      ...(major >= 16
        ? [
            `merge into users u using (select 1 as id) s on u.id = s.id when matched then update set name = 'z'`,
          ]
        : []),
    ];
    for (const statement of statements)
      expect([statement, await sqlstateOf(source.query(statement))]).toEqual([statement, FENCED_SQLSTATE]);
    expect(await contents(source)).toEqual({ users: '2', orders: '2', quoted: '0', events: '2' });
    await source.query('insert into outside values (1)');
    await disarmFence(scope);
    await source.query(`insert into users (name) values ('x'); delete from parent; truncate events`);
    expect(scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.liftedAt).not.toBeNull();
    await removeFence(scope);
  });

  test('nothing is committed between armFence and disarmFence under eight writers, and no writer deadlocks', async () => {
    const { source, scope } = await fenced(major);
    const writers = new Writers();
    await writers.start(source, 8);
    await waitFor(() => writers.committed > 50);
    for (let round = 0; round < 12; round++) {
      await installFence(scope);
      const before = writers.committed;
      await waitFor(() => writers.committed > before + 20);
      await armFence(scope);
      const stopped = await contents(source);
      const refused = writers.refused;
      await waitFor(() => writers.refused > refused + 40);
      expect(await contents(source)).toEqual(stopped);
      await disarmFence(scope);
      const lifted = writers.committed;
      await waitFor(() => writers.committed > lifted + 20);
      if (round % 4 === 3) await removeFence(scope);
    }
    await writers.stop();
    expect(writers.unexpected).toEqual([]);
    await liftFence(scope);
  });

  test('a transaction that wrote before the fence was armed, or has only the lock, is waited for and named', async () => {
    const { source, scope } = await fenced(major);
    await installFence(scope);
    const writer = await source.connect();
    await writer.query(`begin; insert into users (name) values ('late')`);
    const locker = await source.connect();
    await locker.query('begin; lock table orders in row exclusive mode');
    const reader = await source.connect();
    await reader.query('begin; select * from events; select * from users for update');
    const arming = armFence(scope);
    const { rows } = await writer.query<{ pid: number }>('select pg_backend_pid() as pid');
    await waitFor(() =>
      scope.waits.some((wait) => wait?.includes(`pid ${rows[0]?.pid} (postgres, idle in tra`)),
    );
    await writer.query('commit');
    await waitFor(() => /waits for pid \d+ \(.*public\.orders/.test(scope.waits.at(-1) ?? ''));
    await locker.query('rollback');
    const { fenceLsn } = await arming; // the reader is not waited for
    await reader.query('rollback');
    expect((await source.query(`select 1 from users where name = 'late'`)).rowCount).toBe(1);
    expect(scope.waits.at(-1)).toBeNull();
    expect(scope.checkpoints.get<{ fenceLsn: string }>(cutoverNotes.fence)?.fenceLsn).toBe(fenceLsn);
    await liftFence(scope);
  });

  test('prepared transactions are waited for, those prepared after arming too', async () => {
    const { source, scope } = await fenced(major);
    await installFence(scope);
    const gid = (name: string): string => `${source.dbname}_${name}`;
    const writer = await source.connect();
    await writer.query(
      `begin; insert into users (name) values ('early'); prepare transaction '${gid('early')}'`,
    );
    const other = await source.connect();
    await other.query(`begin; insert into users (name) values ('late')`);
    let armed = false;
    const arming = armFence(scope).then(() => (armed = true));
    await waitFor(() => scope.waits.some((wait) => wait?.includes(`prepared transaction '${gid('early')}'`)));
    await other.query(`prepare transaction '${gid('late')}'`);
    await source.query(`commit prepared '${gid('early')}'`);
    await waitFor(() => scope.waits.at(-1)?.includes(`waits for prepared transaction '${gid('late')}'`));
    expect(armed).toBe(false);
    await source.query(`rollback prepared '${gid('late')}'`);
    await arming;
    expect((await source.query(`select name from users where name in ('early', 'late')`)).rows).toEqual([
      { name: 'early' },
    ]);
    await liftFence(scope);
  });

  test('a writer that does not end is named in cutover_timeout, and the fence can be lifted', async () => {
    const { source, scope: first } = await fenced(major);
    await installFence(first);
    const scope = makeScope({ source, target: source }, { options: { cutoverTimeoutMs: 1_000 } }, first);
    const writer = await source.connect();
    await writer.query(`begin; insert into users (name) values ('slow')`);
    const { rows } = await writer.query<{ pid: number }>('select pg_backend_pid() as pid');
    const error = await errorOf(armFence(scope));
    expect(error.code).toBe('cutover_timeout');
    expect(error.hint).toContain(`pg_terminate_backend(${rows[0]?.pid})`);
    expect(await fenceState(scope)).toBe('armed');
    expect(scope.checkpoints.get(cutoverNotes.fence)).toBeUndefined();
    await disarmFence(scope);
    await writer.query(`insert into orders (user_id, n) values (1, 1); commit`);
    await removeFence(scope);
  });
});

test('installing waits for a long writer without keeping others out for long, and names it when it gives up', async () => {
  const { source, scope } = await fenced(16);
  const writer = await source.connect();
  await writer.query(`begin; insert into users (name) values ('slow')`);
  const error = await errorOf(installFence(scope, 1_000));
  expect(error.code).toBe('lock_timeout');
  expect(error.kind).toBe('transient');
  expect(error.message).toMatch(
    /the fence waits for pid \d+ \(postgres, idle in transaction, .*public\.users/,
  );
  expect(await triggers(source)).toHaveLength(6); // all the others
  const installing = installFence(scope);
  await waitFor(() => scope.waits.at(-1)?.includes('public.users'));
  await writer.query('commit');
  await installing;
  expect(await triggers(source)).toHaveLength(7);
  await removeFence(scope);
});

test('removing gives up when a reader stays, and a second try finishes', async () => {
  const { source, scope } = await fenced(16);
  await installFence(scope);
  await armFence(scope);
  const reader = await source.connect();
  await reader.query('begin; select * from users');
  await disarmFence(scope);
  const error = await errorOf(removeFence(scope, 500));
  expect(error.message).toMatch(/removing the fence waits for pid \d+/);
  expect(await triggers(source)).toEqual(['users A']);
  await source.query(`insert into users (name) values ('written under the disarmed trigger')`);
  await reader.query('commit');
  await removeFence(scope);
});

test('aborting ends an arming that waits, within a second', async () => {
  const { source, scope } = await fenced(16);
  await installFence(scope);
  const writer = await source.connect();
  await writer.query(`begin; insert into users (name) values ('slow')`);
  const arming = errorOf(armFence(scope));
  await waitFor(() => scope.waits.at(-1)?.includes('the fence waits'));
  const aborted = Date.now();
  scope.controller.abort();
  expect((await arming).code).toBe('aborted');
  expect(Date.now() - aborted).toBeLessThan(1_000);
  await writer.query('rollback');
  await liftFence(makeScope({ source, target: source }, {}, scope));
});

test('connections that a firewall has forgotten do not keep the source fenced', async () => {
  const { source, scope: direct } = await fenced(16);
  const network = await makeProxy(source.port);
  const scope = makeScope({ source: through(network, source), target: source }, {}, direct);
  await installFence(scope);
  await armFence(scope);
  network.forget();
  const began = Date.now();
  await disarmFence(scope);
  expect(Date.now() - began).toBeLessThan(5_000);
  await source.query('delete from users');
  await removeFence(direct);
});

test('arming again after a kill keeps the time of the write stop, and installing lifts a fence found armed', async () => {
  const { source, scope } = await fenced(16);
  await installFence(scope);
  const killed = makeScope({ source, target: source }, {}, scope);
  killed.failpoint = (name) => {
    if (name === 'fence.armed') throw new Error('killed');
  };
  await expect(armFence(killed)).rejects.toThrow('killed');
  expect(await fenceState(scope)).toBe('armed');
  const armedAt = scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.armedAt;
  await armFence(scope);
  expect(scope.checkpoints.get<WriteStop>(cutoverNotes.writeStop)?.armedAt).toBe(armedAt);
  await installFence(scope);
  expect(await fenceState(scope)).toBe('disarmed');
  await source.query(`insert into users (name) values ('x')`);
  await removeFence(scope);
});

test('arming restores a trigger that somebody dropped or disabled', async () => {
  const { source, scope } = await fenced(16);
  await installFence(scope);
  await source.query(`drop trigger "dts_fence_${scope.taskId}" on users;
    alter table orders disable trigger "dts_fence_${scope.taskId}"`);
  await armFence(scope);
  expect(await sqlstateOf(source.query('delete from users'))).toBe(FENCED_SQLSTATE);
  expect(await sqlstateOf(source.query('delete from orders'))).toBe(FENCED_SQLSTATE);
  await liftFence(scope);
});

test('a partition that was attached meanwhile stops the cutover', async () => {
  const { source, scope } = await fenced(16);
  await installFence(scope);
  await source.query(
    `create table events_3 partition of events for values from ('2022-01-01') to ('2023-01-01')`,
  );
  const error = await errorOf(armFence(scope));
  expect(error.code).toBe('source_ddl');
  expect(error.message).toContain('public.events_3');
  await liftFence(scope);
});

test.each([
  ['a child by inheritance', 'create table users_old () inherits (users)', 'public.users_old'],
  [
    'a parent by inheritance, whose updates and deletes reach our rows past our trigger',
    'create table people (id bigint not null, name text); alter table users inherit people',
    'public.people',
  ],
  [
    'a partitioned parent, whose inserts do',
    `create table people (id bigint not null, name text) partition by range (id);
     alter table people attach partition users for values from (0) to (100)`,
    'public.people',
  ],
])('%s, added meanwhile, stops the cutover', async (_what, ddl, name) => {
  const { source, scope } = await fenced(16);
  await installFence(scope);
  await source.query(ddl);
  const error = await errorOf(armFence(scope));
  expect(error.code).toBe('source_ddl');
  expect(error.message).toContain(name);
  await liftFence(scope);
});

test.each([
  ['a trigger disabled', 'alter table orders disable trigger all', 'public.orders'],
  [
    'a table exchanged',
    'alter table orders rename to orders_old; create table orders (id bigint)',
    'public.orders',
  ],
  [
    'a parent added',
    'create table p (id bigint not null, name text); alter table users inherit p',
    'public.p',
  ],
])('%s after the arming is found before the point of no return', async (_what, ddl, name) => {
  const { source, scope } = await fenced(16);
  await installFence(scope);
  await armFence(scope);
  await confirmFence(scope);
  await source.query(ddl);
  const error = await errorOf(confirmFence(scope));
  expect(['fence_failed', 'source_ddl']).toContain(error.code);
  expect(error.message).toContain(name);
  await setFence(scope, false);
  expect((await errorOf(confirmFence(scope))).code).toBe('fence_failed');
  await liftFence(scope);
});

describe('a process that was killed while its COMMIT was on the way', () => {
  /** Changes the fence as a task of its own would, but for a COMMIT that arrives only when it is let go. */
  async function inFlight(
    source: TestDatabase,
    scope: TestScope,
    armed: boolean,
  ): Promise<{ arrive: () => void; done: Promise<unknown> }> {
    const killed = makeScope({ source, target: source }, {}, scope);
    const transaction = killed.source.transaction.bind(killed.source);
    const session = killed.source.session.bind(killed.source);
    let arrive = (): void => undefined;
    const gate = new Promise<void>((resolve) => (arrive = resolve));
    let sent = false;
    killed.source.session = async (options) => {
      const opened = await session(options);
      const query = opened.client.query.bind(opened.client) as (...args: unknown[]) => Promise<unknown>;
      opened.client.query = (async (...args: unknown[]) => {
        if (args[0] === 'commit') {
          sent = true;
          await gate;
        }
        return query(...args);
      }) as typeof opened.client.query;
      return opened;
    };
    killed.source.transaction = (work, options) =>
      transaction(async (client) => {
        const result = await work(client);
        sent = true;
        await gate;
        return result;
      }, options);
    const done = setFence(killed, armed).catch((error: unknown) => error);
    await waitFor(() => sent);
    return { arrive, done };
  }
  const waitsForLock = async (source: TestDatabase): Promise<boolean> =>
    ((
      await source.query(
        `select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
      )
    ).rowCount ?? 0) > 0;

  test('an arming one does not overtake the un-fencing', async () => {
    const { source, scope } = await fenced(16);
    await installFence(scope);
    const arming = await inFlight(source, scope, true);
    let lifted = false;
    const lifting = disarmFence(scope).then(() => (lifted = true));
    await waitFor(async () => lifted || (await waitsForLock(source)));
    arming.arrive();
    await arming.done;
    await lifting;
    expect(await fenceState(scope)).toBe('disarmed');
    await source.query('delete from users');
    await removeFence(scope);
  });

  test('an un-fencing one does not overtake the arming of the next cutover', async () => {
    const { source, scope } = await fenced(16);
    await installFence(scope);
    await armFence(scope);
    const lifting = await inFlight(source, scope, false);
    let armed = false;
    const arming = armFence(scope).then(() => (armed = true));
    await waitFor(async () => armed || (await waitsForLock(source)));
    lifting.arrive();
    await lifting.done;
    await arming;
    expect(await fenceState(scope)).toBe('armed');
    expect(await sqlstateOf(source.query('delete from users'))).toBe(FENCED_SQLSTATE);
    await liftFence(scope);
  });

  test('a session that never ends does not keep the fence: the un-fencing ends it', async () => {
    const { source, scope } = await fenced(16);
    await installFence(scope);
    const arming = await inFlight(source, scope, true);
    await disarmFence(scope);
    arming.arrive();
    expect(await arming.done).toBeInstanceOf(MigrationError);
    expect(await fenceState(scope)).toBe('disarmed');
    await removeFence(scope);
  });

  test('a function that somebody replaces without our lock is replaced by the un-fencing', async () => {
    const { source, scope } = await fenced(16);
    await installFence(scope);
    const stranger = await source.connect();
    await stranger.query(`begin; create or replace function dts."${fenceFunction(scope.taskId).name}"() returns trigger
      language plpgsql as $f$begin raise exception 'fenced' using errcode = '25006'; end$f$`);
    let lifted = false;
    const lifting = disarmFence(scope).then(() => (lifted = true));
    await waitFor(async () => lifted || (await waitsForLock(source)));
    await stranger.query('commit');
    await lifting;
    expect(await fenceState(scope)).toBe('disarmed');
    await source.query('delete from users');
    await removeFence(scope);
  });
});

test('the armed fence outlives a crash of a source that commits asynchronously', async () => {
  const { server, connection } = await startForgetfulServer(16);
  const pair = await makePair();
  const scope = makeScope(pair, { sourceDb: connection });
  await scope.source.query('create table public.t (id int)');
  await planFromCatalog(scope);
  await installFence(scope);
  await scope.source.query('checkpoint');
  await armFence(scope);
  await server.crash();
  await server.restart();
  expect(await waitFor(() => fenceState(scope).catch(() => null))).toBe('armed');
  expect(await sqlstateOf(scope.source.query('delete from public.t'))).toBe('sql_failed');
});

test('the fence of a deleted task of the same id is neither taken over, lifted nor removed', async () => {
  const { source, scope } = await fenced(16);
  await installFence(scope);
  await armFence(scope);
  const other = makeScope({ source, target: source }, { id: scope.taskId });
  await planFromCatalog(other);
  expect((await errorOf(installFence(other))).code).toBe('fence_failed');
  await disarmFence(other);
  await liftFence(other);
  expect(await fenceState(other)).toBe('none');
  expect(await sqlstateOf(source.query('delete from users'))).toBe(FENCED_SQLSTATE);
  await liftFence(scope);
});

test('two migrations fence the same tables and leave each other alone', async () => {
  const { source, scope } = await fenced(16);
  const other = makeScope({ source, target: source });
  await planFromCatalog(other);
  await Promise.all([installFence(scope), installFence(other)]);
  await armFence(other);
  await disarmFence(scope);
  await removeFence(scope);
  expect(await sqlstateOf(source.query('delete from users'))).toBe(FENCED_SQLSTATE);
  await liftFence(other);
  await source.query('delete from users');
});

test('a subscription is fenced by row triggers, on the tables that it writes and nowhere else', async () => {
  const { source, scope } = await fenced(16);
  const publisher = (await makePair()).target;
  await publisher.query(`create table users (id bigserial primary key, name text);
    create table orders (id bigserial primary key, user_id bigint, n int); create publication p for table users`);
  const { port, dbname, password } = publisher;
  onTestFinished(async () => {
    await source.query('drop subscription if exists "Feed"');
    await publisher.query('drop publication p');
  });
  await installFence(scope);
  await source.query(
    `create subscription "Feed" connection 'host=127.0.0.1 port=${port} dbname=${dbname} user=postgres password=${password}'
     publication p with (copy_data = false, slot_name = 'feed_${dbname}')`,
  );
  const name = async (id: number): Promise<string | undefined> =>
    (await source.query<{ name: string }>('select name from users where id = $1', [id])).rows[0]?.name;
  await publisher.query(`insert into users values (99, 'before')`);
  await waitFor(() => name(99));
  // without row triggers its worker walks through
  await setFence(scope, true);
  await publisher.query(`insert into users values (100, 'through the fence')`);
  await waitFor(() => name(100));
  await disarmFence(scope);

  scope.checkpoints.set(reverseNotes.reverse, { pass: 'a word' });
  await armFence(scope);
  const guarded = await source.query(
    `select tgrelid::regclass::text as relation from pg_trigger where tgname = 'dts_rowfence_${scope.taskId}'`,
  );
  expect(guarded.rows).toEqual([{ relation: 'users' }]);
  await confirmFence(scope);
  await publisher.query(`update users set name = 'refused' where id = 99; delete from users where id = 100;
    insert into users values (101, 'refused')`);
  await waitFor(async () => {
    const { rows } = await source.query<{ errors: string }>(
      'select apply_error_count as errors from pg_stat_subscription_stats',
    );
    return rows[0]?.errors !== '0';
  });
  expect([await name(99), await name(100), await name(101)]).toEqual([
    'before',
    'through the fence',
    undefined,
  ]);
  // the stream back is let through both kinds of triggers, and whoever does not know the word by none
  const [ours, other] = [await source.connect(), await source.connect()];
  await ours.query(`set dts.fence_pass = 'a word'`);
  await other.query(`set dts.fence_pass = 'another word'`);
  await ours.query(
    `insert into users (id, name) values (300, 'a'); update users set name = 'b' where id = 300`,
  );
  expect(await name(300)).toBe('b');
  expect((await ours.query('delete from users where id = 300')).rowCount).toBe(1);
  expect(await sqlstateOf(other.query('delete from users'))).toBe(FENCED_SQLSTATE);
  // one that begins under the fence is found before the point of no return
  await publisher.query('alter publication p add table orders');
  await source.query('alter subscription "Feed" refresh publication with (copy_data = false)');
  expect(await errorOf(confirmFence(scope))).toMatchObject({
    code: 'fence_failed',
    details: { subscriptions: ['Feed'], relations: ['public.orders'] },
  });

  await disarmFence(scope);
  await waitFor(async () => (await name(99)) === 'refused');
  await waitFor(() => name(101));
  expect(await name(100)).toBeUndefined();
  await source.query(
    `insert into users (id, name) values (200, 'a'); update users set name = 'b' where id = 200`,
  );
  expect(await name(200)).toBe('b'); // the disarmed row triggers change nothing
  await liftFence(scope);
  expect((await leaksOf(source)).filter((leak) => /trigger|schema/.test(leak))).toEqual([]);
});

test('a subscription stops the arming of a fence that would not stop it', async () => {
  const { source, scope: before } = await fenced(16);
  const publisher = (await makePair()).target;
  await publisher.query(
    'create table users (id bigserial primary key, name text); create publication p for table users',
  );
  const { port, dbname, password } = publisher;
  onTestFinished(async () => {
    await source.query('drop subscription if exists "Feed"');
    await publisher.query('drop publication p');
  });
  await source.query(
    `create subscription "Feed" connection 'host=127.0.0.1 port=${port} dbname=${dbname} user=postgres password=${password}'
     publication p with (copy_data = false, slot_name = 'feed_${dbname}')`,
  );
  const scope = makeScope(
    { source, target: publisher },
    { options: { fence: 'database-read-only', terminateBlockers: true } },
    before,
  );
  const error = await errorOf(armFence(scope));
  expect(error).toMatchObject({ code: 'fence_failed', details: { subscriptions: ['Feed'] } });
  expect(error.hint).toContain('drop subscription "Feed"');
  await source.query('drop subscription "Feed"');
  await liftFence(scope);
});

test('a role that owns the tables and nothing more can fence', async () => {
  const { source, scope: superuser } = await fenced(16);
  const role = `owner_${source.dbname}`;
  await source.query(`create role ${role} login password 'x'; grant create on database ${source.dbname} to ${role};
    alter table users owner to ${role}; alter table orders owner to ${role}`);
  const owner = { ...source, connection: { ...source.connection, user: role, password: 'x' } };
  const scope = makeScope(
    { source: owner, target: superuser.spec && source },
    { sourceDb: owner.connection },
  );
  await planFromCatalog(scope, { tables: ['users', 'orders'] });
  await installFence(scope);
  const writer = await source.connect();
  await writer.query(`begin; insert into users (name) values ('other role')`);
  const arming = armFence(scope);
  await waitFor(() => scope.waits.at(-1)?.includes('the fence waits for pid'));
  await writer.query('commit');
  await arming;
  expect(await sqlstateOf(source.query('delete from users'))).toBe(FENCED_SQLSTATE);
  await liftFence(scope);
  await scope.connections.closeAll();
  await source.query(`reassign owned by ${role} to postgres; drop owned by ${role}; drop role ${role}`);
});
