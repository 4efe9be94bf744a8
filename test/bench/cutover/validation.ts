// The part "validation": how fast the online validation reads, beside the plainest digest of whole rows, which each server
// computes in one scan of the table, both at once. Both are measured in turn, in the same migration: the stream and the
// look at changed keys run beside the digest as they run beside the validation, and so do the writers.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Service } from '../../../src/index.ts';
import { say, table } from '../support/report.ts';
import { median } from '../support/rounds.ts';
import type { BenchServers } from '../support/servers.ts';
import { DATABASE, rowsOf, TASK, whole, withMigration } from './migration.ts';

const PLAIN = 'select sum(hash_record_extended(t, 1)) from accounts t';

interface Speeds {
  readonly load: string;
  /** Rows a second of every round. */
  readonly validation: number[];
  readonly plain: number[];
  readonly writesPerSecond: number;
}

export async function measureValidation(
  servers: BenchServers,
  gigabytes: number,
  rounds: number,
): Promise<string> {
  const rows = rowsOf(gigabytes);
  const all = await withMigration(
    servers,
    { rows, options: () => ({}) },
    async ({ service, application }) => {
      const measured: Speeds[] = [];
      for (const load of ['none', 'writers']) {
        if (load === 'writers') application.begin();
        const speeds: Speeds = { load, validation: [], plain: [], writesPerSecond: 0 };
        for (let round = 1; round <= rounds; round++) {
          speeds.validation.push(rows / ((await validationMs(service)) / 1_000));
          speeds.plain.push(rows / ((await plainMs(servers)) / 1_000));
          say(
            `${load}: validation ${whole(speeds.validation.at(-1) ?? 0)} rows/s, plain ${whole(speeds.plain.at(-1) ?? 0)}`,
          );
        }
        const { writesPerSecond } = load === 'writers' ? await application.rate() : { writesPerSecond: 0 };
        measured.push({ ...speeds, writesPerSecond });
      }
      return measured;
    },
  );
  return [
    `${whole(rows)} rows; ${rounds} rounds, medians. The digest is \`${PLAIN}\` on both sides at once, one scan each, measured in turn with the validation beside the same stream and the same writers.`,
    '',
    table(
      ['writes/s', 'validation rows/s', 'digest rows/s', 'validation / digest', 'each, rows/s'],
      all.map(({ validation, plain, writesPerSecond }) => [
        whole(writesPerSecond),
        whole(median(validation)),
        whole(median(plain)),
        (median(validation) / median(plain)).toFixed(2),
        validation.map((each, n) => `${whole(each)} : ${whole(plain[n] ?? 0)}`).join(', '),
      ]),
    ),
  ].join('\n');
}

/** From the beginning of a new pass to its last range; returns when what changed meanwhile is settled, too. */
async function validationMs(service: Service): Promise<number> {
  const before = (await service.getValidation(TASK)).startedAt;
  await service.validateTask(TASK);
  let tookMs: number | null = null;
  for (;;) {
    const view = await service.getValidation(TASK);
    const hasBegun = view.startedAt !== null && view.startedAt !== before;
    if (hasBegun && tookMs === null && view.tables.every(({ state }) => state === 'verified'))
      tookMs = Date.now() - Date.parse(view.startedAt);
    if (tookMs !== null && view.clean) return tookMs;
    await sleep(10);
  }
}

async function plainMs({ source, target }: BenchServers): Promise<number> {
  const serial = 'set max_parallel_workers_per_gather = 0';
  const began = performance.now();
  await Promise.all([source.query(DATABASE, serial, PLAIN), target.query(DATABASE, serial, PLAIN)]);
  return performance.now() - began;
}
