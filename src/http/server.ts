// Binds the app and the inspector to a socket, and closes both so that nothing of a client can hold the process.
import { createServer } from 'node:http';
import { getRequestListener, RequestError } from '@hono/node-server';
import { MigrationError } from '../model/errors.ts';
import type { Service } from '../model/service.ts';
import type { Log } from '../postgres/task-scope.ts';
import { isLoopbackHost } from './access.ts';
import { createApp } from './app.ts';
import { attachInspector } from './inspect.ts';
import { Refusal, problemResponse } from './problem.ts';

export interface ServerOptions {
  /** Default 127.0.0.1. Anything but loopback needs `token`. */
  readonly host?: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** `Authorization: Bearer <token>` is then required for everything but the health route. */
  readonly token?: string;
  readonly version: string;
  readonly log: Log;
  /** Default 15,000. */
  readonly heartbeatMs?: number;
}

export interface RunningServer {
  /** `http://host:port`, without a path. */
  readonly url: string;
  readonly port: number;
  /** Ends event streams and WebSockets at once, requests in hand within a second. Calling it again is harmless. */
  close(): Promise<void>;
}

/** How long requests in hand may still be answered after `close`. */
const CLOSE_GRACE_MS = 700;

/** Listens. Throws `invalid_request` for a host that needs a token, or an address that cannot be had. */
export async function startServer(service: Service, options: ServerOptions): Promise<RunningServer> {
  const { port, log } = options;
  const host = options.host ?? '127.0.0.1';
  const token = options.token === undefined || options.token === '' ? null : options.token;
  const loopback = isLoopbackHost(host);
  if (!loopback && token === null)
    throw new MigrationError(
      'invalid_request',
      `host ${host} can be reached by other machines without a token`,
      {
        hint: 'set DTS_TOKEN, or listen on 127.0.0.1',
        details: { fields: [{ field: 'host', message: 'needs a token' }] },
      },
    );
  const access = { loopback, token };
  const closing = new AbortController();
  const app = createApp(service, {
    version: options.version,
    access,
    closing: closing.signal,
    log,
    ...(options.heartbeatMs === undefined ? {} : { heartbeatMs: options.heartbeatMs }),
  });
  const answerRequest = getRequestListener((request) => app.fetch(request), {
    overrideGlobalObjects: false,
    errorHandler: (error) => {
      // what cannot even become a Request: a Host header that is none, a broken URL
      if (error instanceof RequestError)
        return problemResponse(new Refusal(400, 'invalid_request', 'the request is malformed'), '');
      log.error({ error: String(error) }, 'a request was not answered');
      return problemResponse(error, '');
    },
  });
  const server = createServer((incoming, outgoing) => void answerRequest(incoming, outgoing));
  const closeInspector = attachInspector(server, service, { access, log });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) =>
      reject(
        new MigrationError('invalid_request', `cannot listen on ${host}:${port}: ${error.message}`, {
          hint: 'choose another port or host',
          details: { fields: [{ field: 'port', message: error.message }] },
          cause: error,
        }),
      ),
    );
    server.listen(port, host, resolve);
  });
  server.on('error', (error) => log.error({ error: String(error) }, 'the HTTP server failed'));
  const address = server.address();
  const bound = typeof address === 'object' && address !== null ? address.port : port;
  const url = `http://${host.includes(':') ? `[${host}]` : host}:${bound}`;

  const shutDown = (): Promise<void> =>
    new Promise((resolve) => {
      // a kept-alive connection becomes idle only when its last answer is out, so look more than once
      const sweep = setInterval(() => server.closeIdleConnections(), 20);
      const deadline = setTimeout(() => server.closeAllConnections(), CLOSE_GRACE_MS);
      server.close(() => {
        clearInterval(sweep);
        clearTimeout(deadline);
        resolve();
      });
      closing.abort();
      closeInspector();
      server.closeIdleConnections();
    });
  let closed: Promise<void> | null = null;
  return { url, port: bound, close: () => (closed ??= shutDown()) };
}
