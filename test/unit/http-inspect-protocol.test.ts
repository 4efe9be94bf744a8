import { createBrowserReceiver, type StatelyInspectionEvent } from '@statelyai/inspect';
import { describe, expect, test } from 'vitest';
import { createActor, createMachine } from 'xstate';
import { actorMessage, eventMessage, snapshotMessage } from '../../src/runtime/inspect-protocol.ts';

const ids = { sessionId: 'x:1', rootId: 'x:0' };

describe('redaction', () => {
  const secret = {
    password: 'hunter2',
    deep: [{ sslkey: 'hunter2', db: { token: 'hunter2', Password: 'hunter2', DTS_TOKEN: 'hunter2' } }],
    accessToken: 'hunter2',
    url: 'connect to postgresql://app:hunter2@db/shop failed',
    kept: 'kept',
  };
  const all = [
    actorMessage({ ...ids, name: 'task', definition: { meta: secret }, actorSnapshot: { context: secret } }),
    eventMessage({ ...ids, event: { type: 'SET', ...secret } }),
    snapshotMessage({ ...ids, event: { type: 'SET', secret }, actorSnapshot: { context: secret } }),
  ];
  test.each(all.map((message) => [message.type, message] as const))(
    '%s has no secret at any depth',
    (_, message) => {
      const text = JSON.stringify(message);
      expect(text).not.toContain('hunter2');
      expect(text).toContain('kept');
    },
  );
  test('a long text costs no more than its length', () => {
    const begun = performance.now();
    const urls = 'a://b:'.repeat(300_000);
    eventMessage({ ...ids, event: { type: 'LOG', text: 'x'.repeat(2_000_000), urls } });
    expect(performance.now() - begun).toBeLessThan(10_000); // minutes when a search begins at every letter
  });
  test('a missing password stays visibly missing', () => {
    expect(eventMessage({ ...ids, event: { type: 'SET', password: null } })['event']).toEqual({
      type: 'SET',
      password: null,
    });
  });
});

describe('what JSON cannot carry', () => {
  test('cycles, functions, classes and depth do not break a message', () => {
    const cyclic: Record<string, unknown> = { type: 'ODD', big: 2n ** 70n, error: new RangeError('no') };
    cyclic['self'] = cyclic;
    cyclic['when'] = new Date(0);
    cyclic['map'] = new Map([['a', new Set([1])]]);
    cyclic['run'] = function work() {};
    let deep: unknown = 1;
    for (let level = 0; level < 50; level++) deep = { deep };
    cyclic['deep'] = deep;
    const message = eventMessage({ ...ids, event: cyclic });
    expect(JSON.parse(JSON.stringify(message))).toMatchObject({
      event: {
        type: 'ODD',
        big: '1180591620717411303424',
        error: { name: 'RangeError', message: 'no' },
        self: '[Circular]',
        when: '1970-01-01T00:00:00.000Z',
        map: { a: [1] },
        run: { type: 'work' },
      },
    });
    expect(JSON.stringify(message)).toContain('[Object]');
  });
});

describe('protocol', () => {
  const machine = createMachine({ id: 'task', initial: 'created', states: { created: {} } });
  const actor = createActor(machine);

  test('a machine and its snapshot travel as data, without the machine behind it', () => {
    const message = actorMessage(
      {
        ...ids,
        parentId: 'x:0',
        name: 'task',
        definition: machine.config,
        actorSnapshot: actor.getSnapshot(),
      },
      42,
    );
    expect(message).toEqual({
      type: '@xstate.actor',
      name: 'task',
      ...ids,
      parentId: 'x:0',
      definition: JSON.stringify(machine.config),
      snapshot: {
        status: 'active',
        value: 'created',
        context: {},
        historyValue: {},
        children: {},
        tags: [],
      },
      createdAt: '42',
      id: null,
      _version: '0.7.2',
    });
  });

  test('an actor that is still being made has a status all the same', () => {
    expect(actorMessage({ ...ids, name: 'task', actorSnapshot: undefined })['snapshot']).toEqual({
      status: 'active',
    });
  });

  test("the library's own receiver takes every message", () => {
    const seen: StatelyInspectionEvent[] = [];
    let deliver: (event: { data: unknown }) => void = () => undefined;
    const page = { addEventListener: (_: string, listener: typeof deliver) => (deliver = listener) };
    // the receiver's options want a DOM Window; it uses these members of it
    const options = { window: { ...page, self: 1, top: 1, opener: null } } as unknown as Parameters<
      typeof createBrowserReceiver
    >[0];
    createBrowserReceiver(options).subscribe((event) => void seen.push(event));
    const messages = [
      actorMessage({ ...ids, name: 'task', actorSnapshot: { status: 'active' } }),
      eventMessage({ ...ids, sourceId: 'x:0', event: { type: 'START' } }),
      snapshotMessage({
        ...ids,
        event: { type: 'START' },
        actorSnapshot: { status: 'active', value: 'init' },
      }),
    ];
    for (const message of messages) deliver({ data: JSON.parse(JSON.stringify(message)) });
    expect(seen.map(({ type }) => type)).toEqual(['@xstate.actor', '@xstate.event', '@xstate.snapshot']);
    expect(seen.every((event) => event.sessionId === 'x:1' && event.rootId === 'x:0')).toBe(true);
  });
});
