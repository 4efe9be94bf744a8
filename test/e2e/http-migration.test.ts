// A whole migration by HTTP as the README tells it, from an old source to a new target, while writers go on.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { describe, expect, onTestFinished, test } from 'vitest';
import { expectEqualTables, rowsOf } from '../support/compare.ts';
import { leaksOf, makePair, waitFor, type TestDatabase } from '../support/databases.ts';
import {
  cutOver,
  makeDataDir,
  migrationBody,
  startMigration,
  startService,
  type ServiceProcess,
} from '../support/service-process.ts';
import { loadShop, shopTables, startWriters } from '../support/shop.ts';

/** Collects server-sent events until the test ends. */
async function collectEvents(
  service: ServiceProcess,
  path: string,
  lastEventId?: string,
): Promise<EventSourceMessage[]> {
  const controller = new AbortController();
  onTestFinished(() => controller.abort());
  const response = await fetch(`${service.url}/api/v1${path}`, {
    signal: controller.signal,
    headers: lastEventId === undefined ? {} : { 'last-event-id': lastEventId },
  });
  expect(response.headers.get('content-type')).toContain('text/event-stream');
  const events: EventSourceMessage[] = [];
  const parser = createParser({ onEvent: (event) => void events.push(event) });
  void (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>)
      parser.feed(decoder.decode(chunk, { stream: true }));
  })().catch(() => undefined);
  return events;
}

const statesOf = (events: readonly EventSourceMessage[]): string[] =>
  events
    .filter((event) => event.event === 'state')
    .map((event) => (JSON.parse(event.data) as { state: string }).state);

/** What a new session gets that changes nothing itself: of the server, and of every database and role that this test has. */
async function settingsOfServer(database: TestDatabase): Promise<unknown> {
  const client = await database.connect();
  const { rows: ofServer } = await client.query(
    'select name, setting, reset_val, source, sourcefile from pg_settings order by name',
  );
  const { rows: ofOthers } = await client.query(
    `select s.setrole::regrole::text as role, s.setconfig from pg_db_role_setting s
      where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
        and s.setrole in (0, current_user::regrole) order by 1`,
  );
  await client.end();
  return { ofServer, ofOthers };
}

