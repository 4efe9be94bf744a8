// pg-copy-streams as a bench runs it: the tables' rows piped from COPY TO into COPY FROM, some tables at once.
// argv: source URL, target URL, jobs, tables.
import { pipeline } from 'node:stream/promises';
import pg from 'pg';
import { from, to } from 'pg-copy-streams';

const [, , source = '', target = '', jobs = '1', ...tables] = process.argv;

async function work(): Promise<void> {
  const reader = new pg.Client({ connectionString: source });
  const writer = new pg.Client({ connectionString: target });
  await Promise.all([reader.connect(), writer.connect()]);
  for (let table = tables.shift(); table !== undefined; table = tables.shift())
    await pipeline(
      reader.query(to(`copy ${table} to stdout`)),
      writer.query(from(`copy ${table} from stdin`)),
    );
  await Promise.all([reader.end(), writer.end()]);
}

await Promise.all(Array.from({ length: Number(jobs) }, work));
