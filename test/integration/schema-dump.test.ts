// pg_dump of the machine and the bundled one: both read a server through a lent session, and tell the same of it.
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { nativeMajor } from '../../src/schema/dump-native.ts';
import { chooseDumper, dumpSchema, type Dumper } from '../../src/schema/dump.ts';
import { makePair, waitFor } from '../support/databases.ts';
import { makeScope } from '../support/scope.ts';

const shop = await readFile(new URL('../cases/schema/shop.sql', import.meta.url), 'utf8');
const installed = await nativeMajor();

/** Puts an executable `pg_dump` first on PATH, a shell script that may write into `folder`. */
async function pgDumpIs(script: (folder: string) => string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'dts-test-'));
  const file = join(folder, 'pg_dump');
  await writeFile(
    file,
    `#!/bin/sh\nif [ "$1" = --version ]; then echo asked >> ${folder}/versions; echo 'pg_dump (PostgreSQL) 99.1'; exit; fi\n${script(folder)}\n`,
  );
  await chmod(file, 0o755);
  vi.stubEnv('PATH', `${folder}${delimiter}${process.env['PATH']}`);
  onTestFinished(async () => {
    vi.unstubAllEnvs();
    await rm(folder, { recursive: true });
  });
  return folder;
}

const everything = { role: 'source', schemas: null, extensions: [] } as const;

const dumpers: Dumper[] = installed !== null && installed >= 13 ? ['bundled', 'native'] : ['bundled'];
test.each(dumpers)('the %s pg_dump tells of every object of a hard schema', async (dumper) => {
  const pair = await makePair({ source: 13, target: 18 });
  await pair.source.query(shop);
  const scope = makeScope(pair);
  const entries = await dumpSchema(scope, dumper, everything);
  const { rows } = await pair.source.query<{ relation: string }>(
    `select n.nspname || ' ' || c.relname as relation from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm') and n.nspname !~ '^pg_|^information_schema$'
       and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e') order by 1`,
  );
  const told = entries
    .filter(({ kind }) => ['TABLE', 'VIEW', 'MATERIALIZED VIEW'].includes(kind))
    .map(({ schema, tag }) => `${schema} ${tag}`);
  expect(rows.length).toBeGreaterThan(20);
  expect([...new Set(told)].sort()).toEqual(rows.map(({ relation }) => relation).sort());
  expect(entries.every(({ statements }) => statements.length > 0)).toBe(true);
});

test('pg_dump of the machine is taken when it is new enough for both servers', async () => {
  const older = makeScope(await makePair({ source: 13, target: 18 }));
  if (installed === null || installed < 18) expect(await chooseDumper(older)).toBe('bundled');
  const folder = await pgDumpIs(() => 'exit 1');
  // tasks that start together ask it once for its version
  expect(await Promise.all([1, 2, 3].map(() => chooseDumper(older)))).toEqual(['native', 'native', 'native']);
  expect(await readFile(join(folder, 'versions'), 'utf8')).toBe('asked\n');
});

test('it is given neither host nor password, and its last words are the error', async () => {
  const pair = await makePair();
  const folder = await pgDumpIs(
    (to) =>
      `printf '%s\\n' "$@" > ${to}/args; env > ${to}/env; echo 'pg_dump: error: no more paper' >&2; exit 3`,
  );
  const scope = makeScope(pair);
  await expect(dumpSchema(scope, 'native', everything)).rejects.toMatchObject({
    code: 'schema_failed',
    message: expect.stringContaining('ended with 3: pg_dump: error: no more paper') as string,
  });
  const args = await readFile(join(folder, 'args'), 'utf8');
  const seen = args + (await readFile(join(folder, 'env'), 'utf8'));
  expect(seen).not.toContain(pair.source.password);
  expect(seen).not.toContain('127.0.0.1');
  const socketFolder = /^--host=(.*)$/m.exec(args)?.[1] ?? '';
  expect(socketFolder).toContain(tmpdir());
  expect(existsSync(socketFolder)).toBe(false);
});

test('a task that is stopped ends it at once', async () => {
  const folder = await pgDumpIs((to) => `echo $$ > ${to}/pid; exec sleep 600`);
  const scope = makeScope(await makePair());
  const dump = dumpSchema(scope, 'native', everything).catch((error: unknown) => error);
  await waitFor(() => existsSync(join(folder, 'pid')));
  const pid = Number(await readFile(join(folder, 'pid'), 'utf8'));
  scope.controller.abort();
  expect(await dump).toMatchObject({ code: 'aborted' });
  await waitFor(() => !existsSync(`/proc/${pid}/cmdline`));
});

test('a server that goes away is told from a dump that fails', async () => {
  const pair = await makePair();
  const folder = await pgDumpIs((to) => `echo $$ > ${to}/pid; exec sleep 600`);
  const scope = makeScope(pair);
  const dump = dumpSchema(scope, 'native', everything).catch((error: unknown) => error);
  await waitFor(() => existsSync(join(folder, 'pid')));
  await pair.source.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'dts/%' and datname = current_database()`,
  );
  expect(await dump).toMatchObject({ kind: 'transient' });
});
