// SIGKILL of the whole service at random moments while it follows a source under writers of every kind, and it is started
// again at once: no change is lost or doubled, and a reader of the target never sees half a transaction. (The other crash
// tests kill at named places; test/integration/sync-kills ends streams alone, on both feeds.)
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { expectEqualTables } from '../support/compare.ts';
import { makePair, waitFor, type TestDatabase } from '../support/databases.ts';
import { completes, KilledService } from '../support/kills.ts';
import { randomTables, seeded, startWriters } from '../support/random-writers.ts';
import { migrationBody, startMigration, streamForms } from '../support/service-process.ts';

/** Of services whose stream has applied something. */
const KILLS = 52;
/** DTS_TEST_SEED repeats the moments of an earlier run. */
const seed = Number(process.env['DTS_TEST_SEED'] ?? randomInt(1_000_000));
const source = seed % 2 === 0 ? 16 : 13;

const tables = ['plain', 'always', 'keyless', 'pair', 'part', 'counter', 'log'];

/** Raises every row of `counter`, each time with one row in `log`, until it is stopped; tells how often. */
function startCounting(database: TestDatabase): { stop(): Promise<number> } {
  let counting = true;
  const count = async (): Promise<number> => {
    const client = await database.connect();
    let rounds = 0;
    // one message, one transaction
    for (; counting; rounds++)
      await client.query(
        `update public.counter set n = n + 1; insert into public.log values (${rounds}); select pg_sleep(0.01)`,
      );
    return rounds;
  };
  const counted = count();
  return {
    stop() {
      counting = false;
      return counted;
    },
  };
}

interface Seen {
  readonly low: number;
  readonly high: number;
  readonly logged: number;
}

/** What a reader of the target sees in one moment. */
async function seenOn(target: TestDatabase): Promise<Seen> {
  const { rows } = await target.query<Seen>(
    'select min(n) as low, max(n) as high, (select count(*)::int from public.log) as logged from public.counter',
  );
  const [row] = rows;
  if (!row) throw new Error('no row');
  return row;
}

test(`no change of ${source} is lost or doubled by ${KILLS} kills of the service at random moments (seed ${seed})`, async () => {
  const random = seeded(seed);
  const pair = await makePair({ source });
  // a change of `counter` that is left out, and a row of the keyless `log` that is doubled, stay visible for ever
  await pair.source.query(`${randomTables};
    create table public.counter (id int primary key, n int not null);
    create table public.log (round int not null);
    alter table public.log replica identity full;
    insert into public.counter select g, 0 from generate_series(1, 40) g`);
  const writers = startWriters(pair.source, seed, 2, { restMs: 10 });
  const counting = startCounting(pair.source);
  const id = pair.source.dbname;
  const killed = new KilledService();
  let service = await killed.start();
  await startMigration(service, migrationBody(pair, { id, options: { keep_fence: false } }));
  await service.reaches(id, 'syncingWal');

  const forms = new Set<boolean>();
  let before = await seenOn(pair.target);
  for (let kills = 0; kills < KILLS; ) {
    // one in six is not waited for: it is killed while it starts, connects or catches up
    const works = random(6) > 0;
    const hasApplied = async (): Promise<boolean> => (await seenOn(pair.target)).logged > before.logged;
    if (works) await waitFor(hasApplied, 60_000, 'a change on the target');
    await sleep(random(300)); // the random moment itself
    for (const binary of streamForms(service)) forms.add(binary);
    service = await killed.start();
    if (works) kills++;
    before = await seenOn(pair.target);
    const { low } = before;
    expect(before).toEqual({ low, high: low, logged: low });
  }

  await writers.stop();
  const rounds = await counting.stop();
  await completes(service, id);
  expect(await seenOn(pair.target)).toEqual({ low: rounds, high: rounds, logged: rounds });
  await expectEqualTables(
    pair.source,
    pair.target,
    tables.map((name) => [`public.${name}`, `public.${name}`]),
  );
  expect([...forms]).toEqual([source >= 14]);
  expect(writers.done()).toBeGreaterThan(KILLS);
  expect(writers.prepared.commit).toBeGreaterThan(0);
  expect(writers.prepared.rollback).toBeGreaterThan(0);
}, 900_000);
