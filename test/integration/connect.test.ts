// Connections as users configure them: every sslmode against a server with TLS, refusals classified, and nothing left
// open whatever ends a task.
import { execFileSync } from 'node:child_process';
import { chownSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createConnection, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test } from 'vitest';
import type { EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import { MigrationError } from '../../src/model/errors.ts';
import type { Endpoint, EndpointSecrets } from '../../src/model/endpoint.ts';
import { endSessions } from '../../src/postgres/end-sessions.ts';
import { Side } from '../../src/postgres/connections.ts';
import { TaskConnections } from '../../src/postgres/task-connections.ts';
import { makePair, waitFor, type TestDatabase } from '../support/databases.ts';
import { makeProxy, through } from '../support/proxy.ts';
import { makeScope } from '../support/scope.ts';
import { startServer } from '../support/servers.ts';

let server: EmbeddedServer;
let folder: string;
const file = (name: string): string => join(folder, name);
const openssl = (...args: string[]): void =>
  void execFileSync('openssl', args, { cwd: folder, stdio: 'pipe' });

function makeAuthority(name: string): void {
  const request = 'req -x509 -newkey rsa:2048 -nodes -days 2'.split(' ');
  openssl(...request, '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', `${name}.crt`);
}

function makeCertificate(name: string, authority: string, extension: string): void {
  writeFileSync(file(`${name}.ext`), extension);
  const request = 'req -newkey rsa:2048 -nodes'.split(' ');
  openssl(...request, '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', `${name}.csr`);
  const signing = 'x509 -req -days 2 -CAcreateserial -in'.split(' ');
  const by = `-CA ${authority}.crt -CAkey ${authority}.key -extfile ${name}.ext -out ${name}.crt`.split(' ');
  openssl(...signing, `${name}.csr`, ...by);
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'dts-tls-'));
  makeAuthority('ca');
  makeAuthority('stranger');
  makeCertificate('localhost', 'ca', 'subjectAltName=DNS:localhost');
  makeCertificate('certuser', 'ca', 'extendedKeyUsage=clientAuth');
  makeCertificate('impostor', 'stranger', 'extendedKeyUsage=clientAuth');
  server = await startServer({ major: 18 });
  const { uid, gid } = statSync(server.directory);
  const install = (name: string): string => {
    const path = join(server.directory, name);
    writeFileSync(path, readFileSync(file(name)), { mode: 0o600 });
    chownSync(path, uid, gid);
    return path;
  };
  const admin = new pg.Client({ connectionString: server.url('postgres'), ssl: false });
  await admin.connect();
  await admin.query(`create role certuser login; create role plain login password 'secret'`);
  await admin.query(`alter system set ssl_ca_file = '${install('ca.crt')}'`);
  await admin.query(`alter system set ssl_cert_file = '${install('localhost.crt')}'`);
  await admin.query(`alter system set ssl_key_file = '${install('localhost.key')}'`);
  await admin.query('alter system set ssl = on');
  writeFileSync(
    join(server.directory, 'data', 'pg_hba.conf'),
    `hostssl all certuser 127.0.0.1/32 cert
     hostnossl all plain 127.0.0.1/32 scram-sha-256
     host all postgres 127.0.0.1/32 scram-sha-256\n`,
  );
  await admin.query('select pg_reload_conf()');
  await waitFor(async () => (await admin.query<{ ssl: string }>('show ssl')).rows[0]?.ssl === 'on');
  await admin.end();
});

afterAll(async () => {
  await server?.stop();
  rmSync(folder, { recursive: true, force: true });
});

function endpointOf(over: Partial<Endpoint> = {}): Endpoint {
  return {
    host: '127.0.0.1',
    port: server.port,
    user: 'postgres',
    dbname: 'postgres',
    sslmode: 'disable',
    password: { from: 'stored' },
    ...over,
  };
}

function makeSide(
  over: Partial<Endpoint> = {},
  secrets: EndpointSecrets = { password: server.password },
): Side {
  const side = new Side('conn', 'source', endpointOf(over), () => Promise.resolve(secrets));
  onTestFinished(async () => {
    await side.close();
    expect(side.connectionCount).toBe(0);
  });
  return side;
}

