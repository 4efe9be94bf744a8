// The create request: one schema for the library (camelCase) and HTTP (which maps names only). A fault names its field.
import * as z from 'zod';
import type { EndpointSecrets } from './endpoint.ts';
import { connection, splitConnection } from './request-connection.ts';
import { faultMessage, faultsOf, invalidRequest } from './request-faults.ts';
import { options, tableName } from './request-options.ts';
import { MAX_REVERSIBLE_ID } from './reverse.ts';
import type { TaskOptions } from './task-options.ts';
import type { TaskSpec } from './task.ts';

export const taskIdPattern = /^[a-z0-9_]{1,40}$/;

const requestFields = z.strictObject({
  id: z.string().regex(taskIdPattern, 'must match ^[a-z0-9_]{1,40}$').optional(),
  sourceDb: connection,
  targetDb: connection,
  tables: z
    .array(tableName)
    .min(1)
    .max(100_000)
    .default(['*'])
    .refine((names) => !names.includes('*') || names.length === 1, '"*" stands alone'),
  tableSuffix: z
    .string()
    .max(40)
    .refine((value) => !/[\0"]/.test(value), 'must not contain a double quote or NUL')
    .default(''),
  options: options.prefault({}),
});

const request = requestFields.superRefine(({ id, options: given }, context) => {
  const { reverse, keepFence, table } = given;
  if (!reverse) return;
  const fail = (path: string[], message: string): void => context.addIssue({ code: 'custom', path, message });
  if (id !== undefined && id.length > MAX_REVERSIBLE_ID)
    fail(
      ['id'],
      `must have at most ${MAX_REVERSIBLE_ID} characters with options.reverse: the reverse task’s id is longer`,
    );
  if (!keepFence)
    fail(
      ['options', 'reverse'],
      'needs keep_fence: while the source follows the target, nobody else may write to it',
    );
  if (Object.keys(table).length > 0)
    fail(
      ['options', 'reverse'],
      'needs whole tables: options.table leaves rows or columns to the source alone',
    );
});

/** What a client sends (library spelling). */
export type TaskRequest = z.input<typeof request>;

/** The request, split into what may be seen and what may not. */
export interface ParsedRequest {
  readonly id: string | undefined;
  readonly spec: TaskSpec;
  readonly secrets: { readonly source: EndpointSecrets; readonly target: EndpointSecrets };
}

/** Validates; throws `invalid_request` with every fault in `details.fields`. */
export function parseRequest(input: unknown): ParsedRequest {
  const result = request.safeParse(input, { error: faultMessage });
  if (!result.success) throw invalidRequest(faultsOf(result.error.issues));
  const { id, sourceDb, targetDb, ...rest } = result.data;
  const [source, sourceSecrets] = splitConnection(sourceDb);
  const [target, targetSecrets] = splitConnection(targetDb);
  const spec: TaskSpec = {
    sourceDb: source,
    targetDb: target,
    tables: rest.tables,
    tableSuffix: rest.tableSuffix,
    options: rest.options satisfies TaskOptions,
  };
  return { id, spec, secrets: { source: sourceSecrets, target: targetSecrets } };
}
