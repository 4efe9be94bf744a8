// Where a new slot begins. A transaction whose COMMIT lies in the WAL before it, and which is running for every snapshot all
// the same, is neither streamed nor seen by a copy: no part is read before it has ended. A backend that waits for a synchronous
// standby is in just that place, so here one waits for a standby that there is not. And the server's picture of the catalog
// lacks what changed while the slot was being made: what was changed under it is decoded wrong, or ends the decoding.
import type { Client } from 'pg';
import { expect, onTestFinished, test } from 'vitest';
import { ensurePublication } from '../../src/postgres/publication.ts';
import { ensureSlot } from '../../src/postgres/slot.ts';
import { makePair, waitFor, type TestDatabase } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import { prepare } from '../support/replication.ts';

startServers(13, 15, 17);

/** Whether the backend waits in `event` of pg_stat_activity. */
async function waitsIn(source: TestDatabase, pid: number, event: string): Promise<boolean> {
  const { rowCount } = await source.query('select from pg_stat_activity where pid = $1 and wait_event = $2', [
    pid,
    event,
  ]);
  return rowCount === 1;
}

/** Until the walsender that makes the slot waits for the client's transaction. */
async function slotWaitsFor(source: TestDatabase, client: Client): Promise<void> {
  const { rows } = await client.query<{ xid: string }>('select pg_current_xact_id()::text as xid');
  await waitFor(async () => {
    const { rowCount } = await source.query(
      `select from pg_locks join pg_stat_activity using (pid) where application_name like 'dts/%/slot'
       and locktype = 'transactionid' and not granted and transactionid::text = $1`,
      [rows[0]?.xid],
    );
    return rowCount === 1;
  });
}

async function slotIsMade(source: TestDatabase): Promise<void> {
  await waitFor(async () => {
    const { rowCount } = await source.query(
      `select from pg_replication_slots where database = current_database() and confirmed_flush_lsn is not null`,
    );
    return rowCount === 1;
  });
}

/** What the slot has to say of rows that were inserted: their columns, as pgoutput writes them. */
async function inserts(source: TestDatabase, slot: string): Promise<readonly string[]> {
  const { rows } = await source.query<{ data: Buffer }>(
    `select data from pg_logical_slot_peek_binary_changes($1::name, null, null, 'proto_version', '1', 'publication_names', $1::text)
     where get_byte(data, 0) = ascii('I')`,
    [slot],
  );
  return rows.map(({ data }) => data.toString('latin1'));
}

test.each([15, 17] as const)('on %i no part is read before it has ended', async (major) => {
  const pair = await makePair({ source: major, target: 18 });
  const { source } = pair;
  await source.query('alter system set synchronous_commit = local');
  await source.query(`alter system set synchronous_standby_names = 'nobody'`);
  await source.query('select pg_reload_conf()');
  await waitFor(
    async () =>
      (await source.query(`show synchronous_standby_names`)).rows[0]?.['synchronous_standby_names'] ===
      'nobody',
  );
  const scope = await prepare(pair, 'create table public.t (id int primary key)');
  await ensurePublication(scope);
  const open = async (id: number) => {
    const client = await source.connect();
    await client.query('set synchronous_commit = local');
    await client.query(`begin; insert into public.t values (${id})`);
    return client;
  };
  const first = await open(1);
  let made = false;
  const slot = ensureSlot(scope).finally(() => (made = true));
  await slotWaitsFor(source, first);
  // the slot waits for `first`; when that ends, for whoever runs then; from here on changes are decoded
  const second = await open(2);
  await first.query('commit');
  await slotWaitsFor(source, second);
  // each hangs in its commit, which is in the WAL
  const hang = async (id: number) => {
    const client = await source.connect();
    const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
    const pid = rows[0]?.pid ?? 0;
    await client.query(`set synchronous_commit = on; begin; insert into public.t values (${id})`);
    const committed = client.query('commit');
    await waitFor(() => waitsIn(source, pid, 'SyncRep'));
    return {
      async holdsUpTheCopy() {
        await waitFor(
          () => made || scope.waits.some((reason) => reason?.includes(`the copy waits for pid ${pid} `)),
        );
        expect(made).toBe(false);
      },
      async end() {
        await source.query('select pg_cancel_backend($1)', [pid]); // the commit is local then
        await committed;
      },
    };
  };
  const hanging = await hang(3); // the slot does not wait for this one
  await second.query('commit');
  await slotIsMade(source);
  await hanging.holdsUpTheCopy();
  const later = await hang(4); // nor does who waits for those that were there when the slot was made
  await hanging.end();
  await later.holdsUpTheCopy();
  await later.end();
  const { name } = await slot;
  const seen = await source.query('select id from public.t order by id');
  expect(seen.rows).toEqual([{ id: 1 }, { id: 2 }, { id: 3 }, { id: 4 }]);
  // the stream has none of them: what the snapshot had not seen would have been lost
  expect(await inserts(source, name)).toEqual([]);
});

