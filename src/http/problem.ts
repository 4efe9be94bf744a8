// Errors on their way out: every ErrorCode has one HTTP status here, every answer of 4xx and 5xx is a problem document
// (RFC 9457). What we did not foresee says no more than `internal`; its stack goes to the log.
import { errorCodes, MigrationError, type ErrorCode } from '../model/errors.ts';
import type { FieldFault } from '../model/request-faults.ts';
import { isRecord, snakePath, toSnake } from '../model/case.ts';

/** The total table; a new code does not compile without its status. */
const statusOf: Readonly<Record<ErrorCode, number>> = {
  invalid_request: 400,
  invalid_table_name: 400,
  task_not_found: 404,
  task_exists: 409,
  task_already_running: 409,
  task_ended: 409,
  task_live: 409,
  table_in_task: 409,
  event_not_accepted: 409,
  secret_unavailable: 422,
  service_stopped: 503,
  store_in_use: 503,
  store_failed: 503,
  // a server that we need for the answer (preflight, unfence) cannot be reached or refuses us
  connection_failed: 502,
  authentication_failed: 422,
  tls_failed: 422,
  too_many_connections: 502,
  insufficient_privilege: 422,
  disk_full: 422,
  sql_failed: 422,
  lock_timeout: 504,
  preflight_blocked: 422,
  schema_unsupported: 422,
  schema_failed: 422,
  target_conflict: 409,
  slot_creation_timeout: 504,
  slot_lost: 409,
  slot_stranger: 409,
  source_replaced: 409,
  publication_lost: 409,
  copy_failed: 422,
  source_ddl: 409,
  unexpected_row: 409,
  validation_failed: 409,
  cutover_timeout: 504,
  cutover_interrupted: 409,
  hook_failed: 502,
  fence_failed: 422,
  already_opened: 409,
  replica_identity_in_use: 409,
  deadline_exceeded: 504,
  aborted: 503,
  internal: 500,
};

/** Faults of HTTP itself, which the library cannot have. */
const httpCodes = {
  unauthorized: 'a bearer token is required',
  forbidden: 'the request comes from a place that is not allowed',
  unknown_route: 'there is nothing at this path',
  method_not_allowed: 'the path does not have this method',
  upgrade_required: 'this path speaks WebSocket',
} as const;
export type ProblemCode = ErrorCode | keyof typeof httpCodes;

/** An RFC 9457 document; `details` of the error are members beside the standard ones. */
export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly code: ProblemCode;
  readonly detail: string;
  readonly hint?: string;
  readonly instance: string;
  readonly [member: string]: unknown;
}

/** Thrown by HTTP code for an answer that is decided already; `toProblem` only adds the path. */
export class Refusal extends Error {
  readonly status: number;
  readonly code: ProblemCode;
  readonly hint: string | undefined;
  readonly headers: Readonly<Record<string, string>>;
  readonly members: Readonly<Record<string, unknown>>;

  constructor(
    status: number,
    code: ProblemCode,
    detail: string,
    more: {
      readonly hint?: string;
      readonly headers?: Readonly<Record<string, string>>;
      readonly members?: Readonly<Record<string, unknown>>;
    } = {},
  ) {
    super(detail);
    this.name = 'Refusal';
    this.status = status;
    this.code = code;
    this.hint = more.hint;
    this.headers = more.headers ?? {};
    this.members = more.members ?? {};
  }
}

/** 400 with every fault named; `fields` are spelled as the client knows them. */
export function refuseFields(fields: readonly FieldFault[]): Refusal {
  return new Refusal(400, 'invalid_request', summaryOf(fields), { members: { fields } });
}

function summaryOf(fields: readonly FieldFault[]): string {
  return fields.map(({ field, message }) => `${field === '' ? 'body' : field}: ${message}`).join('; ');
}

/** The document for anything thrown while `path` was served. */
export function toProblem(error: unknown, path: string): Problem {
  if (error instanceof Refusal) {
    return document(error.code, error.status, error.message, error.hint, path, error.members);
  }
  if (!(error instanceof MigrationError) || error.code === 'internal') {
    return document(
      'internal',
      500,
      'the request could not be answered; the log has the cause',
      undefined,
      path,
      {},
    );
  }
  const details = detailsOf(error);
  const fields = details['fields'];
  const detail =
    error.code === 'invalid_request' && isFieldFaults(fields) ? summaryOf(fields) : error.message;
  return document(error.code, statusOf[error.code], detail, error.hint, path, details);
}

function document(
  code: ProblemCode,
  status: number,
  detail: string,
  hint: string | undefined,
  path: string,
  members: Readonly<Record<string, unknown>>,
): Problem {
  return {
    ...members,
    type: `urn:dts:error:${code}`,
    title: code in httpCodes ? httpCodes[code as keyof typeof httpCodes] : errorCodes[code as ErrorCode][1],
    status,
    code,
    detail,
    ...(hint === undefined ? {} : { hint }),
    instance: path,
  };
}

/** An error's details as clients know the names: fields in snake_case, commands in lower case. */
function detailsOf(error: MigrationError): Readonly<Record<string, unknown>> {
  const mapped = toSnake({ details: error.details ?? {} });
  const details = isRecord(mapped) && isRecord(mapped['details']) ? mapped['details'] : {};
  const { fields, allowed } = details;
  return {
    ...details,
    ...(isFieldFaults(fields)
      ? { fields: fields.map((fault) => ({ ...fault, field: snakePath(fault.field) })) }
      : {}),
    ...(error.code === 'event_not_accepted' && Array.isArray(allowed)
      ? { allowed: allowed.map((command) => String(command).toLowerCase()) }
      : {}),
  };
}

function isFieldFaults(value: unknown): value is readonly FieldFault[] {
  return (
    Array.isArray(value) &&
    value.every((fault) => isRecord(fault) && typeof fault['field'] === 'string' && 'message' in fault)
  );
}

/** The problem document of an error as an answer. */
export function problemResponse(error: unknown, path: string): Response {
  const problem = toProblem(error, path);
  return new Response(JSON.stringify(problem), {
    status: problem.status,
    headers: {
      'content-type': 'application/problem+json',
      ...(error instanceof Refusal ? error.headers : {}),
    },
  });
}
