// The application of the cutover bench, on a thread of its own, so that neither side waits for the other: writers that are
// told by the hook after_open which server takes writes now, and how long they could not write. Messages: the URL of the hook
// first; `Moved` after every change of sides; `Rate` and `Timeline` when they are asked for. It writes from `begin` on.
import { setTimeout as sleep } from 'node:timers/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';
import pg from 'pg';

/** `workerData`. */
export interface ApplicationOptions {
  /** Source and target. */
  readonly urls: readonly [string, string];
  readonly accounts: number;
  readonly writers: number;
  readonly writesPerSecond: number;
  /** Whether a refused write is tried again; otherwise its writer waits for the hook. */
  readonly retries: boolean;
}

/** From the first write that one side refused to the first that the other has accepted; ms. */
export interface Moved {
  readonly movedMs: number;
  /** Until the hook came. */
  readonly hookMs: number;
  /** Refused writes. */
  readonly refused: number;
}

export interface Rate {
  readonly writesPerSecond: number;
}

/** What became of the writes, in short intervals. */
export interface Timeline {
  readonly binMs: number;
  readonly bins: readonly {
    /** `Date.now()` of its beginning. */
    readonly atMs: number;
    readonly accepted: number;
    /** By the fence. */
    readonly refused: number;
    /** By anything else. */
    readonly failed: number;
  }[];
}

const FENCED = '25006';
const RETRY_MS = 100;
const BIN_MS = 20;

class Application {
  readonly #options: ApplicationOptions;
  readonly #tell: (message: object) => void;
  #home = 0;
  #refusedAt: number | null = null;
  #hookAt = 0;
  #refused = 0;
  #writes = 0;
  #writingMs = 0;
  #sinceMs = performance.now();
  readonly #bins = new Map<number, { accepted: number; refused: number; failed: number }>();
  #opened: () => void = () => undefined;
  #opening = new Promise<void>((resolve) => (this.#opened = resolve));

  constructor(options: ApplicationOptions, tell: (message: object) => void) {
    this.#options = options;
    this.#tell = tell;
  }

  /** The hook's call. */
  open(port: number): void {
    this.#hookAt = performance.now();
    this.#home = this.#options.urls.findIndex((url) => new URL(url).port === String(port));
    this.#opened();
    this.#opening = new Promise((resolve) => (this.#opened = resolve));
  }

  get rate(): Rate {
    const ms = this.#writingMs + (performance.now() - this.#sinceMs);
    return { writesPerSecond: this.#writes / (ms / 1_000) };
  }

  get timeline(): Timeline {
    const none = { accepted: 0, refused: 0, failed: 0 };
    const first = Math.min(...this.#bins.keys());
    const count = Math.max(...this.#bins.keys()) - first + 1;
    return {
      binMs: BIN_MS,
      bins: Array.from({ length: count }, (_, n) => ({
        atMs: (first + n) * BIN_MS,
        ...(this.#bins.get(first + n) ?? none),
      })),
    };
  }

  begin(): void {
    this.#sinceMs = performance.now();
    for (let n = 1; n <= this.#options.writers; n++) void this.#write(n);
  }

  #count(what: 'accepted' | 'refused' | 'failed'): void {
    const at = Math.floor(Date.now() / BIN_MS);
    const bin = this.#bins.get(at) ?? { accepted: 0, refused: 0, failed: 0 };
    bin[what]++;
    this.#bins.set(at, bin);
  }

  async #write(first: number): Promise<never> {
    const { urls, writers, writesPerSecond, accounts, retries } = this.#options;
    const clients = urls.map((connectionString) => new pg.Client({ connectionString }));
    await Promise.all(clients.map((client) => client.connect()));
    let dueMs = performance.now();
    for (let n = first; ; n += writers) {
      const home = this.#home;
      try {
        const id = 1 + ((n * 7919) % accounts);
        if (n % 10 === 0)
          await clients[home]?.query('insert into movements (account, amount) values ($1, 1)', [id]);
        else await clients[home]?.query('update accounts set balance = balance + 1 where id = $1', [id]);
        this.#accepted(home);
      } catch (error) {
        const isFenced = (error as { code?: unknown }).code === FENCED;
        this.#count(isFenced ? 'refused' : 'failed');
        if (retries) {
          await sleep(RETRY_MS);
          dueMs = performance.now();
          continue;
        }
        if (!isFenced) throw error;
        this.#refused++;
        if (this.#refusedAt === null && home === this.#home) {
          this.#refusedAt = performance.now();
          this.#writingMs += this.#refusedAt - this.#sinceMs;
        }
        if (home === this.#home) await this.#opening;
        dueMs = performance.now();
        continue;
      }
      dueMs += (writers / writesPerSecond) * 1_000;
      const aheadMs = dueMs - performance.now();
      if (aheadMs > 1) await sleep(aheadMs);
      else if (aheadMs < -1_000) dueMs = performance.now(); // what it could not do it does not make up for
    }
  }

  #accepted(home: number): void {
    this.#writes++;
    this.#count('accepted');
    if (this.#refusedAt === null || home !== this.#home || this.#hookAt < this.#refusedAt) return;
    const now = performance.now();
    const moved: Moved = {
      movedMs: now - this.#refusedAt,
      hookMs: this.#hookAt - this.#refusedAt,
      refused: this.#refused,
    };
    this.#refusedAt = null;
    this.#refused = 0;
    this.#sinceMs = now;
    this.#tell(moved);
  }
}

const port = parentPort;
if (port) {
  const options = workerData as ApplicationOptions;
  const application = new Application(options, (message) => port.postMessage(message));
  const hook = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const { opens } = JSON.parse(Buffer.concat(chunks).toString()) as { opens: { port: number } };
      application.open(opens.port);
      response.writeHead(204).end();
    });
  });
  hook.listen(0, '127.0.0.1', () =>
    port.postMessage({ hookUrl: `http://127.0.0.1:${(hook.address() as AddressInfo).port}/` }),
  );
  port.on('message', (question: 'begin' | 'rate' | 'timeline') => {
    if (question === 'begin') application.begin();
    else port.postMessage(application[question]);
  });
}
