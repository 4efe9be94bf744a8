// Bodies and query parameters of requests: read within bounds, names mapped, every fault named as the client spelled
// it. What a body means is the library's business (model/request.ts).
import type { Context } from 'hono';
import * as z from 'zod';
import { faultMessage, faultsOf, type FieldFault } from '../model/request-faults.ts';
import { camelName, snakePath, toCamel } from '../model/case.ts';
import { Refusal, refuseFields } from './problem.ts';

const MAX_BODY_BYTES = 1024 * 1024;

const tooLarge = (): Refusal =>
  new Refusal(413, 'invalid_request', `the body is larger than ${MAX_BODY_BYTES} bytes`);

/**
 * The JSON body with camelCase names; undefined when there is none. Refuses: 413 above 1 MiB, 415 for another content
 * type, 400 for malformed JSON and for names that cannot be ours.
 */
export async function readJson(c: Context): Promise<unknown> {
  const bytes = await readBytes(c);
  if (bytes.length === 0) return undefined;
  const [mediaType, ...parameters] = (c.req.header('content-type') ?? '')
    .toLowerCase()
    .split(';')
    .map((part) => part.trim());
  const charset = parameters.find((parameter) => parameter.startsWith('charset='));
  if (mediaType !== 'application/json' || !/^(charset="?utf-8"?)?$/.test(charset ?? ''))
    throw new Refusal(415, 'invalid_request', 'the body must be application/json in UTF-8');
  const { value, unknownFields } = toCamel(parseJson(bytes));
  if (unknownFields.length > 0)
    throw refuseFields(unknownFields.map((field) => ({ field, message: 'is not a known field' })));
  return value;
}

async function readBytes(c: Context): Promise<Buffer> {
  if (Number(c.req.header('content-length') ?? 0) > MAX_BODY_BYTES) throw tooLarge();
  const body: ReadableStream<Uint8Array> | null = c.req.raw.body;
  if (body === null) return Buffer.alloc(0);
  const chunks: Uint8Array[] = [];
  let length = 0;
  try {
    for await (const chunk of body) {
      length += chunk.length;
      if (length > MAX_BODY_BYTES) throw tooLarge();
      chunks.push(chunk);
    }
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal(400, 'invalid_request', 'the body ended early');
  }
  return Buffer.concat(chunks);
}

/** The parser's own message is not passed on: it quotes the body, which may hold a password. */
function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw new Refusal(400, 'invalid_request', 'the body is not valid JSON in UTF-8');
  }
}

/** A small body of HTTP's own (commands), checked here; absent is `{}`. */
export async function readFields<T>(c: Context, schema: z.ZodType<T>): Promise<T> {
  const body = await readJson(c);
  const result = schema.safeParse(body === undefined ? {} : body, { error: faultMessage });
  if (result.success) return result.data;
  throw refuseFields(
    faultsOf(result.error.issues).map((fault) => ({ ...fault, field: snakePath(fault.field) })),
  );
}

/**
 * Query parameters by camelCase name. Refuses unknown ones, so that a misspelt or misplaced one is not ignored, and
 * repeated ones.
 */
export function readQuery<T extends z.ZodRawShape>(c: Context, shape: T): z.output<z.ZodObject<T>> {
  const faults: FieldFault[] = [];
  const given: Record<string, string> = {};
  for (const [name, values] of Object.entries(c.req.queries())) {
    const key = camelName(name);
    if (/[A-Z]/.test(name) || !Object.hasOwn(shape, key))
      faults.push({ field: name, message: 'is not a known parameter' });
    else if (values.length > 1) faults.push({ field: name, message: 'is given more than once' });
    else given[key] = values[0] ?? '';
  }
  const result = z.object(shape).safeParse(given, { error: faultMessage });
  if (!result.success)
    faults.push(
      ...faultsOf(result.error.issues).map((fault) => ({ ...fault, field: snakePath(fault.field) })),
    );
  if (faults.length > 0 || !result.success) throw refuseFields(faults);
  return result.data;
}

/** A whole number in decimal digits between `min` and `max`. */
export function wholeNumber(min: number, max: number): z.ZodType<number, string> {
  const message = `must be a whole number from ${min} to ${max}`;
  return z
    .string()
    .regex(/^\d{1,15}$/, message)
    .transform(Number)
    .refine((value) => value >= min && value <= max, message);
}

/** `true` or `false`, spelled so. */
export function flag(): z.ZodType<boolean, string> {
  return z.enum(['true', 'false'], 'must be true or false').transform((value) => value === 'true');
}
