// COPY between two sockets: what arrives, what happens when one end fails, and that `pg` gets its clients back.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createSecureContext, TLSSocket } from 'node:tls';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import type { MigrationError } from '../../src/model/errors.ts';
import type { Session } from '../../src/postgres/connections.ts';
import { copyStream, type CopyCounts, type CopyStreamOptions } from '../../src/postgres/copy-stream.ts';
import { contentOf, onBoth } from '../support/copy-plan.ts';
import { makePair, registerServer, waitFor, type DatabasePair } from '../support/databases.ts';
import { enableTls } from '../support/extra-servers.ts';
import { makeProxy, through } from '../support/proxy.ts';
import { makeScope, type TestScope } from '../support/scope.ts';
import { startServer } from '../support/servers.ts';

interface Ends {
  readonly source: Session;
  readonly target: Session;
}

async function openEnds(scope: TestScope): Promise<Ends> {
  const { signal } = scope;
  const ends = {
    source: await scope.source.session({ purpose: 'copy', signal }),
    target: await scope.target.session({ purpose: 'copy', signal }),
  };
  onTestFinished(async () => {
    await ends.source.close();
    await ends.target.close();
  });
  return ends;
}

async function run(
  scope: TestScope,
  ends: Ends,
  over: Partial<CopyStreamOptions> & { readonly format?: string } = {},
): Promise<CopyCounts> {
  const format = over.format ?? 'binary';
  return copyStream({
    ...ends,
    sourceSide: scope.source,
    copyOut: `copy public.t to stdout (format ${format})`,
    copyIn: `copy public.t from stdin (format ${format})`,
    signal: scope.signal,
    context: { relation: 'public.t', part: 0 },
    ...over,
  });
}

async function failureOf(work: Promise<unknown>): Promise<MigrationError> {
  return work.then(
    () => Promise.reject(new Error('it did not fail')),
    (error: unknown) => error as MigrationError,
  );
}

async function expectUsable({ client }: Session): Promise<void> {
  await client.query('rollback');
  const { rows } = await client.query<{ n: string; p: number }>(
    'select count(*)::text as n, $1::int as p from generate_series(1, 20000)',
    [7],
  );
  expect(rows).toEqual([{ n: '20000', p: 7 }]);
}

interface MemoryWatch {
  readonly look: () => void;
  readonly sample: () => void;
  /** Of buffers of ours, of those and OpenSSL's, and of the whole process. */
  readonly grownBy: () => { readonly arrayBuffers: number; readonly external: number; readonly rss: number };
}

/** Memory that is still in use: looked at after a collection, by `sample` at every `every`th call. */
function watchMemory(every: number): MemoryWatch {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const used = (): NodeJS.MemoryUsage => {
    collect();
    collect(); // finishes the sweeping of the first, which is concurrent
    return process.memoryUsage();
  };
  const before = used();
  const most = { arrayBuffers: 0, external: 0, rss: 0 };
  const kinds = ['arrayBuffers', 'external', 'rss'] as const;
  let calls = 0;
  const look = (): void => {
    const now = used();
    for (const kind of kinds) most[kind] = Math.max(most[kind], now[kind]);
  };
  return {
    look,
    sample: () => {
      if (++calls % every === 0) look();
    },
    grownBy: () => {
      for (const kind of kinds) {
        expect(most[kind]).toBeGreaterThan(0);
        most[kind] -= before[kind];
      }
      return most;
    },
  };
}

const MB = 1024 * 1024;

const table = 'create table t (id int, body text)';

