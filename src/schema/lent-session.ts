// A session of the task, lent to pg_dump: its socket is read and written here instead of by `pg`, until it is given back.
// So the dump is counted among the task's connections, has its TLS and credentials, and ends with its signal.
import type { Socket } from 'node:net';
import type pg from 'pg';
import type { Session } from '../postgres/connections.ts';
import { AnswerScanner, type ErrorFields } from './dump-wire.ts';

export class LentSession {
  /** ParameterStatus values for pg_dump's libpq. */
  readonly parameters: Readonly<Record<string, string>>;
  readonly #stream: Socket;
  readonly #scanner = new AnswerScanner();
  readonly #ownListeners: readonly ((chunk: Buffer) => void)[];
  readonly #onData: (chunk: Buffer) => void;
  #listener: (chunk: Buffer, endsAnswer: boolean) => void = () => undefined;
  #onClose: (() => void) | null = null;

  private constructor(client: pg.Client, parameters: Readonly<Record<string, string>>) {
    this.parameters = parameters;
    this.#stream = (client as unknown as { connection: { stream: Socket } }).connection.stream;
    this.#ownListeners = this.#stream.listeners('data') as ((chunk: Buffer) => void)[];
    this.#onData = (chunk) => this.#listener(chunk, this.#scanner.endsAnswer(chunk));
    this.#stream.removeAllListeners('data');
    this.#stream.on('data', this.#onData);
  }

  static async lend({ client }: Session): Promise<LentSession> {
    return new LentSession(client, await readParameters(client));
  }

  /** The first error that the server answered with. */
  get error(): ErrorFields | null {
    return this.#scanner.error;
  }

  /** Replaces the receiver of what the server sends. */
  receive(listener: (chunk: Buffer, endsAnswer: boolean) => void): void {
    this.#listener = listener;
  }

  send(bytes: Uint8Array): void {
    this.#stream.write(bytes);
  }

  /** Holds the server's bytes back while pg_dump is busy. */
  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
  }

  /** Calls back once when the connection is lost, or at once when it is already. */
  onClose(lost: () => void): void {
    this.#onClose = lost;
    if (this.#stream.destroyed) lost();
    else this.#stream.once('close', lost);
  }

  /** `pg` may close the session after this. */
  giveBack(): void {
    if (this.#onClose) this.#stream.off('close', this.#onClose);
    this.#stream.off('data', this.#onData);
    for (const listener of this.#ownListeners) this.#stream.on('data', listener);
    this.#stream.resume();
  }
}

/** What the server told at connection start and libpq asks for; the version decides what pg_dump queries. */
async function readParameters(client: pg.Client): Promise<Record<string, string>> {
  // pg_dump spells literals as the session's standard_conforming_strings demands; ours must be the target's.
  await client.query(`select set_config('standard_conforming_strings', 'on', false)`);
  const { rows } = await client.query<{ name: string; value: string }>(
    `select name, current_setting(name, true) as value
     from unnest(array['server_version', 'server_encoding', 'client_encoding', 'is_superuser', 'session_authorization',
       'DateStyle', 'IntervalStyle', 'TimeZone', 'integer_datetimes', 'standard_conforming_strings']) as name`,
  );
  return Object.fromEntries(rows.map(({ name, value }) => [name, value]));
}
