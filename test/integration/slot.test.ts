// The slot and the publication: made once behind the barrier, recognised after a kill, never silently made again, never
// taken for ours when they are not.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { describe, expect, it, onTestFinished } from 'vitest';
import { ensureBookkeeping, removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { dropPublication, ensurePublication } from '../../src/postgres/publication.ts';
import { abandonSlot, dropSlot } from '../../src/postgres/slot-removal.ts';
import { ensureSlot, verifySlot } from '../../src/postgres/slot.ts';
import { findSlot, slotOf } from '../../src/postgres/slot-record.ts';
import { noteIntent } from '../../src/postgres/slot-intent.ts';
import { sourceSystem } from '../../src/postgres/source-system.ts';
import { taskObjectName } from '../../src/postgres/sql.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makePair, waitFor, type DatabasePair } from '../support/databases.ts';
import { prepare, startStream } from '../support/replication.ts';
import { makeScope, type TestScope } from '../support/scope.ts';
import { startServer } from '../support/servers.ts';

const ddl = 'create table public.t (id int primary key, v text)';

async function slotNames(pair: DatabasePair): Promise<string[]> {
  const { rows } = await pair.source.query<{ slot_name: string }>(
    'select slot_name from pg_replication_slots where database = current_database()',
  );
  return rows.map((row) => row.slot_name);
}

async function ready(pair: DatabasePair, over: Parameters<typeof prepare>[2] = {}): Promise<TestScope> {
  const scope = await prepare(pair, ddl, over);
  await ensurePublication(scope);
  return scope;
}

interface Failure {
  code?: string;
  kind?: string;
  hint?: string;
  message: string;
}

/** What an awaited error says, or fails when there is none. */
async function errorOf(work: Promise<unknown>): Promise<Failure> {
  return work.then(
    () => {
      throw new Error('it did not fail');
    },
    (error: unknown) => error as Failure,
  );
}

describe('ensureSlot', () => {
  it('makes one slot and finds it again', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    expect(findSlot(scope)).toBeUndefined();
    const slot = await ensureSlot(scope);
    expect(await ensureSlot(scope)).toEqual(slot);
    expect(slotOf(scope)).toEqual(slot);
    expect(await slotNames(pair)).toEqual([taskObjectName(scope.taskId)]);
    expect(scope.connections.source.connectionCount).toBeLessThanOrEqual(4);
  });

  it('recognises the slot of a start of an earlier version that was killed before its record, and makes it again', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    // What a kill at slot.created leaves: the intent, a slot, no record.
    await pair.source.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [
      taskObjectName(scope.taskId),
    ]);
    const before = await pair.source.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
    scope.checkpoints.set('slotIntent', true);
    const slot = await ensureSlot(scope);
    const { rows } = await pair.source.query<{ later: boolean }>('select $1::pg_lsn >= $2::pg_lsn as later', [
      slot.consistentLsn,
      before.rows[0]?.lsn,
    ]);
    expect(rows[0]?.later).toBe(true);
    expect(scope.failpointsHit).toContain('slot.created');
  });

  it('leaves alone a slot that was there before its own was being made', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const name = taskObjectName(scope.taskId);
    await pair.source.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name]);
    await noteIntent(scope, await sourceSystem(scope)); // killed before the server has answered that it exists
    const error = await errorOf(ensureSlot(scope));
    expect(error).toMatchObject({ code: 'slot_stranger' });
    expect(error.message).toContain('from before ours was being made');
    await dropSlot(scope);
    expect(await slotNames(pair)).toEqual([name]);
    await pair.source.query('select pg_drop_replication_slot($1)', [name]);
  });

  it('leaves alone a slot that somebody else reads from, made while its own was being made', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const name = taskObjectName(scope.taskId);
    await noteIntent(scope, await sourceSystem(scope));
    await pair.source.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name]);
    const { host, port, user, password, dbname: database } = pair.source.connection;
    const settings = { host, port, user, password, database, application_name: 'stranger' };
    const reader = new pg.Client({ ...settings, replication: 'database' } as pg.ClientConfig);
    reader.on('error', () => undefined);
    await reader.connect();
    const reading = reader
      .query(
        `START_REPLICATION SLOT "${name}" LOGICAL 0/0 (proto_version '1', publication_names '"${name}"')`,
      )
      .catch(() => undefined);
    const active = async (): Promise<number | null> =>
      (await pair.source.query('select from pg_replication_slots where slot_name = $1 and active', [name]))
        .rowCount;
    await waitFor(active);
    const error = await errorOf(ensureSlot(scope));
    expect(error).toMatchObject({ code: 'slot_stranger' });
    expect(error.message).toContain('somebody else reads from it');
    await dropSlot(scope);
    expect(await active()).toBe(1);
    await pair.source.query(
      'select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1',
      [name],
    );
    await reading;
    await waitFor(async () =>
      pair.source.query('select pg_drop_replication_slot($1)', [name]).then(
        () => true,
        () => false,
      ),
    );
  });

  it('makes a slot again that an interrupted start has left behind its intent', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    await noteIntent(scope, await sourceSystem(scope));
    const name = taskObjectName(scope.taskId);
    await pair.source.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name]);
    await ensureSlot(scope);
    expect(scope.failpointsHit).toContain('slot.created');
  });

  it('leaves no slot behind when its creation fails', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const failing = Object.assign(makeScope(pair, {}, scope), {
      failpoint: (name: string) => {
        if (name === 'slot.created') throw new Error('stop here');
      },
    });
    await errorOf(ensureSlot(failing));
    expect(await slotNames(pair)).toEqual([]);
    expect(findSlot(scope)).toBeUndefined();
    await ensureSlot(scope);
  });

  it('refuses a slot of its name that it did not make', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const name = taskObjectName(scope.taskId);
    await pair.source.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name]);
    expect((await errorOf(ensureSlot(scope))).code).toBe('slot_stranger');
    expect(await slotNames(pair)).toEqual([name]);
    await dropSlot(scope); // not ours: left alone
    expect(await slotNames(pair)).toEqual([name]);
    await pair.source.query('select pg_drop_replication_slot($1)', [name]);
  });

  it('leaves alone a slot that somebody made between its look-up and its creation', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const name = taskObjectName(scope.taskId);
    const open = scope.source.session.bind(scope.source);
    scope.source.session = async (options) => {
      if (options.purpose === 'slot')
        await pair.source.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name]);
      return open(options);
    };
    expect((await errorOf(ensureSlot(scope))).code).toBe('slot_stranger');
    expect(await slotNames(pair)).toEqual([name]);
    // nor is it taken for the rest of an interrupted start of ours, or cleaned up
    const again = makeScope(pair, {}, scope);
    expect((await errorOf(ensureSlot(again))).code).toBe('slot_stranger');
    await dropSlot(again);
    expect(await slotNames(pair)).toEqual([name]);
    await pair.source.query('select pg_drop_replication_slot($1)', [name]);
  });

  it('reports a slot that is gone as lost and never makes it again', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const { name } = await ensureSlot(scope);
    await pair.source.query('select pg_drop_replication_slot($1)', [name]);
    const error = await errorOf(ensureSlot(scope));
    expect(error.code).toBe('slot_lost');
    expect(error.hint).toContain('/recopy copies all tables again');
    expect(await slotNames(pair)).toEqual([]);
  });

  it('takes a slot of the same name that somebody recreated, or read from, for a stranger', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const { name } = await ensureSlot(scope);
    await pair.source.query('select pg_drop_replication_slot($1)', [name]);
    await pair.source.query(`insert into public.t values (1, 'x')`);
    await pair.source.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name]);
    const recreated = await errorOf(ensureSlot(scope));
    expect(recreated.code).toBe('slot_stranger');
    expect(recreated.message).toContain('somebody else has read from it');
    await pair.source.query('select pg_drop_replication_slot($1)', [name]);
    await pair.source.query(`select pg_create_logical_replication_slot($1, 'test_decoding')`, [name]);
    expect((await errorOf(ensureSlot(scope))).code).toBe('slot_stranger');
    await pair.source.query('select pg_drop_replication_slot($1)', [name]);
  });

  it('names the transaction that it waits for when the time is up, and succeeds when that has ended', async () => {
    const pair = await makePair();
    const scope = await ready(pair, { options: { slotTimeoutMs: 1_500 } });
    const blocker = await pair.source.connect();
    await blocker.query('begin');
    await blocker.query(`insert into public.t values (1, 'blocks the slot')`);
    const { rows } = await blocker.query<{ pid: number }>('select pg_backend_pid() as pid');
    const error = await errorOf(ensureSlot(scope));
    expect(error.code).toBe('slot_creation_timeout');
    expect(error.hint).toContain(`pid ${rows[0]?.pid}`);
    expect(error.hint).toContain('postgres@');
    expect(scope.waits.some((wait) => wait?.includes(`pid ${rows[0]?.pid}`))).toBe(true);
    expect(scope.waits.at(-1)).toBeNull();
    expect(await slotNames(pair)).toEqual([]);
    await blocker.query('rollback');
    await ensureSlot(makeScope(pair, {}, scope)); // with the usual timeout: other tests write on this server, too
  });

  it('names a prepared transaction that it waits for', async () => {
    const pair = await makePair();
    const scope = await ready(pair, { options: { slotTimeoutMs: 1_000 } });
    const gid = `p_${scope.taskId}`;
    await pair.source.query(`begin; insert into public.t values (1, 'x'); prepare transaction '${gid}'`);
    expect((await errorOf(ensureSlot(scope))).hint).toContain(gid);
    await pair.source.query(`rollback prepared '${gid}'`);
  });

  it('stops waiting when the task is stopped, and leaves nothing', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const blocker = await pair.source.connect();
    await blocker.query('begin');
    await blocker.query(`insert into public.t values (1, 'x')`);
    const creation = errorOf(ensureSlot(scope));
    await waitFor(() => scope.waits.some((wait) => wait?.includes('pid')), 10_000, 'a named wait');
    const stopped = Date.now();
    scope.controller.abort();
    await creation;
    expect(Date.now() - stopped).toBeLessThan(2_000);
    await blocker.query('rollback');
    await waitFor(async () => (await slotNames(pair)).length === 0);
  });
});

