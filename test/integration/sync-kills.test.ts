// Sixty deaths of the stream at random moments under writers, and every change is on the target once. A death is what the
// servers see of a SIGKILL: every socket closed in the middle of whatever it carries, all memory gone; or one backend of
// ours ended on its server. (test/crash kills the whole service at named places.)
import { expect, test } from 'vitest';
import type { CatchUpSizes } from '../../src/postgres/call-size.ts';
import { listening, nothingSaid } from '../support/backlog.ts';
import { slotOf } from '../../src/postgres/slot-record.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { randomTables, seeded, startWriters } from '../support/random-writers.ts';
import {
  contents,
  copyAll,
  drainStream,
  prepare,
  startStream,
  untilEvent,
  type RunningStream,
} from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const KILLS = 60;
/** Of streams that catch up by the slot functions when they can; the others leave all to the walsender. */
const small: CatchUpSizes = {
  fromBytes: 60_000,
  toBytes: 20_000,
  firstCallBytes: 30_000,
  mostCallBytes: 256_000_000,
};
/** So often the source writes on without the stream, until calls are worth it. */
const FALL_BEHIND_EVERY = 4;

test.each([
  [13, 'text'],
  [18, 'binary'],
] as const)(
  'no change of %i is lost or doubled by sixty kills at random moments, as %s',
  async (major, form) => {
    const pair = await makePair({ source: major });
    const said = nothingSaid();
    const first = await prepare(
      pair,
      `${randomTables}; create table public.counter (id int primary key, n int not null)`,
    );
    let { scope }: { scope: TestScope } = listening(first, said);
    await pair.source.query('insert into public.counter select g, 0 from generate_series(1, 40) g');
    let stream = startStream(scope, small);
    await untilEvent(stream, 'SLOT_READY');
    await copyAll(scope, pair);
    await drainStream(scope, pair, stream);
    const writers = startWriters(pair.source, major, 2);
    let counting = true;
    const count = async (): Promise<number> => {
      const client = await pair.source.connect();
      let rounds = 0;
      // A change that is applied twice, or not at all, stays visible in the sums.
      for (; counting; rounds++) await client.query('update public.counter set n = n + 1');
      return rounds;
    };
    const counted = count();
    const below = seeded(major * 7_919);
    const start = (): RunningStream =>
      startStream(scope, below(3) === 0 ? small : { ...small, fromBytes: Infinity });
    let restarts = 0;
    /**
     * Enough, also beside what is decoded again from where the slot can restart; prepared transactions hold that back. A
     * stream that died had applied more than the slot knows.
     */
    const isFarBehind = async (): Promise<boolean> => {
      const progress = await pair.target.query<{ applied: string }>(
        'select applied_lsn::text as applied from dts.progress where task_id = $1',
        [scope.taskId],
      );
      // what the writers write may take long to be so much
      await pair.source.query(`select pg_logical_emit_message(true, 'other', repeat('x', 200000))`);
      const { rows } = await pair.source.query<{ far: boolean }>(
        `select lag > 120000 and lag > 3 * (confirmed_flush_lsn - restart_lsn) as far
         from pg_replication_slots, lateral (select pg_current_wal_flush_lsn() - $2::pg_lsn as lag) l
         where slot_name = $1`,
        [slotOf(scope).name, progress.rows[0]?.applied],
      );
      return rows[0]?.far === true;
    };
    let feedsBefore = 0;
    for (let kill = 0; kill < KILLS; kill++) {
      // one in three at any moment of a start, the others while a feed is at work
      if (below(3) > 0)
        await waitFor(() => said.feeds.length > feedsBefore || stream.failure() !== null, 20_000, 'a feed');
      await new Promise((resolve) => setTimeout(resolve, below(120))); // the random moment itself
      feedsBefore = said.feeds.length;
      if (kill % FALL_BEHIND_EVERY === 0) {
        await pair.source.query('checkpoint');
        await Promise.all([scope.connections.closeAll(), stream.stop()]);
        await waitFor(isFarBehind, 20_000, 'a stream that is far behind');
        ({ scope } = listening(makeScope(pair, {}, scope), said));
        stream = startStream(scope, small);
        continue;
      }
      const one = below(4);
      if (one < 2 && stream.failure() === null) {
        const name = one === 0 ? 'target/apply' : 'source/%';
        await pair[one === 0 ? 'target' : 'source'].query(
          'select pg_terminate_backend(pid) from pg_stat_activity where application_name like $1',
          [`dts/${scope.taskId}/${name}`],
        );
        if (below(2) === 0) continue; // it connects again by itself, or is killed while it waits
      }
      const dead = stream;
      const closed = scope.connections.closeAll();
      ({ scope } = listening(makeScope(pair, {}, scope), said));
      stream = start();
      restarts++;
      await Promise.all([closed, dead.stop()]);
    }
    await writers.stop();
    counting = false;
    const rounds = await counted;
    if (stream.failure() !== null) {
      ({ scope } = listening(makeScope(pair, {}, scope), said));
      stream = start();
    }
    await drainStream(scope, pair, stream);
    const source = await contents(scope, pair.source, 'source');
    expect(await contents(scope, pair.target, 'target')).toEqual(source);
    const { rows } = await pair.target.query<{ low: number; high: number }>(
      'select min(n) as low, max(n) as high from public.counter',
    );
    expect(rows[0]).toEqual({ low: rounds, high: rounds });
    expect(restarts).toBeGreaterThan(KILLS / 4);
    expect(said.binary).toBe(form === 'binary');
    // deaths of streams that have not begun yet prove little
    for (const each of ['live', 'catch-up'])
      expect(
        said.feeds.filter((feed) => feed === each).length,
        `${each} of ${said.feeds.length}`,
      ).toBeGreaterThan(KILLS / 6);
    expect(said.callsBeside).toBeGreaterThan(0);
    expect(writers.prepared.commit).toBeGreaterThan(0);
    expect(writers.prepared.rollback).toBeGreaterThan(0);
    await waitFor(() => stream.failure() === null);
    await stream.stop();
  },
);
