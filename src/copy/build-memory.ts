// `maintenance_work_mem` of an index build. Pure; used by indexes.ts.
import type { PlannedStatement } from '../model/schema-plan.ts';

const MEGABYTE = 1024 ** 2;
const GIGABYTE = 1024 ** 3;

/**
 * What one build may have, in bytes: the builds together take a quarter of the memory that is free, or what the server
 * gives its buffers (usually a quarter of all) where it does not say; one at most 1 GB (a sort gains little beyond),
 * none less than the server's own setting.
 */
export function buildMemoryBytes(
  {
    freeBytes,
    sharedBuffers,
    present,
  }: {
    readonly freeBytes: number | null;
    readonly sharedBuffers: number;
    readonly present: number;
  },
  jobs: number,
): number {
  const share = (freeBytes === null ? sharedBuffers : freeBytes / 4) / jobs;
  return Math.max(present, Math.min(GIGABYTE, Math.floor(share)));
}

/** A run that is merged has a buffer and a tape's block in memory (MERGE_BUFFER_SIZE, TAPE_BUFFER_OVERHEAD of tuplesort.c). */
const MERGED_RUN_BYTES = (32 + 1) * 8 * 1024;
/** A sort in pieces of this size stays in the caches of a processor: 1 GB takes about twice the time. */
const SORT_BYTES = 32 * MEGABYTE;

// pg_dump prints the method of every index; a unique constraint has none and is a btree
const otherMethod = /\busing\s+(?!btree\b)\w+\s*\(/i;

/**
 * What a build by `processes` gets of `limit`. A btree is a sort, cheapest with as little as lets each process merge all
 * of its runs at once; below 32 MB for each the server takes fewer processes. Other methods use what they get.
 * `tableBytes` stands for what is sorted.
 */
export function memoryOfBuild(
  { sql }: Pick<PlannedStatement, 'sql'>,
  tableBytes: number,
  processes: number,
  limit: number,
): number {
  if (otherMethod.test(sql)) return limit;
  const merging = Math.ceil(Math.sqrt((tableBytes / processes) * MERGED_RUN_BYTES));
  return Math.min(limit, Math.max(SORT_BYTES, merging) * processes);
}
