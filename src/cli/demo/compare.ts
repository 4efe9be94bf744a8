// The demo's own comparison of both databases after the cutover. It shares no code with DTS' validation: every row of
// every table is read from both servers as text, in key order, and compared; then sequences, indexes and constraints.
import pg, { type Client } from 'pg';

const BATCH_ROWS = 2_000;
const MAX_SAMPLES = 5;

/** Both servers have to write the same value as the same text. */
const settings = `
  set search_path = ''; set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres';
  set extra_float_digits = 3; set bytea_output = 'hex'; set enable_seqscan = on; set cursor_tuple_fraction = 1`;

export interface Comparison {
  readonly tables: number;
  /** Rows that were read from the source and found equal on the target. */
  readonly equalRows: number;
  readonly sequences: number;
  readonly indexes: number;
  readonly constraints: number;
  /** In words, at most a few for each table; empty means equal. */
  readonly differences: readonly string[];
}

interface ComparedTable {
  readonly name: string;
  readonly targetName: string;
  /** Selects (key, row) as text, in key order. */
  readonly source: string;
  readonly target: string;
}

/** Ordinary tables and leaf partitions, with the statements that read them on either side. */
async function listTables(source: Client, suffix: string): Promise<ComparedTable[]> {
  const { rows } = await source.query<ComparedTable>(
    `select format('%I.%I', n.nspname, c.relname) as name,
       format('%I.%I', n.nspname, c.relname || $1) as "targetName",
       format(s.statement, n.nspname, c.relname) as source,
       format(s.statement, n.nspname, c.relname || $1) as target
     from pg_class c join pg_namespace n on n.oid = c.relnamespace,
     lateral (select string_agg(quote_ident(attname), ', ' order by attnum) as columns from pg_attribute
       where attrelid = c.oid and attnum > 0 and not attisdropped) a,
     lateral (select string_agg(quote_ident(attname), ', ' order by k.n) as key
       from pg_index i, unnest(i.indkey::int[]) with ordinality k(attnum, n) join pg_attribute t using (attnum)
       where i.indrelid = c.oid and i.indisprimary and t.attrelid = c.oid) k,
     lateral (select format('select row(%s)::text, row(%s)::text from %%I.%%I order by %s',
       k.key, replace(a.columns, '%', '%%'), k.key) as statement) s
     where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'dts')
     order by 1`,
    [suffix],
  );
  return rows;
}

type Pair = [key: string, row: string];

/** Reads a statement's rows through a cursor, one batch ahead of the consumer. */
async function* batches(client: Client, statement: string): AsyncGenerator<Pair[], undefined> {
  await client.query(
    `begin isolation level repeatable read read only; declare rows no scroll cursor for ${statement}`,
  );
  const fetch = (): Promise<pg.QueryArrayResult<Pair>> =>
    client.query<Pair>({ text: `fetch ${BATCH_ROWS} from rows`, rowMode: 'array' });
  let ahead = fetch();
  for (;;) {
    const { rows } = await ahead;
    if (rows.length < BATCH_ROWS) {
      await client.query('commit');
      if (rows.length > 0) yield rows;
      return undefined;
    }
    ahead = fetch();
    ahead.catch(() => undefined); // thrown at the next turn
    yield rows;
  }
}

/** Equal rows, or null at the first difference. */
async function countEqual(source: Client, target: Client, table: ComparedTable): Promise<number | null> {
  const right = batches(target, table.target);
  let equal = 0;
  let different = false;
  for await (const left of batches(source, table.source)) {
    const next = await right.next();
    const other = next.done === true ? [] : next.value;
    different ||= left.length !== other.length || left.some((pair, n) => pair[1] !== other[n]?.[1]);
    equal += left.length;
  }
  while ((await right.next()).done !== true) different = true; // read to the end: the cursor's transaction ends there
  return different ? null : equal;
}

/** Names the rows that differ; only asked when there are some. */
async function describe(source: Client, target: Client, table: ComparedTable): Promise<string[]> {
  const left = new Map<string, string>();
  for await (const rows of batches(source, table.source)) for (const [key, row] of rows) left.set(key, row);
  const found: string[] = [];
  let targetRows = 0;
  for await (const rows of batches(target, table.target)) {
    targetRows += rows.length;
    for (const [key, row] of rows) {
      const expected = left.get(key);
      left.delete(key);
      if (expected === undefined) found.push(`${table.name} ${key}: only on the target`);
      else if (expected !== row)
        found.push(`${table.name} ${key}: differs: ${expected.slice(0, 300)} | ${row.slice(0, 300)}`);
    }
  }
  for (const key of left.keys()) found.push(`${table.name} ${key}: only on the source`);
  if (found.length === 0) found.push(`${table.name}: the rows are equal but not in the same order`);
  const summary = `${table.name}: ${found.length} rows differ; the target has ${targetRows}`;
  return [summary, ...found.slice(0, MAX_SAMPLES)];
}

