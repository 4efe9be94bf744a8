// The online validation against real servers and a real stream: what it finds, what it does not find, where it goes on,
// and what it leaves for the write stop.
import { isDeepStrictEqual } from 'node:util';
import { describe, expect, test } from 'vitest';
import { compareLsn, ZERO_LSN, type Lsn } from '../../src/model/lsn.ts';
import { validationNotes, type TableValidation, type ValidationRun } from '../../src/model/validation.ts';
import { saveSchemaPlan, schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { compareTables } from '../../src/validate/compare.ts';
import { findRun, repairsOf, requestRepair, validationView } from '../../src/validate/notes.ts';
import { validateOnline } from '../../src/validate/online.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import {
  contents,
  copyAll,
  drainStream,
  prepare,
  startStream,
  type RunningStream,
} from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

interface Syncing {
  readonly pair: DatabasePair;
  readonly scope: TestScope;
  readonly stream: RunningStream;
}

/** Copied, and followed by a stream. */
async function syncing(
  pair: DatabasePair,
  ddl: string,
  rows: string,
  options: Record<string, unknown> = {},
): Promise<Syncing> {
  const scope = await prepare(pair, ddl, { options });
  await pair.source.query(rows);
  const stream = startStream(scope);
  await waitFor(() => stream.events.some((event) => event.type === 'SLOT_READY'));
  await copyAll(scope, pair);
  await drainStream(scope, pair, stream);
  return { pair, scope, stream };
}

interface Running {
  readonly scope: TestScope;
  readonly ended: Promise<unknown>;
  stop(): Promise<void>;
}

/** The validation in a process of its own: connections and signal apart from the stream's. */
function startValidation(
  { pair, scope }: Syncing,
  over: { pass?: number; options?: Record<string, unknown>; dieAt?: string } = {},
): Running {
  const own = makeScope(pair, { options: over.options ?? {} }, scope);
  own.failpoint = (name) => {
    if (name !== over.dieAt) return;
    own.controller.abort();
    throw new Error(`killed at ${name}`);
  };
  const ended = validateOnline(own, over.pass ?? 0).catch((error: unknown) => error);
  const stop = async (): Promise<void> => {
    own.controller.abort();
    await ended;
    await own.connections.closeAll();
  };
  return { scope: own, ended, stop };
}

const viewOf = (scope: TestScope) => validationView(scope.checkpoints, schemaPlanOf(scope));
const noteOf = (scope: TestScope, table: string): TableValidation | undefined =>
  scope.checkpoints.get(validationNotes.table(`public.${table}`));

/** Everything read, and settled after this call. */
async function untilSettled(scope: TestScope): Promise<void> {
  const now = Date.now();
  await waitFor(() => Date.parse(viewOf(scope).settledAt ?? '') >= now, 30_000, 'settled');
}

/** A row of table `t` on both sides, and what is done to the target's. */
const changedValues: readonly (readonly [what: string, type: string, value: string, other: string])[] = [
  ['a value', 'int', '1', '2'],
  ['the empty string for NULL', 'text', 'null', `''`],
  ['the scale of a numeric', 'numeric', '1.0', '1.00'],
  ['minus zero', 'float8', '0', `'-0'`],
  ['NaN', 'float8', `'NaN'`, `'Infinity'`],
  ['the sign of infinity', 'float4', `'Infinity'`, `'-Infinity'`],
  ['infinity for a date', 'timestamptz', `'infinity'`, `'9999-12-31'`],
  ['a trailing space', 'text', `'a'`, `'a '`],
  ['a case', 'text collate "C"', `'a'`, `'A'`],
  ['a value inside jsonb', 'jsonb', `'{"a": [1]}'`, `'{"a": [1.0]}'`],
  ['one byte', 'bytea', `'\\x00ff'`, `'\\x00fe'`],
  ['an element of an array', 'text[]', `'{a,NULL}'`, `'{a,"NULL"}'`],
  ['an interval that is equal', 'interval', `'1 day'`, `'24 hours'`],
  ['a range', 'int4range', `'[1,5)'`, `'[1,6)'`],
  ['a transaction id', 'xid8', `'4294967297'`, `'1'`],
  ['a snapshot', 'pg_snapshot', `'10:20:10,14'`, `'10:20:10,15'`],
  ['an end of a segment', 'lseg', `'[(0,0),(1,1)]'`, `'[(1,1),(0,0)]'`],
  ['a line that is equal', 'line', `'{1,-1,2}'`, `'{2,-2,4}'`],
  ['the end of a path', 'path', `'[(0,0),(1,1)]'`, `'((0,0),(1,1))'`],
  ['a polygon that is the same', 'polygon', `'((0,0),(1,1),(2,0))'`, `'((1,1),(2,0),(0,0))'`],
  ['a mode of a jsonpath', 'jsonpath', `'$.a'`, `'strict $.a'`],
  ['a weight of a tsvector', 'tsvector', `'a:1A b:2'`, `'a:1B b:2'`],
  ['an operator of a tsquery', 'tsquery', `'a & b'`, `'a | b'`],
  ['a label of an enum', 'mood', `'sad'`, `'ok'`],
  ['the scale in a domain', 'positive', '1.0', '1.00'],
  ['a field of a composite type', 'pair', `'(1,x)'`, `'(1,"x ")'`],
  ['an element of a composite type', 'pair[]', `array['(1,x)'::pair]`, `array['(1,)'::pair]`],
  ['what a collation calls equal', 'text collate loose', `'Käse'`, `'kase'`],
];
const changedTypes = `create type mood as enum ('ok', 'sad'); create type pair as (a int, b text);
  create domain positive as numeric check (value > 0);
  create collation loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false);`;

