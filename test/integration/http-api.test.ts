// Routes, input and error documents over a real server with fetch.
import { describe, expect, test } from 'vitest';
import { MigrationError } from '../../src/model/errors.ts';
import { taskStates } from '../../src/model/task-state.ts';
import { makeServer, rawRequest, validBody, type HttpFixture } from '../support/http-server.ts';

type Json = Record<string, unknown>;
const json = async (response: Response): Promise<Json> => (await response.json()) as Json;

async function withTask(): Promise<HttpFixture> {
  const fixture = await makeServer();
  expect((await fixture.post('/migrations', validBody())).status).toBe(201);
  fixture.service.calls.length = 0;
  return fixture;
}

async function expectProblem(response: Response, status: number, code: string): Promise<Json> {
  const problem = await json(response);
  expect({ status: response.status, code: problem['code'] }).toEqual({ status, code });
  expect(response.headers.get('content-type')).toBe('application/problem+json');
  expect(problem).toMatchObject({
    type: `urn:dts:error:${code}`,
    title: expect.any(String) as string,
    status,
    detail: expect.any(String) as string,
    instance: new URL(response.url).pathname,
  });
  return problem;
}

describe('creating', () => {
  test('a new task is 201 with its place, all names in snake_case and no secret', async () => {
    const { post } = await makeServer();
    const response = await post('/migrations', validBody());
    expect(response.status).toBe(201);
    expect(response.headers.get('location')).toBe('/api/v1/migrations/orders');
    const text = await response.text();
    expect(text).not.toContain('hunter2');
    expect(JSON.parse(text)).toMatchObject({
      id: 'orders',
      state: 'created',
      spec: {
        source_db: { port: 5433, password: { from: 'stored' } },
        target_db: { port: 5432, password: { from: 'env', name: 'TARGET_PASSWORD' } },
        table_suffix: '_new',
        options: { copy_jobs: 2, cutover_timeout_ms: 30_000 },
      },
      detail: { bytes_copied: 0, waiting_for: null },
      allowed_commands: ['START', 'CANCEL'],
    });
    expect(text).not.toMatch(/"[a-z_]+[A-Z]\w*":/);
  });

  test('the same request again is 200, another body for the id is 409', async () => {
    const { post } = await withTask();
    const again = await post('/migrations', validBody());
    expect(again.status).toBe(200);
    expect(again.headers.get('location')).toBe('/api/v1/migrations/orders');
    await expectProblem(await post('/migrations', { ...validBody(), tables: ['*'] }), 409, 'task_exists');
  });

  const wrong: [field: string, body: Json][] = [
    ['id', { ...validBody(), id: 'No Spaces' }],
    ['id', { ...validBody(), id: 7 }],
    ['source_db', { ...validBody(), source_db: 7 }],
    ['source_db', { ...validBody(), source_db: 'mysql://a/b' }],
    ['source_db', { ...validBody(), source_db: undefined }],
    ['source_db.host', { ...validBody(), source_db: { user: 'u', dbname: 'd' } }],
    ['source_db.host', { ...validBody(), source_db: { host: '', user: 'u', dbname: 'd' } }],
    ['source_db.port', { ...validBody(), source_db: { host: 'h', user: 'u', dbname: 'd', port: '5432' } }],
    ['source_db.port', { ...validBody(), source_db: { host: 'h', user: 'u', dbname: 'd', port: 65_536 } }],
    ['source_db.port', { ...validBody(), source_db: { host: 'h', user: 'u', dbname: 'd', port: 1.5 } }],
    [
      'source_db.sslmode',
      { ...validBody(), source_db: { host: 'h', user: 'u', dbname: 'd', sslmode: 'on' } },
    ],
    ['source_db.password', { ...validBody(), source_db: { host: 'h', user: 'u', dbname: 'd', password: 5 } }],
    [
      'source_db.password',
      { ...validBody(), source_db: { host: 'h', user: 'u', dbname: 'd', password: 'a', password_env: 'B' } },
    ],
    [
      'target_db.pass_word',
      { ...validBody(), target_db: { host: 'h', user: 'u', dbname: 'd', pass_word: 'a' } },
    ],
    ['tables', { ...validBody(), tables: 'orders' }],
    ['tables', { ...validBody(), tables: [] }],
    ['tables', { ...validBody(), tables: ['*', 'orders'] }],
    ['tables.0', { ...validBody(), tables: [7] }],
    ['tables.1', { ...validBody(), tables: ['a', '"unclosed'] }],
    ['table_suffix', { ...validBody(), table_suffix: 'a"b' }],
    ['table_suffix', { ...validBody(), table_suffix: null }],
    ['options', { ...validBody(), options: [] }],
    ['options.cutover', { ...validBody(), options: { cutover: 'now' } }],
    ['options.keep_fence', { ...validBody(), options: { keep_fence: 'yes' } }],
    ['options.copy_jobs', { ...validBody(), options: { copy_jobs: 0 } }],
    [
      'options.hooks.before_open.url',
      { ...validBody(), options: { hooks: { before_open: { url: 'ftp://h' } } } },
    ],
    [
      'options.hooks.after_open.url',
      { ...validBody(), options: { hooks: { after_open: { url: 'http://u:p@h/' } } } },
    ],
    [
      'options.hooks.after_open.headers.0',
      { ...validBody(), options: { hooks: { after_open: { url: 'http://h/', headers: [{ name: 'A' }] } } } },
    ],
    ['options.cutover_timeout_ms', { ...validBody(), options: { cutover_timeout_ms: '30s' } }],
    ['options.copyJobs', { ...validBody(), options: { copyJobs: 2 } }],
    ['sourceDb', { ...validBody(), sourceDb: {} }],
    ['Tables', { ...validBody(), Tables: [] }],
    ['unknown_field', { ...validBody(), unknown_field: 1 }],
  ];
  test.each(wrong)('400 names %s', async (field, body) => {
    const { post, service } = await makeServer();
    for (const path of ['/migrations', '/preflight']) {
      const problem = await expectProblem(await post(path, body), 400, 'invalid_request');
      const named = (problem['fields'] as { field: string }[]).map((fault) => fault.field);
      expect(named).toContain(field);
      expect(problem['detail']).toContain(`${field}: `);
    }
    expect(service.tasks.size).toBe(0);
  });

  test.each([
    ['no body', undefined, 'application/json', 400],
    ['malformed JSON', '{"source_db": "hunter2', 'application/json', 400],
    ['bytes that are no UTF-8', Buffer.from([0x22, 0xff, 0x22]), 'application/json', 400],
    ['an array', '[]', 'application/json', 400],
    ['null', 'null', 'application/json; charset=utf-8', 400],
    ['a form', 'id=orders', 'application/x-www-form-urlencoded', 415],
    ['text', '{}', 'text/plain', 415],
    ['JSON in another encoding', '{}', 'application/json; charset=latin1', 415],
    ['more than 1 MiB', `"${'x'.repeat(1024 * 1024)}"`, 'application/json', 413],
  ])('%s is refused without quoting it', async (_, body, contentType, status) => {
    const { api, log } = await makeServer();
    const response = await api('/migrations', {
      method: 'POST',
      headers: { 'content-type': contentType },
      ...(body === undefined ? {} : { body }),
    });
    const problem = await expectProblem(response, status, 'invalid_request');
    expect(JSON.stringify([problem, log])).not.toContain('hunter2');
  });

  test('an endless body is cut off at 1 MiB', async () => {
    const { api, service } = await makeServer();
    let sent = 0;
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        sent += 64 * 1024;
        controller.enqueue(new Uint8Array(64 * 1024).fill(0x20));
        if (sent > 4 * 1024 * 1024) controller.close();
      },
    });
    const init: RequestInit & { duplex: 'half' } = {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
      duplex: 'half',
    };
    await expectProblem(await api('/migrations', init), 413, 'invalid_request');
    expect(service.calls).toEqual([]);
  });
});

