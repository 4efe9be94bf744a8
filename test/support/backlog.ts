// A backlog for a stream: written while nothing streams, then applied at once, and what the stream said of its way there.
import { expect } from 'vitest';
import type { Lsn } from '../../src/model/lsn.ts';
import type { CatchUpSizes } from '../../src/postgres/call-size.ts';
import type { DatabasePair } from './databases.ts';
import {
  contents,
  copyAll,
  drainStream,
  prepare,
  startStream,
  untilEvent,
  type RunningStream,
} from './replication.ts';
import { makeScope, type TestScope } from './scope.ts';

export interface Said {
  /** Whether all connections sent binary values; null: there was none. */
  binary: boolean | null;
  /** Feeds of the connections, in order. */
  feeds: string[];
  /** Where each of them began. */
  from: Lsn[];
  /** Batches that were applied again in source order. */
  again: number;
  /** Calls of the slot functions that began beside another one. */
  callsBeside: number;
}

export const nothingSaid = (): Said => ({ binary: null, feeds: [], from: [], again: 0, callsBeside: 0 });

/** A scope whose log is read; `said`: of an earlier scope, to be gone on with. */
export function listening(scope: TestScope, said = nothingSaid()): { scope: TestScope; said: Said } {
  const info = (fields: object, message: string): void => {
    if (message === 'the stream begins') {
      const { binary, feed, from } = fields as { binary: boolean; feed: string; from: Lsn };
      said.binary = binary && said.binary !== false;
      said.feeds.push(feed);
      said.from.push(from);
    }
    if (message === 'a batch is applied again in source order') said.again++;
    if (message === 'a call begins while another is taken') said.callsBeside++;
  };
  return { scope: Object.assign(scope, { log: { ...scope.log, info } }), said };
}

/** Slot and copy of empty or small tables, whose stream has stood still since. `over`: as makeScope has it. */
export async function copied(
  pair: DatabasePair,
  ddl: string,
  rows = '',
  over: Parameters<typeof makeScope>[1] = {},
): Promise<TestScope> {
  const scope = await prepare(pair, ddl, over);
  if (rows !== '') await pair.source.query(rows);
  const stream = startStream(scope);
  await untilEvent(stream, 'SLOT_READY');
  await copyAll(scope, pair);
  await drainStream(scope, pair, stream);
  await stream.stop();
  return scope;
}

/** `copied`; then nothing streams while `write` runs, and all of it is streamed at once. */
export async function backlog(
  pair: DatabasePair,
  ddl: string,
  rows: string,
  write: () => Promise<unknown>,
  sizes?: CatchUpSizes,
): Promise<{ scope: TestScope; said: Said; stream: RunningStream; stop: () => Promise<unknown> }> {
  const first = await copied(pair, ddl, rows);
  await write();
  const { scope, said } = listening(makeScope(pair, {}, first));
  const stream = startStream(scope, sizes);
  await drainStream(scope, pair, stream);
  return { scope, said, stream, stop: () => stream.stop() };
}

export async function expectEqual(scope: TestScope, pair: DatabasePair): Promise<number> {
  const source = await contents(scope, pair.source, 'source');
  expect(await contents(scope, pair.target, 'target')).toEqual(source);
  return Object.values(source).flat().length;
}

export const manyChanges = String.raw`
  do $$
  declare r int;
  begin
    for r in 1..12 loop
      insert into public.t (id, v, arr, tags, j, big, d)
        select g, E'tab\t nl\n cr\r back\\ ' || g, array[g, null, r], array['a,b', null, '"', E'\\'], jsonb_build_object('k', g),
          case when g % 7 = 0 then (select string_agg(md5((g * r + x)::text), '') from generate_series(1, 100) x) end, g
        from generate_series(r * 100, r * 100 + 99) g on conflict do nothing;
      commit;
      update public.t set v = 'u' || r, arr = arr || r where id % 3 = r % 3;
      commit;
      update public.t set big = 'short' || r where id % 11 = r % 11;
      update public.t set d = null, tags = '{}' where id % 5 = 0;
      delete from public.t where id % 13 = r;
      commit;
      insert into public.t (id, v) select g, 'again' from generate_series(r, 1500, 13) g on conflict do nothing;
      update public.t set v = v || '.' where id = 100;
      delete from public.t where id = 100 + r;
      insert into public.t (id, v) values (100 + r, 'once more');
      insert into public.two values (r, 'k' || r, 'x') on conflict do nothing;
      update public.two set v = 'y' || r;
      commit;
    end loop;
  end $$`;

export const tables = (extra: string): string => `
  create table public.t (id int primary key, v text, arr int[], tags text[], j jsonb, big text, d numeric${extra});
  alter table public.t alter big set storage external;
  create table public.two (a int, b text, v text, primary key (b, a))`;
