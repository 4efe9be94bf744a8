// Who is let in, and how the server closes, over real sockets.
import { connect } from 'node:net';
import { describe, expect, test } from 'vitest';
import { startServer } from '../../src/http/server.ts';
import { FakeService } from '../support/fake-service.ts';
import { waitFor } from '../support/databases.ts';
import { makeServer, rawRequest, validBody } from '../support/http-server.ts';

const quiet = (): void => undefined;
const log = { debug: quiet, info: quiet, warn: quiet, error: quiet };

describe('listening', () => {
  test('is on loopback unless told otherwise', async () => {
    const { server } = await makeServer();
    expect(server.url).toBe(`http://127.0.0.1:${server.port}`);
  });

  test.each([undefined, ''])('beyond loopback needs a token (%j)', async (token) => {
    const start = startServer(new FakeService(), {
      host: '0.0.0.0',
      port: 0,
      version: '1',
      log,
      ...(token === undefined ? {} : { token }),
    });
    await expect(start).rejects.toMatchObject({
      code: 'invalid_request',
      hint: expect.stringContaining('DTS_TOKEN') as string,
    });
  });

  test('says so when the port is taken', async () => {
    const { server } = await makeServer();
    const second = startServer(new FakeService(), { port: server.port, version: '1', log });
    await expect(second).rejects.toMatchObject({
      code: 'invalid_request',
      message: expect.stringContaining('EADDRINUSE') as string,
    });
  });
});

describe('access', () => {
  test('with a token every path but health asks for it', async () => {
    const { server, api, service } = await makeServer({ host: '0.0.0.0', token: 'sesame' });
    const at = (path: string, headers: Record<string, string> = {}): Promise<number> =>
      rawRequest(server, { path, headers }).then(({ status }) => status);
    expect(await at('/api/v1/health')).toBe(200);
    for (const path of [
      '/api/v1/migrations',
      '/api/v1/events',
      '/api/v1/nothing',
      '/',
      '/inspect/stately',
      '/inspect',
    ])
      expect([path, await at(path)]).toEqual([path, 401]);
    expect(await at('/api/v1/migrations', { authorization: 'Bearer wrong' })).toBe(401);
    expect(await at('/api/v1/migrations', { authorization: 'Bearer sesame' })).toBe(200);
    expect(await at('/api/v1/migrations', { authorization: 'Bearer sesame', host: 'dts.example' })).toBe(200);
    expect((await api('/migrations')).headers.get('www-authenticate')).toBe('Bearer');
    expect(service.calls.map(([method]) => method)).toEqual(['listTasks', 'listTasks']);
  });

  test('the token is in no log line', async () => {
    const { api, log: lines } = await makeServer({ token: 'sesame' });
    await api('/migrations', { headers: { authorization: 'Bearer sesame' } });
    await api('/migrations', { headers: { authorization: 'Bearer sesame2' } });
    expect(lines).toHaveLength(2);
    expect(JSON.stringify(lines)).not.toContain('sesame');
  });

  test('a foreign Host is 403 on loopback, even for health', async () => {
    const { server, service } = await makeServer();
    for (const path of ['/api/v1/health', '/api/v1/migrations', '/inspect/stately'])
      expect((await rawRequest(server, { path, headers: { host: 'rebound.example' } })).status).toBe(403);
    expect((await rawRequest(server, { headers: { host: `localhost:${server.port}` } })).status).toBe(200);
    expect(service.calls).toHaveLength(1);
  });

  test('a page of another origin changes nothing', async () => {
    const { server, service } = await makeServer();
    const attempt = (origin: string): Promise<number> =>
      rawRequest(server, {
        method: 'POST',
        headers: { origin, 'content-type': 'application/json' },
        body: JSON.stringify(validBody()),
      }).then(({ status }) => status);
    expect(await attempt('https://evil.example')).toBe(403);
    expect(await attempt('null')).toBe(403);
    expect(service.tasks.size).toBe(0);
    expect(await attempt(server.url)).toBe(201);
  });
});

describe('closing', () => {
  test('an idle kept-alive connection does not hold it', async () => {
    const { server } = await makeServer();
    const socket = connect(server.port, '127.0.0.1');
    let received = '';
    socket.on('data', (chunk) => (received += chunk.toString()));
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.write('GET /api/v1/health HTTP/1.1\r\nhost: localhost\r\n\r\n');
    await waitFor(() => received.includes('"ok"'));
    const begun = performance.now();
    await server.close();
    await closed;
    expect(performance.now() - begun).toBeLessThan(1_000);
  });

  test('a request in hand that does not end, and one half sent, are cut off within a second', async () => {
    const { server, service, post } = await makeServer();
    service.createTask = () => new Promise(() => undefined);
    const stuck = post('/migrations', validBody()).catch((error: unknown) => error);
    const half = connect(server.port, '127.0.0.1');
    half.on('error', quiet);
    const halfClosed = new Promise((resolve) => half.once('close', resolve));
    await new Promise<void>((resolve) =>
      half.write('POST /api/v1/migrations HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{', () =>
        resolve(),
      ),
    );
    const begun = performance.now();
    await server.close();
    expect(performance.now() - begun).toBeLessThan(1_000);
    expect(await stuck).toBeInstanceOf(Error);
    await halfClosed;
  });

  test('a request in hand is answered when it ends in time', async () => {
    const { server, service, api } = await makeServer();
    let release = quiet;
    const asked = new Promise<void>((called) => {
      service.listTasks = () => {
        called();
        return new Promise((resolve) => (release = () => resolve({ tasks: [], total: 0 })));
      };
    });
    const answer = api('/migrations');
    await asked;
    const closed = server.close();
    release();
    expect((await answer).status).toBe(200);
    await closed;
  });
});
