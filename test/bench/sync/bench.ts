// `npm run bench -- sync`: how fast a backlog is drained, beside PostgreSQL's own subscription, in turn.
import type { BenchOptions } from '../run.ts';
import { describeMachine, medianTable, storeSection } from '../support/report.ts';
import { median, runRounds } from '../support/rounds.ts';
import { withServers } from '../support/servers.ts';
import { backlogs } from './backlogs.ts';
import { syncTools } from './tools.ts';

export async function runSyncBench(options: BenchOptions): Promise<void> {
  const { scale, rounds, only, store } = options;
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  for (const name of only)
    if (!backlogs.some((backlog) => backlog.name === name))
      throw new Error(`--only: ${name} is none of ${backlogs.map((backlog) => backlog.name).join(', ')}`);
  await withServers(options.servers, async (source, target) => {
    const machine = describeMachine(source, target);
    say(machine);
    for (const backlog of backlogs) {
      if (only.length > 0 && !only.includes(backlog.name)) continue;
      const work = { source, target, backlog, scale };
      const runs = await runRounds(syncTools(work), rounds, { source, target }, say);
      const changes = backlog.changes(scale);
      const rates = [...runs].map(([name, all]) => {
        const rate = changes / median(all.map((run) => run.wallSeconds));
        return `${name} ${Math.round(rate).toLocaleString('en')}/s`;
      });
      const title = `sync: ${backlog.name}, ${backlog.title}`;
      const body =
        `${rounds} rounds, medians, ${changes.toLocaleString('en')} changes: ${rates.join('; ')}. ` +
        `The subscription's own cost is in the target's CPU.\n\n${medianTable(runs)}`;
      say(`\n## ${title}\n\n${body}\n`);
      if (store)
        storeSection(
          title,
          `${new Date().toISOString().slice(0, 10)}, scale ${scale}. ${machine}.\n\n${body}`,
        );
    }
  });
}
