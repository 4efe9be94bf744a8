// Where pg_replication_slot_advance may be called: by slot-feed.ts, for the task's slot and for its copy, and by slot-beginning.ts.

/**
 * The first minor of each major in which advancing (decoding that skips the changes) does not raise the slot's catalog_xmin
 * past a transaction that is still open. Before, VACUUM could remove catalog rows with which its changes are still to be
 * decoded: rows would come out wrong, or not at all. Release notes of May 2025.
 */
const soundSince: Readonly<Record<number, number>> = { 13: 21, 14: 18, 15: 13, 16: 9, 17: 5 };

/** `sourceVersion`: server_version_num. */
export function mayAdvance(sourceVersion: number): boolean {
  return sourceVersion % 10_000 >= (soundSince[Math.floor(sourceVersion / 10_000)] ?? 0);
}
