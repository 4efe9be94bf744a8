// WebSocket /inspect over real sockets, with the receiver of @statelyai/inspect.
import { once } from 'node:events';
import { connect } from 'node:net';
import { createWebSocketReceiver, type StatelyInspectionEvent } from '@statelyai/inspect';
import { describe, expect, onTestFinished, test } from 'vitest';
import { WebSocket } from 'ws';
import { actorMessage, eventMessage, snapshotMessage } from '../../src/runtime/inspect-protocol.ts';
import { waitFor } from '../support/databases.ts';
import { makeServer, rawRequest, type HttpFixture } from '../support/http-server.ts';

const ids = { sessionId: 'x:1', rootId: 'x:0' };
const actor = actorMessage({
  ...ids,
  parentId: 'x:0',
  name: 'orders',
  definition: { id: 'task', initial: 'created' },
  actorSnapshot: { status: 'active', value: 'created', context: { taskId: 'orders' } },
});

function urlOf({ server }: HttpFixture): string {
  return `${server.url.replace('http', 'ws')}/inspect`;
}

function openViewer(fixture: HttpFixture, headers: Record<string, string> = {}): WebSocket {
  const viewer = new WebSocket(urlOf(fixture), { headers });
  onTestFinished(() => viewer.terminate());
  return viewer;
}

/** The status with which an upgrade is refused; 101 when it is not. */
function statusOf(viewer: WebSocket): Promise<number> {
  viewer.on('error', () => undefined);
  return new Promise((resolve) => {
    viewer.once('open', () => resolve(101));
    viewer.once('unexpected-response', (_, response) => resolve(response.statusCode ?? 0));
  });
}

describe('the inspector', () => {
  test("the library's receiver gets every actor first, then all three kinds of message", async () => {
    const fixture = await makeServer();
    fixture.service.actors = [actor];
    const seen: StatelyInspectionEvent[] = [];
    createWebSocketReceiver({ server: urlOf(fixture) }).subscribe((event) => void seen.push(event));
    await waitFor(() => seen.length === 1);
    const event = { type: 'START', password: 'hunter2' };
    fixture.service.inspect(eventMessage({ ...ids, sourceId: 'x:0', event }));
    fixture.service.inspect(
      snapshotMessage({ ...ids, event, actorSnapshot: { status: 'active', value: 'init' } }),
    );
    await waitFor(() => seen.length === 3);
    expect(seen).toMatchObject([
      { type: '@xstate.actor', name: 'orders', ...ids, parentId: 'x:0', snapshot: { value: 'created' } },
      { type: '@xstate.event', ...ids, sourceId: 'x:0', event: { type: 'START' } },
      { type: '@xstate.snapshot', ...ids, snapshot: { value: 'init' }, event: { type: 'START' } },
    ]);
    expect(JSON.parse((seen[0] as { definition?: string }).definition ?? '')).toEqual({
      id: 'task',
      initial: 'created',
    });
    expect(JSON.stringify(seen)).not.toContain('hunter2');
  });

  test('nobody is subscribed before the first viewer and after the last', async () => {
    const fixture = await makeServer();
    expect(fixture.service.calls).toEqual([]);
    const [first, second] = [openViewer(fixture), openViewer(fixture)];
    await Promise.all([once(first, 'open'), once(second, 'open')]);
    await waitFor(() => fixture.service.viewers.size === 2);
    first.close();
    second.terminate();
    await waitFor(() => fixture.service.viewers.size === 0);
  });

  test('a viewer that does not read is dropped, the others stay', async () => {
    const fixture = await makeServer();
    const [slow, quick] = [openViewer(fixture), openViewer(fixture)];
    await Promise.all([once(slow, 'open'), once(quick, 'open')]);
    await waitFor(() => fixture.service.viewers.size === 2);
    slow.pause();
    let received = 0;
    quick.on('message', () => received++);
    const big = eventMessage({ ...ids, event: { type: 'BIG', payload: 'x'.repeat(256 * 1024) } });
    let sent = 0;
    // one at a time for the quick one; the slow one's share piles up in the server
    await waitFor(() => {
      if (received === sent) {
        fixture.service.inspect(big);
        sent++;
      }
      return fixture.service.viewers.size === 1;
    });
    fixture.service.inspect(actor);
    await waitFor(() => received === sent + 1);
    expect(fixture.log.filter(({ level }) => level === 'warn')).toHaveLength(1);
  });

  test('a service that cannot be inspected closes the socket with a reason', async () => {
    const fixture = await makeServer();
    fixture.service.failure = new Error('stopped');
    const [code] = (await once(openViewer(fixture), 'close')) as [number];
    expect(code).toBe(1011);
  });

  test('closing the server closes every viewer within a second, even a mute one', async () => {
    const fixture = await makeServer();
    const polite = openViewer(fixture);
    await once(polite, 'open');
    const mute = connect(fixture.server.port, '127.0.0.1');
    onTestFinished(() => void mute.destroy());
    mute.on('error', () => undefined);
    mute.write(
      'GET /inspect HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n' +
        'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
    );
    await waitFor(() => fixture.service.viewers.size === 2);
    const goodbye = once(polite, 'close') as Promise<[number]>;
    const begun = performance.now();
    await fixture.server.close();
    expect(performance.now() - begun).toBeLessThan(1_000);
    expect((await goodbye)[0]).toBe(1001);
    await waitFor(() => fixture.service.viewers.size === 0);
  });
});

describe('who may look', () => {
  test.each([
    [{ origin: 'https://stately.ai' }, 101],
    [{ origin: 'https://evil.example' }, 403],
    [{ origin: 'null' }, 403],
    [{ host: 'rebound.example' }, 403],
    [{}, 101],
  ])('%j gets %i', async (headers, status) => {
    const fixture = await makeServer();
    expect(await statusOf(openViewer(fixture, headers))).toBe(status);
    expect(fixture.service.viewers.size).toBe(status === 101 ? 1 : 0);
  });

  test('with a token the upgrade needs it too', async () => {
    const fixture = await makeServer({ token: 'sesame' });
    expect(await statusOf(openViewer(fixture))).toBe(401);
    expect(await statusOf(openViewer(fixture, { authorization: 'Bearer sesame' }))).toBe(101);
  });

  test('another path has no WebSocket, and /inspect is nothing else', async () => {
    const fixture = await makeServer();
    const elsewhere = new WebSocket(`${fixture.server.url.replace('http', 'ws')}/api/v1/events`);
    onTestFinished(() => elsewhere.terminate());
    expect(await statusOf(elsewhere)).toBe(404);
    const plain = await rawRequest(fixture.server, { path: '/inspect' });
    expect([plain.status, plain.headers['upgrade']]).toEqual([426, 'websocket']);
    expect((await rawRequest(fixture.server, { path: '/inspect', method: 'POST' })).status).toBe(405);
  });

  test('the page loads nothing but the hosted inspector', async () => {
    const { server } = await makeServer();
    const page = await rawRequest(server, { path: '/inspect/stately' });
    expect([page.status, page.headers['content-type']]).toEqual([200, 'text/html; charset=UTF-8']);
    const policy = page.headers['content-security-policy'];
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain('frame-src https://stately.ai;');
    expect(policy).toContain(`ws://127.0.0.1:${server.port}`);
    expect(page.body.match(/https?:\/\/[^\s"'<]+/g)).toEqual([
      'https://stately.ai/inspect',
      'https://stately.ai',
    ]);
  });
});
