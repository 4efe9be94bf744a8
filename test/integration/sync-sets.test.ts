// Set-wise apply on real servers: large batches, coalesced and written by COPY, leave exactly what the source has; what
// holds only in source order is done again in source order; and a reader never sees half a source transaction.
import { describe, expect, it } from 'vitest';
import type { RelationColumn } from '../../src/postgres/pgoutput-messages.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { RelationMap } from '../../src/sync/relations.ts';
import { backlog, copied, expectEqual, listening, manyChanges, tables } from '../support/backlog.ts';
import { makePair, makeRole, waitFor, type DatabasePair } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import { copyAll, drainStream, prepare, startStream, untilEvent } from '../support/replication.ts';
import { makeScope } from '../support/scope.ts';

// of its own: which feed is chosen depends on the WAL that is written, other tests' too
startServers(13, 16, 18);

describe('rows are coalesced by a key', () => {
  const domains = `create domain small as int; create domain exact as numeric; create type mood as enum ('a', 'b');
    create extension citext; create collation loose (provider = icu, locale = 'und', deterministic = false)`;
  const keys: readonly (readonly [key: string, coalesced: boolean])[] = [
    // equal only when their bytes are
    ...['bool', 'bytea', 'name', 'int2', 'int4', 'int8', 'oid', 'text', 'varchar(9)', 'date', 'uuid'].map(
      (type) => [type, true] as const,
    ),
    ...['timestamp', 'timestamptz', 'pg_lsn', 'macaddr', 'mood', 'small'].map(
      (type) => [type, true] as const,
    ),
    // 1.0 and 1.00; 0 and -0; 'a' and 'a '; '1 day' and '24 hours'; 'a' and 'A'
    ...['numeric', 'numeric(9, 2)', 'exact', 'float4', 'float8', 'char(9)', 'interval', 'citext'].map(
      (type) => [type, false] as const,
    ),
    ['text collate loose', false],
    ['numeric[]', false],
    ['jsonb', false],
  ];

  it('only when values that differ in their bytes are not equal', async () => {
    const pair = await makePair();
    const ddl = keys.map(([type], n) => `create table public.t${n} (id ${type} primary key, v int)`);
    const scope = await prepare(pair, [domains, ...ddl].join(';'));
    const plan = schemaPlanOf(scope).tables;
    const map = new RelationMap(scope, plan, null);
    const found = [];
    for (const [n, [type]] of keys.entries()) {
      const { rows: columns } = await pair.source.query<RelationColumn>(
        `select attnum = 1 as key, attname::text as name, atttypid::int as "typeOid", atttypmod as typmod
         from pg_attribute where attrelid = $1::regclass and attnum > 0 order by attnum`,
        [`public.t${n}`],
      );
      const message = { relationId: n, schema: 'public', name: `t${n}`, replicaIdentity: 'default' } as const;
      await map.learn({ tag: 'relation', ...message, columns }, Buffer.alloc(0));
      const known = map.get(n);
      found.push([type, known.kind === 'table' && known.table.shape !== null]);
    }
    expect(found).toEqual(keys);
  });
});

