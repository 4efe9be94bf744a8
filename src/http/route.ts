// One path with the table of its methods, for the app and the API: what is answered and what Allow says on 405 are the
// same list.
import type { Handler, Hono } from 'hono';
import { Refusal } from './problem.ts';

type Method = 'get' | 'post' | 'patch' | 'delete';

/** The answers of one path; every other method gets 405. */
export function path(app: Hono, pattern: string, methods: Partial<Record<Method, Handler>>): void {
  const allow: string[] = [];
  for (const [method, handler] of Object.entries(methods)) {
    app.on(method, pattern, handler);
    allow.push(...(method === 'get' ? ['GET', 'HEAD'] : [method.toUpperCase()])); // Hono answers HEAD by the GET
  }
  app.all(pattern, (c) => {
    throw new Refusal(405, 'method_not_allowed', `${c.req.method} is not possible here`, {
      headers: { allow: allow.join(', ') },
      members: { allowed: allow },
    });
  });
}