describe.each([
  ['binary', 13],
  ['text', 16],
] as const)('a %s COPY from %i to 18', (format, major) => {
  it('arrives whole, is counted, and both clients run queries and further copies afterwards', async () => {
    const pair = await makePair({ source: major });
    await onBoth(pair, table);
    await pair.source.query(
      `insert into t select n, case n % 3 when 0 then null else repeat('x', n % 700) end from generate_series(1, 30000) n`,
    );
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    const seen: number[] = [];
    for (let round = 1; round <= 3; round++) {
      await ends.target.client.query('truncate public.t');
      const counts = await run(scope, ends, { format, onChunk: (rows) => void seen.push(rows) });
      expect(counts.rows).toBe(30_000);
      expect(counts.bytes).toBeGreaterThan(6_000_000);
      expect(await contentOf(pair.target, 't')).toEqual(await contentOf(pair.source, 't'));
      await expectUsable(ends.source);
      await expectUsable(ends.target);
    }
    expect(seen.length).toBeGreaterThan(50); // told while it runs
  });

  it('takes no rows at all', async () => {
    const pair = await makePair({ source: major });
    await onBoth(pair, table);
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    expect((await run(scope, ends, { format })).rows).toBe(0);
    await expectUsable(ends.source);
  });

  it('a pace that has it wait at its last byte does not keep the source from what comes next', async () => {
    const pair = await makePair({ source: major });
    await onBoth(pair, table);
    await pair.source.query(`insert into t select n, 'few' from generate_series(1, 10) n`);
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    let owesMs = 0;
    const pace = { take: () => void (owesMs = 200), waitMs: () => owesMs };
    expect((await run(scope, ends, { format, pace })).rows).toBe(10);
    expect(owesMs).toBe(200);
    await expectUsable(ends.source);
    await expectUsable(ends.target);
  }, 20_000);

  it('takes a value of 20 MB without holding it', async () => {
    const pair = await makePair({ source: major });
    await onBoth(pair, table);
    await pair.source.query(
      `insert into t select 1, string_agg(md5(n::text), '') from generate_series(1, 655360) n`,
    );
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    const memory = watchMemory(20);
    await run(scope, ends, { format, onChunk: memory.sample });
    expect(memory.grownBy().arrayBuffers).toBeLessThan(2 * MB);
    expect(await contentOf(pair.target, 't')).toEqual(await contentOf(pair.source, 't'));
  });
});

it('lets notices and changed settings through to pg while rows flow', async () => {
  const pair = await makePair();
  await onBoth(pair, table);
  await pair.source.query(`
    create function noisy(n int) returns text language plpgsql as $$
    begin
      raise notice 'row %', n;
      perform set_config('application_name', 'dts/renamed ' || n, false);
      return 'x';
    end $$`);
  const scope = makeScope(pair);
  const ends = await openEnds(scope);
  const notices: string[] = [];
  ends.source.client.on('notice', ({ message }) => void notices.push(message ?? ''));
  await run(scope, ends, {
    copyOut: 'copy (select n, public.noisy(n) from generate_series(1, 50) n) to stdout (format binary)',
  });
  expect(notices).toHaveLength(50);
  expect((await contentOf(pair.target, 't')).count).toBe('50');
  await expectUsable(ends.source);
});

describe('when an end fails', () => {
  async function bigPair(): Promise<DatabasePair> {
    const pair = await makePair();
    await onBoth(pair, table);
    await pair.source.query(`insert into t select n, repeat('x', 500) from generate_series(1, 60000) n`);
    return pair;
  }

  it('an error of the source reaches the target as CopyFail: nothing stays, both clients are usable', async () => {
    const pair = await bigPair();
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    // no transaction and text: a COPY that merely ended here would keep whole rows
    const failure = await failureOf(
      run(scope, ends, {
        copyOut: `copy (select id, (body || 1 / (50000 - id))::text from public.t) to stdout (format text)`,
        copyIn: 'copy public.t from stdin (format text)',
      }),
    );
    expect(failure).toMatchObject({
      code: 'copy_failed',
      kind: 'operator',
      details: {
        role: 'source',
        relation: 'public.t',
        part: 0,
        sqlstate: '22012',
        rowsRead: 49_999,
      },
    });
    expect(failure.cause).toBeInstanceOf(Error);
    await expectUsable(ends.source);
    await expectUsable(ends.target);
    expect((await contentOf(pair.target, 't')).count).toBe('0');
  });

  it('an error of the target names relation, part and row, and ends the source', async () => {
    const pair = await bigPair();
    await pair.target.query('alter table t add check (id <> 30000)');
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    await ends.target.client.query('begin');
    const failure = await failureOf(run(scope, ends));
    expect(failure).toMatchObject({
      code: 'copy_failed',
      details: { role: 'target', relation: 'public.t', part: 0, sqlstate: '23514' },
    });
    expect(String(failure.details?.['where'])).toContain('COPY t, line 30000');
    await expectUsable(ends.target);
    await waitFor(
      async () =>
        (
          await pair.source.query(
            `select 1 from pg_stat_activity where application_name like 'dts/%/copy' and state = 'active'`,
          )
        ).rowCount === 0,
    );
  });

  it('a refused COPY FROM does not ask the source at all', async () => {
    const pair = await bigPair();
    await pair.target.query('drop table t');
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    expect(await failureOf(run(scope, ends))).toMatchObject({
      code: 'copy_failed',
      details: { sqlstate: '42P01' },
    });
  });

  it('a table that is gone on the source is source_ddl', async () => {
    const pair = await bigPair();
    await pair.source.query('alter table t rename to elsewhere');
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    expect(await failureOf(run(scope, ends))).toMatchObject({ code: 'source_ddl', kind: 'operator' });
    await expectUsable(ends.target);
  });

  it.each(['source', 'target'] as const)(
    'a %s backend that is terminated is a lost connection',
    async (role) => {
      const pair = await bigPair();
      const scope = makeScope(pair);
      const ends = await openEnds(scope);
      let asked = false;
      const failure = await failureOf(
        run(scope, ends, {
          onChunk: () => {
            if (!asked) void pair[role].query('select pg_terminate_backend($1)', [ends[role].pid]);
            asked = true;
          },
        }),
      );
      expect(failure).toMatchObject({ code: 'connection_failed', kind: 'transient', details: { role } });
    },
  );

  it('a throw of the caller ends both sides and is the cause', async () => {
    const pair = await bigPair();
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    const boom = new Error('boom');
    const failure = await failureOf(
      run(scope, ends, {
        onChunk: () => {
          throw boom;
        },
      }),
    );
    expect(failure.cause).toBe(boom);
  });

  it('different row counts are an error', async () => {
    const pair = await bigPair();
    await pair.target.query(`
      create function skip() returns trigger language plpgsql as $$ begin return case when new.id = 5 then null else new end; end $$;
      create trigger skip before insert on t for each row execute function skip()`);
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    expect(await failureOf(run(scope, ends))).toMatchObject({ code: 'copy_failed', kind: 'bug' });
  });

  it('an abort ends a COPY within a second, even while the target takes nothing', async () => {
    const pair = await bigPair();
    const scope = makeScope(pair);
    const ends = await openEnds(scope);
    const controller = new AbortController(); // not the sessions' own signal, which closes them anyway
    // every row waits for a lock that is never given up
    await pair.target.query(`
      create table gate ();
      create function wait() returns trigger language plpgsql as $$ begin perform from public.gate; return new; end $$;
      create trigger wait before insert on t for each row execute function wait()`);
    const blocker = await pair.target.connect();
    await blocker.query('begin; lock table gate');
    const work = failureOf(run(scope, ends, { signal: controller.signal }));
    await waitFor(
      async () => (await pair.target.query(`select 1 from pg_locks where not granted`)).rowCount === 1,
    );
    const began = Date.now();
    controller.abort();
    expect(await work).toMatchObject({ code: 'aborted', kind: 'aborted' });
    expect(Date.now() - began).toBeLessThan(1_000);
    await blocker.query('rollback');
  });
});

