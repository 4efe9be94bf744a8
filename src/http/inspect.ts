// WebSocket /inspect: what live actors do, one JSON text message each, as `createWebSocketReceiver` of
// @statelyai/inspect 0.7 reads them. Every viewer subscribes when it connects and unsubscribes when it goes; with no
// viewer nothing is converted. A viewer that does not keep up is dropped, never waited for.
import type { IncomingMessage, Server } from 'node:http';
import type { Duplex } from 'node:stream';
import { WebSocketServer, type WebSocket } from 'ws';
import type { Service } from '../model/service.ts';
import type { Log } from '../postgres/task-scope.ts';
import { refuseUpgrade, type AccessPolicy } from './access.ts';
import { Refusal, problemResponse } from './problem.ts';

const INSPECT_PATH = '/inspect';

/** Unsent bytes after which a viewer is dropped. */
const MAX_BUFFERED_BYTES = 8 * 1024 * 1024;

/** A closing viewer may answer the close frame for so long. */
const CLOSE_GRACE_MS = 200;

export interface InspectorOptions {
  readonly access: AccessPolicy;
  readonly log: Log;
}

/** Takes over the server's upgrades; the returned function closes every viewer and refuses new ones. */
export function attachInspector(server: Server, service: Service, options: InspectorOptions): () => void {
  const viewers = new WebSocketServer({ noServer: true, maxPayload: 64 * 1024, perMessageDeflate: false });
  let closing = false;
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const refusal = closing
      ? new Refusal(503, 'service_stopped', 'the service is shutting down')
      : refusalOf(request, options.access);
    if (refusal) void refuse(socket, refusal, pathOf(request));
    else viewers.handleUpgrade(request, socket, head, (viewer) => watch(viewer, service, options.log));
  });
  return () => {
    closing = true;
    for (const viewer of viewers.clients) viewer.close(1001, 'the service is shutting down');
    setTimeout(() => {
      for (const viewer of viewers.clients) viewer.terminate();
    }, CLOSE_GRACE_MS).unref();
  };
}

function pathOf(request: IncomingMessage): string {
  return (request.url ?? '').split('?', 1)[0] ?? '';
}

function refusalOf(request: IncomingMessage, access: AccessPolicy): Refusal | null {
  const path = pathOf(request);
  const refusal = refuseUpgrade(
    access,
    {
      method: request.method ?? '',
      path,
      host: request.headers.host,
      origin: request.headers.origin,
      authorization: request.headers.authorization,
    },
    request.socket.remoteAddress,
  );
  if (refusal || path === INSPECT_PATH) return refusal;
  return new Refusal(404, 'unknown_route', 'there is no WebSocket at this path');
}

/** Before the upgrade the socket still speaks HTTP, and nobody but us writes to it. */
async function refuse(socket: Duplex, refusal: Refusal, path: string): Promise<void> {
  const response = problemResponse(refusal, path);
  const body = await response.text();
  const head = [`HTTP/1.1 ${response.status} Refused`, 'connection: close'];
  response.headers.set('content-length', String(Buffer.byteLength(body)));
  for (const [name, value] of response.headers) head.push(`${name}: ${value}`);
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`);
}

function watch(viewer: WebSocket, service: Service, log: Log): void {
  let unsubscribe: (() => void) | null = null;
  viewer.on('error', (error) => log.debug({ error: String(error) }, 'an inspector connection failed'));
  viewer.on('close', () => unsubscribe?.());
  try {
    unsubscribe = service.inspection.subscribe((message) => {
      if (viewer.readyState !== viewer.OPEN) return;
      viewer.send(JSON.stringify(message));
      if (viewer.bufferedAmount > MAX_BUFFERED_BYTES) {
        log.warn({ bufferedBytes: viewer.bufferedAmount }, 'an inspector was too slow and was dropped');
        viewer.terminate();
      }
    });
  } catch (error) {
    log.warn({ error: String(error) }, 'the inspector could not subscribe');
    viewer.close(1011, 'no inspection');
  }
}
