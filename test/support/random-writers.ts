// Seeded writers for tests of the stream: several connections that insert, update, delete, move keys, truncate, roll
// back, use savepoints and prepared transactions on the tables of `randomTables`, all at once.
import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import type { TestDatabase } from './databases.ts';

/** Keys, no keys, out-of-line values, identity, generated columns, partitions, awkward types. */
export const randomTables = `
  create table public.plain (id int primary key, v text, n numeric, big text);
  alter table public.plain alter big set storage external;
  create table public.always (id bigint generated always as identity primary key, v text,
    twice int generated always as (length(v) * 2) stored);
  create table public.keyless (a int, b text, j json, p point, x numeric);
  alter table public.keyless replica identity full;
  create table public.pair (u uuid not null, t timestamptz not null, arr int[], tags text[], primary key (u, t));
  create table public.part (id int, region int, v text, primary key (id, region)) partition by list (region);
  create table public.part_0 partition of public.part for values in (0);
  create table public.part_1 partition of public.part for values in (1)`;

/** A small, fast generator; equal seeds give equal sequences. */
export function seeded(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

export type Random = (below: number) => number;

function statementOnAll(random: Random): string {
  const id = random(60);
  const word = `w${random(1_000)}`;
  // long and incompressible: stored out of line, and not sent again while unchanged
  const big = `(select string_agg(md5((${random(1_000_000)} + g)::text), '') from generate_series(1, 200) g)`;
  switch (random(22)) {
    case 0:
    case 1:
      return `insert into public.plain values (${id}, '${word}', ${random(100)}.50, ${big}) on conflict do nothing`;
    case 2:
      return `insert into public.plain select g, 'many', g, null from generate_series(${id}, ${id + 20}) g
        on conflict do nothing`;
    case 3:
    case 4:
      return `update public.plain set v = '${word}' where id = ${id}`;
    case 5:
      return `update public.plain set big = ${big} where id = ${id}`;
    case 6:
      return `update public.plain set id = ${1_000 + random(60)} where id = ${id}`;
    case 7:
      return `update public.plain set n = null, v = null where id between ${id} and ${id + 5}`;
    case 8:
      return `delete from public.plain where id = ${id}`;
    case 9:
      return `delete from public.plain where id >= 1000`;
    case 10:
      return `insert into public.always (v) values ('${word}'), ('${word}!')`;
    case 11:
      return `update public.always set id = default where id = (select min(id) from public.always)`;
    case 12:
      return `update public.always set v = '${word}' where id = (select max(id) from public.always)`;
    case 13:
      return `insert into public.keyless values (${random(5)}, null, '{"a": ${random(3)}}', '(1,${random(3)})', 1.${random(3)}0)`;
    case 14:
      return `update public.keyless set b = '${word}' where ctid = (select min(ctid) from public.keyless)`;
    case 15:
      return `delete from public.keyless where ctid = (select max(ctid) from public.keyless)`;
    case 16:
      return `insert into public.pair values (md5('${id}')::uuid, 'epoch'::timestamptz + interval '${random(3)} hours',
        array[${random(9)}, null], array['a,b', '"', null]) on conflict do nothing`;
    case 17:
      return `update public.pair set t = t + interval '1 day 00:00:00.000001' where u = md5('${id}')::uuid`;
    case 18:
      return `insert into public.part values (${id}, ${random(2)}, '${word}') on conflict do nothing`;
    case 19:
      return `update public.part set region = 1 - region where id = ${id} and not exists (
        select 1 from public.part o where o.id = ${id} offset 1)`;
    case 20:
      return `update public.part set v = '${word}' where id = ${id}`;
    default:
      return random(6) === 0
        ? `truncate ${['public.keyless', 'public.part', 'public.plain, public.always restart identity'][random(3)] ?? ''}`
        : `delete from public.part where id = ${id}`;
  }
}

/** Prepared transactions, by how they ended. */
export interface Prepared {
  commit: number;
  rollback: number;
}

async function transaction(
  client: pg.Client,
  random: Random,
  gid: string,
  statement: (random: Random) => string,
  prepared: Prepared,
): Promise<void> {
  await client.query('begin');
  const count = 1 + random(6);
  for (let n = 0; n < count; n++) {
    const inSavepoint = random(4) === 0;
    if (inSavepoint) await client.query('savepoint s');
    await client.query(statement(random));
    if (inSavepoint) await client.query(random(2) === 0 ? 'rollback to s' : 'release s');
  }
  const end = random(10);
  if (end === 0) await client.query('rollback');
  else if (end === 1) {
    await client.query(`prepare transaction '${gid}'`);
    const how = random(4) === 0 ? 'rollback' : 'commit';
    await client.query(`${how} prepared '${gid}'`);
    prepared[how]++;
  } else await client.query('commit');
}

export interface Writers {
  /** Transactions ended so far, by all of them. */
  readonly done: () => number;
  readonly prepared: Readonly<Prepared>;
  /** Lets each finish its transaction. */
  stop(): Promise<void>;
}

export interface WriterOptions {
  readonly statement?: (random: Random) => string;
  /** After every transaction. */
  readonly restMs?: number;
  /** How long a statement may take, waits for locks included; a TRUNCATE stops everybody behind it as long. */
  readonly statementTimeoutMs?: number;
}

/** Starts `count` writers with seeds of their own. Conflicts and deadlocks among them are rolled back and forgotten. */
export function startWriters(
  database: TestDatabase,
  seed: number,
  count = 4,
  { statement = statementOnAll, restMs = 0, statementTimeoutMs = 300 }: WriterOptions = {},
): Writers {
  let running = true;
  let done = 0;
  const prepared: Prepared = { commit: 0, rollback: 0 };
  const write = async (writer: number): Promise<void> => {
    const client = await database.connect();
    await client.query(`set statement_timeout = ${statementTimeoutMs}; set deadlock_timeout = 100`);
    const random = seeded(seed * 1_000 + writer);
    while (running) {
      try {
        await transaction(client, random, `g_${database.dbname}_${writer}`, statement, prepared);
      } catch {
        await client.query('rollback');
      }
      done++;
      if (restMs > 0) await sleep(restMs);
    }
    await client.end();
  };
  const writers = Array.from({ length: count }, (_, writer) => write(writer));
  return {
    done: () => done,
    prepared,
    async stop() {
      running = false;
      await Promise.all(writers);
    },
  };
}
