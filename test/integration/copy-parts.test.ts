// Tables in parts: how real servers' tables are cut, what a kill costs, and that parts read under different snapshots
// together with the filtered stream make exactly the source, whatever the writers did in between.
import { describe, expect, it } from 'vitest';
import { copyTables } from '../../src/copy/copy-tables.ts';
import type { MigrationError } from '../../src/model/errors.ts';
import type { Failpoint } from '../../src/model/failpoints.ts';
import type { PartRange } from '../../src/model/part-range.ts';
import type { PlannedStatement } from '../../src/model/schema-plan.ts';
import { isCopyComplete } from '../../src/postgres/copy-state.ts';
import { slotOf } from '../../src/postgres/slot-record.ts';
import { saveSchemaPlan, schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { uniqueBefore } from '../../src/schema/existing.ts';
import { listening } from '../support/backlog.ts';
import { contentOf } from '../support/copy-plan.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { makeProxy, through } from '../support/proxy.ts';
import { seeded, startWriters, type Random } from '../support/random-writers.ts';
import { contents, drainStream, prepare, startStream, untilEvent } from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const KB = 1024;

function setOptions(scope: TestScope, options: Partial<TestScope['spec']['options']>): void {
  Object.assign(scope.spec.options, options);
}

/** Throws at the `times`-th passing of a failpoint, as a kill would stop the process there. */
function failAt(scope: TestScope, name: Failpoint, times: number): void {
  let left = times;
  Object.assign(scope, {
    failpoint: (reached: Failpoint) => {
      if (reached === name && --left === 0) throw new Error(`failpoint ${name}`);
    },
  });
}

async function failureOf(work: Promise<unknown>): Promise<MigrationError> {
  return work.then(
    () => Promise.reject(new Error('it did not fail')),
    (error: unknown) => error as MigrationError,
  );
}

interface MarkerRow {
  readonly relation: string;
  readonly part: number;
  readonly range: PartRange | null;
  readonly epoch: number;
  readonly xmin: string;
}

async function markersOf({ target }: DatabasePair): Promise<MarkerRow[]> {
  const { rows } = await target.query<Omit<MarkerRow, 'range'> & { range: string | null }>(
    `select relation, part, range, epoch, xmin::text from dts.part order by relation, part`,
  );
  return rows.map((row) => ({
    ...row,
    range: row.range === null ? null : (JSON.parse(row.range) as PartRange),
  }));
}

/** A slot whose stream nobody reads: the copy only needs its incarnation. */
async function ready(pair: DatabasePair, ddl: string, rows: string, partBytes: number): Promise<TestScope> {
  const scope = await prepare(pair, ddl, { options: { partBytes } });
  await pair.source.query(rows);
  await pair.source.query('vacuum analyze');
  scope.checkpoints.set('slot', {
    name: `dts_${scope.taskId}`,
    incarnation: 'slot 1',
    consistentLsn: '0/0',
    dropped: true,
  });
  const plan = schemaPlanOf(scope);
  const { rows: sizes } = await pair.source.query<{ name: string; bytes: number }>(
    `select 'public.' || relname as name, pg_table_size(oid)::int as bytes from pg_class where relkind = 'r'`,
  );
  const bytes = new Map(sizes.map((size) => [size.name, size.bytes]));
  saveSchemaPlan(scope, {
    ...plan,
    tables: plan.tables.map((table) => ({
      ...table,
      bytesEstimated: bytes.get(`public.${table.source.name}`) ?? 0,
    })),
  });
  return scope;
}

const ordered = 'create table public.ordered (id bigint primary key, v text)';
const orderedRows = `insert into public.ordered select n, repeat('x', 100) from generate_series(1, 5000) n`;
const shuffled = 'create table public.shuffled (id uuid primary key, v text)';
const shuffledRows = `insert into public.shuffled select md5(n::text)::uuid, repeat('x', 100) from generate_series(1, 5000) n`;

describe.each([13, 16] as const)('on a source of version %i', (source) => {
  it('tables are cut by the key that the heap follows, by blocks where they can be read alone, or not at all', async () => {
    const pair = await makePair({ source });
    const scope = await ready(
      pair,
      `${ordered}; ${shuffled};
       create table public.small (id int primary key);
       create table public.at (t timestamptz, n int, v text, primary key (t, n));
       create table public.whole_row (id int primary key, v text);
       alter table public.whole_row replica identity full;
       create table public.root (id int, region int, v text, primary key (region, id)) partition by list (region);
       create table public.leaf_0 partition of public.root for values in (0);
       create table public.leaf_1 partition of public.root for values in (1)`,
      `${orderedRows}; ${shuffledRows};
       insert into public.small select 1;
       insert into public.at select timestamptz '2024-01-01' + n * interval '1 h', n, repeat('x', 100) from generate_series(1, 5000) n;
       insert into public.whole_row select n, repeat('x', 100) from generate_series(1, 5000) n;
       insert into public.root select n, n / 4900, repeat('x', 100) from generate_series(1, 5000) n`,
      200 * KB,
    );
    await copyTables(scope);
    const kinds: Record<string, Set<string>> = {};
    for (const { relation, range } of await markersOf(pair))
      (kinds[relation] ??= new Set()).add(range === null ? 'whole' : range.kind);
    const blocks = source === 13 ? 'whole' : 'ctid';
    expect(kinds).toEqual({
      'public.ordered': new Set(['key']),
      'public.at': new Set(['key']),
      'public.whole_row': new Set(['key']),
      'public.shuffled': new Set([blocks]),
      'public.small': new Set(['whole']),
      // the leading column of the leaf's key has one value: no bound between
      'public.leaf_0': new Set([blocks]),
      'public.leaf_1': new Set(['whole']),
    });
    for (const { source: table } of schemaPlanOf(scope).tables)
      expect(await contentOf(pair.target, table.name), table.name).toEqual(
        await contentOf(pair.source, table.name),
      );
    expect(scope.tables.get('public.ordered')).toMatchObject({ state: 'ready', rowsCopied: 5000 });
    expect(scope.tables.get('public.ordered')?.partsDone).toBe(
      scope.tables.get('public.ordered')?.partsTotal,
    );
  });
});

describe('a killed copy', () => {
  it('keeps every finished part of a table, and reads only the others, under the next snapshot', async () => {
    const pair = await makePair();
    const scope = await ready(pair, ordered, orderedRows, 100 * KB);
    failAt(scope, 'copy.marker-committed', 3);
    expect((await failureOf(copyTables(scope))).message).toContain('failpoint');
    const before = await markersOf(pair);
    expect(before.length).toBeGreaterThanOrEqual(3);
    const again = makeScope(pair, { options: { partBytes: 1024 ** 2 } }, scope); // an option of later does not cut anew
    await copyTables(again);
    const after = await markersOf(pair);
    expect(after.length).toBeGreaterThan(before.length);
    expect(after).toEqual(expect.arrayContaining(before)); // workers finish in any order
    expect(new Set(after.map(({ epoch }) => epoch))).toEqual(new Set([1, 2]));
    expect(await contentOf(pair.target, 'ordered')).toEqual(await contentOf(pair.source, 'ordered'));
    expect(again.tables.get('public.ordered')).toMatchObject({
      rowsCopied: 5000,
      partsDone: after.length,
      partsTotal: after.length,
    });
  });

  it('starts a table over whose blocks would be of two snapshots, and no other', async () => {
    const pair = await makePair();
    const scope = await ready(
      pair,
      `${shuffled}; create table public.first (like public.shuffled including all)`,
      `${shuffledRows}; insert into public.first select * from public.shuffled order by id desc;
       insert into public.first select md5(id::text || 'x')::uuid, v from public.first`,
      100 * KB,
    );
    setOptions(scope, { copyJobs: 1 });
    const firstParts = 13; // the larger table comes first
    failAt(scope, 'copy.marker-committed', firstParts + 4);
    expect((await failureOf(copyTables(scope))).message).toContain('failpoint');
    const before = await markersOf(pair);
    const ofFirst = before.filter(({ relation }) => relation === 'public.first');
    expect(before.length).toBeGreaterThan(ofFirst.length);
    // rows move to other blocks meanwhile: under the next snapshot a block range has other rows
    await pair.source.query(
      `update public.shuffled set v = 'moved' where id < '80000000-0000-0000-0000-000000000000'`,
    );
    const again = makeScope(pair, {}, scope);
    await copyTables(again);
    const after = await markersOf(pair);
    expect(after.filter(({ relation }) => relation === 'public.first')).toEqual(ofFirst);
    const epochs = after.filter(({ relation }) => relation === 'public.shuffled').map(({ epoch }) => epoch);
    expect(new Set(epochs)).toEqual(new Set([2]));
    for (const table of ['first', 'shuffled'])
      expect(await contentOf(pair.target, table)).toEqual(await contentOf(pair.source, table));
    expect(again.tables.get('public.shuffled')).toMatchObject({ state: 'ready', rowsCopied: 5000 });
  });
});

it('a generation that is old begins no part but of a table whose blocks it has begun, as an existing one with another unique index has', async () => {
  const pair = await makePair();
  const like = (name: string): string => `create table public.${name} (like public.ordered including all)`;
  const scope = await ready(
    pair,
    [ordered, shuffled, ...['existing', 'expression', 'partial', 'of_key'].map(like)].join('; '),
    `${orderedRows}; ${shuffledRows}; insert into public.existing select * from public.ordered`,
    100 * KB,
  );
  // on the key itself, or not unique: these make no difference
  await pair.target.query(`
    create unique index on public.existing (v, id); create unique index on public.expression (lower(v));
    create unique index on public.partial (id) where v = 'y'; create unique index on public.of_key (id);
    create unique index on public.ordered (id); create index on public.ordered (v)`);
  const plan = schemaPlanOf(scope);
  const constrained = await uniqueBefore(scope, plan.tables);
  expect(constrained.toSorted()).toEqual(['public.existing', 'public.expression', 'public.partial']);
  saveSchemaPlan(scope, { ...plan, uniqueBefore: constrained });
  setOptions(scope, { copyJobs: 1, maxSnapshotAgeMs: 0 });
  await copyTables(scope);
  const markers = await markersOf(pair);
  const epochs = (relation: string): number[] =>
    markers.filter((marker) => marker.relation === relation).map(({ epoch }) => epoch);
  expect(epochs('public.ordered').length).toBeGreaterThan(3);
  expect(new Set(epochs('public.ordered')).size).toBe(epochs('public.ordered').length);
  for (const relation of ['public.shuffled', 'public.existing']) {
    expect(epochs(relation).length).toBeGreaterThan(3);
    expect(new Set(epochs(relation)).size).toBe(1);
  }
});

it('a table that is rewritten after the holder was lost is copied whole, not read as empty', async () => {
  const pair = await makePair();
  const scope = await ready(
    pair,
    `create table public.first (id int primary key, v text); create table public.second (id int primary key, v text)`,
    `insert into public.first select n, repeat('x', 100) from generate_series(1, 5000) n;
     insert into public.second select n, 'x' from generate_series(1, 100) n`,
    100_000 * KB,
  );
  setOptions(scope, { copyJobs: 1 });
  const blocker = await pair.target.connect();
  await blocker.query('begin; lock table public.second in access exclusive mode');
  const copying = copyTables(scope);
  const waits = async (): Promise<boolean> =>
    (
      await pair.target.query(
        `select from pg_locks where relation = 'public.second'::regclass and not granted`,
      )
    ).rowCount === 1;
  await waitFor(waits, 20_000, 'the second part before its table');
  // the worker has the snapshot from its first part, and no lock on the second table
  await pair.source.query(
    `select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name ~ '/holder$' and datname = current_database()`,
  );
  await pair.source.query(`alter table public.second alter v type text using v || 'rewritten'`);
  await blocker.query('rollback');
  await copying;
  expect(await contentOf(pair.target, 'public.second')).toEqual(
    await contentOf(pair.source, 'public.second'),
  );
  expect((await markersOf(pair)).map(({ relation, epoch }) => [relation, epoch])).toEqual([
    ['public.first', 1],
    ['public.second', 2],
  ]);
});

describe('a part whose commit outlives its connection and its generation', () => {
  it.each([
    ['of blocks has its table started over', shuffled, shuffledRows, [3]],
    ['of keys is taken, under a generation of its own', ordered, orderedRows, [1, 2]],
  ] as const)('%s', async (_what, ddl, rows, epochs) => {
    const pair = await makePair();
    const proxy = await makeProxy(pair.target.port);
    const cutOff = { ...pair, target: through(proxy, pair.target) };
    const scope = await ready(cutOff, ddl, rows, 100 * KB);
    setOptions(scope, { copyJobs: 1 });
    // the first part's commit waits for a lock that the test has
    await pair.target.query(`
      create function public.wait() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock_shared(1); return null; end $$;
      create constraint trigger wait after insert on dts.part deferrable initially deferred
        for each row when (new.part = 0) execute function public.wait()`);
    const gate = await pair.target.connect();
    await gate.query('select pg_advisory_lock(1)');
    const waiters = async (): Promise<number | null> =>
      (
        await pair.target.query(
          `select from pg_stat_activity where datname = current_database() and wait_event = 'advisory'`,
        )
      ).rowCount;
    const copying = copyTables(scope);
    await waitFor(async () => (await waiters()) === 1, 20_000, 'a commit under way');
    await pair.source.query(
      `select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name ~ '/holder$' and datname = current_database()`,
    );
    await proxy.close();
    await proxy.open();
    const [table] = schemaPlanOf(scope).tables;
    await pair.source.query(`update public.${table?.source.name} set v = 'later'`);
    await waitFor(async () => (await waiters()) === 2, 20_000, 'the same part of the next generation');
    await gate.query('select pg_advisory_unlock(1)');
    await copying;
    const markers = await markersOf(pair);
    expect(new Set(markers.map(({ epoch }) => epoch))).toEqual(new Set(epochs));
    const { rows: snapshots } = await pair.target.query('select distinct pg_snapshot from dts.part');
    expect(snapshots).toHaveLength(epochs.length);
  });

  it('markers of several generations are no copy of a table cut by blocks', async () => {
    const pair = await makePair();
    const scope = await ready(pair, shuffled, shuffledRows, 100 * KB);
    await copyTables(scope);
    await pair.target.query('update dts.part set epoch = 2 where part = 0');
    await copyTables(makeScope(pair, {}, scope));
    expect(new Set((await markersOf(pair)).map(({ epoch }) => epoch))).toEqual(new Set([3]));
    expect(await contentOf(pair.target, 'public.shuffled')).toEqual(
      await contentOf(pair.source, 'public.shuffled'),
    );
  });
});

it('a crash of the target that takes finished parts back is noticed, and they are copied again', async () => {
  const pair = await makePair();
  const scope = await ready(pair, ordered, orderedRows, 100 * KB);
  setOptions(scope, { copyJobs: 1 });
  let passed = 0;
  Object.assign(scope, {
    failpoint: (name: Failpoint) => {
      // as the crash would: rows and marker of the first part are gone, and every connection with them
      if (name !== 'copy.marker-committed' || ++passed !== 3) return;
      void pair.target.query(
        `delete from dts.part where part = 0;
         select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^dts/.*/copy$' and datname = current_database()`,
      );
      void pair.source.query(
        `select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^dts/.*/(holder|copy)$' and datname = current_database()`,
      );
    },
  });
  expect(await failureOf(copyTables(scope))).toMatchObject({
    code: 'connection_failed',
    kind: 'transient',
    details: { relation: 'public.ordered', part: 0 },
  });
  expect(isCopyComplete(scope)).toBe(false);
});

describe('parts of several snapshots and the stream', () => {
  const KEYS = 40;

  /** Some tables are cut by dates. */
  const isDated = (table: string): boolean => Number(/\d+$/.exec(table)) % 3 === 0;
  /** The key of that number, as an expression: around the year 2000, where binary dates change their sign. */
  const keyOf = (table: string, n: number | string): string =>
    isDated(table) ? `(date '1999-12-12' + ${n})` : String(n);

  const ddlOf = (name: string, n: number): string =>
    `create table public.${name} (id ${isDated(name) ? 'date' : 'int'} primary key, u int, v text, big text);
     alter table public.${name} alter big set storage external;` +
    (n % 4 === 0 ? `alter table public.${name} replica identity full;` : '');

  /** Inserts, updates, deletes, key moves with and without unchanged out-of-line values, swaps of unique values, truncates. */
  const statementOn = (random: Random, table: string): string => {
    const [first, second] = [random(KEYS), random(KEYS)];
    const [a, b] = [keyOf(table, first), keyOf(table, second)];
    const big = `(select string_agg(md5((${random(1_000_000)} + g)::text), '') from generate_series(1, 80) g)`;
    switch (random(20)) {
      case 0:
      case 1:
      case 2:
        return `insert into ${table} values (${a}, ${random(99)}, 'new', ${big}) on conflict do nothing`;
      case 3:
        return `insert into ${table} select ${keyOf(table, 'g')}, null, 'many', null from generate_series(${first}, ${first + 8}) g on conflict do nothing`;
      case 4:
      case 5:
        return `update ${table} set v = 'w${random(1_000)}' where id = ${a}`;
      case 6:
        return `update ${table} set v = v || 'x' where id between ${a} and ${b}`;
      case 7:
        return `update ${table} set big = ${big} where id = ${a}`;
      case 8:
        return `update ${table} set u = ${random(99)} where id = ${a} and not exists (select from ${table} o where o.u = ${random(99)})`;
      case 9:
      case 10:
        return `delete from ${table} where id = ${a}`;
      case 11:
        return random(4) === 0 ? `truncate ${table}` : `delete from ${table} where id = ${b}`;
      default:
        return `update ${table} set id = ${b}, v = 'moved' where id = ${a} and not exists (select from ${table} o where o.id = ${b})`;
    }
  };

  /** Two to five ranges of keys, blocks, or the whole table, by the seed. */
  function cutOf(table: string, random: Random): PartRange[] | null {
    const kind = random(10);
    if (kind === 0) return null;
    if (kind === 1)
      return [
        { kind: 'ctid', from: 0, to: 1 },
        { kind: 'ctid', from: 1, to: null },
      ];
    const bounds = [...new Set(Array.from({ length: 1 + random(4) }, () => 1 + random(KEYS - 1)))];
    bounds.sort((x, y) => x - y);
    const printed = (n: number): string =>
      isDated(table) ? new Date(Date.UTC(1999, 11, 12 + n)).toISOString().slice(0, 10) : String(n);
    return [null, ...bounds].map((from, at) => ({
      kind: 'key',
      column: 'id',
      type: isDated(table) ? 'date' : 'integer',
      from: from === null ? null : printed(from),
      to: bounds[at] === undefined ? null : printed(bounds[at]),
    }));
  }

  let readAgain = 0;

  it.each([
    [16, 200, 1],
    [18, 80, 2],
  ] as const)(
    'make the source %i: %i tables with cuts and writes of their own (seed %i)',
    async (source, count, seed) => {
      const names = Array.from({ length: count }, (_, n) => `s_${n}`);
      const pair = await makePair({ source });
      const random = seeded(seed);
      let scope = await prepare(pair, names.map(ddlOf).join('\n'), {
        options: { copyJobs: 3, indexJobs: 2 },
      });
      for (const name of names)
        await pair.source.query(
          `create unique index ${name}_u on public.${name} (u);
         insert into public.${name} select ${keyOf(name, 'g')}, g, 'old', repeat(md5(g::text), 80) from generate_series(0, ${KEYS - 1}, 2) g`,
        );
      const statements = names.map(
        (name, n): PlannedStatement => ({
          n,
          phase: 'index',
          sql: `create unique index ${name}_u on public.${name} (u)`,
          object: name,
          table: `public.${name}`,
          creates: null,
        }),
      );
      saveSchemaPlan(scope, { ...schemaPlanOf(scope), statements });
      // most writes go where the copy is at work, so that tables change between their parts
      const order = schemaPlanOf(scope).tables.map(({ source: { name } }) => `public.${name}`);
      const atWork = (below: (n: number) => number): string => {
        const done = [...scope.tables.values()].filter(
          ({ state }) => state !== 'pending' && state !== 'copying',
        ).length;
        const at = below(8) === 0 ? below(count) : Math.min(count - 1, done + below(3));
        return order[at] ?? '';
      };
      const writers = startWriters(pair.source, seed, 3, {
        statement: (below) => statementOn(below, atWork(below)),
        statementTimeoutMs: 150,
      });
      const stopped: TestScope[] = [];
      try {
        const { said } = listening(scope);
        const stream = startStream(scope);
        await untilEvent(stream, 'SLOT_READY');
        scope.checkpoints.set('copyCuts', {
          slotIncarnation: slotOf(scope).incarnation,
          cuts: Object.fromEntries(
            names.flatMap((name) => {
              const cut = cutOf(name, random);
              return cut === null ? [] : [[`public.${name}`, cut]];
            }),
          ),
        });
        const streaming = scope;
        const deaths: readonly Failpoint[] = [
          'copy.mid-table',
          'copy.before-marker-commit',
          'copy.marker-committed',
        ];
        for (const death of deaths) {
          scope = makeScope(pair, { options: { copyJobs: 3 } }, streaming);
          stopped.push(scope);
          setOptions(scope, { maxSnapshotAgeMs: 120 });
          failAt(scope, death, count / 2 + random(count / 2));
          expect((await failureOf(copyTables(scope))).message).toContain('failpoint');
          await scope.connections.closeAll();
        }
        scope = makeScope(pair, { options: { copyJobs: 3 } }, streaming);
        setOptions(scope, { maxSnapshotAgeMs: 120 });
        await copyTables(scope);
        const goal = writers.done() + 200;
        await waitFor(() => writers.done() >= goal);
        await writers.stop();
        await drainStream(streaming, pair, stream);
        expect(await contents(streaming, pair.target, 'target')).toEqual(
          await contents(streaming, pair.source, 'source'),
        );
        expect(said.binary).toBe(true); // the keys of every change that was compared with the parts
        const markers = await markersOf(pair);
        // what made it hard: parts of many snapshots
        expect(new Set(markers.map(({ epoch }) => epoch)).size).toBeGreaterThan(deaths.length + 1);
        readAgain += markers.filter(({ range }) => range?.kind === 'row').length;
        const { rows } = await pair.target.query<{ n: number }>(
          `select count(*)::int as n from pg_index i join pg_class c on c.oid = i.indexrelid
          where c.relname ~ '^s_\\d+_u$' and indisvalid`,
        );
        expect(rows[0]?.n).toBe(count);
        await stream.stop();
      } finally {
        await writers.stop();
      }
    },
  );

  it('have rows of their own that the stream reads again, in some of these tables', () => {
    expect(readAgain).toBeGreaterThan(0);
  });
});

const constraints = ['unique (u)', 'exclude using btree (u with =)'];

it.each(constraints)('%s waits until the stream has passed the horizons of parts', async (constraint) => {
  const pair = await makePair();
  const scope = await prepare(pair, ordered.replace('v text', 'v text, u int'), { options: { copyJobs: 1 } });
  await pair.source.query(`insert into public.ordered select n, 'x', n from generate_series(1, 20) n`);
  const unique = {
    phase: 'index' as const,
    object: 'unique',
    table: 'public.ordered',
    creates: null,
  };
  saveSchemaPlan(scope, {
    ...schemaPlanOf(scope),
    statements: [
      { ...unique, n: 0, sql: `alter table only public.ordered add constraint one_u ${constraint}` },
      { ...unique, n: 1, sql: 'alter table public.ordered cluster on one_u' },
    ],
  });
  const stream = startStream(scope);
  await untilEvent(stream, 'SLOT_READY');
  const range = { kind: 'key', column: 'id', type: 'integer' } as const;
  scope.checkpoints.set('copyCuts', {
    slotIncarnation: slotOf(scope).incarnation,
    cuts: {
      'public.ordered': [
        { ...range, from: null, to: '11' },
        { ...range, from: '11', to: null },
      ],
    },
  });
  const first = makeScope(pair, { options: { copyJobs: 1 } }, scope);
  failAt(first, 'copy.marker-committed', 1);
  expect((await failureOf(copyTables(first))).message).toContain('failpoint');
  // the value 5 is in the first part already and will be in the second one's snapshot, too
  await pair.source.query('update public.ordered set u = 0 where id = 5');
  await pair.source.query('update public.ordered set u = 5 where id = 15');
  const second = makeScope(pair, { options: { copyJobs: 1 } }, scope);
  await copyTables(second);
  expect(second.waits.some((reason) => reason?.includes('unique constraints of public.ordered'))).toBe(true);
  const { rows } = await pair.target.query(`select u from public.ordered where id in (5, 15) order by u`);
  expect(rows).toEqual([{ u: 0 }, { u: 5 }]);
  expect(second.tables.get('public.ordered')?.state).toBe('ready');
  await drainStream(scope, pair, stream);
  await stream.stop();
});