test.each([13, 16] as const)(
  'PostgreSQL %s to 18: every table arrives while writers go on, and no setting of a server is changed',
  async (major) => {
    const pair = await makePair({ source: major, target: 18 });
    await loadShop(pair.source, 3_000);
    await pair.source.query(`create table public.spans (id int primary key, span int4range);
      insert into public.spans values (1, '[1,5)')`);
    const dataDir = makeDataDir();
    const service = await startService({ dataDir });
    const body = migrationBody(pair, { id: `shop_${major}`, table_suffix: '_migrated' });
    const settingsOf = async (): Promise<unknown[]> => [
      await settingsOfServer(pair.source),
      await settingsOfServer(pair.target),
    ];
    const settings = await settingsOf();

    const preflight = await service.call<{
      blocked: boolean;
      findings: { severity: string; remedy: string | null }[];
    }>('POST', '/preflight', body);
    expect(preflight.status).toBe(200);
    expect(preflight.body.blocked).toBe(false);

    const id = await startMigration(service, body);
    const repeated = await service.call('POST', '/migrations', body);
    expect([repeated.status, repeated.body['id']]).toEqual([200, id]);
    expect((await service.call('POST', '/migrations', { ...body, table_suffix: '_other' })).status).toBe(409);
    const writers = await startWriters(pair.source, 4);
    const events = await collectEvents(service, `/migrations/${id}/events`);
    await service.reaches(id, 'syncingWal');
    const before = writers.writes();
    await waitFor(() => writers.writes() > before + 200);
    const metrics = await waitFor(async () => {
      const text = await (await fetch(`${service.url}/metrics`)).text();
      return text.includes('dts_task_slot_retained_bytes') ? text : null;
    });
    expect(metrics).toContain(`dts_task_state{task="${id}",state="syncingWal"} 1`);
    expect(metrics).toMatch(
      new RegExp(`dts_task_lag_bytes\\{task="${id}",ahead="source",behind="applied"\\} \\d+`),
    );
    expect(metrics).toMatch(/dts_task_copied_rows\{[^}]+\} [1-9]/);
    expect(await settingsOf()).toEqual(settings);
    await cutOver(service, id);
    await writers.stop();
    expect(writers.refused()).toBeGreaterThan(0);
    expect(await settingsOf()).toEqual(settings);

    await expectEqualTables(pair.source, pair.target, [
      ...shopTables('_migrated'),
      ['public.spans', 'public.spans_migrated'],
    ]);
    const { body: tables } = await service.call<{
      tables: { table: string; state: string; rows_copied: number; format: string; format_reason: string }[];
    }>('GET', `/migrations/${id}/tables`);
    const binary = 'binary: every column has the same binary form on both servers';
    expect(
      Object.fromEntries(
        tables.tables.map(({ table, state, format, format_reason: reason }) => [
          `${table} ${state}`,
          `${format}: ${reason}`,
        ]),
      ),
    ).toEqual({
      'public.audit_new ready': binary,
      'public.audit_old ready': binary,
      'public.orders ready': binary,
      'public.spans ready': 'text: column span: int4range has no binary form that all majors share',
      'public.users ready': binary,
      'sales.Order Lines ready': binary,
    });
    const { body: task } = await service.call<{
      certificate: { tables: { equal: boolean; source_rows: number }[]; sequences: unknown[] };
    }>('GET', `/migrations/${id}`);
    expect(task.certificate.tables).toHaveLength(6);
    expect(task.certificate.tables.every((table) => table.equal)).toBe(true);
    expect(task.certificate.tables.reduce((sum, table) => sum + table.source_rows, 0)).toBeGreaterThan(
      20_000,
    );

    // the target can be written to: sequences and identities go on where the source stood
    await pair.target.query(`insert into public.users_migrated (email) values ('new@example.org')`);
    // both sides' dumps differ in the new names only
    expect(task).toMatchObject({ certificate: { schema: { equal: true, differences: [], error: null } } });
    const schema = await service.call('GET', `/migrations/${id}/schema`);
    expect(schema.body).toMatchObject({ planned: true, comparison: { equal: true, differences: [] } });
    const { statements } = schema.body as { statements: { state: string; sql: string }[] };
    expect(statements.filter(({ state }) => state !== 'done')).toEqual([]);
    expect(statements.some(({ sql }) => sql.startsWith('CREATE TABLE public."orders_migrated"'))).toBe(true);
    expect((await service.call('GET', `/migrations/${id}/schema?x=1`)).status).toBe(400);
    await pair.target.query(`insert into public.orders_migrated (user_id, total) values (1, 1)`);
    await expect(
      pair.target.query(`insert into public.orders_migrated (user_id, total) values (-1, 1)`),
    ).rejects.toMatchObject({ code: '23503' });

    await waitFor(() => statesOf(events).includes('completed'));
    const seen = [...new Set(statesOf(events))];
    expect(seen).toEqual([
      'created',
      'queued',
      'init',
      'creatingTables',
      'migratingData',
      'syncingWal',
      'stoppingWrites',
      'validating',
      'finalizing',
      'completed',
    ]);
    const third = events.filter((event) => event.event === 'state')[2];
    const resumed = await collectEvents(service, `/migrations/${id}/events`, third?.id);
    await waitFor(() => statesOf(resumed).includes('completed'));
    expect(statesOf(resumed)).toEqual(statesOf(events).slice(3));

    await expect(pair.source.query('delete from public.orders')).rejects.toMatchObject({ code: '25006' });
    expect((await service.call('DELETE', `/migrations/${id}`)).status).toBe(409); // it still fences the source
    expect((await service.call('POST', `/migrations/${id}/unfence`)).status).toBe(200);
    await pair.source.query(`update public.users set bio = 'writable again' where id = 1`);
    expect((await service.call('DELETE', `/migrations/${id}`)).status).toBe(204);
    expect((await service.call('GET', `/migrations/${id}`)).status).toBe(404);

    const { password } = pair.source;
    const answers = JSON.stringify([
      preflight.body,
      task,
      events,
      tables,
      (await service.call('GET', '/migrations')).body,
    ]);
    expect(answers).not.toContain(password);
    expect(service.log.join('\n')).not.toContain(password);
    for (const file of readdirSync(dataDir))
      expect(readFileSync(join(dataDir, file)).includes(password), file).toBe(false);
  },
);

