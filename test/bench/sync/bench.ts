// `npm run bench -- sync`: how fast a backlog is drained, beside PostgreSQL's own subscription, in turn.
import type { BenchOptions } from '../run.ts';
import { checkOnly, medianTable, say, startReport } from '../support/report.ts';
import { median, runRounds } from '../support/rounds.ts';
import { withServers, type BenchServers } from '../support/servers.ts';
import { backlogs } from './backlogs.ts';
import { LEAST_VERSION, pgcopydbTool, pgcopydbVersion, SHARE } from './pgcopydb.ts';
import { costOfSteady, runSteady, steady } from './steady.ts';
import { DATABASE, PARALLEL, syncTools } from './tools.ts';

export async function runSyncBench(options: BenchOptions): Promise<void> {
  const { scale, rounds, only } = options;
  checkOnly(only, [...backlogs.map(({ name }) => name), steady.name, 'pgcopydb']);
  await withServers(options.servers, async (source, target) => {
    const tell = startReport({ source, target }, options);
    for (const backlog of backlogs) {
      if (only.length > 0 && !only.includes(backlog.name)) continue;
      const work = { source, target, backlog, scale };
      const tools = syncTools(work);
      const runs = await runRounds(tools, rounds, { source, target }, say);
      const changes = backlog.changes(scale);
      const rates = [...runs].map(([name, all]) => {
        const rate = changes / median(all.map((run) => run.wallSeconds));
        return `${name} ${Math.round(rate).toLocaleString('en')}/s`;
      });
      const beside = tools.some(({ name }) => name === PARALLEL) ? ', beside streaming = parallel' : '';
      tell(
        `sync: ${backlog.name}, ${backlog.title}${beside}`,
        `${rounds} rounds, medians, ${changes.toLocaleString('en')} changes: ${rates.join('; ')}. ` +
          `The subscription's own cost is in the target's CPU.\n\n${medianTable(runs)}`,
      );
    }
    if (only.length === 0 || only.includes('pgcopydb')) {
      const version = pgcopydbVersion();
      if (version === null) say(`left out: pgcopydb, of which ${LEAST_VERSION} or newer is not installed`);
      else tell('sync: beside pgcopydb', await besidePgcopydb({ source, target }, options, version));
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

/** Every backlog, small, by us, by a subscription and by pgcopydb. */
async function besidePgcopydb(
  servers: BenchServers,
  { scale, rounds }: BenchOptions,
  version: number,
): Promise<string> {
  const small = scale * SHARE;
  const parts: string[] = [];
  for (const backlog of backlogs) {
    const work = { ...servers, backlog, scale: small };
    const tools = [...syncTools(work).filter(({ name }) => !/text|parallel/.test(name)), pgcopydbTool(work)];
    const runs = await runRounds(tools, rounds, servers, say);
    const changes = backlog.changes(small).toLocaleString('en');
    parts.push(`${backlog.name}, ${backlog.title}: ${changes} changes.\n\n${medianTable(runs)}`);
  }
  return `${rounds} rounds, medians, pgcopydb ${version}, ${SHARE} of each backlog: at this size the start of every tool counts.\n\n${parts.join('\n\n')}`;
}