describe('reading', () => {
  test('the list has its page and its total', async () => {
    const { post, api, service } = await makeServer();
    for (const id of ['a', 'b', 'c']) await post('/migrations', { ...validBody(), id });
    const page = await json(await api('/migrations?limit=1&offset=1&state=created'));
    expect(page).toMatchObject({ tasks: [{ id: 'b' }], total: 3, limit: 1, offset: 1 });
    expect(await json(await api('/migrations'))).toMatchObject({ limit: 50, offset: 0, total: 3 });
    expect(service.calls.at(-1)).toEqual(['listTasks', { limit: 50, offset: 0 }]);
    expect((await json(await api('/migrations?state=paused')))['tasks']).toEqual([]);
  });

  test.each([
    ['limit', 'limit=0'],
    ['limit', 'limit=1001'],
    ['limit', 'limit='],
    ['limit', 'limit=ten'],
    ['limit', 'limit=1e2'],
    ['limit', 'limit=1&limit=2'],
    ['offset', 'offset=-1'],
    ['offset', 'offset=1.5'],
    ['offset', 'offset=99999999999999999999'],
    ['state', 'state=running'],
    ['state', 'state=syncing_wal'],
    ['sort', 'sort=id'],
    ['Limit', 'Limit=1'],
    ['__proto__', '__proto__=1'],
    ['to_string', 'to_string=1'],
  ])('a bad parameter %s is 400 and named: %s', async (name, query) => {
    const { api } = await makeServer();
    const problem = await expectProblem(await api(`/migrations?${query}`), 400, 'invalid_request');
    expect((problem['fields'] as { field: string }[]).map(({ field }) => field)).toEqual([name]);
  });

  test.each(taskStates)('the list can be asked for %s', async (state) => {
    const { api } = await makeServer();
    expect((await api(`/migrations?state=${state}`)).status).toBe(200);
  });

  test('a parameter where none belongs is not ignored', async () => {
    const { post, service } = await withTask();
    await expectProblem(await post('/migrations/orders/cancel?drop_target=true'), 400, 'invalid_request');
    expect(service.calls).toEqual([]);
  });

  test('task, status, tables and machine of a task', async () => {
    const { api, service } = await withTask();
    service.tables = [
      {
        table: 'public.orderItems',
        target: 'public.orderItems_new',
        state: 'copying',
        rowsCopied: 1,
        rowsEstimated: 2,
        bytesCopied: 3,
        bytesEstimated: 4,
        partsDone: 0,
        partsTotal: 1,
        format: null,
        formatReason: null,
      },
    ];
    expect(await json(await api('/migrations/orders'))).toMatchObject({
      id: 'orders',
      spec: { tables: ['public.orders'] },
    });
    expect(await json(await api('/migrations/orders/status'))).toMatchObject({
      id: 'orders',
      state: 'created',
      progress: 0,
      error: null,
      lag_bytes: null,
      connections: 0,
      resumes_at: null,
      retry_at: null,
      fenced: false,
      cleanup_pending: false,
      waiting_for: null,
      eta_seconds: null,
      sync: null,
    });
    expect(await json(await api('/migrations/orders/tables'))).toMatchObject({
      tables: [{ table: 'public.orderItems', rows_copied: 1, format_reason: null }],
    });
    for (const path of ['/machine', '/migrations/orders/machine'])
      expect(await json(await api(path))).toEqual(service.machineDefinition());
    const head = await api('/migrations/orders', { method: 'HEAD' });
    expect([head.status, await head.text()]).toEqual([200, '']);
  });

  test('health tells version, uptime and tasks', async () => {
    const { api } = await withTask();
    expect(await json(await api('/health'))).toEqual({
      status: 'ok',
      version: '1.2.3',
      uptime_seconds: expect.any(Number) as number,
      tasks: 1,
    });
  });

  test('preflight answers findings with 200, blocked or not', async () => {
    const { post, service } = await makeServer();
    expect(await json(await post('/preflight', validBody()))).toEqual({ findings: [], blocked: false });
    const finding = {
      code: 'wal_level',
      severity: 'blocking',
      object: 'source',
      message: 'm',
      remedy: null,
    } as const;
    service.findings = [finding];
    const response = await post('/preflight', validBody());
    expect(response.status).toBe(200);
    expect(await json(response)).toEqual({ findings: [finding], blocked: true });
    expect(service.tasks.size).toBe(0);
  });
});