async function usesTls(side: Side): Promise<boolean> {
  const { rows } = await side.query<{ ssl: boolean }>(
    'select ssl from pg_stat_ssl where pid = pg_backend_pid()',
  );
  return rows[0]?.ssl ?? false;
}

async function failure(work: Promise<unknown>): Promise<MigrationError> {
  const error = await work.then(
    () => new Error('did not fail'),
    (reason: unknown) => reason,
  );
  if (!(error instanceof MigrationError)) throw error;
  return error;
}

const withoutTls = (): Partial<Endpoint> => ({ port: inject('servers')[16].port });
const itsPassword = (): EndpointSecrets => ({ password: inject('servers')[16].password });

describe('sslmode', () => {
  test('disable stays in plain text', async () => {
    expect(await usesTls(makeSide())).toBe(false);
  });

  test('prefer uses TLS where the server has it and plain text where it has not', async () => {
    expect(await usesTls(makeSide({ sslmode: 'prefer' }))).toBe(true);
    expect(await usesTls(makeSide({ ...withoutTls(), sslmode: 'prefer' }, itsPassword()))).toBe(false);
  });

  test('prefer falls back where pg_hba.conf admits plain text only, but not after a wrong password', async () => {
    expect(await usesTls(makeSide({ sslmode: 'prefer', user: 'plain' }, { password: 'secret' }))).toBe(false);
    const error = await failure(usesTls(makeSide({ sslmode: 'prefer' }, { password: 'wrong' })));
    expect([error.code, error.details?.['sqlstate']]).toEqual(['authentication_failed', '28P01']);
  });

  test('require uses TLS, and refuses a server without it', async () => {
    expect(await usesTls(makeSide({ sslmode: 'require' }))).toBe(true);
    const error = await failure(usesTls(makeSide({ ...withoutTls(), sslmode: 'require' }, itsPassword())));
    expect([error.code, error.kind]).toEqual(['tls_failed', 'operator']);
  });

  test('verify-ca accepts the right authority whatever the host name, as text or as a file', async () => {
    const pem = readFileSync(file('ca.crt'), 'utf8');
    expect(await usesTls(makeSide({ sslmode: 'verify-ca', sslrootcert: pem }))).toBe(true);
    expect(await usesTls(makeSide({ sslmode: 'verify-ca', sslrootcert: file('ca.crt') }))).toBe(true);
  });

  test.each(['require', 'verify-ca', 'verify-full'] as const)(
    '%s with a root certificate refuses a server of another authority',
    async (sslmode) => {
      const side = makeSide({ host: 'localhost', sslmode, sslrootcert: file('stranger.crt') });
      expect((await failure(usesTls(side))).code).toBe('tls_failed');
    },
  );

  test('verify-full accepts the name in the certificate and refuses any other, addresses included', async () => {
    const full = { sslmode: 'verify-full', sslrootcert: file('ca.crt') } as const;
    expect(await usesTls(makeSide({ ...full, host: 'localhost' }))).toBe(true);
    expect((await failure(usesTls(makeSide(full)))).code).toBe('tls_failed');
  });

  test('a certificate file that cannot be read is a TLS failure that names the field', async () => {
    const side = makeSide({ sslmode: 'verify-ca', sslrootcert: file('missing.crt') });
    const error = await failure(usesTls(side));
    expect(error.code).toBe('tls_failed');
    expect(error.message).toContain('sslrootcert');
  });
});

describe('client certificates', () => {
  test('log in, with the key as text or as a file', async () => {
    const base = { sslmode: 'require', user: 'certuser', sslcert: file('certuser.crt') } as const;
    expect(await usesTls(makeSide({ ...base, sslkeyPath: file('certuser.key') }, {}))).toBe(true);
    const sslkey = readFileSync(file('certuser.key'), 'utf8');
    const side = makeSide(base, { sslkey });
    expect(await usesTls(side)).toBe(true);
    expect(JSON.stringify(await side.clientConfig())).not.toContain('PRIVATE KEY');
  });

  test('a missing one is refused as authentication, a strange one as TLS', async () => {
    const none = makeSide({ sslmode: 'require', user: 'certuser' }, {});
    expect((await failure(usesTls(none))).code).toBe('authentication_failed');
    const strange = makeSide(
      {
        sslmode: 'require',
        user: 'certuser',
        sslcert: file('impostor.crt'),
        sslkeyPath: file('impostor.key'),
      },
      {},
    );
    expect((await failure(usesTls(strange))).code).toBe('tls_failed');
  });
});

