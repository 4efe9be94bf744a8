// The pure half of the copy: formats, statements, the order of index builds.
import { describe, expect, it } from 'vitest';
import {
  binaryForm,
  chooseFormat,
  type CatalogType,
  type SideTypes,
} from '../../src/postgres/binary-form.ts';
import { MAX_PATIENCE_MS, nextPatience, YIELD_AFTER_MS } from '../../src/copy/copy-parts.ts';
import { hasUnique, planIndexes, splitUnique } from '../../src/copy/index-plan.ts';
import { buildMemoryBytes, memoryOfBuild } from '../../src/copy/build-memory.ts';
import { buildWorkers } from '../../src/copy/indexes.ts';
import { PartQueue } from '../../src/copy/part-queue.ts';
import { copyStatements, mayFreeze } from '../../src/copy/part.ts';
import { cutTable, partsWanted, planParts, type CopyPart, type TableFacts } from '../../src/copy/plan.ts';
import type { PartRange } from '../../src/model/part-range.ts';
import type { PlannedColumn, PlannedStatement, PlannedTable } from '../../src/model/schema-plan.ts';
import {
  defaultCopyJobs,
  defaultIndexJobs,
  hostFrom,
  unknownHost,
  type Host,
} from '../../src/postgres/host.ts';

const typeRow = (oid: number, name: string, over: Partial<CatalogType> = {}): CatalogType => ({
  oid,
  name,
  schema: 'pg_catalog',
  kind: 'b',
  baseOid: 0,
  elementOid: 0,
  ...over,
});
const types = new Map(
  [
    typeRow(23, 'int4'),
    typeRow(1007, '_int4', { elementOid: 23 }),
    typeRow(25, 'text'),
    typeRow(24, 'regproc'),
    typeRow(3614, 'tsvector'),
    typeRow(20_000, 'positive', { schema: 'public', kind: 'd', baseOid: 23 }),
    typeRow(20_001, '_positive', { schema: 'public', elementOid: 20_000 }),
    typeRow(20_002, 'mood', { schema: 'public', kind: 'e' }),
    typeRow(20_003, '_mood', { schema: 'public', elementOid: 20_002 }),
    typeRow(20_004, 'int4', { schema: 'public' }),
  ].map((type) => [type.oid, type]),
);
const column = (name: string, over: Partial<PlannedColumn> = {}): PlannedColumn => ({
  name,
  type: 'integer',
  generated: false,
  identityAlways: false,
  notNull: false,
  ...over,
});
const table = (
  name: string,
  bytesEstimated: number,
  columns: readonly PlannedColumn[] = [],
): PlannedTable => ({
  source: { schema: 'public', name },
  target: { schema: 'public', name: `${name}_new` },
  columns,
  keyColumns: [],
  replicaIdentity: 'full',
  rowsEstimated: 0,
  bytesEstimated,
});

describe('the format', () => {
  it.each([
    [23, 'int4'],
    [1007, 'int4[]'],
    [20_000, 'int4'],
    [20_002, 'enum'],
    [20_001, null], // an array names its element's OID
    [20_003, null],
    [24, null], // a bare OID
    [3614, null],
    [20_004, null], // the name alone proves nothing
    [99_999, null],
  ])('binary form of type %i is %s', (oid, form) => expect(binaryForm(oid, types)).toBe(form));

  const side = (relation: string, columns: Record<string, number>): SideTypes => ({
    types,
    tables: new Map([[relation, new Map(Object.entries(columns))]]),
  });

  it('is text as soon as one copied column differs or is unsafe, and says which', () => {
    const plan = table('t', 0, [column('a'), column('g', { generated: true })]);
    const source = side('public.t', { a: 23, g: 3614 });
    expect(chooseFormat(plan, source, side('public.t_new', { a: 23 })).format).toBe('binary');
    expect(chooseFormat(plan, source, side('public.t_new', { a: 20_000 })).format).toBe('binary');
    const differs = chooseFormat(plan, source, side('public.t_new', { a: 25 }));
    expect(differs).toMatchObject({ format: 'text', reason: expect.stringContaining('column a') as string });
    expect(chooseFormat(plan, side('public.t', { a: 3614 }), side('public.t_new', { a: 3614 })).format).toBe(
      'text',
    );
  });
});