describe.each([
  [13, 18, []],
  [18, 16, [['a range of many', 'int4multirange', `'{[1,5),[7,9)}'`, `'{[1,5),[7,10)}'`]]],
] as const)('source %i, target %i', (source, target, ofItsOwn) => {
  test('every difference is reported with its key, and none that is not there', async () => {
    const pair = await makePair({ source, target });
    const values = [...changedValues, ...ofItsOwn];
    const ddl = values.map(([, type], n) => `create table t${n} (id int primary key, v ${type});`);
    const rows = values.map(([, , value], n) => `insert into t${n} values (1, ${value}), (2, ${value});`);
    const run = await syncing(
      pair,
      `${changedTypes}
       ${ddl.join('\n')}
       create table gone (a text, b numeric, v int, primary key (b, a));
       create table added (id uuid primary key, v int);
       create table swapped (id bigint primary key, v int, w int);
       create table "jsonb keys" (id timestamptz primary key, v jsonb);`,
      `${rows.join('\n')}
       insert into gone values ('x', 1.50, 1), ('x,"y', 1.5, 1), (e'\\\\', 'NaN', 1);
       insert into swapped values (1, 10, 11), (2, 20, 21);
       insert into "jsonb keys" values ('2020-01-01 00:00:00.123456+01', '{"b": 1, "a": 2}'), ('infinity', '[]');`,
    );
    for (const [n, [, , , other]] of values.entries())
      await pair.target.query(`update t${n} set v = ${other} where id = 2`);
    await pair.target.query(`delete from gone where a = 'x,"y';
      insert into added values ('00000000-0000-0000-0000-00000000000a', 1);
      update swapped set v = 30 - v where true;
      update "jsonb keys" set v = '{"a": 2, "b": 1}' where v <> '[]'`);
    const validation = startValidation(run);
    await untilSettled(validation.scope);
    const view = viewOf(run.scope);
    expect(view.clean).toBe(false);
    const found = Object.fromEntries(
      view.tables.map(({ table, differences: { samples, ...counts } }) => [table, { samples, counts }]),
    );
    for (const [n, [what]] of values.entries())
      expect(found[`public.t${n}`], what).toEqual({
        counts: { missing: 0, extra: 0, changed: 1 },
        samples: [{ key: { id: '2' }, kind: 'changed', columns: ['v'] }],
      });
    expect(found['public.gone']).toEqual({
      counts: { missing: 1, extra: 0, changed: 0 },
      samples: [{ key: { b: '1.5', a: 'x,"y' }, kind: 'missing', columns: null }],
    });
    expect(found['public.added']).toEqual({
      counts: { missing: 0, extra: 1, changed: 0 },
      samples: [{ key: { id: '00000000-0000-0000-0000-00000000000a' }, kind: 'extra', columns: null }],
    });
    expect(found['public.swapped']?.counts).toEqual({ missing: 0, extra: 0, changed: 2 });
    expect(found['public.jsonb keys']?.counts).toEqual({ missing: 0, extra: 0, changed: 0 });
    expect(validation.scope.cleans).not.toContain(true);

    // repaired on the target, they are no differences any more
    await pair.target.query(`delete from added; update swapped set v = 30 - v;
      insert into gone values ('x,"y', 1.5, 1)`);
    for (const [n, [, , value]] of values.entries())
      await pair.target.query(`update t${n} set v = ${value} where id = 2`);
    await waitFor(() => viewOf(run.scope).clean, 30_000, 'clean');
    await waitFor(() => validation.scope.cleans.at(-1) === true, 10_000, 'said to be clean');
    await validation.stop();
  });

  test('writers cause no false alarm, and a row that the stream missed is found among theirs', async () => {
    const pair = await makePair({ source, target });
    const run = await syncing(
      pair,
      `create table hot (id int primary key, v text, n int); create table lively (k text, id int, v int, primary key (k, id));`,
      `insert into hot select i, repeat('x', 20), 0 from generate_series(1, 110000) i;
       insert into lively select 'Käse ' || i % 100, i, 0 from generate_series(1, 5000) i`,
    );
    await pair.target.query('update hot set n = -1 where id = 33333');
    let writing = true;
    const writers = [1, 2, 3].map(async (seed) => {
      const client = await pair.source.connect();
      for (let n = seed; writing; n += 3) {
        await client.query('update hot set n = n + 1 where id = 1 + $1::int % 20', [n]);
        await client.query('update hot set v = $1 where id = 1 + ($1::int * 7919) % 30000', [n]);
        await client.query('delete from lively where id = $1::int % 5000', [n]);
        await client.query(
          `insert into lively values ('neu ' || $1::int % 10, $1::int % 5000, $1) on conflict do nothing`,
          [n],
        );
        await client.query('update lively set id = id + 100000 where id = $1::int % 4000', [n + 1]);
      }
    });
    const validation = startValidation(run);
    await waitFor(() => noteOf(run.scope, 'hot')?.differences.length === 1, 60_000, 'the difference');
    await untilSettled(validation.scope);
    writing = false;
    await Promise.all(writers);
    await drainStream(run.scope, pair, run.stream);
    await untilSettled(validation.scope);
    const view = viewOf(run.scope);
    expect(view.tables.map(({ table, state, differences }) => ({ table, state, differences }))).toEqual([
      {
        table: 'public.hot',
        state: 'verified',
        differences: {
          missing: 0,
          extra: 0,
          changed: 1,
          samples: [{ key: { id: '33333' }, kind: 'changed', columns: ['n'] }],
        },
      },
      {
        table: 'public.lively',
        state: 'verified',
        differences: { missing: 0, extra: 0, changed: 0, samples: [] },
      },
    ]);
    expect(view.tables[0]?.ranges).toBe(3);
    await validation.stop();
  });
});

