// Named places where a crash test may kill the process. Compiled in always, free unless DTS_FAILPOINT names one.

export const failpoints = [
  'init.before-done',
  'creatingTables.mid-statements',
  'slot.created',
  'copy.mid-table',
  'copy.before-marker-commit',
  'copy.marker-committed',
  'copy.before-index',
  'sync.before-target-commit',
  'sync.committed-not-acknowledged',
  'sync.batch-applied',
  'fence.installed',
  'fence.armed',
  'drain.marker-emitted',
  'drain.marker-applied',
  'validate.range-compared',
  'validate.keys-compared',
  'validate.mid-tables',
  'finalize.sequences-set',
  'finalize.before-point-of-no-return',
  'finalize.after-point-of-no-return',
  'finalize.before-source-cleanup',
  'finalize.after-slot-drop',
  'cancel.mid-cleanup',
] as const;
export type Failpoint = (typeof failpoints)[number];
