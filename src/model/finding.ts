// What preflight and schema planning have to say, as data. Nothing that could be known before is thrown later.

/** `blocking` stops the task before it changes anything; `warning` is shown; `info` explains a choice. */
export type FindingSeverity = 'blocking' | 'warning' | 'info';

export interface Finding {
  /** Stable, snake_case: what a script matches on. */
  readonly code: string;
  readonly severity: FindingSeverity;
  /** What it is about: `source`, `target`, or a table, role, setting … */
  readonly object: string;
  readonly message: string;
  /** The exact GRANT, ALTER or setting that removes it; null where there is none. */
  readonly remedy: string | null;
}

/** Code of what is said of a slot that may be lost soon: only true while there is one. */
export const SLOT_ENDANGERED = 'slot_endangered';

export function isBlocked(findings: readonly Finding[]): boolean {
  return findings.some((finding) => finding.severity === 'blocking');
}
