// The page's script, run against stand-ins for the browser's objects that it uses.
import { createHash } from 'node:crypto';
import { runInNewContext } from 'node:vm';
import { expect, test } from 'vitest';
import { contentSecurityPolicyFor, inspectPage } from '../../src/http/inspect-page.ts';

const script = /<script>([^]*)<\/script>/.exec(inspectPage)?.[1] ?? '';

class Element {
  children: Element[] = [];
  hidden = false;
  #text = '';
  posted: { message: unknown; target: string }[] = [];
  readonly contentWindow = {
    postMessage: (message: unknown, target: string) => void this.posted.push({ message, target }),
  };
  appendChild(child: Element): Element {
    this.children.push(child);
    return child;
  }
  get textContent(): string {
    return this.#text + this.children.map((child) => child.textContent).join('|');
  }
  set textContent(text: string) {
    this.#text = text;
    this.children = [];
  }
}

interface Socket {
  readonly url: string;
  onopen(): void;
  onmessage(event: { data: string }): void;
  onclose(): void;
}

function openPage() {
  const elements = { inspector: new Element(), actors: new Element(), status: new Element() };
  const sockets: Socket[] = [];
  const timers: { run: () => void; ms: number }[] = [];
  let onMessage: (event: unknown) => void = () => undefined;
  runInNewContext(script, {
    window: { addEventListener: (_: string, listener: typeof onMessage) => (onMessage = listener) },
    document: {
      getElementById: (id: keyof typeof elements) => elements[id],
      createElement: () => new Element(),
    },
    location: { origin: 'http://127.0.0.1:8080' },
    setTimeout: (run: () => void, ms: number) => timers.push({ run, ms }),
    WebSocket: class {
      constructor(url: string) {
        sockets.push(Object.assign(this as unknown as Socket, { url }));
      }
    },
  });
  const frame = elements.inspector.contentWindow;
  return {
    ...elements,
    sockets,
    timers,
    connected: (origin = 'https://stately.ai', source: unknown = frame) =>
      onMessage({ data: { type: '@statelyai.connected' }, origin, source }),
    receive: (message: object) => sockets.at(-1)?.onmessage({ data: JSON.stringify(message) }),
  };
}

const actor = {
  type: '@xstate.actor',
  sessionId: 'x:1',
  name: 'orders',
  snapshot: { value: 'created', status: 'active' },
};
const snapshot = {
  type: '@xstate.snapshot',
  sessionId: 'x:1',
  event: { type: 'START' },
  snapshot: { value: { replicating: { flow: 'syncingWal' } }, status: 'active' },
};

test('the policy allows exactly the script and style of the page', () => {
  const style = /<style>([^]*)<\/style>/.exec(inspectPage)?.[1] ?? '';
  const hash = (text: string): string => createHash('sha256').update(text).digest('base64');
  const policy = contentSecurityPolicyFor('localhost');
  expect(policy).toContain(`script-src 'sha256-${hash(script)}'`);
  expect(policy).toContain(`style-src 'sha256-${hash(style)}'`);
});

test('the hosted inspector gets what came before it connected, then everything live', () => {
  const page = openPage();
  page.sockets[0]?.onopen();
  page.receive(actor);
  page.receive(snapshot);
  expect(page.inspector.posted).toEqual([]);
  page.connected();
  expect(
    page.inspector.posted.map(({ message, target }) => [(message as typeof actor).type, target]),
  ).toEqual([
    ['@xstate.actor', 'https://stately.ai'],
    ['@xstate.snapshot', 'https://stately.ai'],
  ]);
  page.receive(snapshot);
  expect(page.inspector.posted).toHaveLength(3);
});

test('nothing is handed to another page that claims to be the inspector', () => {
  const page = openPage();
  page.sockets[0]?.onopen();
  page.receive(actor);
  page.connected('https://evil.example');
  page.connected('https://stately.ai', { other: 'window' });
  expect(page.inspector.posted).toEqual([]);
});

test('without the hosted inspector the list shows actors and states', () => {
  const page = openPage();
  page.sockets[0]?.onopen();
  page.receive(actor);
  expect(page.actors.textContent).toBe('orders|x:1|created|active|');
  page.receive(snapshot);
  expect(page.actors.textContent).toBe('orders|x:1|{"replicating":{"flow":"syncingWal"}}|active|START');
  expect(page.status.textContent).toBe('service: connected (1 actors); stately.ai inspector: loading');
  page.timers.find(({ ms }) => ms === 10_000)?.run();
  expect(page.inspector.hidden).toBe(true);
  expect(page.status.textContent).toContain('cannot be reached');
});

test('a lost connection is made again and the list begins anew', () => {
  const page = openPage();
  page.sockets[0]?.onopen();
  page.receive(actor);
  page.sockets[0]?.onclose();
  expect(page.status.textContent).toContain('disconnected');
  page.timers.find(({ ms }) => ms === 2_000)?.run();
  expect(page.sockets.map(({ url }) => url)).toEqual(Array(2).fill('ws://127.0.0.1:8080/inspect'));
  page.sockets[1]?.onopen();
  expect(page.actors.textContent).toBe('');
});
