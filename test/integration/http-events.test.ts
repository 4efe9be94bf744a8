// Server-sent events over a real server, read with a parser that is not ours.
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { TaskEvent } from '../../src/model/service.ts';
import { waitFor } from '../support/databases.ts';
import { makeServer, validBody, type HttpFixture } from '../support/http-server.ts';

interface Stream {
  readonly response: Response;
  readonly messages: EventSourceMessage[];
  readonly comments: string[];
  readonly retries: number[];
  /** Settles when the server has ended the stream. */
  readonly ended: Promise<'ended' | 'broken'>;
  abort(): void;
}

async function openStream(
  { api }: HttpFixture,
  path: string,
  headers: Record<string, string> = {},
): Promise<Stream> {
  const controller = new AbortController();
  onTestFinished(() => controller.abort());
  const response = await api(path, { headers, signal: controller.signal });
  const messages: EventSourceMessage[] = [];
  const comments: string[] = [];
  const retries: number[] = [];
  const parser = createParser({
    onEvent: (message) => void messages.push(message),
    onComment: (comment) => void comments.push(comment),
    onRetry: (ms) => void retries.push(ms),
  });
  const read = async (): Promise<'ended' | 'broken'> => {
    const decoder = new TextDecoder();
    try {
      const body: AsyncIterable<Uint8Array> | null = response.body;
      if (body) for await (const chunk of body) parser.feed(decoder.decode(chunk, { stream: true }));
      return 'ended';
    } catch {
      return 'broken';
    }
  };
  return { response, messages, comments, retries, ended: read(), abort: () => controller.abort() };
}

function moved(seq: number, taskId = 'orders'): TaskEvent {
  return { kind: 'state', seq, taskId, event: 'PAUSE', state: 'paused', at: '2026-01-02T03:04:05.000Z' };
}

function progressed(fixture: HttpFixture): TaskEvent {
  const task = fixture.service.tasks.get('orders');
  if (!task) throw new Error('the task is missing');
  return { kind: 'progress', taskId: 'orders', state: 'migratingData', progress: 5, detail: task.detail };
}

async function makeStreams(heartbeatMs = 60_000): Promise<HttpFixture> {
  const fixture = await makeServer({ heartbeatMs });
  await fixture.post('/migrations', validBody());
  return fixture;
}

const idsOf = (stream: Stream): (string | undefined)[] => stream.messages.map(({ id }) => id);

describe('events', () => {
  test('journal events carry their number as id, progress carries none', async () => {
    const fixture = await makeStreams();
    fixture.service.emit(moved(7));
    const stream = await openStream(fixture, '/migrations/orders/events');
    expect(stream.response.status).toBe(200);
    expect(stream.response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    await waitFor(() => stream.messages.length === 1);
    fixture.service.emit(progressed(fixture));
    await waitFor(() => stream.messages.length === 2);
    expect(stream.messages.map(({ id, event }) => ({ id, event }))).toEqual([
      { id: '7', event: 'state' },
      { id: undefined, event: 'progress' },
    ]);
    expect(JSON.parse(stream.messages[0]?.data ?? '')).toEqual({
      seq: 7,
      task_id: 'orders',
      event: 'PAUSE',
      state: 'paused',
      at: '2026-01-02T03:04:05.000Z',
    });
    expect(JSON.parse(stream.messages[1]?.data ?? '')).toMatchObject({
      task_id: 'orders',
      state: 'migratingData',
      progress: 5,
      detail: { bytes_copied: 0 },
    });
    expect(stream.retries).toEqual([2000]);
  });

  test('a client that reconnects gets what came after its last event, once', async () => {
    const fixture = await makeStreams();
    for (const seq of [1, 2, 3]) fixture.service.emit(moved(seq));
    const first = await openStream(fixture, '/migrations/orders/events');
    await waitFor(() => first.messages.length === 3);
    first.abort();
    fixture.service.emit(moved(4));
    const last = idsOf(first).at(-1) ?? '';
    const byHeader = await openStream(fixture, '/migrations/orders/events', { 'last-event-id': last });
    const byQuery = await openStream(fixture, `/migrations/orders/events?last_event_id=${last}`);
    const both = await openStream(fixture, '/migrations/orders/events?last_event_id=1', {
      'last-event-id': last,
    });
    fixture.service.emit(moved(5));
    for (const stream of [byHeader, byQuery, both]) {
      await waitFor(() => stream.messages.length === 2);
      expect(idsOf(stream)).toEqual(['4', '5']);
    }
  });

  test('a task has its own events, /events has all', async () => {
    const fixture = await makeStreams();
    const own = await openStream(fixture, '/migrations/orders/events');
    const all = await openStream(fixture, '/events');
    await waitFor(() => fixture.service.listeners.size === 2);
    fixture.service.emit(moved(1, 'another'));
    fixture.service.emit(moved(2));
    await waitFor(() => all.messages.length === 2 && own.messages.length === 1);
    expect([idsOf(own), idsOf(all)]).toEqual([['2'], ['1', '2']]);
  });

  test.each([
    ['header', '/events', { 'last-event-id': 'x' }, 'Last-Event-ID'],
    ['query', '/events?last_event_id=-1', {}, 'last_event_id'],
    ['unknown', '/events?since=1', {}, 'since'],
  ])('a bad position is 400: %s', async (_, path, headers, field) => {
    const { api } = await makeStreams();
    const response = await api(path, { headers });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ fields: [{ field }] });
  });
});

describe('ends', () => {
  test('silence is broken by comments, so that a dead connection shows', async () => {
    const fixture = await makeStreams(20);
    const stream = await openStream(fixture, '/events');
    await waitFor(() => stream.comments.length >= 3);
    fixture.service.emit(moved(1));
    await waitFor(() => stream.messages.length === 1);
    expect(idsOf(stream)).toEqual(['1']);
  });

  test('the subscription goes with the client', async () => {
    const fixture = await makeStreams();
    const stream = await openStream(fixture, '/events');
    await waitFor(() => fixture.service.listeners.size === 1);
    stream.abort();
    await waitFor(() => fixture.service.listeners.size === 0);
  });

  test('HEAD subscribes to nothing', async () => {
    const fixture = await makeStreams();
    const response = await fixture.api('/events', { method: 'HEAD' });
    expect([response.status, response.headers.get('content-type')]).toEqual([
      200,
      'text/event-stream; charset=utf-8',
    ]);
    expect(fixture.service.calls.map(([method]) => method)).not.toContain('events');
  });

  test('an iterator that fails ends the stream, and the log says why', async () => {
    const fixture = await makeStreams();
    fixture.service.failure = new Error('journal unreadable');
    const stream = await openStream(fixture, '/events');
    expect(await stream.ended).toBe('ended');
    expect(fixture.log.find(({ level }) => level === 'warn')?.fields).toEqual({
      error: 'Error: journal unreadable',
    });
  });

  test('closing the server ends streams at once, not at the deadline of stuck requests', async () => {
    const fixture = await makeStreams();
    const streams = await Promise.all([openStream(fixture, '/events'), openStream(fixture, '/events')]);
    await waitFor(() => fixture.service.listeners.size === 2);
    const begun = performance.now();
    const closed = fixture.server.close();
    expect(fixture.server.close()).toBe(closed);
    await closed;
    expect(performance.now() - begun).toBeLessThan(500);
    expect(await Promise.all(streams.map(({ ended }) => ended))).toEqual(['ended', 'ended']);
    expect(fixture.service.listeners.size).toBe(0);
    await expect(fixture.api('/health')).rejects.toThrow('fetch failed');
  });
});