const keyRange = (from: string | null, to: string | null): PartRange => ({
  kind: 'key',
  column: 'id',
  type: 'integer',
  from,
  to,
});

describe('the plan', () => {
  it('takes the largest table first', () => {
    const cuts = new Map([
      ['public.b', [null, '7'].map((from, at) => keyRange(from, at === 0 ? '7' : null))],
    ]);
    const parts = planParts([table('a', 1), table('b', 3), table('c', 2)], cuts);
    expect(parts.map(({ relation, part }) => `${relation} ${part}`)).toEqual([
      'public.b 0',
      'public.b 1',
      'public.c 0',
      'public.a 0',
    ]);
  });

  it('names the columns, quoted, without generated ones, and none where there is none', () => {
    const [part] = planParts([table('T"x', 0, [column('a b'), column('g', { generated: true })])], new Map());
    const [bare] = planParts([table('bare', 0)], new Map());
    expect(part && copyStatements(part, 'binary', true)).toEqual({
      copyOut: 'copy "public"."T""x" ("a b") to stdout (format binary)',
      copyIn: 'copy "public"."T""x_new" ("a b") from stdin (format binary, freeze)',
    });
    expect(bare && copyStatements(bare, 'text', false).copyOut).toBe(
      'copy "public"."bare" to stdout (format text)',
    );
  });

  it.each<[bytes: number, PartRange | null, isEmptyAndOurs: boolean, frozen: boolean]>([
    [1024 ** 2, null, true, true],
    [1024 ** 2 - 1, null, true, false],
    [1024 ** 2, null, false, false],
    [1024 ** 2, keyRange(null, '7'), true, false],
    [1024 ** 2, { kind: 'ctid', from: 0, to: 9 }, true, false],
  ])('of %i bytes, range %j, alone in the table: %s, freezes: %s', (bytes, range, isEmptyAndOurs, frozen) => {
    expect(mayFreeze({ table: table('t', bytes), range }, isEmptyAndOurs)).toBe(frozen);
  });

  it.each<[PartRange, string]>([
    [keyRange(null, '7'), `"id" < '7'::bigint`],
    [keyRange('-7', '7'), `"id" >= '-7'::bigint and "id" < '7'::bigint`],
    [keyRange('7', null), `"id" >= '7'::bigint`],
    [{ kind: 'ctid', from: 0, to: 9 }, `ctid < '(9,0)'::tid`],
    [{ kind: 'ctid', from: 9, to: null }, `ctid >= '(9,0)'::tid`],
  ])('reads the rows of %j alone', (range, condition) => {
    expect(copyStatements({ table: table('t', 0, [column('id')]), range }, 'text', false)).toEqual({
      copyOut: `copy (select "id" from only "public"."t" where ${condition}) to stdout (format text)`,
      copyIn: 'copy "public"."t_new" ("id") from stdin (format text)',
    });
  });

  const megabyte = 1024 ** 2;
  it.each([
    [0, null, 1],
    [256 * megabyte, null, 1],
    [1024 * megabyte, null, 1],
    [1025 * megabyte, null, 5],
    [100_000 * megabyte, null, 391],
    [10 * megabyte, megabyte, 10],
    [100_000 * megabyte, megabyte, 10_000],
    [0, megabyte, 1],
  ])('wants for %i bytes with part_bytes %s %i parts', (bytes, partBytes, parts) => {
    expect(partsWanted(bytes, partBytes)).toBe(parts);
  });

  const facts = (over: Partial<TableFacts> = {}): TableFacts => ({
    blocks: 100,
    hasTidRangeScan: true,
    key: { column: 'id', type: 'integer', correlation: 1, bounds: ['-50', '10', '20', '30', '40'] },
    ...over,
  });
  const disorder = { column: 'id', type: 'integer', correlation: 0.5, bounds: ['1', '2'] } as const;

  it('leaves a small table whole', () => expect(cutTable(1, facts())).toBe(null));
  it('cuts by the key where the heap follows it, at bounds of the histogram, both ends open', () => {
    expect(cutTable(2, facts())).toEqual([keyRange(null, '20'), keyRange('20', null)]);
    const days = {
      column: 'd',
      type: 'date',
      correlation: 1,
      bounds: ['2020-01-01', '2020-02-01', '2020-05-01'],
    } as const;
    expect(cutTable(99, facts({ key: days }))).toEqual([
      { kind: 'key', column: 'd', type: 'date', from: null, to: '2020-02-01' },
      { kind: 'key', column: 'd', type: 'date', from: '2020-02-01', to: null },
    ]);
    const repeated = {
      column: 'id',
      type: 'integer',
      correlation: -1,
      bounds: ['1', '5', '5', '5', '9'],
    } as const;
    expect(cutTable(4, facts({ key: repeated }))).toEqual([keyRange(null, '5'), keyRange('5', null)]);
  });
  it('cuts buckets of whole numbers further where there are too few', () => {
    const bounds = (wanted: number, ...histogram: string[]): (string | null)[] => {
      const key = { column: 'id', type: 'integer', correlation: 1, bounds: histogram } as const;
      return (cutTable(wanted, facts({ key })) ?? []).map((range) =>
        range.kind === 'key' ? range.to : null,
      );
    };
    expect(bounds(6, '0', '100', '1000', '1003')).toEqual(['50', '100', '550', '1000', '1001', null]);
    expect(bounds(8, '7', '9')).toEqual(['8', null]);
    const [low, high] = ['-9223372036854775808', '9223372036854775807'];
    expect(bounds(4, low, high)).toEqual(['-4611686018427387904', '0', '4611686018427387904', null]);
    const shares = bounds(401, ...Array.from({ length: 101 }, (_, n) => String(n * 1_000_000)));
    expect(shares).toHaveLength(401);
    const widths = shares.slice(1, -1).map((bound, n) => Number(bound) - Number(shares[n]));
    expect(Math.max(...widths) - Math.min(...widths)).toBeLessThanOrEqual(1);
  });
  it('cuts by blocks where there is no such key, without gaps and with an open end', () => {
    for (const key of [null, disorder])
      expect(cutTable(3, facts({ key }))).toEqual([
        { kind: 'ctid', from: 0, to: 33 },
        { kind: 'ctid', from: 33, to: 66 },
        { kind: 'ctid', from: 66, to: null },
      ]);
    expect(cutTable(3, facts({ key: null, blocks: 1 }))).toBe(null);
  });
  it('leaves a table whole that 13 would read once for every range of blocks', () => {
    expect(cutTable(3, facts({ key: disorder, hasTidRangeScan: false }))).toBe(null);
  });

  it('gives index builds a quarter of the free memory, or that of the buffers, at most 1 GB each, never less than the server', () => {
    const gigabyte = 1024 ** 3;
    const memory = { freeBytes: null, sharedBuffers: gigabyte, present: 64 * megabyte };
    expect(buildMemoryBytes({ ...memory, sharedBuffers: 8 * gigabyte }, 2)).toBe(gigabyte);
    expect(buildMemoryBytes(memory, 4)).toBe(gigabyte / 4);
    expect(buildMemoryBytes({ ...memory, present: 512 * megabyte }, 4)).toBe(512 * megabyte);
    expect(buildMemoryBytes({ ...memory, freeBytes: 8 * gigabyte }, 4)).toBe(gigabyte / 2);
  });

  it('gives the sort of a btree what it needs to merge at once, other methods all they may have', () => {
    const gigabyte = 1024 ** 3;
    const btree = { sql: 'CREATE INDEX i ON public.t USING btree (a)' };
    const key = { sql: 'ALTER TABLE ONLY public.t ADD CONSTRAINT t_pkey PRIMARY KEY (id)' };
    for (const statement of [btree, key])
      expect(memoryOfBuild(statement, gigabyte, 1, gigabyte)).toBe(32 * megabyte);
    const large = memoryOfBuild(btree, 100 * gigabyte, 1, gigabyte);
    expect(large).toBeGreaterThan(128 * megabyte);
    // every run is as large as the memory, and each that is merged needs a buffer of 264 kB
    expect((100 * gigabyte) / large).toBeLessThanOrEqual(large / (264 * 1024));
    expect(memoryOfBuild(btree, gigabyte, 3, gigabyte)).toBe(3 * 32 * megabyte);
    expect(memoryOfBuild(btree, gigabyte, 1, 16 * megabyte)).toBe(16 * megabyte);
    for (const sql of [
      'CREATE INDEX i ON public.t USING gin (a)',
      'ADD CONSTRAINT c EXCLUDE USING gist (a WITH &&)',
    ])
      expect(memoryOfBuild({ sql }, gigabyte, 1, gigabyte)).toBe(gigabyte);
  });

  it('gives an index build the cores that nobody else uses, at most what the server allows', () => {
    const limits = { cores: 16, maxWorkers: 2 };
    expect(buildWorkers(limits, 1)).toBe(2);
    expect(buildWorkers(limits, 8)).toBe(1);
    expect(buildWorkers(limits, 12)).toBe(0);
    expect(buildWorkers({ ...limits, cores: null }, 8)).toBe(null);
  });
});

