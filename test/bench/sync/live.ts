// A large transaction that is written while the stream runs, as a batch job does: how long after its commit the target has it.
import type { Tool } from '../support/rounds.ts';
import { accounts, type Backlog } from './backlogs.ts';
import { DATABASE, syncTools, untilMarked, type SyncWork } from './tools.ts';

const PARTS = 20;
const ROWS = 100_000;
/** A job computes what it writes. */
const PAUSE_SECONDS = 0.5;

/** Nothing to drain: the stream runs when the transaction begins. */
export const live: Backlog = {
  name: 'live',
  title: 'one transaction, written while the stream runs',
  tables: () => accounts(0),
  write: () => [],
  changes: (scale) => PARTS * rowsOf(scale),
};

function rowsOf(scale: number): number {
  return Math.max(100, Math.round(ROWS * scale));
}

async function writeTransaction({ source, scale }: SyncWork): Promise<void> {
  const rows = rowsOf(scale);
  const parts = Array.from({ length: PARTS }, (_, part) => [
    `insert into accounts select g, g, md5(g::text), '2024-01-01' from generate_series(${part * rows + 1}, ${(part + 1) * rows}) g`,
    `select pg_sleep(${PAUSE_SECONDS})`,
  ]);
  await source.query(DATABASE, 'set synchronous_commit = off', 'begin', ...parts.flat(), 'commit');
}

/** Each measured from the commit on. */
export function liveTools(work: SyncWork): Tool[] {
  return syncTools(work).map((tool) => ({
    ...tool,
    async prepare() {
      await tool.prepare();
      await tool.run();
      await writeTransaction(work);
    },
    async run() {
      const before = tool.cpuSeconds?.() ?? 0;
      await work.source.query(DATABASE, 'insert into mark values (2)');
      await untilMarked(work.target, 2);
      return { cpuSeconds: (tool.cpuSeconds?.() ?? 0) - before, peakBytes: tool.peakBytes?.() ?? 0 };
    },
  }));
}
