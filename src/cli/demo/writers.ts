// The demo's application: writers that never pause while the database is moved from under them. A writer ends when the
// fence refuses it (SQLSTATE 25006), as an application would that reconnects elsewhere.
import pg, { type Client } from 'pg';
import { operations, type Random } from './operations.ts';

/** read_only_sql_transaction: what the fence's triggers raise. */
const FENCED = '25006';

/** What competing writers do to each other; the transaction is rolled back and another one follows. */
const conflicts: ReadonlySet<string> = new Set([
  '23503', // foreign_key_violation
  '23505', // unique_violation
  '40001', // serialization_failure
  '40P01', // deadlock_detected
  '55P03', // lock_not_available
]);

export interface WriterCounts {
  readonly committed: number;
  readonly rolledBack: number;
  readonly conflicts: number;
  /** Writers that met the fence. */
  readonly fenced: number;
}

export interface Writers {
  /** How many were started. */
  readonly total: number;
  readonly counts: WriterCounts;
  /** `performance.now()` of the last commit. */
  readonly lastCommitAt: number;
  /** Rejects as soon as a writer meets an error that it cannot explain; resolves when all writers have ended. */
  readonly ended: Promise<void>;
  stop(): Promise<void>;
}

/** A small deterministic generator (mulberry32), so that a run can be repeated. */
function randomFrom(seed: number): Random {
  let state = seed;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % limit;
  };
}

function sqlStateOf(error: unknown): string | undefined {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' ? code : undefined;
}

/** Starts `count` writers on the database; each keeps `pauseMs` between its transactions. */
export async function startWriters(url: string, count: number, pauseMs: number): Promise<Writers> {
  const counts = { committed: 0, rolledBack: 0, conflicts: 0, fenced: 0 };
  let lastCommitAt = performance.now();
  let stopping = false;

  const run = async (client: Client, number: number): Promise<void> => {
    const random = randomFrom(number);
    const bag = operations.flatMap((operation) => Array.from({ length: operation.weight }, () => operation));
    for (let turn = 0; !stopping; turn++) {
      const operation = bag[random(bag.length)];
      if (operation === undefined) throw new Error('there are no operations');
      try {
        await client.query('begin');
        const outcome = await operation.run(client, random, `${number}-${turn}`);
        await client.query(outcome);
        if (outcome === 'commit') {
          counts.committed++;
          lastCommitAt = performance.now();
        } else counts.rolledBack++;
      } catch (error) {
        const state = sqlStateOf(error);
        if (state === FENCED) {
          counts.fenced++;
          await client.query('rollback');
          return;
        }
        if (state === undefined || !conflicts.has(state))
          throw new Error(`a writer failed in ${operation.name}`, { cause: error });
        counts.conflicts++;
        await client.query('rollback');
      }
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
    }
  };

  const clients = Array.from(
    { length: count },
    (_, n) => new pg.Client({ connectionString: url, ssl: false, application_name: `shop/${n + 1}` }),
  );
  for (const client of clients) client.on('error', () => undefined); // its query in flight rejects with it
  const close = (client: Client): Promise<void> => client.end().catch(() => undefined);
  try {
    await Promise.all(clients.map((client) => client.connect()));
  } catch (error) {
    await Promise.all(clients.map(close));
    throw error;
  }
  const all = clients.map(async (client, n) => {
    try {
      await run(client, n + 1);
    } finally {
      await close(client);
    }
  });
  const ended = Promise.all(all).then(() => undefined);
  ended.catch(() => undefined); // whoever waits for `ended` hears of it
  return {
    total: count,
    counts,
    get lastCommitAt() {
      return lastCommitAt;
    },
    ended,
    async stop() {
      stopping = true;
      await Promise.allSettled(all);
    },
  };
}
