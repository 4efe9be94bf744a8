// A real HTTP server around the FakeService, and requests to it, for the tests of src/http.
import { request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import { onTestFinished } from 'vitest';
import { startServer, type RunningServer, type ServerOptions } from '../../src/http/server.ts';
import { FakeService } from './fake-service.ts';

export interface LogLine {
  readonly level: 'debug' | 'info' | 'warn' | 'error';
  readonly fields: Readonly<Record<string, unknown>>;
  readonly message: string;
}

export interface HttpFixture {
  readonly service: FakeService;
  readonly server: RunningServer;
  readonly log: LogLine[];
  /** `fetch` below /api/v1. */
  readonly api: (path: string, init?: RequestInit) => Promise<Response>;
  /** POST of JSON below /api/v1. */
  readonly post: (path: string, body?: unknown) => Promise<Response>;
}

export async function makeServer(over: Partial<ServerOptions> = {}): Promise<HttpFixture> {
  const service = new FakeService();
  const log: LogLine[] = [];
  const write =
    (level: LogLine['level']) =>
    (fields: object, message: string): void =>
      void log.push({ level, fields: fields as LogLine['fields'], message });
  const server = await startServer(service, {
    port: 0,
    version: '1.2.3',
    log: { debug: write('debug'), info: write('info'), warn: write('warn'), error: write('error') },
    ...over,
  });
  onTestFinished(() => server.close());
  const api: HttpFixture['api'] = (path, init) => fetch(`${server.url}/api/v1${path}`, init);
  return {
    service,
    server,
    log,
    api,
    post: (path, body) =>
      api(path, {
        method: 'POST',
        ...(body === undefined
          ? {}
          : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
      }),
  };
}

export interface RawAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** A request with headers that `fetch` does not let one choose (Host). */
export function rawRequest(
  server: RunningServer,
  options: { method?: string; path?: string; headers?: Record<string, string>; body?: string },
): Promise<RawAnswer> {
  return new Promise((resolve, reject) => {
    const outgoing = httpRequest(
      {
        host: '127.0.0.1',
        port: server.port,
        method: options.method ?? 'GET',
        path: options.path ?? '/api/v1/migrations',
        headers: options.headers ?? {},
        agent: false,
      },
      (incoming) => {
        let body = '';
        incoming.setEncoding('utf8');
        incoming.on('data', (chunk: string) => (body += chunk));
        incoming.on('end', () =>
          resolve({ status: incoming.statusCode ?? 0, headers: incoming.headers, body }),
        );
        incoming.on('error', reject);
      },
    );
    outgoing.on('error', reject);
    outgoing.end(options.body);
  });
}

/** A create request that is accepted. */
export function validBody(): Record<string, unknown> {
  return {
    id: 'orders',
    source_db: { host: 'a.example', port: 5433, user: 'app', dbname: 'shop', password: 'hunter2' },
    target_db: { host: 'b.example', user: 'app', dbname: 'shop', password_env: 'TARGET_PASSWORD' },
    tables: ['public.orders'],
    table_suffix: '_new',
    options: { copy_jobs: 2 },
  };
}
