// What a server answers when it refuses something, read from the wire by those who have taken a session's socket over.
import { DatabaseError } from 'pg';

/** ErrorResponse as `pg` would give it. */
export function readServerError(bytes: Buffer, start: number, end: number): DatabaseError {
  const fields = new Map<string, string>();
  for (let at = start; at < end && bytes[at] !== 0; ) {
    const zero = bytes.indexOf(0, at + 1);
    if (zero === -1) break;
    fields.set(String.fromCharCode(bytes[at] ?? 0), bytes.toString('utf8', at + 1, zero));
    at = zero + 1;
  }
  const error = new DatabaseError(fields.get('M') ?? 'unknown error', end - start, 'error');
  const put = (
    name: 'severity' | 'code' | 'detail' | 'hint' | 'where' | 'schema' | 'table' | 'constraint',
    key: string,
  ): void => {
    const value = fields.get(key);
    if (value !== undefined) error[name] = value;
  };
  put('severity', 'V');
  put('code', 'C');
  put('detail', 'D');
  put('hint', 'H');
  put('where', 'W');
  put('schema', 's');
  put('table', 't');
  put('constraint', 'n');
  return error;
}
