// The options of a create request: ranges and defaults. `TaskOptions` says what each means.
import * as z from 'zod';
import { isGlob, parseRelationName } from './relation.ts';

const text = z.string().min(1);

export const tableName = z.string().superRefine((value, context) => {
  if (value === '*') return;
  try {
    parseRelationName(value);
  } catch (error) {
    context.addIssue({
      code: 'custom',
      message: error instanceof Error ? error.message : 'is not a table name',
    });
  }
});

const walBytes = z.int().min(64 * 1024 * 1024);
const milliseconds = z
  .int()
  .min(1_000)
  .max(24 * 3_600_000);

const header = z
  .strictObject({
    name: z.string().regex(/^[A-Za-z0-9-]{1,100}$/, 'must be the name of an HTTP header'),
    env: text.optional(),
    file: text.optional(),
  })
  .refine(
    (value) => (value.env === undefined) !== (value.file === undefined),
    'give one of env, file: values of headers are not stored',
  );

const hookUrl = z.string().superRefine((value, context) => {
  const fail = (message: string): void => context.addIssue({ code: 'custom', message });
  if (!URL.canParse(value)) return fail('is not a valid URL');
  const { protocol, username, password } = new URL(value);
  if (protocol !== 'http:' && protocol !== 'https:') fail('must be an http or https URL');
  else if (username !== '' || password !== '') fail('must not hold a password; give a header by env or file');
});

const hook = z
  .strictObject({
    url: hookUrl.optional(),
    command: z
      .string()
      .regex(
        /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$/,
        'must be the bare name of a file in the hooks folder of the service: no path, no arguments',
      )
      .optional(),
    timeoutMs: milliseconds.default(10_000),
    headers: z.array(header).max(20).default([]),
  })
  .refine(({ url, command }) => (url === undefined) !== (command === undefined), {
    path: ['url'],
    message: 'give one of url, command',
  })
  .refine(({ command, headers }) => command === undefined || headers.length === 0, {
    path: ['headers'],
    message: 'belong to a url, a command has none',
  });

const bytesPerSecond = z.int().min(64 * 1024);
const lagBytes = z.int().min(1024 * 1024);

/** Names of objects on the left, so their case and spelling are theirs. */
const nameMap = z.record(text.max(63), text.max(63));

const onDdl = z.enum(
  ['pause', 'apply-additive', 'ignore'],
  'must be pause, apply-additive (new columns, enum values and wider types are carried out), or ignore (new columns are not carried)',
);

/** Names of tables on the left. */
const tableOptions = z.record(
  tableName.refine((name) => name === '' || !isGlob(name), 'must be one table: no * or ?'),
  z
    .strictObject({
      where: z.string().trim().min(1).max(10_000).nullable().default(null),
      columns: z
        .array(text.max(63))
        .min(1)
        .max(1_600)
        .refine((names) => new Set(names).size === names.length, 'names a column twice')
        .nullable()
        .default(null),
    })
    .refine(
      ({ where, columns }) => where !== null || columns !== null,
      'give where (a row filter), columns, or both',
    ),
);

export const options = z.strictObject({
  cutover: z.enum(['manual', 'auto']).default('manual'),
  fence: z.enum(['triggers', 'database-read-only', 'none']).default('triggers'),
  terminateBlockers: z.boolean().default(false),
  sequenceMargin: z.int().min(0).max(1_000_000_000).default(0),
  hooks: z
    .strictObject({ beforeOpen: hook.nullable().default(null), afterOpen: hook.nullable().default(null) })
    .prefault({}),
  keepFence: z.boolean().default(true),
  cutoverTimeoutMs: milliseconds.default(30_000),
  validationTimeoutMs: milliseconds.default(600_000),
  cutoverMaxLagBytes: z
    .int()
    .min(0)
    .default(16 * 1024 * 1024),
  validation: z.enum(['online', 'cutover']).default('online'),
  validationMaxRowsPerSecond: z.int().min(1_000).nullable().default(null),
  cutoverMaxValidationAgeMs: milliseconds.nullable().default(null),
  slotTimeoutMs: milliseconds.default(300_000),
  maxRetainedWalBytes: walBytes.nullable().default(null),
  replicaIdentity: z
    .enum(['keep', 'full'], 'must be keep, or full: REPLICA IDENTITY FULL for tables without a key')
    .default('keep'),
  onDdl: onDdl.default('pause'),
  copyJobs: z.int().min(1).max(32).nullable().default(null),
  indexJobs: z.int().min(1).max(32).nullable().default(null),
  schema: z.enum(['create', 'existing']).default('create'),
  owners: z.union([z.enum(['none', 'same']), nameMap]).default('none'),
  privileges: z.boolean().default(false),
  roles: z.enum(['existing', 'create']).default('existing'),
  extensions: z.union([z.enum(['create', 'skip']), nameMap]).default('create'),
  tablespaces: z.union([z.enum(['none', 'same']), nameMap]).default('none'),
  table: tableOptions.default({}),
  exclude: z
    .array(tableName.refine((name) => name !== '*', 'write schema.* to leave out a schema'))
    .max(10_000)
    .default([]),
  foreignTables: z.boolean().default(false),
  eventTriggers: z.boolean().default(false),
  publications: z.boolean().default(false),
  subscriptions: z.boolean().default(false),
  largeObjects: z.boolean().default(true),
  partBytes: z
    .int()
    .min(64 * 1024)
    .nullable()
    .default(null),
  maxBytesPerSecond: bytesPerSecond.nullable().default(null),
  maxSourceLagBytes: lagBytes.nullable().default(null),
  maxSnapshotAgeMs: milliseconds.default(15 * 60_000),
  reverse: z.boolean().default(false),
});

const { shape } = options;

/** Options that may change while a task runs, without their defaults: what is left out stays. */
export const changeableOptions = z
  .strictObject({
    terminateBlockers: shape.terminateBlockers.unwrap(),
    hooks: z.strictObject({ beforeOpen: hook.nullable(), afterOpen: hook.nullable() }).partial(),
    cutoverTimeoutMs: shape.cutoverTimeoutMs.unwrap(),
    validationTimeoutMs: shape.validationTimeoutMs.unwrap(),
    cutoverMaxLagBytes: shape.cutoverMaxLagBytes.unwrap(),
    validationMaxRowsPerSecond: shape.validationMaxRowsPerSecond.unwrap(),
    cutoverMaxValidationAgeMs: shape.cutoverMaxValidationAgeMs.unwrap(),
    slotTimeoutMs: shape.slotTimeoutMs.unwrap(),
    maxRetainedWalBytes: shape.maxRetainedWalBytes.unwrap(),
    onDdl: shape.onDdl.unwrap(),
    copyJobs: shape.copyJobs.unwrap(),
    indexJobs: shape.indexJobs.unwrap(),
    maxSnapshotAgeMs: shape.maxSnapshotAgeMs.unwrap(),
    maxBytesPerSecond: shape.maxBytesPerSecond.unwrap(),
    maxSourceLagBytes: shape.maxSourceLagBytes.unwrap(),
  })
  .partial();
