// DDL that the stream does not show is found in the catalog: never a silent divergence.
import { describe, expect, it } from 'vitest';
import type { MigrationError } from '../../src/model/errors.ts';
import { relationKey } from '../../src/model/relation.ts';
import { saveSchemaPlan, schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { checkCatalog } from '../../src/sync/catalog-watch.ts';
import { copied, expectEqual, listening } from '../support/backlog.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { copyAll, drainStream, prepare, startStream, untilEvent } from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const ddl = `
  create type public.mood as enum ('sad', 'ok');
  create domain public.feeling as public.mood;
  create table public.t (id int primary key, m public.mood[], f public.feeling, v text);
  create table public.part (id int, region int, primary key (id, region)) partition by list (region);
  create table public.part_0 partition of public.part for values in (0);
  create table public.part_1 partition of public.part for values in (1)`;

async function planned(pair: DatabasePair, over: Parameters<typeof prepare>[2] = {}): Promise<TestScope> {
  const scope = await prepare(pair, ddl, over);
  const root = { schema: 'public', name: 'part' };
  saveSchemaPlan(scope, { ...schemaPlanOf(scope), roots: [{ source: root, target: root }] });
  return scope;
}

describe('the catalog of the source', () => {
  it.each([
    ['alter table public.t add column extra int', 'public.t', /column extra integer was not planned/],
    ['alter table public.t drop column v', 'public.t', /column v text is gone/],
    [
      'alter table public.t rename column v to w',
      'public.t',
      /column w text was not planned, column v text is gone/,
    ],
    ['alter table public.t alter column v type varchar(5)', 'public.t', /v character varying\(5\)/],
    [`alter type public.mood add value 'great'`, 'type public.mood', /new value great/],
    [
      'create table public.part_2 partition of public.part for values in (2)',
      'public.part_2',
      /became a partition/,
    ],
    ['alter table public.part detach partition public.part_1', 'public.part_1', /detached/],
  ])('%s is noticed, although nothing was written since', async (change, object, message) => {
    const pair = await makePair();
    const scope = await planned(pair);
    await checkCatalog(scope);
    await pair.source.query(change);
    const error = (await checkCatalog(scope).catch((each: unknown) => each)) as MigrationError;
    expect(error).toMatchObject({ code: 'source_ddl', kind: 'operator', details: { object } });
    expect(error.message).toMatch(message);
    expect(error.hint).toMatch(/resume/);
  });

  it('a new enum value is the target’s after the remedy that is told', async () => {
    const pair = await makePair();
    const scope = await planned(pair);
    await pair.source.query(`alter type public.mood add value 'so-so' before 'ok'`);
    const error = (await checkCatalog(scope).catch((each: unknown) => each)) as MigrationError;
    const statement = /alter type .* add value 'so-so' after 'sad'/.exec(error.hint ?? '')?.[0];
    await pair.target.query(statement ?? 'no remedy');
    await checkCatalog(scope);
  });

  it('partitions that were left out on purpose are none of ours', async () => {
    const pair = await makePair();
    const scope = await planned(pair, { options: { exclude: ['public.part_1'] } });
    const plan = schemaPlanOf(scope);
    saveSchemaPlan(scope, {
      ...plan,
      tables: plan.tables.filter((table) => relationKey(table.source) !== 'public.part_1'),
    });
    await checkCatalog(scope);
    await pair.source.query('create table public.part_2 partition of public.part for values in (2)');
    await expect(checkCatalog(scope)).rejects.toMatchObject({ code: 'source_ddl' });
  });

  it('is looked at while the stream runs', async () => {
    const pair = await makePair();
    const scope = await planned(pair);
    const stream = startStream(scope);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, pair);
    await drainStream(scope, pair, stream);
    await pair.source.query('create table public.part_2 partition of public.part for values in (2)');
    expect(await stream.failed).toMatchObject({ code: 'source_ddl', details: { object: 'public.part_2' } });
  });
});

// of ten times as many rows, updates and deletes go through temporary tables
it.each([
  [1, []],
  [10, [{ made: 'dts_d' }, { made: 'dts_u' }]],
])(
  'changes of a table with ignored columns leave as sets, without what is ignored (%i)',
  async (times, made) => {
    const pair = await makePair();
    const options = { onDdl: 'ignore' } as const;
    const first = await copied(
      pair,
      'create table public.t (v text, id int primary key, big text); alter table t alter big set storage external',
      `insert into t select 'old', i, repeat(i::text, 1000) from generate_series(1, ${200 * times}) i`,
      { options },
    );
    await pair.source.query('alter table t add column extra numeric default 7, add column more text');
    const tenth = `(id - 1) / ${times} + 1`;
    await pair.source.query(`
    update t set v = 'new', extra = 1.5, more = big where ${tenth} <= 50;
    update t set extra = 2 where ${tenth} between 41 and 90;
    delete from t where ${tenth} between 91 and 140; update t set big = 'small' where ${tenth} between 151 and 180;
    insert into t (id, v, extra) select ${200 * times} + i, 'inserted', i from generate_series(1, 40) i`);
    const { scope, said } = listening(makeScope(pair, { options }, first));
    const stream = startStream(scope);
    await drainStream(scope, pair, stream);
    const rows = 'select id, v, md5(big) as big from t order by id';
    expect((await pair.target.query(rows)).rows).toEqual((await pair.source.query(rows)).rows);
    const temporary = `select left(relname, 5) as made from pg_class where relname ~ '^dts_[ud]\\d+$' order by 1`;
    expect((await pair.target.query(temporary)).rows).toEqual(made);
    expect(said).toMatchObject({ binary: true, again: 0 });
    await stream.stop();
  },
);

it.each([13, 16] as const)(
  'source %i: what a batch has of before and after new columns is one transaction of the target',
  async (source) => {
    const pair = await makePair({ source, target: 18 });
    const options = { onDdl: 'apply-additive' } as const;
    const scope = await copied(
      pair,
      'create table public.t (id int primary key, v int); create table public.log (v int)',
      'insert into t select i, 0 from generate_series(1, 40) i',
      { options },
    );
    // more than a dozen of each: they leave by COPY, which would end a transaction of its own
    for (const statement of [
      'insert into t select i, 0 from generate_series(101, 120) i',
      'update t set v = 1 where id <= 20',
      'insert into log select generate_series(1, 20)',
      'alter table t add column extra int; alter table log add column extra int',
      'update t set extra = 2 where id between 21 and 40',
      'insert into t values (200, 0, 0)',
      'insert into log values (21, 0)',
    ])
      await pair.source.query(statement);
    const again = makeScope(pair, { options }, scope);
    let kills = 0;
    again.failpoint = (name) => {
      if (name === 'sync.before-target-commit' && kills++ < 1) throw new Error('killed');
    };
    let stream = startStream(again);
    await waitFor(() => kills > 0 || stream.failure() !== null);
    await stream.stop();
    again.failpoint = () => undefined;
    stream = startStream(makeScope(pair, { options }, scope));
    await drainStream(again, pair, stream);
    expect(await expectEqual(again, pair)).toBe(82);
  },
);
