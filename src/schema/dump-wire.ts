// The two halves of a lent connection, used on pg_dump's side (dump-worker.ts, dump-native.ts) and on the server's
// (lent-session.ts). pg_dump's libpq believes that it has just connected: its startup is answered here, everything after goes to the server unchanged but
// for one filter. Pure; message formats: https://www.postgresql.org/docs/current/protocol-message-formats.html.

const SSL_REQUEST = 80877103;
const GSSENC_REQUEST = 80877104;

function message(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.write(type, 0, 'latin1');
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

function cstring(text: string): Buffer {
  return Buffer.from(`${text}\0`);
}

/**
 * PG 15.20 and its sister minors keep internal `pg_attver=…` entries in `pg_attribute.attoptions`. pg_dump would print
 * them as column options, which no server accepts.
 */
function withoutInternalOptions(sql: string): string {
  return sql.replaceAll(
    'array_to_string(a.attoptions, ',
    `array_to_string(array(select o from unnest(a.attoptions) o where o not like 'pg\\_attver=%'), `,
  );
}

/** What follows from bytes that libpq wrote; null: nothing. */
export interface Relayed {
  /** Our own answer, to the startup. */
  readonly toLibpq: Buffer | null;
  /** Complete messages, the last of which the server answers with ReadyForQuery. */
  readonly toServer: Buffer | null;
}

const NOTHING: Relayed = { toLibpq: null, toServer: null };

/** What libpq sees as the server. Messages are held back until one that is answered is complete. */
export class LentConnection {
  readonly #parameters: Readonly<Record<string, string>>;
  #buffered = Buffer.alloc(0);
  #started = false;

  /** `parameters`: what the server told when the lent connection was made (ParameterStatus). */
  constructor(parameters: Readonly<Record<string, string>>) {
    this.#parameters = parameters;
  }

  /** Takes bytes that libpq wrote, cut anywhere. */
  write(bytes: Uint8Array): Relayed {
    this.#buffered = Buffer.concat([this.#buffered, bytes]);
    return this.#started ? this.#forward() : this.#answerStartup();
  }

  #answerStartup(): Relayed {
    if (this.#buffered.length < 8) return NOTHING;
    const length = this.#buffered.readInt32BE(0);
    if (this.#buffered.length < length) return NOTHING;
    const code = this.#buffered.readInt32BE(4);
    this.#buffered = this.#buffered.subarray(length);
    if (code === SSL_REQUEST || code === GSSENC_REQUEST) return { toLibpq: Buffer.from('N'), toServer: null };
    this.#started = true;
    const ready = Buffer.concat([
      message('R', Buffer.alloc(4)), // AuthenticationOk
      ...Object.entries(this.#parameters).map(([name, value]) =>
        message('S', Buffer.concat([cstring(name), cstring(value)])),
      ),
      message('K', Buffer.alloc(8)),
      message('Z', Buffer.from('I')),
    ]);
    return { toLibpq: ready, toServer: null };
  }

  #forward(): Relayed {
    const complete: Buffer[] = [];
    let answered = false;
    while (this.#buffered.length >= 5) {
      const length = this.#buffered.readInt32BE(1) + 1;
      if (this.#buffered.length < length) break;
      const type = String.fromCharCode(this.#buffered[0] ?? 0);
      const whole = this.#buffered.subarray(0, length);
      this.#buffered = this.#buffered.subarray(length);
      if (type === 'X') return NOTHING; // the lender closes the connection
      if (type === 'Q' || type === 'S') answered = true;
      complete.push(
        type === 'Q'
          ? message('Q', cstring(withoutInternalOptions(whole.toString('utf8', 5, length - 1))))
          : whole,
      );
    }
    if (answered) return { toLibpq: null, toServer: Buffer.concat(complete) };
    this.#buffered = Buffer.concat([...complete, this.#buffered]);
    return NOTHING;
  }
}

/** An ErrorResponse, by field code (`C`: SQLSTATE, `M`: message, `D`: detail, `H`: hint). */
export type ErrorFields = Readonly<Partial<Record<string, string>>>;

/** Finds the end of a server's answer in the chunks of a socket and remembers the first error in it. */
export class AnswerScanner {
  #header = Buffer.alloc(0);
  #bodyLeft = 0;
  #type = '';
  #errorBody: Buffer[] = [];
  error: ErrorFields | null = null;

  /** Whether `chunk` ends an answer (ReadyForQuery is its last message). */
  endsAnswer(chunk: Buffer): boolean {
    let at = 0;
    let ended = false;
    while (at < chunk.length) {
      if (this.#bodyLeft === 0) {
        const taken = chunk.subarray(at, at + 5 - this.#header.length);
        at += taken.length;
        this.#header = Buffer.concat([this.#header, taken]);
        if (this.#header.length < 5) break;
        this.#type = String.fromCharCode(this.#header[0] ?? 0);
        this.#bodyLeft = this.#header.readInt32BE(1) - 4;
        this.#header = Buffer.alloc(0);
        ended = false;
      }
      const body = chunk.subarray(at, at + this.#bodyLeft);
      at += body.length;
      this.#bodyLeft -= body.length;
      if (this.#type === 'E') this.#errorBody.push(body);
      if (this.#bodyLeft > 0) break;
      if (this.#type === 'E') {
        this.error ??= errorFields(Buffer.concat(this.#errorBody));
        this.#errorBody = [];
      }
      ended = this.#type === 'Z';
    }
    return ended;
  }
}

function errorFields(body: Buffer): ErrorFields {
  const fields: Record<string, string> = {};
  for (const field of body.toString('utf8').split('\0'))
    if (field !== '') fields[field.slice(0, 1)] = field.slice(1);
  return fields;
}