describe('commands', () => {
  test.each(['start', 'pause', 'resume', 'cancel', 'unfence', 'abandon'])(
    '%s takes no body, an empty one or {}',
    async (command) => {
      for (const init of [
        {},
        { body: '' },
        { body: '{}', headers: { 'content-type': 'application/json' } },
      ]) {
        const { api, service } = await withTask();
        const response = await api(`/migrations/orders/${command}`, { method: 'POST', ...init });
        expect(response.status).toBe(200);
        expect(await json(response)).toMatchObject({
          id: 'orders',
          state: service.tasks.get('orders')?.state,
        });
      }
    },
  );

  test.each(['start', 'pause', 'resume', 'cancel', 'cutover', 'validate', 'unfence', 'abandon'])(
    '%s refuses fields that it does not know',
    async (command) => {
      const { post, service } = await withTask();
      for (const body of [{ force: true }, { dropTarget: true }, [], null, 'x', 1]) {
        await expectProblem(await post(`/migrations/orders/${command}`, body), 400, 'invalid_request');
      }
      expect(service.calls).toEqual([]);
    },
  );

  test('POST of tables reaches the library; an unknown task comes before the body', async () => {
    const { post, service } = await withTask();
    expect((await post('/migrations/orders/tables', { add: ['a', 's.b'] })).status).toBe(200);
    expect(service.calls.at(-1)).toEqual(['addTables', 'orders', { add: ['a', 's.b'] }]);
    await expectProblem(await post('/migrations/nobody/tables', 'x'), 404, 'task_not_found');
    await expectProblem(await post('/migrations/orders/tables', '{'), 400, 'invalid_request');
  });

  test('PATCH of the options and the recopy of a table reach the library; other methods are refused', async () => {
    const { api, post, service } = await withTask();
    const patch = async (path: string): Promise<Response> =>
      api(`/migrations/orders/${path}`, {
        method: 'PATCH',
        body: JSON.stringify({ max_bytes_per_second: 1_000_000 }),
        headers: { 'content-type': 'application/json' },
      });
    expect((await patch('options')).status).toBe(200);
    expect((await post('/migrations/orders/tables/public.users/recopy')).status).toBe(200);
    expect((await post('/migrations/orders/recopy')).status).toBe(200);
    expect(service.calls).toEqual([
      ['changeOptions', 'orders', { maxBytesPerSecond: 1_000_000 }],
      ['recopyTable', 'orders', 'public.users'],
      ['recopyTask', 'orders'],
    ]);
    await expectProblem(await patch('tables/public.users/recopy'), 405, 'method_not_allowed');
    await expectProblem(
      await post('/migrations/orders/tables/users/recopy', { x: 1 }),
      400,
      'invalid_request',
    );
  });

  test('a dry run of the cutover answers the forecast and cuts nothing over', async () => {
    const { post, service } = await withTask();
    const problem = await expectProblem(
      await post('/migrations/orders/cutover', { dry_run: 'yes' }),
      400,
      'invalid_request',
    );
    expect(problem['fields']).toMatchObject([{ field: 'dry_run' }]);
    const response = await post('/migrations/orders/cutover', { dry_run: true });
    expect(response.status).toBe(200);
    expect(await json(response)).toEqual({
      steps: [],
      write_stop_ms: 0,
      blockers: [],
      target_blockers: [],
      waits_for: [],
      problems: [],
    });
    expect(service.calls).toEqual([['forecastCutover', 'orders']]);
  });

  test('a repair names the table, and keys or ranges as long as its key', async () => {
    const { post } = await withTask();
    const repair = (body: unknown) => post('/migrations/orders/repair', body);
    const wrong: [field: string, body: unknown][] = [
      ['table', {}],
      ['table', { table: 'public.nothing' }],
      ['keys.1', { table: 'public.orders', keys: [['1'], ['1', '2']] }],
      ['keys.0.0', { table: 'public.orders', keys: [[1]] }],
      ['ranges.0.up_to', { table: 'public.orders', ranges: [{ up_to: ['1', '2'] }] }],
      ['ranges', { table: 'public.orders', keys: [['1']], ranges: [{}] }],
    ];
    for (const [field, body] of wrong) {
      const problem = await expectProblem(await repair(body), 400, 'invalid_request');
      expect((problem['fields'] as { field: string }[]).map((fault) => fault.field)).toContain(field);
    }
    const response = await repair({ table: 'public.orders', ranges: [{ after: null, up_to: ['9'] }] });
    expect(await json(response)).toMatchObject({ state: 'pending', keys_named: null, ranges_named: 1 });
  });

  test('the certificate of a task that has none is a conflict', async () => {
    const { api } = await withTask();
    await expectProblem(await api('/migrations/orders/certificate'), 409, 'event_not_accepted');
  });

  test('cancel and abandon take drop_target, a boolean', async () => {
    for (const [command, method] of [
      ['cancel', 'cancelTask'],
      ['abandon', 'abandonTask'],
    ]) {
      const { post, service } = await withTask();
      const path = `/migrations/orders/${command}`;
      const problem = await expectProblem(await post(path, { drop_target: 'yes' }), 400, 'invalid_request');
      expect(problem['fields']).toMatchObject([{ field: 'drop_target' }]);
      expect((await post(path, { drop_target: true })).status).toBe(200);
      expect((await post(path)).status).toBe(200);
      expect(service.calls).toEqual([
        [method, 'orders', { dropTarget: true }],
        [method, 'orders', {}],
      ]);
    }
  });

  test('a repeated start answers the running task', async () => {
    const { post } = await withTask();
    expect((await post('/migrations/orders/start')).status).toBe(200);
    const again = await post('/migrations/orders/start');
    expect(again.status).toBe(200);
    expect(await json(again)).toMatchObject({ id: 'orders', state: 'init' });
  });

  test('a refused command tells the state and what is possible', async () => {
    const { post } = await withTask();
    const problem = await expectProblem(await post('/migrations/orders/cutover'), 409, 'event_not_accepted');
    expect(problem).toMatchObject({ state: 'created', allowed: ['start', 'cancel'] });
  });

  test('DELETE is 204 for an ended task, 409 for a live one', async () => {
    const { api, post } = await withTask();
    await post('/migrations/orders/start');
    await expectProblem(await api('/migrations/orders', { method: 'DELETE' }), 409, 'task_live');
    await post('/migrations/orders/cancel');
    const deleted = await api('/migrations/orders', { method: 'DELETE' });
    expect([deleted.status, await deleted.text()]).toEqual([204, '']);
    await expectProblem(await api('/migrations/orders'), 404, 'task_not_found');
  });

  test('DELETE forgets a task that has left something on a server only with force=true', async () => {
    const { api, service } = await withTask();
    const task = service.tasks.get('orders');
    if (task) service.tasks.set('orders', { ...task, state: 'cancelled', cleanupPending: true });
    const remove = (query: string): Promise<Response> =>
      api(`/migrations/orders${query}`, { method: 'DELETE' });
    await expectProblem(await remove(''), 409, 'task_live');
    await expectProblem(await remove('?force=false'), 409, 'task_live');
    expect((await remove('?force=true')).status).toBe(204);
    expect(service.calls).toEqual([
      ['deleteTask', 'orders', {}],
      ['deleteTask', 'orders', { force: false }],
      ['deleteTask', 'orders', { force: true }],
    ]);
  });

  test('force does not delete a live task', async () => {
    const { api, post } = await withTask();
    await post('/migrations/orders/start');
    const response = await api('/migrations/orders?force=true', { method: 'DELETE' });
    await expectProblem(response, 409, 'task_live');
  });

  test.each([
    ['force', 'force='],
    ['force', 'force=1'],
    ['force', 'force=yes'],
    ['force', 'force=TRUE'],
    ['force', 'force=true&force=true'],
    ['Force', 'Force=true'],
    ['drop_target', 'drop_target=true'],
    ['drop_target', 'force=true&drop_target=true'],
  ])('DELETE with a bad parameter %s is 400 and deletes nothing: %s', async (name, query) => {
    const { api, service } = await withTask();
    const response = await api(`/migrations/orders?${query}`, { method: 'DELETE' });
    const problem = await expectProblem(response, 400, 'invalid_request');
    expect((problem['fields'] as { field: string }[]).map(({ field }) => field)).toEqual([name]);
    expect(service.calls).toEqual([]);
  });
});

