// What may be asked of a task that runs: other options, more tables, rows to repair.
import * as z from 'zod';
import { faultMessage, faultsOf, invalidRequest } from './request-faults.ts';
import { changeableOptions, tableName } from './request-options.ts';
import type { TaskOptions } from './task-options.ts';
import type { RepairRequest } from './validation.ts';

const keyValues = z.array(z.string()).min(1).max(32);

const repairRequest = z
  .strictObject({
    table: z.string().min(1),
    keys: z.array(keyValues).min(1).max(100_000).optional(),
    ranges: z
      .array(
        z.strictObject({
          after: keyValues.nullable().default(null),
          upTo: keyValues.nullable().default(null),
        }),
      )
      .min(1)
      .max(1_000)
      .optional(),
  })
  .refine((value) => value.keys === undefined || value.ranges === undefined, {
    path: ['ranges'],
    message: 'give one of keys, ranges; without either, the rows that are known to differ are repaired',
  });

/** Validates against the table's key; throws `invalid_request` with every fault in `details.fields`. */
export function parseRepair(
  input: unknown,
  keyOf: (table: string) => readonly string[] | undefined,
): RepairRequest {
  const result = repairRequest.safeParse(input);
  if (!result.success) throw invalidRequest(faultsOf(result.error.issues));
  const { table, keys = [], ranges = [] } = result.data;
  const key = keyOf(table);
  if (!key) throw invalidRequest([{ field: 'table', message: 'is not a table of this migration' }]);
  if (key.length === 0)
    throw invalidRequest([{ field: 'table', message: 'has no key that its rows could be named by' }]);
  const message = `must have ${key.length} values, of ${key.join(', ')}`;
  const bounds = ranges.flatMap(({ after, upTo }, n) => [
    { field: `ranges.${n}.after`, values: after },
    { field: `ranges.${n}.upTo`, values: upTo },
  ]);
  const faults = [...keys.map((values, n) => ({ field: `keys.${n}`, values })), ...bounds]
    .filter(({ values }) => values !== null && values.length !== key.length)
    .map(({ field }) => ({ field, message }));
  if (faults.length > 0) throw invalidRequest(faults);
  return result.data;
}

const tablesAddition = z.strictObject({
  add: z
    .array(tableName.refine((name) => name !== '*', 'name the tables, or a pattern such as schema.*'))
    .min(1)
    .max(100_000),
});

/** What is to be added to a running task: names and patterns as in `tables` of the request. */
export interface TablesAddition {
  readonly add: readonly string[];
}

/** Validates; throws `invalid_request` with every fault in `details.fields`. */
export function parseTablesAddition(input: unknown): TablesAddition {
  const parsed = tablesAddition.safeParse(input, { error: faultMessage });
  if (!parsed.success) throw invalidRequest(faultsOf(parsed.error.issues));
  return parsed.data;
}

/** Options that may change while the task runs; those left out stay, and so does a hook. */
export type OptionsPatch = Partial<
  Pick<TaskOptions, Exclude<keyof z.output<typeof changeableOptions>, 'hooks'>> & {
    readonly hooks: Partial<TaskOptions['hooks']>;
  }
>;

/** Validates; throws `invalid_request` with every fault in `details.fields`. */
export function parseOptionsPatch(input: unknown): OptionsPatch {
  const parsed = changeableOptions.safeParse(input);
  if (!parsed.success) throw invalidRequest(faultsOf(parsed.error.issues));
  return Object.fromEntries(Object.entries(parsed.data).filter(([, value]) => value !== undefined));
}

/** The options with what the patch has of them. */
export function patched(options: TaskOptions, { hooks, ...patch }: OptionsPatch): TaskOptions {
  return { ...options, ...patch, hooks: { ...options.hooks, ...hooks } };
}
