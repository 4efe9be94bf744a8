// The part "deadline": what an application meets when a cutover is asked for while somebody writes and never commits: its
// writes are refused until the deadline, then all are accepted again.
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { say, table } from '../support/report.ts';
import { median } from '../support/rounds.ts';
import type { BenchServers } from '../support/servers.ts';
import {
  acceptedPerSecond,
  binsBetween,
  DATABASE,
  rowsOf,
  TASK,
  until,
  untilReady,
  whole,
  withMigration,
} from './migration.ts';
import type { Timeline } from './application.ts';

const DEADLINE_MS = 5_000;
/** Looked at before and after. */
const AROUND_MS = 3_000;

interface Given {
  /** Accepted writes a second. */
  readonly before: number;
  readonly during: number;
  readonly after: number;
  readonly refused: number;
  readonly failed: number;
  /** The source refused writes, by the service. */
  readonly fencedMs: number;
  /** Longest time without an accepted write. */
  readonly pauseMs: number;
}

export async function measureDeadline(
  servers: BenchServers,
  gigabytes: number,
  rounds: number,
): Promise<string> {
  const options = () => ({ cutoverTimeoutMs: DEADLINE_MS });
  const all = await withMigration(
    servers,
    { rows: rowsOf(gigabytes), retries: true, options },
    async ({ source, service, application }) => {
      application.begin();
      const given: Given[] = [];
      for (let round = 1; round <= rounds; round++) {
        await untilReady(service, TASK);
        await sleep(AROUND_MS);
        const blocker = new pg.Client({ connectionString: source.url(DATABASE) });
        await blocker.connect();
        await blocker.query('begin');
        await blocker.query('insert into movements (account, amount) values (1, 0)');
        const askedMs = Date.now();
        await service.cutover(TASK);
        const task = await until(
          service,
          TASK,
          ({ state, error }) => state === 'syncingWal' && error?.code === 'cutover_timeout',
        );
        const liftedMs = Date.now();
        await sleep(AROUND_MS);
        given.push(
          givenUp(await application.timeline(), { askedMs, liftedMs, fencedMs: task.writeStopMs ?? 0 }),
        );
        say(`round ${round}: ${JSON.stringify(given.at(-1))}`);
        await blocker.query('rollback');
        await blocker.end();
      }
      return given;
    },
  );
  const of = (pick: (each: Given) => number): string => whole(median(all.map(pick)));
  return [
    `A writer that never commits, \`cutover_timeout_ms\` ${whole(DEADLINE_MS)}; refused writes are tried again after 100 ms. ${rounds} rounds, medians.`,
    '',
    table(
      [
        'writes/s before',
        'under the fence',
        'after',
        'refused (25006)',
        'failed otherwise',
        'fenced ms',
        'longest pause ms',
      ],
      [
        [
          of(({ before }) => before),
          of(({ during }) => during),
          of(({ after }) => after),
          of(({ refused }) => refused),
          of(({ failed }) => failed),
          of(({ fencedMs }) => fencedMs),
          of(({ pauseMs }) => pauseMs),
        ],
      ],
    ),
  ].join('\n');
}

/** `askedMs` to `liftedMs`: from the request to the state that says that the source takes writes again. */
function givenUp(
  timeline: Timeline,
  {
    askedMs,
    liftedMs,
    fencedMs,
  }: { readonly askedMs: number; readonly liftedMs: number; readonly fencedMs: number },
): Given {
  const { binMs } = timeline;
  const between = (from: number, to: number): Timeline['bins'] => binsBetween(timeline, from, to);
  const rate = (some: Timeline['bins']): number => acceptedPerSecond(some, binMs);
  const around = between(askedMs - AROUND_MS, liftedMs + AROUND_MS);
  let pauseMs = 0;
  let emptyMs = 0;
  for (const { accepted } of around) {
    emptyMs = accepted === 0 ? emptyMs + binMs : 0;
    pauseMs = Math.max(pauseMs, emptyMs);
  }
  const refusing = around.filter(({ refused }) => refused > 0);
  const during = between(refusing[0]?.atMs ?? askedMs, (refusing.at(-1)?.atMs ?? liftedMs) + binMs);
  return {
    before: rate(between(askedMs - AROUND_MS, askedMs)),
    during: rate(during),
    after: rate(between(liftedMs, liftedMs + AROUND_MS)),
    refused: around.reduce((sum, { refused }) => sum + refused, 0),
    failed: around.reduce((sum, { failed }) => sum + failed, 0),
    fencedMs,
    pauseMs,
  };
}