describe('what is done at once', () => {
  const host = {
    cpus: 'processor\t: 0\nmodel name\t: processor: x\nprocessor\t: 1\n',
    memory: '',
    cpuMax: '',
    memoryMax: '',
    memoryUsed: '',
  };

  it('reads cores and free memory, within the limits of a container', () => {
    const memory = 'MemTotal: 9 kB\nMemAvailable:    8192 kB\n';
    expect(hostFrom({ ...host, memory })).toEqual({ cores: 2, freeBytes: 8_388_608 });
    expect(
      hostFrom({ ...host, memory, cpuMax: 'max 100000\n', memoryMax: 'max\n', memoryUsed: '7\n' }),
    ).toEqual({
      cores: 2,
      freeBytes: 8_388_608,
    });
    expect(
      hostFrom({ ...host, memory, cpuMax: '150000 100000\n', memoryMax: '5000\n', memoryUsed: '1000\n' }),
    ).toEqual({
      cores: 1,
      freeBytes: 4_000,
    });
    expect(hostFrom({ ...host, cpus: '' })).toEqual(unknownHost);
  });

  it('follows the smaller machine, and leaves half of the source to its applications', () => {
    const cores = (n: number | null): Host => ({ cores: n, freeBytes: null });
    expect(defaultCopyJobs(cores(null), cores(null))).toBe(4);
    expect(defaultCopyJobs(cores(2), cores(2))).toBe(4);
    expect(defaultCopyJobs(cores(16), cores(32))).toBe(8);
    expect(defaultCopyJobs(cores(64), cores(6))).toBe(6);
    expect(defaultCopyJobs(cores(96), cores(null))).toBe(16);
    expect(defaultIndexJobs(cores(null))).toBe(2);
    expect(defaultIndexJobs(cores(1))).toBe(2);
    expect(defaultIndexJobs(cores(64))).toBe(8);
  });

  const part = (relation: string, n: number, range: CopyPart['range'] = null): CopyPart => ({
    table: table(relation, 0),
    relation,
    part: n,
    range,
  });
  const parts = [part('a', 0), part('a', 1), part('b', 0), part('b', 1), part('c', 0)];
  const names = (taken: readonly (CopyPart | undefined)[]): string[] =>
    taken.map((each) => (each ? `${each.relation}${each.part}` : '–'));

  it('spreads workers over tables, and doubles up only when every table that has parts left has one', () => {
    const queue = new PartQueue({ begunAt: Date.now() }, parts, () => 60_000);
    const [first] = [queue.take(), queue.take(), queue.take()];
    expect(names([queue.take(), queue.take(), queue.take()])).toEqual(['a1', 'b1', '–']);
    if (first) queue.putBack(first);
    expect(names([queue.take(), queue.take()])).toEqual(['a0', '–']);
    const other = new PartQueue({ begunAt: Date.now() }, parts, () => 60_000);
    const begun = [other.take(), other.take(), other.take()];
    expect(names(begun)).toEqual(['a0', 'b0', 'c0']);
    if (begun[1]) other.leave(begun[1]);
    expect(names([other.take(), other.take()])).toEqual(['b1', 'a1']);
    expect(other.length).toBe(0);
  });

  it('begins no part of an old generation, except of tables cut by blocks that it has begun', () => {
    const blocks = (n: number): CopyPart['range'] => ({ kind: 'ctid', from: n, to: n + 1 });
    const old = new PartQueue(
      { begunAt: Date.now() - 1_000 },
      [part('a', 0, blocks(0)), part('b', 0, blocks(0)), part('a', 1, blocks(1))],
      () => 1_000,
    );
    expect(names([old.take(), old.take(), old.take()])).toEqual(['a0', 'a1', '–']);
  });
});

