// A connection in a create request: an object or a libpq URL. What is secret in it is split off at once.
import { parse as parseUrl } from 'pg-connection-string';
import * as z from 'zod';
import { sslModes, type Endpoint, type EndpointSecrets } from './endpoint.ts';

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

export const connection = z
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

export function splitConnection(given: z.output<typeof connectionFields>): [Endpoint, EndpointSecrets] {
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
