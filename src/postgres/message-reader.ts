// Reads one binary message field by field, for pgoutput.ts. Pure.
import { isUtf8 } from 'node:buffer';
import { MigrationError } from '../model/errors.ts';
import { bigintToLsn, type Lsn } from '../model/lsn.ts';

/** Reads forward through one message; every read past the end is a typed error. */
export class MessageReader {
  readonly buffer: Buffer;
  offset = 0;

  constructor(buffer: Buffer) {
    this.buffer = buffer;
  }

  malformed(reason: string): MigrationError {
    return new MigrationError('internal', `malformed pgoutput message: ${reason} at offset ${this.offset}`, {
      details: { offset: this.offset, length: this.buffer.length, tag: this.buffer[0] ?? null },
    });
  }

  #advance(bytes: number): number {
    const at = this.offset;
    if (at + bytes > this.buffer.length) throw this.malformed(`${bytes} bytes expected`);
    this.offset = at + bytes;
    return at;
  }

  int8(): number {
    return this.buffer.readUInt8(this.#advance(1));
  }
  int16(): number {
    return this.buffer.readUInt16BE(this.#advance(2));
  }
  int32(): number {
    return this.buffer.readInt32BE(this.#advance(4));
  }
  oid(): number {
    return this.buffer.readUInt32BE(this.#advance(4));
  }
  int64(): bigint {
    return this.buffer.readBigInt64BE(this.#advance(8));
  }
  lsn(): Lsn {
    return bigintToLsn(this.buffer.readBigUInt64BE(this.#advance(8)));
  }
  char(): string {
    return String.fromCharCode(this.int8());
  }

  /** Up to the zero byte. */
  cstring(): string {
    const end = this.buffer.indexOf(0, this.offset);
    if (end === -1) throw this.malformed('unterminated string');
    const start = this.#advance(end + 1 - this.offset);
    return this.#utf8(start, end);
  }

  text(bytes: number): string {
    const start = this.#advance(bytes);
    return this.#utf8(start, start + bytes);
  }

  /** A copy: the connection reuses the memory behind the message. */
  bytes(length: number): Buffer {
    const start = this.#advance(length);
    return Buffer.from(this.buffer.subarray(start, start + length));
  }

  length(): number {
    const length = this.int32();
    if (length < 0) throw this.malformed(`negative length ${length}`);
    return length;
  }

  end(): void {
    if (this.offset !== this.buffer.length) throw this.malformed('surplus bytes');
  }

  #utf8(start: number, end: number): string {
    const text = this.buffer.toString('utf8', start, end);
    // Under server_encoding SQL_ASCII nothing is converted or checked: other bytes would silently become U+FFFD.
    if (text.includes('\uFFFD') && !isUtf8(this.buffer.subarray(start, end)))
      throw new MigrationError('schema_unsupported', `source: text is not valid UTF-8 at offset ${start}`, {
        hint: 'the source database has encoding SQL_ASCII; correct the value, or exclude the table',
        details: {
          offset: start,
          bytes: this.buffer.subarray(start, Math.min(end, start + 64)).toString('hex'),
        },
      });
    return text;
  }
}
