// The create request: one schema for the library (camelCase) and HTTP (which maps names only). A fault names its field.
import { parse as parseUrl } from 'pg-connection-string';
import { z } from 'zod';
import { MigrationError } from './errors.ts';
import { isGlob, parseRelationName } from './relation.ts';
import { MAX_REVERSIBLE_ID } from './reverse.ts';
import type { RepairRequest } from './validation.ts';
import { sslModes, type Endpoint, type EndpointSecrets } from './endpoint.ts';
import type { TaskOptions } from './task-options.ts';
import type { TaskSpec } from './task.ts';

const text = z.string().min(1);

const connectionFields = z.strictObject({
  host: text,
  port: z.int().min(1).max(65_535).default(5432),
  user: text,
  dbname: text,
  password: z.string().optional(),
  /** Name of an environment variable of the service. */
  passwordEnv: text.optional(),
  /** Path of a file on the service's machine; a trailing newline is ignored. */
  passwordFile: text.optional(),
  sslmode: z.enum(sslModes).default('prefer'),
  sslrootcert: text.optional(),
  sslcert: text.optional(),
  sslkey: text.optional(),
});

/** `postgresql://user:password@host:port/dbname?sslmode=…&sslrootcert=…`, as libpq reads it. */
const connectionUrl = z.string().transform((value, context): z.input<typeof connectionFields> => {
  const fail = (message: string): never => {
    context.addIssue({ code: 'custom', message });
    return z.NEVER;
  };
  if (!/^postgres(ql)?:\/\//.test(value)) return fail('must be an object or a postgresql:// URL');
  try {
    const query = new URL(value).searchParams;
    const known = new Set([
      'sslmode',
      'sslrootcert',
      'sslcert',
      'sslkey',
      'host',
      'port',
      'user',
      'password',
      'dbname',
      'application_name',
      'connect_timeout',
    ]);
    for (const name of query.keys()) if (!known.has(name)) return fail(`unknown URL parameter ${name}`);
    // parsed by hand below: pg-connection-string would read the certificate files itself
    const bare = new URL(value);
    bare.search = '';
    const parsed = parseUrl(bare.href);
    const fields: Record<string, unknown> = {
      host: query.get('host') ?? parsed.host ?? undefined,
      port: Number(query.get('port') ?? parsed.port ?? 5432),
      user: query.get('user') ?? parsed.user,
      password: query.get('password') ?? parsed.password,
      dbname: query.get('dbname') ?? parsed.database ?? parsed.user,
    };
    for (const name of ['sslmode', 'sslrootcert', 'sslcert', 'sslkey'])
      if (query.has(name)) fields[name] = query.get(name);
    for (const name of Object.keys(fields))
      if (fields[name] === undefined || fields[name] === '') delete fields[name];
    return fields as z.input<typeof connectionFields>;
  } catch {
    return fail('is not a valid URL');
  }
});

const connection = z
  .union([connectionFields, connectionUrl.pipe(connectionFields)], { error: undefined })
  .refine(
    (value) =>
      [value.password, value.passwordEnv, value.passwordFile].filter((given) => given !== undefined).length <=
      1,
    {
      path: ['password'],
      message: 'give one of password, password_env, password_file',
    },
  );

const tableName = z.string().superRefine((value, context) => {
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

const hook = z.strictObject({
  url: z.string().superRefine((value, context) => {
    const fail = (message: string): void => context.addIssue({ code: 'custom', message });
    if (!URL.canParse(value)) return fail('is not a valid URL');
    const { protocol, username, password } = new URL(value);
    if (protocol !== 'http:' && protocol !== 'https:') fail('must be an http or https URL');
    else if (username !== '' || password !== '')
      fail('must not hold a password; give a header by env or file');
  }),
  timeoutMs: milliseconds.default(10_000),
  headers: z.array(header).max(20).default([]),
});

const bytesPerSecond = z.int().min(64 * 1024);
const lagBytes = z.int().min(1024 * 1024);

/** Names of objects on the left, so their case and spelling are theirs. */
const nameMap = z.record(text.max(63), text.max(63));

const onDdl = z.enum(
  ['pause', 'apply-additive', 'ignore'],
  'must be pause, apply-additive (new columns and enum values are carried out), or ignore (new columns are not carried)',
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

const options = z.strictObject({
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
  const { reverse, keepFence, schema, replicaIdentity, table } = given;
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
  if (schema === 'existing')
    fail(
      ['options', 'reverse'],
      'needs schema create: tables that stood before may have columns that the source lacks',
    );
  if (replicaIdentity === 'full')
    fail(
      ['options', 'reverse'],
      'needs replica_identity keep: tables without a key could not be published on the target',
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

export interface FieldFault {
  /** Path of the field, dots between names: `sourceDb.port`. */
  readonly field: string;
  readonly message: string;
}

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

const optionsPatch = z
  .strictObject({
    maxBytesPerSecond: bytesPerSecond.nullable(),
    maxSourceLagBytes: lagBytes.nullable(),
    maxSnapshotAgeMs: milliseconds,
    maxRetainedWalBytes: walBytes.nullable(),
    onDdl,
  })
  .partial();

/** Options that may change while the task runs; those left out stay. */
export type OptionsPatch = Partial<
  Pick<
    TaskOptions,
    'maxBytesPerSecond' | 'maxSourceLagBytes' | 'maxSnapshotAgeMs' | 'maxRetainedWalBytes' | 'onDdl'
  >
>;

/** Validates; throws `invalid_request` with every fault in `details.fields`. */
export function parseOptionsPatch(input: unknown): OptionsPatch {
  const parsed = optionsPatch.safeParse(input);
  if (!parsed.success) throw invalidRequest(faultsOf(parsed.error.issues));
  return Object.fromEntries(Object.entries(parsed.data).filter(([, value]) => value !== undefined));
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

function splitConnection(given: z.output<typeof connectionFields>): [Endpoint, EndpointSecrets] {
  const { password, passwordEnv, passwordFile, sslkey, sslrootcert, sslcert, ...plain } = given;
  const keyIsPem = sslkey?.includes('-----BEGIN') ?? false;
  const endpoint: Endpoint = {
    ...plain,
    ...(sslrootcert === undefined ? {} : { sslrootcert }),
    ...(sslcert === undefined ? {} : { sslcert }),
    ...(sslkey === undefined || keyIsPem ? {} : { sslkeyPath: sslkey }),
    password:
      passwordEnv !== undefined
        ? { from: 'env', name: passwordEnv }
        : passwordFile !== undefined
          ? { from: 'file', path: passwordFile }
          : { from: password === undefined ? 'none' : 'stored' },
  };
  return [
    endpoint,
    {
      ...(password === undefined ? {} : { password }),
      ...(keyIsPem && sslkey !== undefined ? { sslkey } : {}),
    },
  ];
}