describe('refusals', () => {
  test.each([
    ['a wrong password', { password: 'wrong' }],
    ['no password', {}],
  ])('%s is authentication_failed', async (_name, secrets) => {
    const error = await failure(makeSide({}, secrets).query('select 1'));
    expect([error.code, error.kind]).toEqual(['authentication_failed', 'operator']);
  });

  test('a user without a line in pg_hba.conf is authentication_failed', async () => {
    const error = await failure(makeSide({ user: 'nobody' }).query('select 1'));
    expect(error.code).toBe('authentication_failed');
  });

  test('a database that does not exist is for a person to fix', async () => {
    const error = await failure(makeSide({ dbname: 'missing' }).query('select 1'));
    expect([error.code, error.kind]).toEqual(['connection_failed', 'operator']);
  });

  test.each(['disable', 'prefer', 'require'] as const)(
    'nobody listening is connection_failed (%s)',
    async (sslmode) => {
      const error = await failure(makeSide({ port: 1, sslmode }).query('select 1'));
      expect([error.code, error.kind]).toEqual(['connection_failed', 'transient']);
    },
  );

  test('a Unix socket that is not there is connection_failed', async () => {
    const error = await failure(makeSide({ host: '/nowhere', sslmode: 'prefer' }).query('select 1'));
    expect(error.code).toBe('connection_failed');
  });

  test.each(['disable', 'prefer', 'require'] as const)(
    'something that is no PostgreSQL is connection_failed (%s)',
    async (sslmode) => {
      const { port } = await listen((socket) => void socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'));
      const error = await failure(makeSide({ port, sslmode }).query('select 1'));
      expect(error.code).toBe('connection_failed');
    },
  );
});

async function listen(handler: (socket: Socket) => void): Promise<{ port: number }> {
  const listener = createServer((socket) => {
    socket.on('error', () => undefined);
    handler(socket);
  });
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void listener.close());
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return { port: address.port };
}

function connectionsTo(database: TestDatabase): TaskConnections {
  const endpoint = endpointOf({ port: database.port, dbname: database.dbname });
  const connections = new TaskConnections('conn', { source: endpoint, target: endpoint }, () =>
    Promise.resolve({ password: database.password }),
  );
  onTestFinished(async () => void (await connections.closeAll()));
  return connections;
}

async function running(database: TestDatabase, pattern: string): Promise<number> {
  const { rows } = await database.query<{ n: number }>(
    `select count(*)::int as n from pg_stat_activity
     where datname = current_database() and state = 'active' and query ilike $1 and pid <> pg_backend_pid()`,
    [pattern],
  );
  return rows[0]?.n ?? 0;
}