test('users and orders alone bring their types and sequences, and nothing else', async () => {
  const pair = await makePair();
  await loadShop(pair.source, 200);
  const service = await startService({ dataDir: makeDataDir() });
  const id = await startMigration(
    service,
    migrationBody(pair, {
      tables: ['users', 'orders'],
      table_suffix: '_migrated',
      options: { cutover: 'auto', keep_fence: false },
    }),
  );
  await service.reaches(id, 'completed');
  await expectEqualTables(pair.source, pair.target, shopTables('_migrated').slice(0, 2));
  const { rows } = await pair.target.query<{ name: string }>(
    `select relname as name from pg_class where relkind in ('r', 'p') and relnamespace::regnamespace::text in ('public', 'sales') order by 1`,
  );
  expect(rows.map(({ name }) => name)).toEqual(['orders_migrated', 'users_migrated']);
  expect(await leaksOf(pair.source)).toEqual([]);
});

test('the same database can be source and target under a suffix', async () => {
  const { source } = await makePair({ source: 18, target: 18 });
  await loadShop(source, 200);
  const service = await startService({ dataDir: makeDataDir() });
  const id = await startMigration(
    service,
    migrationBody(
      { source, target: source },
      { tables: ['users'], table_suffix: '_copy', options: { cutover: 'auto', keep_fence: false } },
    ),
  );
  await service.reaches(id, 'completed');
  expect(await rowsOf(source, 'public.users_copy')).toEqual(await rowsOf(source, 'public.users'));
});

test('a cutover whose gates are closed says why, stays asked for, and begins when they open', async () => {
  const pair = await makePair();
  await pair.source.query(`create table t (id int primary key, v text);
    insert into t select g, repeat('x', 200) from generate_series(1, 100) g`);
  const service = await startService({ dataDir: makeDataDir() });
  const options = {
    keep_fence: false,
    cutover_max_lag_bytes: 500_000,
    cutover_max_validation_age_ms: 60_000,
  };
  const id = await startMigration(service, migrationBody(pair, { options }));
  await service.reaches(id, 'syncingWal');
  const waitsFor = async (...gates: readonly RegExp[]): Promise<unknown> =>
    waitFor(async () => {
      const { body } = await service.call('GET', `/migrations/${id}/status`);
      expect(body).toMatchObject({ state: 'syncingWal', fenced: false });
      const given = body['cutover_waits_for'] as readonly string[];
      return given.length === gates.length && gates.every((gate, n) => gate.test(given[n] ?? ''));
    });
  await waitsFor();
  const equal = /^the online validation to find everything equal within 60000 ms$/;
  await pair.target.query(`update t set v = 'another' where id = 7`);
  await service.call('POST', `/migrations/${id}/validate`);
  await waitFor(async () => {
    const { body } = await service.call('GET', `/migrations/${id}/validation`);
    return JSON.stringify(body).includes('"changed":1');
  });
  await waitsFor(equal);
  const blocker = await pair.target.connect();
  await blocker.query('begin; lock table t in exclusive mode');
  await pair.source.query(
    `update t set v = (select string_agg(md5((t.id * g)::text), '') from generate_series(1, 300) g)`,
  );
  await waitsFor(/^the lag, which is \d{6,} bytes, to be at most 500000 bytes$/, equal);

  const asked = await service.call('POST', `/migrations/${id}/cutover`);
  expect(asked).toMatchObject({ status: 200, body: { state: 'syncingWal' } });
  expect(asked.body['cutover_waits_for']).toHaveLength(2);
  expect((await service.call('POST', `/migrations/${id}/cutover`)).status).toBe(200);
  await pair.source.query(`insert into t values (0, 'writes go on')`);
  await blocker.query('rollback');
  // the stream has put the row right that differed
  await service.reaches(id, 'completed');
  expect((await service.call('GET', `/migrations/${id}/status`)).body['cutover_waits_for']).toEqual([]);
  await expectEqualTables(pair.source, pair.target, [['t', 't']]);
});

