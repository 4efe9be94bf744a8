// What is wrong with a request, field by field, in words for who wrote it.
import type * as z from 'zod';
import { MigrationError } from './errors.ts';

export interface FieldFault {
  /** Path of the field, dots between names: `sourceDb.port`. */
  readonly field: string;
  readonly message: string;
}

export function invalidRequest(fields: readonly FieldFault[]): MigrationError {
  const summary = fields
    .map(({ field, message }) => `${field === '' ? 'body' : field}: ${message}`)
    .join('; ');
  return new MigrationError('invalid_request', summary, { details: { fields } });
}

/** Says of a missing or mistyped field what belongs there; other faults keep their own words. */
export function faultMessage(issue: z.core.$ZodRawIssue): string | undefined {
  if (issue.code !== 'invalid_type') return undefined;
  const article = /^[aeiou]/.test(issue.expected) ? 'an' : 'a';
  return issue.input === undefined
    ? `is required: ${article} ${issue.expected}`
    : `must be ${article} ${issue.expected}`;
}

/** Zod's issues with one line a field; of a union, the branch that matches the value's shape. */
export function faultsOf(
  issues: readonly z.core.$ZodIssue[],
  prefix: readonly PropertyKey[] = [],
): FieldFault[] {
  return issues.flatMap((issue): FieldFault[] => {
    const path = [...prefix, ...issue.path];
    if (issue.code === 'invalid_union') {
      const branch =
        issue.errors.find(
          (errors) => !errors.some((error) => error.path.length === 0 && error.code === 'invalid_type'),
        ) ??
        issue.errors[0] ??
        [];
      return faultsOf(branch, path);
    }
    if (issue.code === 'unrecognized_keys') {
      return issue.keys.map((key) => ({ field: [...path, key].join('.'), message: 'is not a known field' }));
    }
    return [{ field: path.join('.'), message: issue.message }];
  });
}
