// The demo as a client of DTS' HTTP API; only what it needs, with the wire's names.
import { setTimeout as sleep } from 'node:timers/promises';

const POLL_MS = 40;
const REQUEST_TIMEOUT_MS = 30_000;

/** `GET /api/v1/migrations/{id}/status`. */
export interface Status {
  readonly state: string;
  readonly progress: number;
  readonly error: { readonly code: string; readonly message: string; readonly hint?: string } | null;
  readonly lag_bytes: number | null;
  readonly connections: number;
  readonly waiting_for: string | null;
  readonly write_stop_ms: number | null;
  readonly bytes_copied: number;
  readonly rows_copied: number;
  readonly sync: { readonly transactions_applied: number; readonly changes_applied: number } | null;
}

/** What the demo reads of `GET /api/v1/migrations/{id}`. */
export interface Task {
  readonly id: string;
  readonly findings: readonly {
    readonly severity: string;
    readonly object: string;
    readonly message: string;
  }[];
  readonly certificate: { readonly tables: readonly { readonly equal: boolean }[] } | null;
}

export class DtsApi {
  readonly #base: string;
  readonly #signal: AbortSignal;

  /** `signal` aborts every request and wait. */
  constructor(url: string, signal: AbortSignal) {
    this.#base = `${url}/api/v1/migrations`;
    this.#signal = signal;
  }

  /** Creates a task that moves every table, and returns its id. */
  async create(sourceUrl: string, targetUrl: string, suffix: string): Promise<string> {
    const task = await this.#request<Task>('POST', '', {
      source_db: `${sourceUrl}?sslmode=disable`,
      target_db: `${targetUrl}?sslmode=disable`,
      tables: ['*'],
      table_suffix: suffix,
      options: { cutover: 'manual' },
    });
    return task.id;
  }

  async command(id: string, command: 'start' | 'cutover' | 'unfence'): Promise<void> {
    await this.#request('POST', `/${id}/${command}`, {});
  }

  async task(id: string): Promise<Task> {
    return this.#request('GET', `/${id}`);
  }

  async status(id: string): Promise<Status> {
    return this.#request('GET', `/${id}/status`);
  }

  /**
   * Polls until `reached`; each status goes to `onStatus`. Rejects when the task stops short of it (paused, failed,
   * cancelled), when the state becomes one of `tooFar`, or after `timeoutMs`.
   */
  async waitFor(
    id: string,
    what: string,
    timeoutMs: number,
    reached: (status: Status) => boolean,
    onStatus: (status: Status) => void,
  ): Promise<Status> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const status = await this.status(id);
      onStatus(status);
      if (['paused', 'failed', 'cancelled'].includes(status.state))
        throw new Error(`waiting until ${what}: the task is ${status.state}: ${errorText(status)}`);
      if (reached(status)) return status;
      if (performance.now() > deadline)
        throw new Error(
          `waiting until ${what}: not after ${timeoutMs / 1000} s; state ${status.state}, ` +
            `${status.waiting_for === null ? '' : `waiting for ${status.waiting_for}, `}${errorText(status)}`,
        );
      await sleep(POLL_MS, undefined, { signal: this.#signal });
    }
  }

  async #request<T>(method: string, path: string, body?: object): Promise<T> {
    const response = await fetch(`${this.#base}${path}`, {
      method,
      signal: AbortSignal.any([this.#signal, AbortSignal.timeout(REQUEST_TIMEOUT_MS)]),
      ...(body === undefined
        ? {}
        : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return JSON.parse(text) as T;
  }
}

function errorText({ error }: Status): string {
  return error === null
    ? 'no error'
    : `${error.code}: ${error.message}${error.hint === undefined ? '' : ` (${error.hint})`}`;
}