describe('what is not there', () => {
  const ofTask: [string, string][] = [
    ['GET', ''],
    ['DELETE', ''],
    ['GET', '/status'],
    ['GET', '/tables'],
    ['GET', '/validation'],
    ['GET', '/certificate'],
    ['GET', '/schema'],
    ['POST', '/repair'],
    ['GET', '/events'],
    ['GET', '/machine'],
    ...['start', 'pause', 'resume', 'cancel', 'cutover', 'validate', 'unfence', 'abandon'].map(
      (name): [string, string] => ['POST', `/${name}`],
    ),
  ];
  test.each(ofTask)('%s of an unknown or impossible id%s is 404', async (method, path) => {
    const { api } = await makeServer();
    for (const id of ['nobody', 'Upper', 'a%20b', 'x'.repeat(41), '%27%3B--'])
      await expectProblem(await api(`/migrations/${id}${path}`, { method }), 404, 'task_not_found');
  });

  test.each(['/nothing', '/migrations/', '/migrations/orders/explode', '/migrations/orders/status/x', ''])(
    'the route %j is 404',
    async (path) => {
      const { api } = await makeServer();
      await expectProblem(await api(path), 404, 'unknown_route');
    },
  );

  test.each([
    ['PUT', '/migrations', 'GET, HEAD, POST'],
    ['DELETE', '/migrations', 'GET, HEAD, POST'],
    ['PATCH', '/migrations/orders', 'GET, HEAD, DELETE'],
    ['GET', '/migrations/orders/start', 'POST'],
    ['HEAD', '/migrations/orders/start', 'POST'],
    ['POST', '/migrations/orders/status', 'GET, HEAD'],
    ['POST', '/health', 'GET, HEAD'],
    ['GET', '/preflight', 'POST'],
    ['OPTIONS', '/events', 'GET, HEAD'],
  ])('%s %s is 405 and Allow says %s', async (method, path, allow) => {
    const { api } = await makeServer();
    const response = await api(path, { method });
    expect([response.status, response.headers.get('allow')]).toEqual([405, allow]);
  });
});