describe('the cluster behind the slot', () => {
  it('another cluster under the same address is noticed, even with a slot and a publication of our names', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const { name } = await ensureSlot(scope);
    const other = await makePair({ source: 18 });
    await other.source.query(ddl);
    await other.source.query(`create publication "${name}" for table public.t`);
    await other.source.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name]);
    // ahead of everything there: the position cannot tell
    await pair.target.query(
      `insert into dts.progress (task_id, slot_incarnation, applied_lsn, acked_lsn) values ($1, $2, 'FF/0', 'FF/0')`,
      [scope.taskId, findSlot(scope)?.incarnation],
    );
    const moved = makeScope({ source: other.source, target: pair.target }, {}, scope);
    const failed = startStream(moved).failed;
    const error = (await failed) as Failure;
    expect([error.code, error.kind]).toEqual(['source_replaced', 'operator']);
    expect(error.hint).toContain('point the source');
    expect((await errorOf(verifySlot(moved, slotOf(moved)))).code).toBe('source_replaced');
    expect(await slotNames({ ...pair, source: other.source })).toEqual([name]); // not touched
    await other.source.query('select pg_drop_replication_slot($1)', [name]);
    await other.source.query(`drop publication "${name}"`);
    const bare = makeScope({ source: other.source, target: pair.target }, {}, scope);
    expect((await startStream(bare).failed).code).toBe('source_replaced');
  });

  it('a source that was restored to an earlier point, or failed over, is noticed by its timeline', async () => {
    const server = await startServer({ major: 18, settings: { restore_command: 'false' } });
    onTestFinished(() => server.stop());
    const pair = await makePair();
    const scope = makeScope(pair, {
      sourceDb: {
        ...pair.source.connection,
        port: server.port,
        password: server.password,
        dbname: 'postgres',
      },
    });
    await scope.source.query(ddl);
    await pair.target.query(ddl);
    await planFromCatalog(scope);
    await ensureBookkeeping(scope);
    onTestFinished(() => removeBookkeeping(scope));
    await ensurePublication(scope);
    const slot = await ensureSlot(scope);
    await verifySlot(scope, slot);
    await server.crash();
    await server.restart();
    await waitFor(() =>
      verifySlot(scope, slot).then(
        () => true,
        () => false,
      ),
    ); // a mere restart is none
    await server.crash();
    // archive recovery without an archive: it replays what there is and promotes itself to timeline 2
    writeFileSync(join(server.directory, 'data', 'recovery.signal'), '', { mode: 0o666 });
    await server.restart();
    await waitFor(async () => {
      const { rows } = await scope.source
        .query<{ promoted: boolean }>('select not pg_is_in_recovery() as promoted')
        .catch(() => ({ rows: [] }));
      return rows[0]?.promoted;
    });
    const error = await errorOf(verifySlot(scope, slot));
    expect([error.code, error.kind]).toEqual(['source_replaced', 'operator']);
    expect(error.message).toContain('timeline 2');
  });
});