describe('the patience with DDL that waits behind the copy', () => {
  it('doubles while no part is finished, so that a long one ends some time, and is short again afterwards', () => {
    let ms = YIELD_AFTER_MS;
    const waits = Array.from({ length: 4 }, () => (ms = nextPatience(false, ms)));
    expect(waits).toEqual([10_000, 20_000, 40_000, 80_000]);
    expect(nextPatience(true, 80_000)).toBe(YIELD_AFTER_MS);
    expect(nextPatience(false, MAX_PATIENCE_MS)).toBe(MAX_PATIENCE_MS);
    expect(nextPatience(false, MAX_PATIENCE_MS - 1)).toBe(MAX_PATIENCE_MS);
  });
});

describe('the order of keys and indexes', () => {
  const statement = (
    n: number,
    phase: PlannedStatement['phase'],
    sql: string,
    of: string | null,
  ): PlannedStatement => ({ n, phase, sql, table: of, object: sql, creates: null });

  it('is keys first, then what may run together, and roots and ATTACH last in the order of the dump', () => {
    const plan = planIndexes(
      [
        statement(0, 'pre-data', 'create table a ()', 'a'),
        statement(1, 'index', 'CREATE INDEX i1 ON a (x)', 'a'),
        statement(2, 'index', 'create unique index i2 on a (y)', 'a'),
        statement(3, 'index', 'alter table a cluster on i1', 'a'),
        statement(4, 'index', 'create index i3 on a (z)', 'a'),
        statement(5, 'key', 'alter table only a add primary key (x)', 'a'),
        statement(6, 'index', 'create index ri on only root (x)', 'root'),
        statement(7, 'key', 'alter index rp attach partition ap', 'a'),
        statement(8, 'key', 'alter table only b add primary key (x)', 'b'),
        statement(9, 'index', 'create statistics s on x, y from b', 'b'),
        statement(10, 'final', 'create trigger', 'b'),
      ],
      new Set(['a', 'b']),
      new Set([9]),
    );
    const numbers = (of: string): number[][] | undefined =>
      plan.byTable.get(of)?.map((group) => group.map(({ n }) => n));
    expect(numbers('a')).toEqual([[5], [1, 2, 4], [3]]);
    expect(numbers('b')).toEqual([[8]]);
    expect(plan.last.map(({ n }) => n)).toEqual([6, 7]);
  });

  it('builds the index of a key beside the others, and makes it the key when all of them stand', () => {
    const placed = 'set local default_tablespace = "fast";\nCREATE INDEX t_b ON public.t USING btree (b)';
    const statements = [
      statement(0, 'key', 'CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id)', 't'),
      statement(
        1,
        'key',
        'ALTER TABLE ONLY public.t ADD CONSTRAINT t_pkey PRIMARY KEY USING INDEX t_pkey',
        't',
      ),
      statement(2, 'index', 'CREATE INDEX t_a ON public.t USING btree (a)', 't'),
      statement(3, 'index', 'CREATE UNIQUE INDEX t_u ON public.t USING btree (u)', 't'),
      statement(4, 'index', 'ALTER TABLE ONLY public.t ADD CONSTRAINT t_u UNIQUE USING INDEX t_u', 't'),
      statement(5, 'index', placed, 't'),
    ];
    const groups = planIndexes(statements, new Set(['t']), new Set()).byTable.get('t') ?? [];
    const numbers = (of: readonly (readonly PlannedStatement[])[]): number[][] =>
      of.map((group) => group.map(({ n }) => n));
    expect(numbers(groups)).toEqual([[0, 2, 3, 5], [1], [4]]);
    const { now, later } = splitUnique(groups);
    expect(numbers([...now, later])).toEqual([[0, 2, 5], [1], [3, 4]]);
  });

  const relation = 'public.t';
  // as pg_dump writes them
  const add = (constraint: string): string => `ALTER TABLE ONLY public.t\n    ADD CONSTRAINT ${constraint};`;
  const uniques = [
    'CREATE UNIQUE INDEX t_u ON public.t USING btree (u)',
    'set local default_tablespace = "fast";\nCREATE UNIQUE INDEX t_u ON public.t USING btree (u)',
    'CREATE UNIQUE INDEX t_u ON public.t USING btree (u) NULLS NOT DISTINCT WHERE (u > 0)',
    add('t_u UNIQUE (u)'),
    add('t_u UNIQUE NULLS NOT DISTINCT (u)'),
    add('t_u UNIQUE (u) DEFERRABLE INITIALLY DEFERRED'),
    add('t_u EXCLUDE USING gist (u WITH =, span WITH &&)'),
    add('"t u" EXCLUDE USING btree (u WITH =) WHERE ((u > 0))'),
  ];
  const behind = [
    'ALTER TABLE public.t CLUSTER ON t_u;',
    'ALTER TABLE ONLY public.t REPLICA IDENTITY USING INDEX t_u;',
    'ALTER INDEX public.t_u ALTER COLUMN 1 SET STATISTICS 400;',
  ];
  const others = [
    'CREATE INDEX t_v ON public.t USING btree (v)',
    'CREATE INDEX t_unique ON public.t USING gist (unique_span)',
    'CREATE STATISTICS public.s ON u, v FROM public.t',
  ];

  it.each(uniques)('%j waits for the stream, with what may name it', (sql) => {
    const statements = [
      statement(0, 'key', add('t_pkey PRIMARY KEY (id)'), relation),
      ...[...others.slice(0, 2), sql, ...behind, ...others].map((each, at) =>
        statement(at + 1, 'index', each, relation),
      ),
    ];
    const groups = planIndexes(statements, new Set([relation]), new Set()).byTable.get(relation) ?? [];
    const { now, later } = splitUnique(groups);
    // statistics behind it wait, too: only an index is known not to name another one
    expect(now.flat().map(({ n }) => n)).toEqual([0, 1, 2, 7, 8]);
    expect(later.map(({ n }) => n)).toEqual([3, 4, 5, 6, 9]);
    expect(hasUnique(statements, relation)).toBe(true);
    expect(hasUnique(statements, 'public.other')).toBe(false);
  });

  it('nothing waits where the primary key is the only constraint', () => {
    const statements = [
      statement(0, 'key', add('t_pkey PRIMARY KEY (id)'), relation),
      ...others.map((each, at) => statement(at + 1, 'index', each, relation)),
      statement(4, 'index', 'ALTER TABLE public.t CLUSTER ON t_pkey;', relation),
    ];
    const groups = planIndexes(statements, new Set([relation]), new Set()).byTable.get(relation) ?? [];
    expect(splitUnique(groups)).toEqual({ now: groups, later: [] });
    expect(hasUnique(statements, relation)).toBe(false);
  });
});
