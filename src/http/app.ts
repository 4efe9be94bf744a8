// The HTTP face of a Service: access rules, request log, routes, problem documents. Made by `startServer`; without a
// socket of its own, so it can be mounted and tested anywhere.
import { Hono, type Context } from 'hono';
import type { Service } from '../model/service.ts';
import { refuseRequest, type AccessPolicy } from './access.ts';
import { contentSecurityPolicyFor, inspectPage } from './inspect-page.ts';
import { readMetrics } from './metrics.ts';
import { apiRoutes, type ApiOptions } from './migrations.ts';
import { Refusal, problemResponse, toProblem } from './problem.ts';
import { path } from './route.ts';

export interface AppOptions extends ApiOptions {
  readonly access: AccessPolicy;
}

/** Answers of JSON unless said otherwise: /api/v1 as documented in README, /metrics is text, /inspect/stately a page. */
export function createApp(service: Service, options: AppOptions): Hono {
  const { access, log } = options;
  const app = new Hono();

  app.use(async (c, next) => {
    const startedAt = performance.now();
    await next();
    const fields = {
      method: c.req.method,
      path: rawPathOf(c), // never the query: what a client puts there by mistake stays out of the log
      status: c.res.status,
      ms: Math.round(performance.now() - startedAt),
    };
    const reads = c.req.method === 'GET' || c.req.method === 'HEAD';
    if (reads && c.res.ok) log.debug(fields, 'request');
    else log.info(fields, 'request');
    c.header('x-content-type-options', 'nosniff');
    if (!c.res.headers.has('cache-control')) c.header('cache-control', 'no-store');
  });
  app.use(async (c, next) => {
    const refusal = refuseRequest(access, {
      method: c.req.method,
      path: c.req.path,
      host: hostOf(c),
      origin: c.req.header('origin'),
      authorization: c.req.header('authorization'),
    });
    if (refusal) throw refusal;
    await next();
  });

  app.route('/api/v1', apiRoutes(service, options));
  path(app, '/metrics', {
    get: async (c) => {
      const { contentType, text } = await readMetrics(service, options.version);
      return c.body(text, 200, { 'content-type': contentType });
    },
  });
  path(app, '/inspect', {
    get: () => {
      throw new Refusal(426, 'upgrade_required', 'this is a WebSocket', {
        hint: 'open /inspect/stately in a browser, or connect a receiver of @statelyai/inspect',
        headers: { upgrade: 'websocket' },
      });
    },
  });
  path(app, '/inspect/stately', {
    get: (c) => {
      c.header('content-security-policy', contentSecurityPolicyFor(hostOf(c)));
      c.header('referrer-policy', 'no-referrer');
      return c.html(inspectPage);
    },
  });

  app.notFound((c) => {
    const refusal = new Refusal(404, 'unknown_route', 'there is nothing at this path');
    return problemResponse(refusal, rawPathOf(c));
  });
  app.onError((error, c) => {
    if (toProblem(error, rawPathOf(c)).status === 500)
      log.error(
        { method: c.req.method, path: rawPathOf(c), stack: error.stack, cause: stackOf(error.cause) },
        'request failed',
      );
    return problemResponse(error, rawPathOf(c));
  });
  return app;
}

/** As it was sent, percent-encoding included: `instance` is a URI, and a log line has no foreign line breaks. */
function rawPathOf(c: Context): string {
  return new URL(c.req.url).pathname;
}

function hostOf(c: Context): string {
  return c.req.header('host') ?? new URL(c.req.url).host;
}

function stackOf(cause: unknown): string | undefined {
  return cause instanceof Error ? cause.stack : undefined;
}