/** Position of the sequence behind each column, by `table.column`; sequences may be named differently. */
async function sequencesOf(client: Client, suffix: string): Promise<Map<string, string>> {
  const { rows } = await client.query<{ column: string; read: string }>(
    `select distinct format('%I.%I.%I', n.nspname, left(t.relname, length(t.relname) - length($1)), a.attname) as column,
       format('select last_value || '' '' || is_called from %I.%I', sn.nspname, s.relname) as read
     from pg_class t join pg_namespace n on n.oid = t.relnamespace
     join pg_attribute a on a.attrelid = t.oid
     left join pg_attrdef d on d.adrelid = t.oid and d.adnum = a.attnum
     join pg_depend dep on
       (dep.classid = 'pg_class'::regclass and dep.refobjid = t.oid and dep.refobjsubid = a.attnum and dep.deptype in ('a', 'i'))
       or (dep.classid = 'pg_attrdef'::regclass and dep.objid = d.oid and dep.refclassid = 'pg_class'::regclass)
     join pg_class s on s.relkind = 'S' and s.oid in (dep.objid, dep.refobjid)
     join pg_namespace sn on sn.oid = s.relnamespace
     where t.relkind in ('r', 'p') and not t.relispartition and right(t.relname, length($1)) = $1
       and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'dts')`,
    [suffix],
  );
  const positions = new Map<string, string>();
  for (const { column, read } of rows) {
    const result = await client.query<[string]>({ text: read, rowMode: 'array' });
    positions.set(column, result.rows[0]?.[0] ?? '');
  }
  return positions;
}

/** What stands on each table: valid indexes and validated constraints, counted by kind. */
async function structureOf(client: Client, suffix: string): Promise<Map<string, string>> {
  // contype 'n': since 18 NOT NULL has a catalog row of its own; older servers keep it in pg_attribute
  const { rows } = await client.query<{ name: string; what: string }>(
    `select format('%I.%I %s', n.nspname, left(c.relname, length(c.relname) - length($1)), x.kind) as name, x.count as what
     from pg_class c join pg_namespace n on n.oid = c.relnamespace,
     lateral (
       select 'indexes' as kind, count(*)::text from pg_index i where i.indrelid = c.oid and i.indisvalid and i.indisready
       union all
       select 'constraints', count(*)::text from pg_constraint k where k.conrelid = c.oid and k.convalidated and k.contype <> 'n'
     ) x(kind, count)
     where c.relkind in ('r', 'p') and right(c.relname, length($1)) = $1
       and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'dts')`,
    [suffix],
  );
  return new Map(rows.map(({ name, what }) => [name, what]));
}

function compareMaps(
  what: string,
  source: ReadonlyMap<string, string>,
  target: ReadonlyMap<string, string>,
): string[] {
  return [...new Set([...source.keys(), ...target.keys()])]
    .filter((key) => source.get(key) !== target.get(key))
    .map((key) => `${key}: ${what} ${source.get(key) ?? 'missing'} | ${target.get(key) ?? 'missing'}`);
}

function sumOf(structure: ReadonlyMap<string, string>, kind: string): number {
  return [...structure].reduce((sum, [name, count]) => (name.endsWith(kind) ? sum + Number(count) : sum), 0);
}

/**
 * Compares every user table of the source with its namesake (name + `suffix`) on the target. Both databases must be at
 * rest. `signal` closes the connections, which makes the running query reject.
 */
export async function compareDatabases(
  sourceUrl: string,
  targetUrl: string,
  suffix: string,
  onTable: (table: string, done: number, of: number) => void,
  signal: AbortSignal,
): Promise<Comparison> {
  const [source, target] = [sourceUrl, targetUrl].map(
    (url) => new pg.Client({ connectionString: url, ssl: false, application_name: 'demo/compare' }),
  ) as [Client, Client];
  const close = (): void => {
    for (const client of [source, target]) void client.end().catch(() => undefined);
  };
  signal.addEventListener('abort', close, { once: true });
  try {
    for (const client of [source, target]) {
      client.on('error', () => undefined); // the query in flight rejects with it
      await client.connect();
      await client.query(settings);
    }
    const differences: string[] = [];
    const tables = await listTables(source, suffix);
    let equalRows = 0;
    for (const [done, table] of tables.entries()) {
      onTable(table.name, done, tables.length);
      const exists = await target.query('select 1 where to_regclass($1) is not null', [table.targetName]);
      if (exists.rowCount === 0) {
        differences.push(`${table.name}: not on the target`);
        continue;
      }
      const equal = await countEqual(source, target, table);
      if (equal === null) differences.push(...(await describe(source, target, table)));
      else equalRows += equal;
    }
    const sequences = await sequencesOf(source, '');
    differences.push(...compareMaps('sequence', sequences, await sequencesOf(target, suffix)));
    const structure = await structureOf(source, '');
    differences.push(...compareMaps('has', structure, await structureOf(target, suffix)));
    return {
      tables: tables.length,
      equalRows,
      sequences: sequences.size,
      indexes: sumOf(structure, ' indexes'),
      constraints: sumOf(structure, ' constraints'),
      differences,
    };
  } finally {
    signal.removeEventListener('abort', close);
    await Promise.all([source, target].map((client) => client.end().catch(() => undefined)));
  }
}