test('of many differences twenty are shown and a thousand kept; when those are settled the table is read again', async () => {
  const run = await syncing(
    await makePair(),
    'create table t (id int primary key, v int)',
    'insert into t select g, g from generate_series(1, 1500) g',
  );
  await run.pair.target.query('update t set v = -1 where id <= 1100');
  const validation = startValidation(run);
  await untilSettled(validation.scope);
  expect(viewOf(run.scope).tables).toMatchObject([
    { state: 'differs', differences: { missing: 0, extra: 0, changed: 1_000 } },
  ]);
  expect(viewOf(run.scope).tables[0]?.differences.samples).toHaveLength(20);
  const kept = noteOf(run.scope, 't')?.differences.map(({ key }) => Number(key[0])) ?? [];
  await run.pair.target.query('update t set v = id where id = any($1)', [kept]);
  await waitFor(() => viewOf(run.scope).tables[0]?.differences.changed === 100, 30_000, 'the others');
  expect(viewOf(run.scope).tables).toMatchObject([{ state: 'verified' }]);
  await run.pair.target.query('update t set v = id');
  await waitFor(() => viewOf(run.scope).clean, 30_000, 'clean');
  await validation.stop();
  await run.stream.stop();
});

test('killed after a range it goes on behind it, and a new pass begins anew', async () => {
  const run = await syncing(
    await makePair(),
    'create table t (id int primary key); create table u (id int primary key)',
    'insert into t select generate_series(1, 50000); insert into u select generate_series(1, 10)',
  );
  // a limit, and each range is noted
  const options = { validationMaxRowsPerSecond: 20_000 };
  await startValidation(run, { dieAt: 'validate.range-compared', options }).ended;
  expect(noteOf(run.scope, 't')).toMatchObject({
    state: 'scanning',
    cursor: ['20000'],
    rows: 20_000,
    ranges: 1,
  });
  // What was verified already is not read again; what the stream changed meanwhile is.
  await run.pair.source.query('delete from t where id = 5');
  await drainStream(run.scope, run.pair, run.stream);
  await run.pair.target.query('insert into t values (5)');
  const validation = startValidation(run);
  await untilSettled(run.scope);
  await validation.stop();
  expect(noteOf(run.scope, 't')).toMatchObject({
    state: 'verified',
    rows: 50_000, // of the first range as it was then
    ranges: 2,
    differences: [{ key: ['5'], kind: 'extra' }],
  });
  const again = startValidation(run, { pass: 1 });
  await waitFor(
    () => noteOf(run.scope, 't')?.state === 'verified' && noteOf(run.scope, 't')?.rows === 49_999,
  );
  await untilSettled(run.scope);
  expect(noteOf(run.scope, 't')?.differences).toMatchObject([{ key: ['5'], kind: 'extra' }]);
  await again.stop();
});