describe('a side', () => {
  test('gives every session our settings, whatever the role says', async () => {
    const { source } = await makePair();
    await source.query(`alter database "${source.dbname}" set statement_timeout = '5s'`);
    await source.query(`alter database "${source.dbname}" set default_transaction_read_only = on`);
    const side = connectionsTo(source).source;
    const session = await side.session({ purpose: 'test', signal: new AbortController().signal });
    const settings = `select current_setting('search_path') as path, current_setting('statement_timeout') as timeout,
      current_setting('transaction_read_only') as read_only, current_setting('application_name') as name`;
    const expected = { path: '', timeout: '0', read_only: 'off' };
    expect((await side.query(settings)).rows[0]).toEqual({ ...expected, name: 'dts/conn/source' });
    expect((await session.client.query(settings)).rows[0]).toEqual({
      ...expected,
      name: 'dts/conn/source/test',
    });
    expect(side.connectionCount).toBe(2);
    await session.close();
    expect(side.connectionCount).toBe(1);
  });

  test.each([13, 16, 18] as const)('pins what changes values and statements, on %i', async (major) => {
    const { source } = await makePair({ source: major });
    const hostile: Record<string, string> = {
      array_nulls: 'off',
      standard_conforming_strings: 'off',
      backslash_quote: 'off',
      transform_null_equals: 'on',
      quote_all_identifiers: 'on',
      gin_fuzzy_search_limit: '1',
      exit_on_error: 'on',
      xmloption: 'document',
      bytea_output: 'escape',
      datestyle: 'SQL, DMY',
      intervalstyle: 'sql_standard',
      timezone: 'Asia/Kathmandu',
      extra_float_digits: '-15',
      row_security: 'on',
      statement_timeout: '5s',
      lock_timeout: '5s',
      idle_in_transaction_session_timeout: '5s',
      ...(major >= 14 ? { idle_session_timeout: '5s' } : {}),
      ...(major >= 17 ? { transaction_timeout: '5s' } : {}),
      default_transaction_isolation: 'serializable',
      default_transaction_read_only: 'on',
      default_transaction_deferrable: 'on',
      synchronous_commit: 'off',
    };
    for (const [name, value] of Object.entries(hostile))
      await source.query(`alter database "${source.dbname}" set ${name} = '${value}'`);
    const { source: side } = connectionsTo(source);
    const session = await side.session({ purpose: 'test', signal: new AbortController().signal });
    const stranger = await source.connect();
    const ask = 'select name, current_setting(name) as setting from unnest($1::text[]) as name';
    const names = [Object.keys(hostile)];
    const read = async (
      answer: Promise<pg.QueryResult<{ name: string; setting: string }>>,
    ): Promise<Record<string, string>> => {
      const { rows } = await answer;
      return Object.fromEntries(rows.map((row): [string, string] => [row.name, row.setting]));
    };
    // every one of them reaches a session that does not pin it, and none of ours
    expect(await read(stranger.query(ask, names))).toMatchObject({ ...hostile, datestyle: 'SQL, DMY' });
    for (const ours of [await read(side.query(ask, names)), await read(session.client.query(ask, names))])
      expect(Object.keys(hostile).filter((name) => ours[name] === hostile[name])).toEqual([]);
    expect((await side.query('show synchronous_commit')).rows).toEqual([{ synchronous_commit: 'local' }]);
    await session.close();
  });

  test.each(['local', 'remote_write', 'on', 'remote_apply'])(
    'keeps synchronous_commit = %s, which is as durable or more',
    async (setting) => {
      const { source } = await makePair();
      await source.query(`alter database "${source.dbname}" set synchronous_commit = ${setting}`);
      const { source: side } = connectionsTo(source);
      expect((await side.query('show synchronous_commit')).rows).toEqual([{ synchronous_commit: setting }]);
    },
  );

  test('an aborted session rejects as aborted and its statement ends on the server', async () => {
    const { source } = await makePair();
    const { source: side } = connectionsTo(source);
    const controller = new AbortController();
    const session = await side.session({ purpose: 'test', signal: controller.signal });
    const error = failure(session.client.query('select pg_sleep(600)'));
    await waitFor(async () => (await running(source, '%pg_sleep(600)%')) === 1);
    controller.abort();
    expect((await error).code).toBe('aborted');
    await session.close();
    expect(side.connectionCount).toBe(0);
    await waitFor(async () => (await running(source, '%pg_sleep(600)%')) === 0);
  });

  test('sessions take connections that were opened ahead, never a dead one, and what is left is closed', async () => {
    const { source } = await makePair();
    const { source: side } = connectionsTo(source);
    const pidsOf = async (purpose: string): Promise<number[]> =>
      (
        await source.query<{ pid: number }>(
          'select pid from pg_stat_activity where application_name = $1 order by backend_start',
          [`dts/conn/source/${purpose}`],
        )
      ).rows.map(({ pid }) => pid);
    await side.warm({ plain: 2, replication: 1, pooled: 3 });
    await side.warm({ plain: 2, replication: 1, pooled: 3 }); // they are there
    const ready = await pidsOf('ready');
    expect([ready.length, side.connectionCount]).toEqual([3, 6]);
    const { signal } = new AbortController();
    const walsender = await side.session({ purpose: 'slot', signal, replication: true });
    const plain = await side.session({ purpose: 'test', signal });
    expect([walsender.pid, plain.pid].every((pid) => ready.includes(pid))).toBe(true);
    expect([await pidsOf('slot'), await pidsOf('test')]).toEqual([[walsender.pid], [plain.pid]]);
    expect((await walsender.client.query('IDENTIFY_SYSTEM')).rows).toHaveLength(1);
    const [last = 0] = await pidsOf('ready');
    await source.query('select pg_terminate_backend($1, 10000)', [last]);
    const fresh = await side.session({ purpose: 'fresh', signal });
    expect(ready).not.toContain(fresh.pid);
    await side.warm({ plain: 1, replication: 0, pooled: 0 });
    await side.cool();
    expect(await pidsOf('ready')).toEqual([]);
    expect(side.connectionCount).toBe(6); // three sessions, three pooled
    for (const session of [walsender, plain, fresh]) await session.close();
    await side.close();
    expect(side.connectionCount).toBe(0);
  });

  test('a pooled statement has a deadline, which names it, and ends it on the server', async () => {
    const { source } = await makePair();
    const { source: side } = connectionsTo(source);
    const error = await failure(side.query('select pg_sleep(601)', [], { timeoutMs: 300 }));
    expect(error).toMatchObject({
      code: 'deadline_exceeded',
      kind: 'transient',
      details: { role: 'source' },
    });
    expect(error.message).toContain('select pg_sleep(601)');
    await waitFor(async () => (await running(source, '%pg_sleep(601)%')) === 0);
    expect((await side.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    await side.close();
  });

  test.each(['withClient', 'transaction'] as const)(
    'a %s on a peer that has gone silent ends at its deadline, which names the statement',
    async (how) => {
      const { source } = await makePair();
      const network = await makeProxy(source.port);
      const { source: side } = connectionsTo(through(network, source));
      const work = async (client: pg.PoolClient): Promise<void> => {
        await client.query('select 1');
        network.forget();
        await client.query('select pg_sleep(603)');
      };
      const error = await failure(
        how === 'withClient'
          ? side.withClient(work, { timeoutMs: 500 })
          : side.transaction(work, { timeoutMs: 500 }),
      );
      expect(error).toMatchObject({
        code: 'deadline_exceeded',
        kind: 'transient',
        message: expect.stringContaining('select pg_sleep(603)') as string,
      });
      await waitFor(() => side.connectionCount === 0);
      expect((await side.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
      await waitFor(async () => (await running(source, '%pg_sleep(603)%')) === 0);
      await side.close();
    },
  );

  test('a connection that is borrowed and forgotten comes back at its deadline', async () => {
    const { source } = await makePair();
    const { source: side } = connectionsTo(source);
    const error = await failure(side.transaction(() => new Promise(() => undefined), { timeoutMs: 300 }));
    expect(error).toMatchObject({ code: 'deadline_exceeded' });
    expect(error.message).toContain('its transaction is still open');
    await waitFor(() => side.connectionCount === 0);
    await side.close();
  });

  test('sessions of a dead process are gone when endSessions returns, others stay', async () => {
    const pair = await makePair();
    const scope = makeScope(pair);
    const name = (purpose: string): string => `dts/${scope.taskId}/target/${purpose}`;
    const open = async (purpose: string): Promise<void> => {
      const client = await pair.target.connect();
      client.on('error', () => undefined);
      await client.query(`select set_config('application_name', $1, false)`, [name(purpose)]);
      void client.query('select pg_sleep(602)').catch(() => undefined);
    };
    await open('copy');
    await open('validate');
    await waitFor(async () => (await running(pair.target, '%pg_sleep(602)%')) === 2);
    await endSessions(scope, scope.target, ['holder', 'copy']);
    const { rows } = await pair.target.query<{ name: string }>(
      `select application_name as name from pg_stat_activity where starts_with(application_name, $1)`,
      [name('')],
    );
    expect(rows).toEqual([{ name: name('validate') }]);
    await endSessions(scope, scope.target, ['validate']);
  });

  test('close ends sessions, pooled statements and open transactions on the server too', async () => {
    const { source } = await makePair();
    const connections = connectionsTo(source);
    const side = connections.source;
    const session = await side.session({ purpose: 'test', signal: new AbortController().signal });
    const idle = await side.session({ purpose: 'idle', signal: new AbortController().signal });
    await idle.client.query('begin');
    const errors = [
      failure(session.client.query('select pg_sleep(600)')),
      failure(side.query('select pg_sleep(600)')),
      failure(connections.target.transaction((client) => client.query('select pg_sleep(600)'))),
    ];
    await waitFor(async () => (await running(source, '%pg_sleep(600)%')) === 3);
    expect(connections.connectionCount).toBe(4);
    expect(await connections.closeAll()).toEqual([]);
    expect(connections.connectionCount).toBe(0);
    expect((await Promise.all(errors)).map((error) => error.code)).toEqual(['aborted', 'aborted', 'aborted']);
    await waitFor(
      async () =>
        (await source.query(`select 1 from pg_stat_activity where application_name like 'dts/conn/%'`))
          .rowCount === 0,
    );
    await session.close();
    expect(await connections.closeAll()).toEqual([]);
    expect((await failure(side.query('select 1'))).code).toBe('aborted');
    const late = side.session({ purpose: 'late', signal: new AbortController().signal });
    expect((await failure(late)).code).toBe('aborted');
  });

  test('close does not wait for work that holds a connection and does not use it', async () => {
    const { source } = await makePair();
    const { source: side } = connectionsTo(source);
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => (release = resolve));
    let started = false;
    const work = side.withClient(async () => {
      started = true;
      await held;
    });
    await waitFor(() => started);
    await side.close();
    expect(side.connectionCount).toBe(0);
    release();
    await work;
  });

  test.each(['query', 'session'] as const)(
    'close while connecting leaks nothing: a %s that waits for a silent server is aborted at once',
    async (kind) => {
      let arrived = 0;
      let gone = 0;
      const { port } = await listen((socket) => {
        arrived++;
        socket.on('close', () => gone++).resume(); // an unread socket never learns that it was closed
      });
      const side = makeSide({ port });
      const error = failure(
        kind === 'query'
          ? side.query('select 1')
          : side.session({ purpose: 'test', signal: new AbortController().signal }),
      );
      await waitFor(() => arrived === 1);
      await side.close();
      expect((await error).code).toBe('aborted');
      expect(side.connectionCount).toBe(0);
      await waitFor(() => gone === 1);
    },
  );

  test.each(['query', 'session', 'aborted session'] as const)(
    'close while a further connection is being made leaks nothing: %s',
    async (kind) => {
      // answers the first connection (which finds the configuration) as PostgreSQL does, and no other
      const target = endpointOf();
      let arrived = 0;
      let gone = 0;
      const { port } = await listen((socket) => {
        arrived++;
        socket.on('close', () => gone++).resume(); // an unread socket never learns that it was closed
        if (arrived > 1) return;
        const upstream = createConnection(target.port, target.host);
        upstream.on('error', () => undefined);
        socket.pipe(upstream).pipe(socket);
      });
      const side = makeSide({ port });
      await side.clientConfig();
      const controller = new AbortController();
      const error = failure(
        kind === 'query'
          ? side.query('select 1')
          : side.session({ purpose: 'test', signal: controller.signal }),
      );
      await waitFor(() => arrived === 2);
      expect(side.connectionCount).toBe(1);
      if (kind === 'aborted session') controller.abort();
      else await side.close();
      expect((await error).code).toBe('aborted');
      expect(side.connectionCount).toBe(0);
      await waitFor(() => gone === 2);
    },
  );

  test('a borrowed connection that the server ends fails its work and nothing else', async () => {
    const { source } = await makePair();
    const { source: side } = connectionsTo(source);
    const error = await failure(
      side.withClient(async (client) => {
        const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
        const ended = new Promise((resolve) => client.once('end', resolve));
        await source.query('select pg_terminate_backend($1)', [rows[0]?.pid]);
        await ended;
        await client.query('select 1');
      }),
    );
    expect(error.code).toBe('connection_failed');
    expect((await side.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
  });

  test('a registered walsender counts until it is given back, once', () => {
    const side = makeSide();
    const uncount = side.registerExternal();
    expect(side.connectionCount).toBe(1);
    uncount();
    uncount();
    expect(side.connectionCount).toBe(0);
  });
});