describe('a backlog', () => {
  it('of transactions that interleave is applied in the order of their commits', async () => {
    const pair = await makePair();
    const { scope, stop } = await backlog(
      pair,
      'create table public.t (id int primary key, v text)',
      '',
      async () => {
        const [a, b] = [await pair.source.connect(), await pair.source.connect()];
        await a.query(`begin; insert into public.t values (1, 'a')`);
        await b.query(`begin; insert into public.t values (2, 'b'), (3, 'b'); commit`);
        // what it finds was committed after it began
        await a.query(`update public.t set v = 'a' where id = 2; delete from public.t where id = 3; commit`);
        await b.query(`insert into public.t values (3, 'again')`);
      },
    );
    expect(await expectEqual(scope, pair)).toBe(3);
    await stop();
  });

  it.each([
    ['binary', 16, ''],
    ['text', 16, ', w tsvector'],
    ['text', 13, ''],
    ['binary', 18, ', e int generated always as (id * 2) stored'],
  ] as const)('of every kind of change arrives exactly, as %s from %i', async (form, source, extra) => {
    const pair = await makePair({ source });
    const { scope, said, stop } = await backlog(
      pair,
      tables(extra),
      `insert into public.t (id, v, big) select g, 'first', repeat(md5(g::text), 90) from generate_series(1, 50) g`,
      () => pair.source.query(manyChanges),
    );
    expect(await expectEqual(scope, pair)).toBeGreaterThan(1_000);
    expect(said).toMatchObject({ binary: form === 'binary', feeds: ['live'], again: 0 });
    await stop();
  });

  it('whose values swap between rows under a unique constraint is applied in source order', async () => {
    const pair = await makePair();
    const { scope, said, stop } = await backlog(
      pair,
      `create table public.t (id int primary key, u int unique, v text)`,
      `insert into public.t select g, g, 'v' from generate_series(1, 200) g`,
      async () => {
        // valid after every statement, but not in any order of the final states
        await pair.source.query(`begin; update public.t set u = -u; update public.t set u = 201 + u; commit`);
        await pair.source.query(`insert into public.t select g, g, 'later' from generate_series(201, 400) g`);
      },
    );
    expect(await expectEqual(scope, pair)).toBe(400);
    expect(said).toMatchObject({ binary: true, feeds: ['live'], again: 1 });
    await stop();
  });

  it('whose huge transaction fails as sets is read again and applied in source order', async () => {
    const pair = await makePair();
    const { scope, said, stop } = await backlog(
      pair,
      `create table public.t (id int primary key, u int unique, v text)`,
      `insert into public.t select g, g, 'v' from generate_series(1, 200) g`,
      async () => {
        await pair.source.query(`begin;
          insert into public.t select g, g, repeat('x', 500) from generate_series(1001, 12000) g;
          update public.t set u = -u where id <= 200; update public.t set u = 201 + u where id <= 200; commit`);
        await pair.source.query(`update public.t set v = 'end' where id % 10 = 0`);
      },
    );
    expect(await expectEqual(scope, pair)).toBe(11_200);
    expect(said.again).toBe(1);
    await stop();
  });

  it('is never seen with half a source transaction in it', async () => {
    const pair = await makePair();
    let watching = true;
    const sums = new Set<string>();
    const watch = async (): Promise<void> => {
      const reader = await pair.target.connect();
      while (watching) {
        const { rows } = await reader.query<{ sum: string }>('select sum(n) from public.t');
        sums.add(String(rows[0]?.sum));
      }
    };
    let watcher: Promise<void> = Promise.resolve();
    const { scope, stop } = await backlog(
      pair,
      `create table public.t (id int primary key, n int, pad text)`,
      `insert into public.t select g, 0, repeat('x', 300) from generate_series(1, 1000) g`,
      async () => {
        await pair.source.query(
          `do $$ begin for i in 1..3000 loop
             update public.t set n = n + i where id = 1 + i % 1000;
             update public.t set n = n - i where id = 1 + (i * 7) % 1000;
             commit;
           end loop; end $$`,
        );
        await pair.source.query('update public.t set n = n + 1; update public.t set n = n - 1');
        watcher = watch();
      },
    );
    watching = false;
    await watcher;
    await expectEqual(scope, pair);
    expect([...sums]).toEqual(['0']);
    await stop();
  });

  it('is applied in source order where the role may not make temporary tables', async () => {
    const role = await makeRole(18);
    const pair = await makePair();
    const { dbname } = pair.target;
    await pair.target.query(`revoke temporary on database "${dbname}" from public`);
    await pair.target.query(
      `grant create on database "${dbname}" to ${role}; grant all on schema public to ${role}`,
    );
    const limited: DatabasePair = {
      source: pair.source,
      target: { ...pair.target, connection: { ...pair.target.connection, user: role, password: 'secret' } },
    };
    const first = await prepare(limited, 'create table public.t (id int primary key, v text)');
    await pair.target.query(`alter table public.t owner to ${role}; alter table dts.part owner to ${role}`);
    await pair.source.query(`insert into public.t select g, 'v' from generate_series(1, 300) g`);
    const { scope, said } = listening(first);
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, limited);
    await pair.source.query(`update public.t set v = 'w'`);
    await drainStream(scope, limited, stream);
    await expectEqual(scope, limited);
    expect(said.again).toBe(1);
    await stream.stop();
  });

  it('whose set fails in the middle of a transaction is applied in source order', async () => {
    const pair = await makePair();
    const { scope, said, stop } = await backlog(
      pair,
      `create table public.t (id int primary key, u int unique)`,
      `insert into public.t select g, g from generate_series(1, 6000) g`,
      // the set of the swapped values leaves before the first row whose key moves, and fails while others follow
      () =>
        pair.source.query(`begin; update public.t set u = -u where id <= 200; update public.t set u = 201 + u where id <= 200;
          update public.t set id = -id where id > 200; commit`),
    );
    expect(await expectEqual(scope, pair)).toBe(6_000);
    expect(said.again).toBe(1);
    await stop();
  });

  it.each([20, 300])('of %i rows of a domain that refuses NULLs leaves as sets', async (rows) => {
    const pair = await makePair();
    const { scope, said, stop } = await backlog(
      pair,
      `create domain public.some as text not null check (value is not null);
       create table public.t (id int primary key, v public.some)`,
      `insert into public.t select g, 'v' from generate_series(1, ${2 * rows}) g`,
      () =>
        pair.source.query(
          `update public.t set v = 'w' where id <= ${rows}; delete from public.t where id > ${rows}`,
        ),
    );
    expect(await expectEqual(scope, pair)).toBe(rows);
    expect(said.again).toBe(0);
    await stop();
  });

  it('stops at a row that the target lacks, and names it', async () => {
    const pair = await makePair();
    const first = await prepare(pair, `create table public.t (id int primary key, v text)`);
    await pair.source.query(`insert into public.t select g, 'v' from generate_series(1, 100) g`);
    const stream = startStream(first);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(first, pair);
    await drainStream(first, pair, stream);
    await pair.target.query('delete from public.t where id = 77');
    await pair.source.query(`update public.t set v = 'w'`);
    expect(await stream.failed).toMatchObject({
      code: 'unexpected_row',
      details: { table: 'public.t', key: { id: '77' }, operation: 'update' },
    });
    expect((await pair.target.query(`select 1 from public.t where v = 'w'`)).rowCount).toBe(0);
  });

  it('has all its keys written down, also beside updates that set nothing', async () => {
    const pair = await makePair();
    const scope = await prepare(
      pair,
      `create table public.link (a int, b int, primary key (a, b)); create table public.t (id int primary key, v text)`,
    );
    await pair.source.query(`insert into public.link select g, g from generate_series(1, 40) g;
      insert into public.t select g, 'v' from generate_series(1, 40) g`);
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, pair);
    await drainStream(scope, pair, stream);
    await pair.target.query('update dts.progress set tracking = true where task_id = $1', [scope.taskId]);
    for (const v of ['one', 'two', 'three']) {
      // some as a list, some as statements of their own
      await pair.source.query(`update public.link set a = a where a <= 20; update public.link set a = a where a = 21;
        update public.t set v = '${v}'`);
      await drainStream(scope, pair, stream);
    }
    const { rows } = await pair.target.query<{ keys: number }>(
      `select count(*)::int as keys from dts.changed, json_array_elements(keys::json)
       where task_id = $1 and relation = 'public.t'`,
      [scope.taskId],
    );
    expect(rows).toEqual([{ keys: 3 * 40 }]);
    await stream.stop();
  });

  it('has its keys written down by a new connection without being applied twice', async () => {
    const pair = await makePair();
    const first = await copied(pair, `create table public.t (id int primary key, v text)`);
    await pair.target.query('update dts.progress set tracking = true where task_id = $1', [first.taskId]);
    await pair.source.query(`insert into public.t select g, 'v' from generate_series(1, 300) g`);
    const { scope, said } = listening(makeScope(pair, {}, first));
    const stream = startStream(scope);
    await drainStream(scope, pair, stream);
    expect(await expectEqual(scope, pair)).toBe(300);
    const { rows } = await pair.target.query<{ keys: number }>(
      'select sum(json_array_length(keys::json))::int as keys from dts.changed where task_id = $1',
      [scope.taskId],
    );
    expect(rows).toEqual([{ keys: 300 }]);
    expect(said).toMatchObject({ feeds: ['live'], again: 0 });
    await stream.stop();
  });

  it('has its keys written down from the moment on when the validation asks for them', async () => {
    const pair = await makePair();
    const scope = await prepare(pair, `create table public.t (id bigint primary key, v text)`);
    await pair.source.query(`insert into public.t select g, 'v' from generate_series(1, 300) g`);
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, pair);
    await pair.source.query(`update public.t set v = 'before' where id <= 100`);
    await drainStream(scope, pair, stream);
    await pair.target.query('update dts.progress set tracking = true where task_id = $1', [scope.taskId]);
    await pair.source.query(`update public.t set v = 'after' where id between 101 and 150`);
    await drainStream(scope, pair, stream);
    await pair.source.query(`delete from public.t where id between 151 and 200`);
    await drainStream(scope, pair, stream);
    const { rows } = await pair.target.query<{ keys: string | null }>(
      'select keys from dts.changed where task_id = $1 order by n',
      [scope.taskId],
    );
    const keys = rows.flatMap((row) =>
      row.keys === null ? ['all'] : (JSON.parse(row.keys) as [string][]).flat(),
    );
    expect(keys.map(Number).sort((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, n) => n + 101));
    await waitFor(() => scope.sync.length > 0);
    await stream.stop();
  });
});
