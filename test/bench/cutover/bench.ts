// `npm run bench -- cutover`: how fast the online validation reads (validation.ts), what a cutover that meets its deadline
// costs the application (deadline.ts), and how long it cannot write in one that succeeds, under a steady load, at several
// sizes. The write stop must not grow with the data.
//
// One migration a size, with the way back: cutover, rollback, cutover … as often as --rounds says, every time with all
// rows compared before and a certificate of whole digests after it. The first leads to new tables with all that belongs
// to them; the others find them there. All make the slot of the way back under the write stop, which a task without
// `reverse` saves.
import { setTimeout as sleep } from 'node:timers/promises';
import type { BenchOptions } from '../run.ts';
import { checkOnly, say, startReport, table } from '../support/report.ts';
import { median } from '../support/rounds.ts';
import { withServers, type BenchServers } from '../support/servers.ts';
import type { Moved } from './application.ts';
import { measureDeadline } from './deadline.ts';
import {
  acceptedPerSecond,
  binsBetween,
  rowsOf,
  TASK,
  until,
  untilReady,
  waitUntil,
  whole,
  withMigration,
  WRITERS,
  WRITES_PER_SECOND,
  type RunningApplication,
} from './migration.ts';
import { measureValidation } from './validation.ts';

const SIZES_GB = [0.1, 0.5, 1, 2] as const;
/** A cutover is asked for under the full load of the last seconds, if the machine gets there. */
const LOAD_MS = 3_000;
const LOAD_DEADLINE_MS = 60_000;

interface Part {
  /** What --only takes. */
  readonly name: string;
  readonly title: string;
  run(servers: BenchServers, options: BenchOptions): Promise<string>;
}

const parts: readonly Part[] = [
  {
    name: 'validation',
    title: 'validation',
    run: (servers, { scale, rounds }) => measureValidation(servers, scale, rounds),
  },
  {
    name: 'deadline',
    title: 'deadline',
    run: (servers, { scale, rounds }) => measureDeadline(servers, scale * 0.1, rounds),
  },
  ...SIZES_GB.map((size) => ({
    name: String(size),
    title: `${size} GB`,
    run: (servers: BenchServers, { scale, rounds }: BenchOptions) =>
      measureCutovers(servers, size * scale, rounds),
  })),
];

interface Cutover extends Moved {
  readonly direction: 'first' | 'back' | 'forward';
  /** Arming to opening, as the service notes it. */
  readonly writeStopMs: number;
  readonly steps: string;
  /** In the seconds before it was asked for. */
  readonly writesPerSecond: number;
}

interface Measured {
  readonly cutovers: readonly Cutover[];
  readonly writesPerSecond: number;
}

export async function runCutoverBench(options: BenchOptions): Promise<void> {
  const { only } = options;
  checkOnly(
    only,
    parts.map(({ name }) => name),
  );
  await withServers(options.servers, async (source, target) => {
    const tell = startReport({ source, target }, options);
    for (const { name, title, run } of parts) {
      if (only.length > 0 && !only.includes(name)) continue;
      const began = performance.now();
      tell(`cutover: ${title}`, await run({ source, target }, options));
      say(`${whole((performance.now() - began) / 1_000)} s in all\n`);
    }
  });
}

/** Accepted writes per second of the last seconds, once they are nearly what the application aims at. */
async function fullLoad(application: RunningApplication): Promise<number> {
  for (const deadline = performance.now() + LOAD_DEADLINE_MS; ; await sleep(1_000)) {
    const timeline = await application.timeline();
    const nowMs = Date.now();
    const rate = acceptedPerSecond(binsBetween(timeline, nowMs - LOAD_MS, nowMs), timeline.binMs);
    if (rate >= WRITES_PER_SECOND * 0.98 || performance.now() > deadline) return rate;
  }
}

function report({ cutovers, writesPerSecond }: Measured, count: number): string {
  const row = (what: string, some: readonly Cutover[]): string[] => {
    const of = (pick: (cutover: Cutover) => number): number[] => some.map(pick);
    return [
      what,
      String(some.length),
      whole(median(of(({ movedMs }) => movedMs))),
      whole(Math.max(...of(({ movedMs }) => movedMs))),
      whole(median(of(({ writeStopMs }) => writeStopMs))),
      whole(Math.max(...of(({ writeStopMs }) => writeStopMs))),
    ];
  };
  const groups = (['first', 'forward', 'back'] as const)
    .map((direction) => ({ direction, some: cutovers.filter((cutover) => cutover.direction === direction) }))
    .filter(({ some }) => some.length > 0);
  const before = cutovers.map((cutover) => cutover.writesPerSecond);
  return [
    `${whole(count)} rows, ${WRITERS} writers that aim at ${whole(WRITES_PER_SECOND)} writes/s: ${whole(median(before))} in the ${LOAD_MS / 1_000} s before a cutover (median; lowest ${whole(Math.min(...before))}), ${whole(writesPerSecond)} in all, with the validations and the digests of the certificates in between.`,
    '',
    'Write stop in ms, as the application sees it: from the first write that is refused to the first that the other side accepts.',
    '',
    table(
      ['cutovers', 'number', 'median', 'worst', 'median by the certificate', 'worst'],
      [row('all', cutovers), ...groups.map(({ direction, some }) => row(direction, some))],
    ),
  ].join('\n');
}

async function measureCutovers(servers: BenchServers, gigabytes: number, rounds: number): Promise<string> {
  const count = rowsOf(gigabytes);
  const options = (url: string) => ({ reverse: true, hooks: { afterOpen: { url } } });
  const measured = await withMigration(
    servers,
    { rows: count, options },
    async ({ service, application }) => {
      application.begin();
      const cutovers: Cutover[] = [];
      let id = TASK;
      for (let round = 1; round <= rounds; round++) {
        await untilReady(service, id);
        const load = await fullLoad(application);
        const moving = application.moved();
        const askedMs = performance.now();
        await service.cutover(id);
        const moved = await moving;
        const done = await until(service, id, ({ state }) => state === 'completed');
        if (!done.certificate?.equal || done.writeStopMs === null)
          throw new Error('the cutover was not clean');
        const cutover: Cutover = {
          ...moved,
          direction: round === 1 ? 'first' : round % 2 === 0 ? 'back' : 'forward',
          writeStopMs: done.writeStopMs,
          steps: JSON.stringify(done.certificate.writeStop?.steps),
          writesPerSecond: load,
        };
        cutovers.push(cutover);
        say(
          `${count} rows, cutover ${round} (${cutover.direction}): ${Math.round(cutover.movedMs)} ms, ${cutover.writeStopMs} ms by the certificate ${cutover.steps} under ${whole(load)} writes/s, which came after ${whole(performance.now() - askedMs)} ms`,
        );
        id = done.reverseTask ?? '';
        await waitUntil(
          async () => id === '' || (await service.listTasks()).tasks.some((task) => task.id === id),
          id,
        );
      }
      const { writesPerSecond } = await application.rate();
      await until(service, id, ({ state }) => state === 'syncingWal');
      await service.finish(TASK);
      await until(service, id, ({ state }) => state === 'completed');
      return { cutovers, writesPerSecond };
    },
  );
  return report(measured, count);
}