describe('a source that sends nothing for longer than the limit', () => {
  it('is waited for while its backend looks for rows', async () => {
    const pair = await makePair();
    await onBoth(pair, table);
    await pair.source.query(`insert into t select n, 'x' from generate_series(1, 10) n`);
    const scope = makeScope(pair);
    const stalls: [string, boolean][] = [];
    const { rows } = await run(scope, await openEnds(scope), {
      copyOut:
        'copy (select id, body from public.t where (select pg_sleep(4.5)) is not null and id > 5) to stdout (format binary)',
      stallLimitMs: 1_000,
      onStall: (_ms, role, isAtWork) => void stalls.push([role, isAtWork]),
    });
    expect(rows).toBe(5);
    expect(stalls.at(-1)).toEqual(['source', true]);
  });

  it('is given up when what it sends does not arrive', async () => {
    const pair = await makePair();
    const proxy = await makeProxy(pair.source.port);
    await onBoth(pair, table);
    await pair.source.query(`insert into t select n, repeat('x', 500) from generate_series(1, 60000) n`);
    const scope = makeScope({ ...pair, source: through(proxy, pair.source) });
    const ends = await openEnds(scope);
    let asked = 0;
    const sourceSide: CopyStreamOptions['sourceSide'] = {
      query: (sql, params) => {
        asked++;
        return scope.source.query(sql, params);
      },
    };
    const failure = await failureOf(
      run(scope, ends, { sourceSide, stallLimitMs: 1_000, onChunk: proxy.forget }),
    );
    expect(failure).toMatchObject({
      code: 'deadline_exceeded',
      kind: 'transient',
      details: { role: 'source', relation: 'public.t', part: 0 },
    });
    expect(asked).toBe(1);
    await pair.source.query('select pg_terminate_backend($1)', [ends.source.pid]); // its goodbye is not heard
  });
});