test('a kill between the comparison of keys and their removal loses none of them', async () => {
  const run = await syncing(
    await makePair(),
    'create table t (id int primary key, v int)',
    'insert into t values (1, 1)',
  );
  const first = startValidation(run);
  await untilSettled(run.scope);
  await first.stop();
  await run.pair.source.query('update t set v = 2');
  await drainStream(run.scope, run.pair, run.stream);
  await run.pair.target.query('update t set v = 3');
  await startValidation(run, { dieAt: 'validate.keys-compared' }).ended;
  const second = startValidation(run);
  await waitFor(() => noteOf(run.scope, 't')?.differences.length === 1, 20_000, 'the difference');
  await second.stop();
});

test('a look takes thousands of small changes, says how many it leaves, and the next one follows at once', async () => {
  const run = await syncing(
    await makePair(),
    'create table t (id int primary key, v int)',
    'insert into t select g, g from generate_series(1, 12500) g',
  );
  const first = startValidation(run);
  await untilSettled(run.scope);
  await waitFor(() => findRun(run.scope.checkpoints)?.verified, 10_000, 'a verified position');
  await first.stop();
  const verified = findRun(run.scope.checkpoints)?.verified;
  // as the stream leaves them that applies a transaction at a time
  await run.pair.target.query(
    `insert into dts.changed (task_id, relation, keys) select task_id, 'public.t', '[["' || g || '"]]'
     from dts.task, generate_series(1, 12500) g;
     update t set v = -1 where id in (1, 12500)`,
  );
  const second = startValidation(run);
  const notes: ValidationRun[] = [];
  const { set } = second.scope.checkpoints;
  second.scope.checkpoints.set = (key, value) => {
    if (key === validationNotes.run) notes.push(value as ValidationRun);
    set(key, value);
  };
  await waitFor(() => viewOf(run.scope).tables[0]?.differences.changed === 2, 30_000, 'both differences');
  await untilSettled(run.scope);
  await second.stop();
  expect(viewOf(run.scope)).toMatchObject({ keysWaiting: 0, keysInDoubt: 0 });
  const [left, ...others] = notes.map(({ keysWaiting }) => keysWaiting ?? 0);
  expect(left).toBeGreaterThan(2_000); // 2,500, by their bytes
  expect(left).toBeLessThan(3_000);
  expect(others.every((count) => count === 0)).toBe(true);
  expect(notes[0]?.verified).toEqual(verified); // with keys left it is not known further
});

test('the verified position moves on with what changes, idle tables too, and stands still while a key differs', async () => {
  const run = await syncing(
    await makePair(),
    'create table t (id int primary key, v int); create table idle (id int primary key)',
    'insert into t select g, 0 from generate_series(1, 9) g; insert into idle values (1)',
  );
  const { source, target } = run.pair;
  const verifiedLsn = (name: string): Lsn =>
    viewOf(run.scope).tables.find(({ table }) => table === `public.${name}`)?.verifiedLsn ?? ZERO_LSN;
  const isPast = (name: string, lsn: Lsn): boolean => compareLsn(verifiedLsn(name), lsn) >= 0;
  const positionAfter = async (change: string): Promise<Lsn> => {
    await source.query(change);
    const { rows } = await source.query<{ lsn: Lsn }>('select pg_current_wal_lsn()::text as lsn');
    return rows[0]?.lsn ?? expect.unreachable();
  };
  const validation = startValidation(run);
  await untilSettled(run.scope);
  const idle = noteOf(run.scope, 'idle');
  const changed = await positionAfter('update t set v = 1 where id = 1');
  await drainStream(run.scope, run.pair, run.stream);
  await waitFor(() => isPast('t', changed) && isPast('idle', changed), 30_000, 'both past the change');
  expect(compareLsn(verifiedLsn('t'), await positionAfter('select'))).toBeLessThanOrEqual(0);
  expect(noteOf(run.scope, 'idle')).toEqual(idle); // of thousands each would be a write

  await target.query(`update t set v = 9 where id = 1;
    insert into dts.changed (task_id, relation, keys) select task_id, 'public.t', '[["1"]]' from dts.task`);
  await waitFor(() => noteOf(run.scope, 't')?.differences.length === 1, 20_000, 'the difference');
  const stands = verifiedLsn('t');
  expect(compareLsn(stands, changed)).toBeGreaterThanOrEqual(0);
  const later = await positionAfter('update t set v = 2 where id = 2');
  await drainStream(run.scope, run.pair, run.stream);
  await waitFor(() => isPast('idle', later), 30_000, 'the idle table past the next change');
  expect(verifiedLsn('t')).toBe(stands);
  expect(compareLsn(stands, later)).toBeLessThan(0);
  await target.query('update t set v = 1 where id = 1');
  await waitFor(() => isPast('t', later), 30_000, 'past it again');
  await validation.stop();
  const { tables } = await compareTables(run.scope);
  expect(tables.map((table) => [table.table, table.verifiedLsn])).toEqual([
    ['public.idle', verifiedLsn('idle')],
    ['public.t', verifiedLsn('t')],
  ]);
});

