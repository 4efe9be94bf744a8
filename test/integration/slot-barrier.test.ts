// The barrier behind a new slot: a transaction whose COMMIT lies in the WAL before the slot's beginning, and which is
// running for every snapshot all the same, is neither streamed nor seen by a copy. A backend that waits for a synchronous
// standby is in just that place, so here one waits for a standby that there is not.
import { expect, test } from 'vitest';
import { ensurePublication } from '../../src/postgres/publication.ts';
import { ensureSlot } from '../../src/postgres/slot.ts';
import { makePair, waitFor, type TestDatabase } from '../support/databases.ts';
import { startServers } from '../support/extra-servers.ts';
import { prepare } from '../support/replication.ts';

startServers(15, 17);

/** Whether the backend waits in `event` of pg_stat_activity. */
async function waitsIn(source: TestDatabase, pid: number, event: string): Promise<boolean> {
  const { rowCount } = await source.query('select from pg_stat_activity where pid = $1 and wait_event = $2', [
    pid,
    event,
  ]);
  return rowCount === 1;
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
  const slotPid = await waitFor(async () => {
    const { rows } = await source.query<{ pid: number }>(
      `select pid from pg_stat_activity where application_name like 'dts/%/slot' and wait_event = 'transactionid'`,
    );
    return rows[0]?.pid;
  });
  // the slot waits for `first`; when that ends, for whoever runs then; from here on changes are decoded
  const second = await open(2);
  await first.query('commit');
  const { rows: waiters } = await second.query<{ xid: string }>('select pg_current_xact_id()::text as xid');
  await waitFor(async () => {
    const { rowCount } = await source.query(
      `select from pg_locks where pid = $1 and locktype = 'transactionid' and not granted and transactionid::text = $2`,
      [slotPid, waiters[0]?.xid],
    );
    return rowCount === 1;
  });
  // neither the slot nor anybody else waits for this one
  const hanging = await source.connect();
  const { rows: pids } = await hanging.query<{ pid: number }>('select pg_backend_pid() as pid');
  const pid = pids[0]?.pid ?? 0;
  await hanging.query('set synchronous_commit = on; begin; insert into public.t values (3)');
  const committed = hanging.query('commit');
  await waitFor(() => waitsIn(source, pid, 'SyncRep'));
  await second.query('commit');
  await waitFor(
    async () =>
      (
        await source.query(
          `select from pg_replication_slots where database = current_database() and confirmed_flush_lsn is not null`,
        )
      ).rowCount === 1,
  );
  await waitFor(
    () => made || scope.waits.some((reason) => reason?.includes(`the copy waits for pid ${pid} `)),
  );
  expect(made).toBe(false);
  await source.query('select pg_cancel_backend($1)', [pid]); // the commit is local then
  await committed;
  const { name } = await slot;
  const seen = await source.query('select id from public.t order by id');
  expect(seen.rows).toEqual([{ id: 1 }, { id: 2 }, { id: 3 }]);
  // the stream has none of them: what the snapshot had not seen would have been lost
  const streamed = await source.query(
    `select convert_from(data, 'SQL_ASCII') from pg_logical_slot_get_binary_changes($1::name, null, null, 'proto_version', '1', 'publication_names', $1::text)
     where get_byte(data, 0) = ascii('I')`,
    [name],
  );
  expect(streamed.rowCount).toBe(0);
});
