// The page /inspect/stately: hands what /inspect sends to the hosted Stately inspector, as `createBrowserInspector` of
// @statelyai/inspect 0.7 does: the inspector in a frame posts `@statelyai.connected` to us, then takes every message by
// postMessage. Messages until then are kept, actors for ever and the newest others, so a reloaded frame gets a whole
// picture again. The list of actors below it needs nothing but us.
import { createHash } from 'node:crypto';

const INSPECTOR_ORIGIN = 'https://stately.ai';

const style = `
  * { box-sizing: border-box; }
  html, body { height: 100%; margin: 0; }
  body { display: flex; flex-direction: column; font: 14px/1.4 system-ui, sans-serif; color-scheme: light dark; }
  header { padding: 6px 12px; border-bottom: 1px solid #8886; }
  iframe { flex: 3; width: 100%; border: 0; }
  iframe[hidden] { display: none; }
  main { flex: 1; min-height: 8em; overflow: auto; padding: 0 12px; }
  table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid #8884; vertical-align: top; }
  td { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }`;

const script = `
  'use strict';
  const HOSTED = '${INSPECTOR_ORIGIN}';
  const KEPT_MESSAGES = 200;
  const HOSTED_DEADLINE_MS = 10000;
  const RECONNECT_MS = 2000;
  const frame = document.getElementById('inspector');
  const rows = document.getElementById('actors');
  let inspectorOrigin = null;
  let actors = new Map();
  let others = [];
  let service = 'connecting';
  let hosted = 'loading';

  function showStatus() {
    document.getElementById('status').textContent =
      'service: ' + service + ' (' + actors.size + ' actors); stately.ai inspector: ' + hosted;
  }

  function post(message) {
    if (inspectorOrigin !== null) frame.contentWindow.postMessage(message, inspectorOrigin);
  }

  window.addEventListener('message', (event) => {
    if (event.source !== frame.contentWindow || event.origin !== HOSTED) return;
    if (!event.data || event.data.type !== '@statelyai.connected') return;
    inspectorOrigin = event.origin;
    hosted = 'connected';
    frame.hidden = false;
    showStatus();
    for (const actor of actors.values()) post(actor.message);
    for (const message of others) post(message);
  });
  setTimeout(() => {
    if (inspectorOrigin !== null) return;
    hosted = 'cannot be reached; the list below is live';
    frame.hidden = true;
    showStatus();
  }, HOSTED_DEADLINE_MS);

  function cell(row, text) {
    row.appendChild(document.createElement('td')).textContent = text;
  }

  function showActor(sessionId) {
    const actor = actors.get(sessionId);
    if (!actor) return;
    if (!actor.row) actor.row = rows.appendChild(document.createElement('tr'));
    actor.row.textContent = '';
    const snapshot = actor.snapshot || {};
    const value = snapshot.value === undefined ? '' : snapshot.value;
    cell(actor.row, actor.message.name);
    cell(actor.row, sessionId);
    cell(actor.row, typeof value === 'string' ? value : JSON.stringify(value));
    cell(actor.row, snapshot.status || '');
    cell(actor.row, actor.lastEvent);
  }

  function receive(message) {
    if (message.type === '@xstate.actor') {
      const known = actors.get(message.sessionId);
      actors.set(message.sessionId, {
        message, snapshot: message.snapshot, lastEvent: '', row: known ? known.row : null,
      });
    } else {
      others.push(message);
      if (others.length > KEPT_MESSAGES) others.shift();
      const actor = actors.get(message.sessionId);
      if (actor && message.event) actor.lastEvent = message.event.type;
      if (actor && message.type === '@xstate.snapshot') {
        actor.snapshot = message.snapshot;
        actor.message = Object.assign({}, actor.message, { snapshot: message.snapshot });
      }
    }
    showActor(message.sessionId);
    post(message);
  }

  function connect() {
    const socket = new WebSocket(location.origin.replace(/^http/, 'ws') + '/inspect');
    socket.onopen = () => {
      service = 'connected';
      actors = new Map(); // the service begins with every live actor
      others = [];
      rows.textContent = '';
      showStatus();
    };
    socket.onmessage = (event) => {
      receive(JSON.parse(event.data));
      showStatus();
    };
    socket.onclose = () => {
      service = 'disconnected, trying again';
      showStatus();
      setTimeout(connect, RECONNECT_MS);
    };
  }
  showStatus();
  connect();
`;

/** The whole page; nothing is loaded but the frame. */
export const inspectPage = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>DTS inspector</title>
<style>${style}</style>
</head>
<body>
<header id="status" role="status"></header>
<iframe id="inspector" title="Stately inspector" src="${INSPECTOR_ORIGIN}/inspect"></iframe>
<main>
<table>
<thead><tr><th>actor</th><th>session</th><th>state</th><th>status</th><th>last event</th></tr></thead>
<tbody id="actors"></tbody>
</table>
</main>
<script>${script}</script>
</body>
</html>
`;

const hashOf = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
const scriptHash = hashOf(script);
const styleHash = hashOf(style);

/** `host` as the page is addressed: not every browser counts ws: to the same host as 'self'. */
export function contentSecurityPolicyFor(host: string): string {
  return [
    "default-src 'none'",
    `script-src ${scriptHash}`,
    `style-src ${styleHash}`,
    `connect-src 'self' ws://${host} wss://${host}`,
    `frame-src ${INSPECTOR_ORIGIN}`,
    "frame-ancestors 'none'",
    "base-uri 'none'",
  ].join('; ');
}