describe('errors', () => {
  test.each([
    ['service_stopped', 503],
    ['secret_unavailable', 422],
    ['connection_failed', 502],
    ['task_ended', 409],
  ] as const)('%s is %i', async (code, status) => {
    const { post, service } = await withTask();
    service.failure = new MigrationError(code, 'why', { hint: 'what to do' });
    const problem = await expectProblem(await post('/migrations/orders/pause'), status, code);
    expect(problem).toMatchObject({ detail: 'why', hint: 'what to do' });
  });

  test('an unforeseen error is 500 outside, its stack is in the log only', async () => {
    const { api, service, log } = await withTask();
    service.failure = new TypeError('secret of the inside', { cause: new Error('deeper') });
    const response = await api('/migrations/orders');
    const problem = await expectProblem(response, 500, 'internal');
    expect(JSON.stringify(problem)).not.toMatch(/secret|deeper|\.ts/);
    const line = log.find(({ level }) => level === 'error');
    expect(line?.fields['stack']).toMatch(/secret of the inside[^]*\.ts/);
    expect(line?.fields['cause']).toContain('deeper');
  });

  test('requests are logged without query and body', async () => {
    const { api, post, log } = await makeServer();
    await post('/migrations', validBody());
    await api('/migrations?limit=hunter2');
    await api('/health');
    expect(
      log.map(({ level, fields }) => [level, fields['method'], fields['path'], fields['status']]),
    ).toEqual([
      ['info', 'POST', '/api/v1/migrations', 201],
      ['info', 'GET', '/api/v1/migrations', 400],
      ['debug', 'GET', '/api/v1/health', 200],
    ]);
    expect(JSON.stringify(log)).not.toContain('hunter2');
  });

  test('a request that is none is 400', async () => {
    const { server } = await makeServer();
    const answer = await rawRequest(server, { headers: { host: 'a b' } });
    expect([answer.status, answer.headers['content-type']]).toEqual([400, 'application/problem+json']);
  });

  test('every answer forbids sniffing and caching', async () => {
    const { api } = await makeServer();
    for (const path of ['/health', '/nothing', '/migrations?x=1']) {
      const { headers } = await api(path);
      expect([headers.get('x-content-type-options'), headers.get('cache-control')]).toEqual([
        'nosniff',
        'no-store',
      ]);
    }
  });
});