test('a settled validation tells of each table how much was read, and up to where', async () => {
  const pair = await makePair();
  await pair.source.query(`create table plain (id int primary key, v int); create table bare (v int);
    alter table bare replica identity full; create table empty (id int primary key);
    insert into plain select g, g from generate_series(1, 30000) g; insert into bare values (1), (1); analyze`);
  const service = await startService({ dataDir: makeDataDir() });
  const id = await startMigration(service, migrationBody(pair, { options: { keep_fence: false } }));
  await service.reaches(id, 'syncingWal');
  const lsnOf = async (): Promise<unknown> =>
    (await pair.source.query('select pg_current_wal_lsn()::text as lsn')).rows[0]?.['lsn'];
  await pair.source.query('delete from plain where id > 25000');
  const [before, asked] = [await lsnOf(), Date.now()];
  expect((await service.call('POST', `/migrations/${id}/validate`)).status).toBe(200);
  const body = await waitFor(async () => {
    const answer = await service.call('GET', `/migrations/${id}/validation`);
    const { settled_at, tables } = answer.body as {
      settled_at: string | null;
      tables: { rows: number; state: string }[];
    };
    const read =
      tables.some(({ rows }) => rows === 25_000) && tables.every(({ state }) => state === 'verified');
    return read && Date.parse(settled_at ?? '') > asked ? answer.body : null;
  });
  const whole = { differences: { missing: 0, extra: 0, changed: 0, samples: [] } };
  const verified = {
    state: 'verified',
    verified_lsn: expect.stringMatching(/^[0-9A-F]+\/[0-9A-F]+$/) as unknown,
  };
  expect(body).toEqual({
    started_at: expect.any(String) as unknown,
    settled_at: expect.any(String) as unknown,
    keys_in_doubt: 0,
    keys_waiting: 0,
    clean: true,
    error: null,
    repairs: [],
    tables: [
      {
        table: 'public.bare',
        target: 'public.bare',
        rows: 2,
        rows_estimated: 2,
        ranges: 1,
        ...verified,
        ...whole,
      },
      {
        table: 'public.empty',
        target: 'public.empty',
        rows: 0,
        rows_estimated: 0,
        ranges: 1,
        ...verified,
        ...whole,
      },
      {
        table: 'public.plain',
        target: 'public.plain',
        rows: 25_000,
        rows_estimated: 30_000,
        ranges: 1,
        ...verified,
        ...whole,
      },
    ],
  });
  const { tables } = body as { tables: { verified_lsn: string }[] };
  const positions = [before, tables[2]?.verified_lsn, await lsnOf()];
  const { rows } = await pair.source.query(
    'select $1::pg_lsn <= $2::pg_lsn as later, $2::pg_lsn <= $3::pg_lsn as reached',
    positions,
  );
  expect(rows).toEqual([{ later: true, reached: true }]);
  await cutOver(service, id);
});

