// `npm run bench -- sync`: how fast a backlog is drained, beside PostgreSQL's own subscription, in turn.
import type { BenchOptions } from '../run.ts';
import { checkOnly, medianTable, say, startReport } from '../support/report.ts';
import { median, runRounds } from '../support/rounds.ts';
import { withServers } from '../support/servers.ts';
import { backlogs } from './backlogs.ts';
import { live, liveTools } from './live.ts';
import { runBesidePgcopydb } from './pgcopydb.ts';
import { costOfSteady, runSteady, steady } from './steady.ts';
import { DATABASE, hasParallel, syncTools, type SyncWork } from './tools.ts';

export async function runSyncBench(options: BenchOptions): Promise<void> {
  const { scale, rounds, only } = options;
  checkOnly(only, [...backlogs.map(({ name }) => name), live.name, steady.name, 'pgcopydb']);
  await withServers(options.servers, async (source, target) => {
    const tell = startReport({ source, target }, options);
    for (const backlog of backlogs) {
      if (only.length > 0 && !only.includes(backlog.name)) continue;
      const work = { source, target, backlog, scale };
      const runs = await runRounds(syncTools(work), rounds, { source, target }, say);
      const changes = backlog.changes(scale);
      const rates = [...runs].map(([name, all]) => {
        const rate = changes / median(all.map((run) => run.wallSeconds));
        return `${name} ${Math.round(rate).toLocaleString('en')}/s`;
      });
      tell(
        `sync: ${backlog.name}, ${backlog.title}${besideParallel(work)}`,
        `${rounds} rounds, medians, ${changes.toLocaleString('en')} changes: ${rates.join('; ')}. ` +
          `The subscription's own cost is in the target's CPU.\n\n${medianTable(runs)}`,
      );
    }
    if (only.length === 0 || only.includes(live.name)) {
      const work = { source, target, backlog: live, scale };
      const runs = await runRounds(liveTools(work), rounds, { source, target }, say);
      tell(
        `sync: ${live.title}${besideParallel(work)}`,
        `${rounds} rounds, medians, ${live.changes(scale).toLocaleString('en')} changes. From the commit on the source to a reader of ` +
          `the target, and the CPU of that time; the subscription's own is in the target's.\n\n${medianTable(runs)}`,
      );
    }
    if (only.length === 0 || only.includes('pgcopydb')) {
      const found = await runBesidePgcopydb({ source, target }, options, say);
      if (found !== null) tell('sync: beside pgcopydb', found);
    }
    if (only.length > 0 && !only.includes(steady.name)) return;
    const tools = syncTools({ source, target, backlog: steady, scale });
    const lags = await runSteady(tools, { source, target }, DATABASE, scale, say);
    tell(
      `sync: ${steady.title}`,
      `From the commit on the source to a reader of the target, who looks every few milliseconds. ${costOfSteady}\n\n${lags}`,
    );
  });
}

const besideParallel = (work: SyncWork): string => (hasParallel(work) ? ', beside streaming = parallel' : '');