test.each([13, 17] as const)(
  'on %i the stream knows what changed the catalog while the slot was being made',
  async (major) => {
    const pair = await makePair({ source: major, target: 18 });
    const { source } = pair;
    const scope = await prepare(
      pair,
      `create table public.other (id int primary key); create table public.emptied (id int primary key);
       create table public.widened (id int primary key)`,
    );
    await ensurePublication(scope);
    const writer = async (sql: string): Promise<Client> => {
      const client = await source.connect();
      await client.query(`begin; ${sql}`);
      return client;
    };
    const first = await writer('insert into public.other values (1)');
    const slot = ensureSlot(scope);
    await slotWaitsFor(source, first);
    const second = await writer('insert into public.other values (2)');
    // the slot passes over both of these
    await source.query('truncate public.emptied');
    await source.query('alter table public.widened add column v text');
    await first.query('commit');
    await slotWaitsFor(source, second);
    // from here on it collects changes
    const third = await writer(
      `insert into public.emptied values (3); insert into public.widened values (3, 'third')`,
    );
    await second.query('commit');
    await slotIsMade(source);
    await third.query('commit');
    const { name, consistentLsn } = await slot;
    await source.query(
      `insert into public.emptied values (4); insert into public.widened values (4, 'fourth')`,
    );
    const streamed = await inserts(source, name);
    expect(streamed).toHaveLength(2);
    expect(streamed[1]).toContain('fourth');
    // who begins where the slot says is sent the same
    const { rows } = await source.query<{ there: boolean }>(
      'select confirmed_flush_lsn = $2::pg_lsn as there from pg_replication_slots where slot_name = $1',
      [name, consistentLsn],
    );
    expect(rows).toEqual([{ there: true }]);
    expect((await source.query('select id from public.emptied order by id')).rows).toEqual([
      { id: 3 },
      { id: 4 },
    ]);
  },
);

test('a slot that standbys are to have is made while they are away', async () => {
  const pair = await makePair({ source: 17, target: 18 });
  const { source } = pair;
  await source.query(`select pg_create_physical_replication_slot('away', true)`);
  await source.query(`alter system set synchronized_standby_slots = 'away'`);
  await source.query('select pg_reload_conf()');
  onTestFinished(async () => {
    await source.query('alter system reset synchronized_standby_slots');
    await source.query('select pg_reload_conf()');
    await source.query(`select pg_drop_replication_slot('away')`);
  });
  const isSet = async (): Promise<boolean> =>
    (await source.query('show synchronized_standby_slots')).rows[0]?.['synchronized_standby_slots'] ===
    'away';
  await waitFor(isSet);
  const scope = await prepare(pair, 'create table public.t (id int primary key)', {
    options: { slotTimeoutMs: 5_000 },
  });
  await ensurePublication(scope);
  expect(await ensureSlot(scope)).toMatchObject({ failover: true });
  expect(scope.waits).not.toContain('the new slot is moved to its beginning'); // the server would wait for them
});