describe.each(['database-read-only', 'none'] as const)('fence %s', (fence) => {
  test('a migration is completed, and its certificate says what kept the writers away', async () => {
    const pair = await makePair();
    await pair.source.query(`create table t (id int primary key, v text);
      insert into t select g, 'v' || g from generate_series(1, 100) g`);
    const service = await startService({ dataDir: makeDataDir() });
    const options = { fence, terminate_blockers: true };
    const id = await startMigration(service, migrationBody(pair, { options }));
    await service.reaches(id, 'syncingWal');
    const application = await pair.source.connect();
    await application.query(`update t set v = 'streamed' where id < 10`);
    expect((await leaksOf(pair.source)).filter((leak) => leak.includes('trigger'))).toEqual([]);
    await cutOver(service, id);
    await expectEqualTables(pair.source, pair.target, [['t', 't']]);
    const { body: certificate } = await service.call('GET', `/migrations/${id}/certificate`);
    expect(certificate).toMatchObject({
      fence,
      equal: true,
      schema: { equal: true },
      tables: [{ table: 'public.t', source_rows: 100, equal: true }],
    });
    const stops = fence !== 'none';
    expect(await service.status(id)).toMatchObject({ fenced: stops, error: null, cleanup_pending: false });

    const write = async (): Promise<unknown> =>
      (await pair.source.connect()).query('insert into t values (101)');
    if (stops) {
      await expect(application.query('insert into t values (101)')).rejects.toThrow(); // its session is gone
      await expect(write()).rejects.toMatchObject({ code: '25006' });
      expect((await service.call('DELETE', `/migrations/${id}`)).status).toBe(409);
      expect((await service.call('POST', `/migrations/${id}/unfence`)).status).toBe(200);
      expect(await service.status(id)).toMatchObject({ fenced: false });
    }
    await write();
    const settings = await pair.source.query(
      `select from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
        where d.datname = current_database()`,
    );
    expect(settings.rowCount).toBe(0);
    expect((await service.call('DELETE', `/migrations/${id}`)).status).toBe(204);
  });
});

test('PAUSE in syncing closes every connection, keeps the slot, and RESUME loses nothing', async () => {
  const pair = await makePair();
  await loadShop(pair.source, 500);
  const service = await startService({ dataDir: makeDataDir() });
  const id = await startMigration(service, migrationBody(pair, { table_suffix: '_m' }));
  const writers = await startWriters(pair.source, 3);
  await service.reaches(id, 'syncingWal');
  expect((await service.call('POST', `/migrations/${id}/pause`)).status).toBe(200);
  expect((await service.call('POST', `/migrations/${id}/pause`)).status).toBe(200); // already holds
  await waitFor(async () => (await service.status(id)).connections === 0);
  const { rows } = await pair.source.query('select active from pg_replication_slots where slot_name = $1', [
    `dts_${id}`,
  ]);
  expect(rows).toEqual([{ active: false }]);
  const before = writers.writes();
  await waitFor(() => writers.writes() > before + 100);
  await service.call('POST', `/migrations/${id}/resume`);
  await cutOver(service, id);
  await writers.stop();
  await expectEqualTables(pair.source, pair.target, shopTables('_m'));
  await service.call('POST', `/migrations/${id}/unfence`);
});

test('SIGTERM ends the service within five seconds and the tasks resume', async () => {
  const pair = await makePair();
  await loadShop(pair.source, 2_000);
  const dataDir = makeDataDir();
  const first = await startService({ dataDir });
  const id = await startMigration(
    first,
    migrationBody(pair, { table_suffix: '_m', options: { cutover: 'manual', keep_fence: false } }),
  );
  await first.reaches(id, 'syncingWal');
  const since = Date.now();
  await first.kill('SIGTERM');
  expect(Date.now() - since).toBeLessThan(5_000);
  expect((await first.exited).code).toBe(0);
  const second = await startService({ dataDir });
  await cutOver(second, id);
  await expectEqualTables(pair.source, pair.target, shopTables('_m'));
});
