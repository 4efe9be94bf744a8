// `dts demo`: a whole migration before your eyes, on two throw-away servers, with writers that never pause and a service
// that is killed twice. Called by main. Ends with exit code 0 only if both databases were found equal, row by row.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compareDatabases } from './compare.ts';
import { count, createDisplay, seconds, type Display } from './display.ts';
import { Cleanup } from './cleanup.ts';
import { createDtsProcess } from './dts-process.ts';
import { findLeftovers } from './leftovers.ts';
import { migrate, SUFFIX, type Migration } from './migrate.ts';
import { loadSource, startServers } from './servers.ts';
import { startWriters } from './writers.ts';

const WRITERS = 5;
const WRITER_PAUSE_MS = 12;

/**
 * Runs the demo. Takes no arguments but `--help`. Resolves with the exit code: 0 when the databases are equal, 1 when
 * they are not or something failed, 128 + n after signal n.
 */
export async function runDemo(argv: readonly string[]): Promise<number> {
  if (argv.includes('--help') || argv.includes('-h')) {
    process.stdout.write(
      'dts demo: migrates a shop between two throw-away servers under load, with two crashes\n',
    );
    return 0;
  }
  if (argv.length > 0) {
    process.stderr.write(`dts demo takes no arguments: ${argv.join(' ')}\n`);
    return 2;
  }
  const display = createDisplay(process.stdout);
  const stop = new AbortController();
  const cleanup = new Cleanup();
  let interruptedBy = 0;
  const onSignal = (name: 'SIGINT' | 'SIGTERM'): void => {
    interruptedBy ||= name === 'SIGINT' ? 130 : 143;
    stop.abort(new Error(`stopped by ${name}`));
  };
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  let failed = true;
  try {
    failed = !(await migrateShop(display, cleanup, stop.signal));
  } catch (error) {
    display.end();
    if (interruptedBy === 0) process.stderr.write(`\nThe demo failed: ${describeError(error)}\n`);
    else display.line('interrupted; cleaning up');
  } finally {
    await cleanup.run((error) => {
      failed = true;
      process.stderr.write(`cleaning up: ${describeError(error)}\n`);
    });
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
  return interruptedBy === 0 ? Number(failed) : interruptedBy;
}

function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause === undefined ? error.message : `${error.message}: ${describeError(error.cause)}`;
}

/** The story itself. True when everything is as it should be. */
async function migrateShop(display: Display, cleanup: Cleanup, signal: AbortSignal): Promise<boolean> {
  const startedAt = performance.now();
  display.step('Two PostgreSQL servers start: 16 is the source, 18 the target');
  const [sourceUrl, targetUrl] = await startServers(cleanup, signal);

  display.step('The source gets a shop');
  const rowsLoaded = await loadSource(sourceUrl, display, cleanup, signal);
  display.line(`${count(rowsLoaded)} rows`);

  display.step(`${WRITERS} writers begin to work, and go on until they are refused`);
  const writers = await startWriters(sourceUrl, WRITERS, WRITER_PAUSE_MS);
  cleanup.add(() => writers.stop());
  const halt = new AbortController(); // a writer's own failure ends the demo as well
  writers.ended.catch((error: unknown) => halt.abort(error));
  const either = AbortSignal.any([signal, halt.signal]);

  const dataDir = await mkdtemp(join(tmpdir(), 'dts-demo-'));
  cleanup.add(() => rm(dataDir, { recursive: true, force: true }));
  const dts = await createDtsProcess(dataDir);
  cleanup.add(() => dts.stop());
  let migration: Migration;
  try {
    migration = await migrate({ dts, writers, sourceUrl, targetUrl, display, signal: either });
  } catch (error) {
    display.end();
    if (!signal.aborted) process.stderr.write(`\nThe service's log ends with:\n${dts.log()}\n`);
    throw error;
  }
  await dts.stop();

  display.step('Every row of both databases is compared, without any code of DTS');
  const comparedFrom = performance.now();
  const comparison = await compareDatabases(
    sourceUrl,
    targetUrl,
    SUFFIX,
    (table, done, of) => display.progress((done / of) * 100, table),
    signal,
  );
  display.line(
    `${count(comparison.equalRows)} equal rows in ${comparison.tables} tables, ${comparison.sequences} sequences, ` +
      `${comparison.indexes} indexes, ${comparison.constraints} constraints ` +
      `(${seconds(performance.now() - comparedFrom)})`,
  );
  const leftovers = [
    ...(await findLeftovers(sourceUrl, 'source')),
    ...(await findLeftovers(targetUrl, 'target')),
  ];
  const problems = [...migration.problems, ...comparison.differences, ...leftovers];

  display.step(problems.length === 0 ? 'Result: the databases are equal' : 'Result: NOT as it should be');
  for (const problem of problems) display.line(problem);
  for (const [name, value] of migration.figures) display.line(`${name.padEnd(44)} ${value}`);
  display.line(`${'whole demo'.padEnd(44)} ${seconds(performance.now() - startedAt)}`);
  return problems.length === 0;
}
