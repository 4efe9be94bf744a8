// What the copy bench copies: three tables of different shapes (pgbench-like accounts, narrow rows, wide rows with jsonb
// and text), and a database of many small tables.
import type { BenchServer } from '../support/servers.ts';

export const bigTables = ['accounts', 'narrow', 'wide'] as const;

const tableDdl = [
  `create table accounts (aid int not null, bid int, abalance int, filler char(84))`,
  `create table narrow (a int not null, b int)`,
  `create table wide (id bigint not null, created timestamptz, doc jsonb, body text)`,
];

const indexDdl = [
  'alter table accounts add primary key (aid)',
  'create index accounts_bid on accounts (bid)',
  'alter table narrow add primary key (a)',
  'alter table wide add primary key (id)',
  'create index wide_created on wide (created)',
];

/** Fills `dbname` on the source: 5M, 15M and 1.2M rows at scale 1. */
export async function loadBigTables(
  source: BenchServer,
  dbname: string,
  scale: number,
  withIndexes: boolean,
): Promise<void> {
  const rows = (full: number): number => Math.max(1, Math.round(full * scale));
  await source.freshDatabase(dbname);
  await source.query(
    dbname,
    ...tableDdl,
    `insert into accounts select n, n % 50 + 1, 0, '' from generate_series(1, ${rows(5_000_000)}) n`,
    `insert into narrow select n, (n * 7919::bigint % 1000003)::int from generate_series(1, ${rows(15_000_000)}) n`,
    `insert into wide
       select n, timestamptz '2020-01-01' + n * interval '13 seconds',
              jsonb_build_object('id', n, 'tags', array[md5(n::text), md5((n + 1)::text)], 'score', n / 7.0),
              repeat(md5((n * 3)::text), 12)
         from generate_series(1, ${rows(1_200_000)}) n`,
    ...(withIndexes ? indexDdl : bigTables.map((name) => `alter table ${name} replica identity full`)),
    'vacuum (freeze, analyze)',
    'checkpoint',
  );
}

/** `tables` tables of 100 rows and a primary key each. */
export async function loadManyTables(source: BenchServer, dbname: string, tables: number): Promise<void> {
  await source.freshDatabase(dbname);
  const batch = 100;
  for (let from = 0; from < tables; from += batch)
    await source.query(
      dbname,
      `do $$ begin for i in ${from}..${Math.min(tables, from + batch) - 1} loop
         execute format('create table t_%s (id int primary key, v text)', i);
         execute format('insert into t_%s select n, md5(n::text) from generate_series(1, 100) n', i);
       end loop; end $$`,
    );
  await source.query(dbname, 'vacuum (freeze, analyze)', 'checkpoint');
}

/** The tables without keys and indexes, for tools that copy rows only. */
export async function makeBareTables(target: BenchServer, dbname: string): Promise<void> {
  await target.freshDatabase(dbname);
  await target.query(dbname, ...tableDdl);
}

/** The tables with keys and indexes, for tools that bring none. */
export async function buildIndexes(target: BenchServer, dbname: string): Promise<void> {
  await target.query(dbname, ...indexDdl);
}

interface Copied {
  readonly source: BenchServer;
  readonly target: BenchServer;
  readonly sourceDb: string;
  readonly targetDb: string;
  readonly withIndexes: boolean;
}

/** Throws unless both databases have as many rows and, where asked for, as many indexes. */
export async function verifyCopy({ source, target, sourceDb, targetDb, withIndexes }: Copied): Promise<void> {
  const contentsOf = async (server: BenchServer, dbname: string): Promise<string> => {
    const [row] = await server.query(
      dbname,
      // counts of thousands of tables in one query
      `select sum((xpath('/row/n/text()', query_to_xml(format('select count(*) as n from %I.%I', n.nspname, c.relname),
              false, true, '')))[1]::text::bigint)::text as rows,
              (select count(*) from pg_indexes where schemaname = 'public')::text as indexes
         from pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'public' where c.relkind = 'r'`,
    );
    return JSON.stringify(withIndexes ? row : { rows: row?.['rows'] });
  };
  const [left, right] = [await contentsOf(source, sourceDb), await contentsOf(target, targetDb)];
  if (left !== right)
    throw new Error(`the copy is not complete: ${left} on the source, ${right} on the target`);
}
