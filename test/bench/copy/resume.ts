// A SIGKILL when half of the bytes stand on the target, and a second process: what does it read again? Parts that were
// running, and nothing else.
import { setTimeout as sleep } from 'node:timers/promises';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { table } from '../support/report.ts';
import type { Bench } from './bench.ts';
import { verifyCopy } from './data.ts';
import { dropLeftovers, type Work } from './tools.ts';

interface Markers {
  readonly parts: number;
  readonly bytes: number;
}

async function markersOf({ target, targetDb }: Work): Promise<Markers> {
  const [present] = await target.query(targetDb, `select to_regclass('dts.part') is not null as yes`);
  if (present?.['yes'] !== true) return { parts: 0, bytes: 0 };
  const [row] = await target.query(
    targetDb,
    'select count(*)::int as parts, coalesce(sum(bytes), 0)::float8 as bytes from dts.part',
  );
  return { parts: Number(row?.['parts']), bytes: Number(row?.['bytes']) };
}

/** Runs our process; `watch` may kill it. Resolves with whether it ended well, and its wall time. */
async function runOurs(
  { source, target, sourceDb, targetDb, jobs }: Work,
  folder: string,
  watch: (kill: () => void) => Promise<void>,
): Promise<{ readonly ok: boolean; readonly seconds: number }> {
  const began = performance.now();
  const child = spawn(
    process.execPath,
    [
      join(import.meta.dirname, 'our-process.js'),
      source.url(sourceDb),
      target.url(targetDb),
      folder,
      JSON.stringify({ copyJobs: jobs, indexJobs: jobs }),
    ],
    { stdio: 'inherit' },
  );
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
  await Promise.race([watch(() => void child.kill('SIGKILL')), exited]);
  return { ok: (await exited) === 0, seconds: (performance.now() - began) / 1_000 };
}

export async function measureResume(bench: Bench, work: Work): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'dts-bench-'));
  try {
    await dropLeftovers(work);
    await work.target.freshDatabase(work.targetDb);
    const whole = await runOurs(work, folder, () => new Promise(() => undefined));
    const all = await markersOf(work);
    if (!whole.ok) throw new Error('the undisturbed run failed');
    rmSync(folder, { recursive: true, force: true });
    await dropLeftovers(work);
    await work.target.freshDatabase(work.targetDb);
    let kept: Markers = { parts: 0, bytes: 0 };
    await runOurs(work, folder, async (kill) => {
      while (kept.bytes < all.bytes / 2) {
        await sleep(20);
        kept = await markersOf(work);
      }
      kill();
    });
    kept = await markersOf(work); // what committed while the kill was under way
    const oldest = `select coalesce(max(done_at), now())::text as at from dts.part`;
    const [mark] = await work.target.query(work.targetDb, oldest);
    const resumed = await runOurs(work, folder, () => new Promise(() => undefined));
    if (!resumed.ok) throw new Error('the resumed run failed');
    await verifyCopy(work);
    const [again] = await work.target.query(
      work.targetDb,
      `select count(*)::int as parts, coalesce(sum(bytes), 0)::float8 as bytes from dts.part
        where done_at > '${String(mark?.['at'])}'`,
    );
    const megabytes = (bytes: number): string => (bytes / 1024 ** 2).toFixed(0);
    const readAgain = Number(again?.['bytes']) - (all.bytes - kept.bytes);
    bench.report(
      'copy: resumed after SIGKILL at half of the bytes',
      table(
        ['', 'parts', 'MB'],
        [
          ['all', String(all.parts), megabytes(all.bytes)],
          ['done at the kill', String(kept.parts), megabytes(kept.bytes)],
          ['copied by the second run', String(again?.['parts']), megabytes(Number(again?.['bytes']))],
          [
            'finished parts that were copied again',
            String(kept.parts + Number(again?.['parts']) - all.parts),
            megabytes(readAgain),
          ],
        ],
      ) + `\n\nUndisturbed ${whole.seconds.toFixed(1)} s; the second run ${resumed.seconds.toFixed(1)} s.`,
    );
    await dropLeftovers(work);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