describe('dropSlot', () => {
  it('is idempotent, remembers that the slot is gone, and does not let it come back', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const slot = await ensureSlot(scope);
    await dropSlot(scope);
    await dropSlot(scope);
    expect(await slotNames(pair)).toEqual([]);
    expect(slotOf(scope)).toEqual({ ...slot, dropped: true });
    expect((await errorOf(ensureSlot(scope))).code).toBe('slot_lost');
    expect(await slotNames(pair)).toEqual([]);
  });
});

describe('abandonSlot', () => {
  it('drops what is left of the slot, and makes another incarnation possible', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const slot = await ensureSlot(scope);
    await abandonSlot(scope);
    await abandonSlot(scope);
    expect(await slotNames(pair)).toEqual([]);
    const next = await ensureSlot(scope);
    expect(next.name).toBe(slot.name);
    expect(next.incarnation).not.toBe(slot.incarnation);
  });

  it('leaves alone what bears the name on another cluster', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const slot = await ensureSlot(scope);
    scope.checkpoints.set('slot', { ...slot, system: { id: '1', timeline: 1 } });
    await abandonSlot(scope);
    expect(await slotNames(pair)).toEqual([slot.name]);
    expect((await errorOf(ensureSlot(scope))).code).toBe('slot_stranger');
    await pair.source.query('select pg_drop_replication_slot($1)', [slot.name]);
  });
});