test('the write stop compares only what changed since, and whole tables where that is not known', async () => {
  const run = await syncing(
    await makePair({ source: 13 }),
    `create table big (id int primary key, v int); create table keyless (v int); alter table keyless replica identity full;
     create table emptied (id int primary key)`,
    `insert into big select i, i from generate_series(1, 30000) i; insert into keyless values (1), (1);
     insert into emptied values (1), (2)`,
  );
  const validation = startValidation(run);
  await untilSettled(run.scope);
  await validation.stop();
  await run.pair.source.query(`update big set v = 0 where id in (7, 8); delete from big where id = 9;
    insert into big values (40000, 1); insert into keyless values (2); truncate emptied`);
  await drainStream(run.scope, run.pair, run.stream);
  const compared = await compareTables(run.scope);
  expect(
    compared.tables.map(({ table, method, sourceRows, targetRows, equal }) => [
      table,
      method,
      sourceRows,
      targetRows,
      equal,
    ]),
  ).toEqual([
    ['public.big', 'changes', 3, 3, true],
    ['public.emptied', 'full', 0, 0, true],
    ['public.keyless', 'full', 3, 3, true],
  ]);
  expect(compared.tables[0]?.verifiedLsn).toMatch(/^[0-9A-F]+\//);
  await run.pair.target.query('update big set v = 1 where id = 8; delete from keyless where v = 2');
  const differing = await compareTables(run.scope);
  expect(differing.tables.map(({ table, equal }) => [table, equal])).toEqual([
    ['public.big', false],
    ['public.emptied', true],
    ['public.keyless', false],
  ]);
  expect(noteOf(run.scope, 'big')?.differences).toEqual([{ key: ['8'], kind: 'changed', columns: ['v'] }]);
});

test('a table without a key is compared beside the stream, as a multiset, for as long as nobody changes it', async () => {
  const run = await syncing(
    await makePair({ source: 13 }),
    `create table twins (v int); create table gone (v text); alter table twins replica identity full;
     create table bag (v jsonb); alter table bag replica identity full`,
    `insert into twins values (1), (1), (2); insert into gone values ('a'), (null);
     insert into bag select jsonb_build_object('n', g % 100) from generate_series(1, 3000) g`,
  );
  const { source, target } = run.pair;
  await target.query(`delete from gone where v is null; insert into gone values ('')`);
  const validation = startValidation(run);
  const states = () => Object.fromEntries(viewOf(run.scope).tables.map(({ table, state }) => [table, state]));
  const settled = { 'public.bag': 'verified', 'public.gone': 'differs', 'public.twins': 'verified' };
  await waitFor(() => isDeepStrictEqual(states(), settled), 30_000, 'all compared');
  expect(viewOf(run.scope).clean).toBe(false);
  expect(noteOf(run.scope, 'twins')).toMatchObject({ rows: 3, verifiedLsn: expect.any(String) as string });
  // known to differ, it is read again until it does not
  await target.query(`update gone set v = null where v = ''`);
  await waitFor(() => viewOf(run.scope).clean && states()['public.gone'] === 'verified', 30_000, 'equal');

  const verifiedAt = noteOf(run.scope, 'twins')?.verifiedLsn;
  await source.query('delete from twins where v = 2; insert into twins values (1)');
  await drainStream(run.scope, run.pair, run.stream);
  await waitFor(
    () => (noteOf(run.scope, 'twins')?.verifiedLsn ?? '') !== verifiedAt,
    30_000,
    'verified anew',
  );
  await untilSettled(run.scope);
  expect(states()['public.twins']).toBe('verified');
  await validation.stop();
  // what nobody has changed since costs the write stop nothing; what somebody has is compared as a whole
  await source.query('insert into twins values (7)');
  await drainStream(run.scope, run.pair, run.stream);
  const { tables } = await compareTables(run.scope);
  expect(tables.map(({ table, method, sourceRows, equal }) => [table, method, sourceRows, equal])).toEqual([
    ['public.bag', 'changes', 0, true],
    ['public.gone', 'changes', 0, true],
    ['public.twins', 'full', 4, true],
  ]);
  await target.query('delete from twins where v = 7');
  await compareTables(run.scope);
  expect(states()['public.twins']).toBe('differs');
});

test('a table without a key that changes while it is compared is compared again', async () => {
  const run = await syncing(
    await makePair(),
    'create table bag (v int); alter table bag replica identity full',
    'insert into bag values (1)',
  );
  const blocker = await run.pair.target.connect();
  await blocker.query('begin; lock table bag in access exclusive mode');
  const validation = startValidation(run);
  const compared = (): number =>
    validation.scope.failpointsHit.filter((name) => name === 'validate.keyless-compared').length;
  validation.scope.failpoint = (name) => void validation.scope.failpointsHit.push(name);
  let comparedWhenVerified = 0;
  const { set } = validation.scope.checkpoints;
  validation.scope.checkpoints.set = (key, value) => {
    if ((value as TableValidation).state === 'verified') comparedWhenVerified ||= compared();
    set(key, value);
  };
  await waitFor(async () => {
    const { rows } = await run.pair.target.query(
      `select from pg_locks where relation = 'bag'::regclass and not granted`,
    );
    return rows.length > 0;
  });
  // a change that the stream has applied and written down, and that a look at the keys takes out again
  await run.pair.target.query(
    `insert into dts.changed (task_id, relation, keys) select task_id, 'public.bag', null from dts.task`,
  );
  await untilSettled(run.scope);
  expect(noteOf(run.scope, 'bag')?.state).toBe('atCutover');
  await blocker.query('rollback');
  await waitFor(() => noteOf(run.scope, 'bag')?.state === 'verified', 30_000, 'verified');
  expect(comparedWhenVerified).toBe(2);
  await validation.stop();
});

test('a table without a key that differs stays so until it is found equal, whatever restarts in between', async () => {
  const run = await syncing(
    await makePair(),
    'create table bag (v int); alter table bag replica identity full',
    'insert into bag values (1), (2)',
  );
  const { source, target } = run.pair;
  await target.query('delete from bag where v = 2');
  const first = startValidation(run);
  await waitFor(() => noteOf(run.scope, 'bag')?.state === 'differs', 30_000, 'the difference');
  await first.stop();
  await source.query('alter table bag alter v set statistics 10; insert into bag values (3)');
  await drainStream(run.scope, run.pair, run.stream);
  const second = startValidation(run);
  const states: string[] = [];
  const { set } = second.scope.checkpoints;
  second.scope.checkpoints.set = (key, value) => {
    if (key === validationNotes.table('public.bag')) states.push((value as TableValidation).state);
    set(key, value);
  };
  await waitFor(() => states.length >= 1, 30_000, 'another comparison');
  expect(new Set(states)).toEqual(new Set(['differs']));
  await target.query('insert into bag values (2)');
  await waitFor(() => noteOf(run.scope, 'bag')?.state === 'verified', 30_000, 'equal');
  await second.stop();
});

test('a comparison of a table without a key gives way to whoever waits for a lock on it', async () => {
  const run = await syncing(
    await makePair(),
    'create table bag (v int); alter table bag replica identity full',
    'insert into bag values (1)',
  );
  const { source } = run.pair;
  const plan = schemaPlanOf(run.scope);
  const where = 'pg_sleep(60) is not null'; // a large table
  saveSchemaPlan(run.scope, { ...plan, tables: plan.tables.map((table) => ({ ...table, where })) });
  const validation = startValidation(run);
  await waitFor(async () => {
    const { rows } = await source.query(`select from pg_stat_activity where wait_event = 'PgSleep'`);
    return rows.length > 0;
  });
  await source.query(`begin; set local lock_timeout = '30s'; truncate bag; commit`);
  await drainStream(run.scope, run.pair, run.stream);
  expect(noteOf(run.scope, 'bag')?.state).toBe('atCutover');
  await validation.stop();
});

test('a repair puts exactly the named rows right, under writers, and forgets none when killed', async () => {
  const run = await syncing(
    await makePair({ source: 13 }),
    `create table t (id int, sub text, v text, n numeric, g int generated always as (id * 2) stored, i int generated always as identity,
       primary key (id, sub)); create table busy (id int primary key, n int)`,
    `insert into t (id, sub, v, n) select i, 'ä' || i, case when i % 2 = 0 then repeat('long', 3000) end, i / 4.0 from generate_series(1, 900) i;
     insert into busy select i, 0 from generate_series(1, 50) i`,
  );
  const { source, target } = run.pair;
  await target.query(`update t set v = 'wrong' where id in (1, 2, 3); delete from t where id between 100 and 110;
    insert into t (id, sub, n) values (5000, 'extra', 1), (5001, 'extra', 1);
    alter table t add constraint short check (v <> 'never') not valid; update busy set n = -1 where id > 40`);
  let writing = true;
  const client = await source.connect();
  const writer = (async () => {
    for (let n = 0; writing; n++) {
      await client.query('delete from busy where id = 1 + ($1::int * 7) % 50', [n]);
      await client.query('insert into busy values (1 + ($1::int * 11) % 50, $1) on conflict do nothing', [n]);
    }
  })();
  const first = startValidation(run, { dieAt: 'repair.before-commit' });
  await untilSettled(run.scope);
  const differing = (table: string): number => noteOf(run.scope, table)?.differences.length ?? -1;
  await waitFor(() => differing('t') === 16, 20_000, 'the differences');
  requestRepair(run.scope.checkpoints, {
    table: 'public.t',
    keys: [
      ['1', 'ä1'],
      ['100', 'ä100'],
      ['5000', 'extra'],
    ],
  });
  await first.ended;
  expect((await target.query('select from t where id = 5000')).rowCount).toBe(1); // killed before the commit
  expect(repairsOf(run.scope.checkpoints)).toMatchObject([{ state: 'pending' }]);

  const second = startValidation(run);
  await waitFor(() => repairsOf(run.scope.checkpoints)[0]?.state === 'done', 20_000, 'the repair');
  expect(repairsOf(run.scope.checkpoints)[0]).toMatchObject({
    rowsWritten: 2,
    rowsRemoved: 2,
    keysUnsettled: 0,
  });
  await waitFor(() => differing('t') === 13, 20_000, 'the other differences');
  requestRepair(run.scope.checkpoints, {
    table: 'public.t',
    ranges: [
      { after: ['1', 'ä1'], upTo: ['105', 'ä105'] },
      { after: ['4000', ''], upTo: null },
    ],
  });
  await waitFor(() => differing('t') === 5, 20_000, 'five differences');
  requestRepair(run.scope.checkpoints, { table: 'public.t' });
  for (let from = 0; from < 3; from++)
    requestRepair(run.scope.checkpoints, { table: 'public.busy', ranges: [{ after: null, upTo: null }] });
  requestRepair(run.scope.checkpoints, { table: 'public.nothing' });
  await waitFor(
    () => repairsOf(run.scope.checkpoints).every(({ state }) => state !== 'pending'),
    60_000,
    'repairs',
  );
  expect(repairsOf(run.scope.checkpoints)[0]).toMatchObject({
    state: 'failed',
    error: { code: 'invalid_request' },
  });
  writing = false;
  await writer;
  expect(run.stream.failure()).toBeNull(); // no row was put where the stream expected another
  requestRepair(run.scope.checkpoints, { table: 'public.busy', ranges: [{ after: null, upTo: null }] });
  await waitFor(() => repairsOf(run.scope.checkpoints)[0]?.state === 'done', 20_000, 'the last repair');
  await drainStream(run.scope, run.pair, run.stream);
  await second.stop();
  expect(await contents(run.scope, target, 'target')).toEqual(await contents(run.scope, source, 'source'));
  expect((await compareTables(run.scope)).tables.every(({ equal }) => equal)).toBe(true);
});

test('a repair of a range walks it on both sides, however long it is, and goes on where it was killed', async () => {
  const run = await syncing(
    await makePair(),
    'create table t (k text collate "C", id int, v int, primary key (k, id))',
    `insert into t select 'k' || g % 7, g, g from generate_series(1, 6000) g`,
  );
  const { source, target } = run.pair;
  // lost but for a few, and more rows than a batch that never were
  await target.query(`delete from t where id % 50 <> 0; insert into t select 'k3', -g, g from generate_series(1, 700) g;
    insert into t values ('k9', 1, 1)`);
  let batches = 0;
  const first = startValidation(run);
  first.scope.failpoint = (name) => {
    if (name !== 'repair.batch-noted' || ++batches < 4) return;
    first.scope.controller.abort();
    throw new Error('killed');
  };
  await untilSettled(run.scope);
  requestRepair(run.scope.checkpoints, {
    table: 'public.t',
    ranges: [
      { after: null, upTo: ['k3', '1000000'] },
      { after: ['k3', '1000000'], upTo: null },
    ],
  });
  await first.ended;
  const [stands] = repairsOf(run.scope.checkpoints);
  expect(stands).toMatchObject({ state: 'pending', rowsWritten: 2_000, position: { role: 'source' } });
  const second = startValidation(run);
  await waitFor(() => repairsOf(run.scope.checkpoints)[0]?.state === 'done', 30_000, 'the repair');
  expect(repairsOf(run.scope.checkpoints)[0]).toMatchObject({
    rowsWritten: 6_000 - 120, // each once, and none that was there
    rowsRemoved: 701,
    keysUnsettled: 0,
  });
  await waitFor(() => viewOf(run.scope).clean, 30_000, 'clean');
  await second.stop();
  expect(await contents(run.scope, target, 'target')).toEqual(await contents(run.scope, source, 'source'));
});

test('a repair knows a key under any spelling, so that what changes meanwhile is left to the stream', async () => {
  const run = await syncing(
    await makePair(),
    'create table busy (id int, at inet, n int, primary key (id, at))',
    `insert into busy select i, '10.0.0.1', 0 from generate_series(1, 20) i`,
  );
  const { source, target } = run.pair;
  let writing = true;
  const client = await source.connect();
  const writer = (async () => {
    for (let n = 0; writing; n++) {
      await client.query('delete from busy where id = 1 + ($1::int * 7) % 20', [n]);
      await client.query(
        `insert into busy values (1 + ($1::int * 11) % 20, '10.0.0.1', $1) on conflict do nothing`,
        [n],
      );
    }
  })();
  const validation = startValidation(run);
  await untilSettled(run.scope);
  const keys = Array.from({ length: 20 }, (_, n) => [` 0${n + 1}`, '10.0.0.1/32']);
  for (let round = 0; round < 15; round++) {
    requestRepair(run.scope.checkpoints, { table: 'public.busy', keys });
    const isOver = (): boolean => repairsOf(run.scope.checkpoints)[0]?.state === 'done';
    await waitFor(() => isOver() || run.stream.failure(), 30_000, 'the repair');
  }
  writing = false;
  await writer;
  expect(run.stream.failure()).toBeNull(); // no row was put where the stream expected another
  await drainStream(run.scope, run.pair, run.stream);
  await validation.stop();
  expect(await contents(run.scope, target, 'target')).toEqual(await contents(run.scope, source, 'source'));
});

test('what was settled grows too old for the gate when the stream stands still', async () => {
  const run = await syncing(
    await makePair(),
    'create table t (id int primary key)',
    'insert into t values (1)',
  );
  const validation = startValidation(run, { options: { cutoverMaxValidationAgeMs: 4_000 } });
  await waitFor(() => validation.scope.cleans.at(-1) === true, 20_000, 'clean');
  const blocker = await run.pair.target.connect();
  await blocker.query('begin; select from dts.progress for update');
  await run.pair.source.query('insert into t values (2)');
  await run.pair.target.query(`insert into dts.changed (task_id, relation, keys)
    select task_id, 'public.t', '[["2"]]' from dts.task`); // as another batch would have
  await waitFor(() => validation.scope.cleans.at(-1) === false, 20_000, 'too old');
  await blocker.query('rollback');
  await waitFor(() => validation.scope.cleans.at(-1) === true, 20_000, 'clean again');
  await validation.stop();
});

test('a new slot voids what was verified, and rows per second are limited', async () => {
  const run = await syncing(
    await makePair(),
    'create table t (id int primary key)',
    'insert into t select generate_series(1, 40000)',
  );
  const validation = startValidation(run, { options: { validationMaxRowsPerSecond: 20_000 } });
  const began = Date.now();
  await untilSettled(run.scope);
  expect(Date.now() - began).toBeGreaterThan(1_000);
  await validation.stop();
  expect((await compareTables(run.scope)).tables).toMatchObject([{ method: 'changes' }]);
  await run.pair.target.query(`update dts.progress set tracking = false`); // as a row of another slot has it
  expect((await compareTables(run.scope)).tables).toMatchObject([{ method: 'full' }]);
  const again = startValidation(run);
  await untilSettled(run.scope);
  await again.stop();
  expect((await compareTables(run.scope)).tables).toMatchObject([{ method: 'changes' }]);
});
