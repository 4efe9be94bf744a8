// Peak memory of our process must not grow with the data: one size beside five times as much.
import { median, runRounds } from '../support/rounds.ts';
import { table } from '../support/report.ts';
import type { Bench } from './bench.ts';
import { loadBigTables } from './data.ts';
import { ours, type Work } from './tools.ts';

const MEGABYTE = 1024 * 1024;

export async function measureMemory(bench: Bench, work: Work): Promise<void> {
  const peaks: number[] = [];
  for (const times of [1, 5]) {
    await loadBigTables(bench.source, work.sourceDb, (bench.options.scale * times) / 5, true);
    const runs = await runRounds([ours(work)], bench.options.rounds, bench, bench.say);
    peaks.push(median([...runs.values()].flat().map((run) => run.peakBytes)));
  }
  const [once = 0, fiveTimes = 0] = peaks;
  bench.report(
    'copy: peak memory of our process',
    table(
      ['data', 'peak MB'],
      [
        ['1×', (once / MEGABYTE).toFixed(0)],
        ['5×', (fiveTimes / MEGABYTE).toFixed(0)],
      ],
    ),
  );
}