/** Speaks TLS to `pg` and plain text to the server, as a server with TLS looks from our side. */
async function tlsProxy(port: number): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'dts-copy-tls-'));
  const request =
    'req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out crt.pem';
  execFileSync('openssl', request.split(' '), { cwd: folder, stdio: 'pipe' });
  const secureContext = createSecureContext({
    key: readFileSync(join(folder, 'key.pem')),
    cert: readFileSync(join(folder, 'crt.pem')),
  });
  const sockets = new Set<Socket>();
  const server = createServer((plain) => {
    sockets.add(plain);
    plain.on('error', () => undefined);
    plain.once('data', () => {
      plain.write('S');
      const secure = new TLSSocket(plain, { isServer: true, secureContext });
      const upstream = connect(port, '127.0.0.1');
      sockets.add(upstream);
      for (const socket of [secure, upstream]) socket.on('error', () => undefined);
      secure.pipe(upstream).pipe(secure);
      secure.once('close', () => upstream.destroy());
      upstream.once('close', () => secure.destroy());
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
    rmSync(folder, { recursive: true });
  });
  return (server.address() as { port: number }).port;
}

it('works over TLS on both sides', async () => {
  const pair = await makePair();
  await onBoth(pair, table);
  await pair.source.query(`insert into t select n, repeat('y', n % 3000) from generate_series(1, 20000) n`);
  const [sourcePort, targetPort] = [await tlsProxy(pair.source.port), await tlsProxy(pair.target.port)];
  const scope = makeScope(pair, {
    sourceDb: { ...pair.source.connection, port: sourcePort, sslmode: 'require' },
    targetDb: { ...pair.target.connection, port: targetPort, sslmode: 'require' },
  });
  const ends = await openEnds(scope);
  for (const format of ['binary', 'text']) {
    await ends.target.client.query('truncate public.t');
    await run(scope, ends, { format });
    expect(await contentOf(pair.target, 't')).toEqual(await contentOf(pair.source, 't'));
    await expectUsable(ends.source);
    await expectUsable(ends.target);
  }
});

it('needs 2 MB for a table of 300 MB', async () => {
  const pair = await makePair();
  await onBoth(pair, 'create table t (id int, body text); alter table t alter body set storage plain');
  await pair.source.query(`insert into t select n, repeat('z', 3000) from generate_series(1, 100000) n`);
  const scope = makeScope(pair);
  const ends = await openEnds(scope);
  const memory = watchMemory(100);
  const { bytes } = await run(scope, ends, { onChunk: memory.sample });
  expect(bytes).toBeGreaterThan(300_000_000);
  expect(memory.grownBy().arrayBuffers).toBeLessThan(2 * MB);
});

describe('with a server that speaks TLS', () => {
  let server: EmbeddedServer;

  beforeAll(async () => {
    server = await startServer({ major: 17 });
    await enableTls(server);
    registerServer(17, server);
  });
  afterAll(() => server?.stop());

  it.each([
    ['source', { source: 17, target: 18 }],
    ['target', { source: 16, target: 17 }],
  ] as const)(
    'as %s, neither a large value nor what a slow target does not take is held',
    async (role, majors) => {
      const pair = await makePair(majors);
      await onBoth(pair, 'create table t (id int, body text); alter table t alter body set storage external');
      const field = `${role}Db` as const;
      const scope = makeScope(pair, { [field]: { ...pair[role].connection, sslmode: 'require' } });
      const ends = await openEnds(scope);
      const { rows: encrypted } = await ends[role].client.query(
        'select from pg_stat_ssl where pid = pg_backend_pid() and ssl',
      );
      expect(encrypted).toHaveLength(1);

      await pair.source.query(`insert into t select 0, repeat(md5('x'), 655360)`); // 20 MB
      const value = watchMemory(20);
      await run(scope, ends, { onChunk: value.sample });
      const ofValue = value.grownBy();
      expect(ofValue.external).toBeLessThan(2 * MB);
      expect(ofValue.rss).toBeLessThan(16 * MB);

      await pair.source.query(
        `truncate t; insert into t select n, repeat('z', 3000) from generate_series(1, 20000) n`, // 60 MB
      );
      await pair.target.query(`
      create table gate ();
      create function wait() returns trigger language plpgsql as $$ begin perform from public.gate; return new; end $$;
      create trigger wait before insert on t for each row when (new.id = 1) execute function wait()`);
      const blocker = await pair.target.connect();
      await blocker.query('begin; lock table gate');
      let sent = 0;
      const rows = watchMemory(50);
      const work = run(scope, ends, {
        onChunk: (_rows, bytes) => {
          sent = bytes;
          rows.sample();
        },
      });
      const standsStill = async (): Promise<boolean> => {
        const before = sent;
        await new Promise((resolve) => setTimeout(resolve, 500));
        return sent > 0 && sent === before;
      };
      await waitFor(standsStill, 20_000, 'a source that is held back');
      rows.look();
      expect(sent).toBeLessThan(40 * MB); // of 60; the buffers of the kernel, up to 36 MB where it may take them, are the most of it
      await blocker.query('rollback');
      expect((await work).rows).toBe(20_000);
      const ofRows = rows.grownBy();
      expect(ofRows.external).toBeLessThan(2 * MB);
      expect(ofRows.rss).toBeLessThan(32 * MB);
    },
  );
});