describe('ensurePublication', () => {
  it.each([13, 16] as const)(
    'publishes the leaves of a partitioned table, not its root, on %i',
    async (source) => {
      const pair = await makePair({ source });
      const scope = await prepare(
        pair,
        `create table public.p (id int primary key) partition by range (id);
       create table public.p1 partition of public.p for values from (0) to (10);
       create table public.p2 partition of public.p for values from (10) to (20)`,
      );
      await ensurePublication(scope);
      await ensurePublication(scope);
      const { rows } = await pair.source.query<{ name: string }>(
        `select tablename::text as name from pg_publication_tables where pubname = $1 order by 1`,
        [taskObjectName(scope.taskId)],
      );
      const marker = source === 13 ? [`marker_${scope.taskId}`] : [];
      expect(rows.map((row) => row.name)).toEqual([...marker, 'p1', 'p2'].sort());
      await dropPublication(scope);
      await dropPublication(scope);
      const left = await pair.source.query(`select 1 from pg_publication union all
      select 1 from pg_namespace where nspname = 'dts'`);
      expect(left.rowCount).toBe(0);
      expect((await errorOf(ensurePublication(scope))).code).toBe('publication_lost');
    },
  );

  it('reports a publication that is gone or changed as lost', async () => {
    const pair = await makePair();
    const scope = await ready(pair);
    const name = taskObjectName(scope.taskId);
    await pair.source.query(`alter publication "${name}" set (publish = 'insert')`);
    expect((await errorOf(ensurePublication(scope))).code).toBe('publication_lost');
    await pair.source.query(`alter publication "${name}" set (publish = 'insert, update, delete, truncate')`);
    await ensurePublication(scope);
    await pair.source.query(`alter publication "${name}" drop table public.t`);
    const changed = await errorOf(ensurePublication(scope));
    expect(changed.code).toBe('publication_lost');
    expect(changed.message).toContain('public.t');
    await pair.source.query(`drop publication "${name}"`);
    expect((await errorOf(ensurePublication(scope))).code).toBe('publication_lost');
  });

  const publications = async (pair: DatabasePair): Promise<unknown[]> =>
    (await pair.source.query('select pubname as name, oid from pg_publication')).rows;

  it('refuses a publication of its name that it did not make, and leaves it alone', async () => {
    const pair = await makePair();
    const scope = await prepare(pair, ddl);
    const name = taskObjectName(scope.taskId);
    await pair.source.query(`create publication "${name}" for table public.t`);
    const before = await publications(pair);
    expect((await errorOf(ensurePublication(scope))).code).toBe('slot_stranger');
    await dropPublication(scope);
    // what a kill between the record and CREATE PUBLICATION leaves, before somebody took the name
    scope.checkpoints.set('publication', { state: 'creating' });
    expect((await errorOf(ensurePublication(scope))).code).toBe('slot_stranger');
    await dropPublication(scope);
    expect(await publications(pair)).toEqual(before);
    await pair.source.query(`drop publication "${name}"`);
  });

  it('leaves alone a publication that somebody made between its look-up and its creation', async () => {
    const pair = await makePair();
    const scope = await prepare(pair, ddl);
    const name = taskObjectName(scope.taskId);
    const transaction = scope.source.transaction.bind(scope.source);
    let before: unknown[] = [];
    scope.source.transaction = async (work, options) => {
      if (before.length === 0) {
        await pair.source.query(`create publication "${name}" for table public.t with (publish = 'insert')`);
        before = await publications(pair);
      }
      return transaction(work, options);
    };
    expect((await errorOf(ensurePublication(scope))).code).toBe('slot_stranger');
    await dropPublication(makeScope(pair, {}, scope));
    expect(await publications(pair)).toEqual(before);
    await pair.source.query(`drop publication "${name}"`);
  });

  it('keeps the publication of its own interrupted start, and makes it again when the plan has changed', async () => {
    const pair = await makePair();
    const scope = await prepare(pair, ddl);
    await ensurePublication(scope);
    const first = await publications(pair);
    scope.checkpoints.set('publication', { state: 'creating' });
    await ensurePublication(scope);
    expect(await publications(pair)).toEqual(first);
    await pair.source.query(`alter publication "${taskObjectName(scope.taskId)}" drop table public.t`);
    scope.checkpoints.set('publication', { state: 'creating' });
    await ensurePublication(scope);
    const again = await publications(pair);
    expect(again).toHaveLength(1);
    expect(again).not.toEqual(first);
  });
});
