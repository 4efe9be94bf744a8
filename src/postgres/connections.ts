// Every connection of a task to one of its databases, pooled or dedicated. States use it and never close a pool. Its key is
// role and host:port:dbname: source and target may be the same database and still have pools of their own.
import type { Socket } from 'node:net';
import pg, {
  type Client,
  type ClientConfig,
  type Pool,
  type PoolClient,
  type QueryResult,
  type QueryResultRow,
} from 'pg';
import { MigrationError } from '../model/errors.ts';
import type { Endpoint, EndpointSecrets, Role } from '../model/endpoint.ts';
import { STATEMENT_TIMEOUT_MS, TRANSACTION_TIMEOUT_MS, withinDeadline } from './answer-deadline.ts';
import { backendPid, terminateBackends } from './backend.ts';
import { closeClient, destroySocket, negotiate } from './connect.ts';
import { fromPostgres } from './errors.ts';
import { mayReadInto } from './read-socket.ts';
import { ReadySessions, type ReadyKind } from './ready-sessions.ts';
import { sessionSettings } from './session-settings.ts';
import { literal } from './sql.ts';
import { makeTrackedPool } from './tracked-pool.ts';
import type { TransactionOptions } from './transaction-options.ts';

export interface SessionOptions {
  /** Shown in pg_stat_activity after `dts/<task>/<role>/`: `copy`, `holder`, `apply` … */
  readonly purpose: string;
  /** Aborting cancels the running statement on the server and closes the session. */
  readonly signal: AbortSignal;
  /** Send queries without waiting for the answers of earlier ones (`pg`'s pipeline mode). */
  readonly pipeline?: boolean;
  /** Made for it where the connection has no TLS: one that reads much. */
  readonly socket?: () => Socket;
  /** A walsender of this database: takes replication commands beside SQL. */
  readonly replication?: boolean;
}

/** A connection of its own, counted until closed. */
export interface Session {
  readonly client: Client;
  readonly pid: number;
  close(): Promise<void>;
}

/** Of every session, beyond session-settings.ts. */
export type SideSettings = Readonly<Record<string, string>>;

/** One database of a task. */
export class Side {
  readonly role: Role;
  readonly endpoint: Endpoint;
  readonly #taskId: string;
  readonly #secrets: () => Promise<EndpointSecrets>;
  readonly #settings: SideSettings;
  readonly #sessions = new Set<Client>();
  readonly #pooled = new Set<Client>();
  readonly #borrowed = new Set<Client>();
  readonly #stop = new AbortController();
  readonly #ready = new ReadySessions();
  #config: Promise<ClientConfig> | null = null;
  #pool: Promise<Pool> | null = null;
  #external = 0;
  #closing: Promise<Error[]> | null = null;

  constructor(
    taskId: string,
    role: Role,
    endpoint: Endpoint,
    secrets: () => Promise<EndpointSecrets>,
    settings: SideSettings = {},
  ) {
    this.#taskId = taskId;
    this.role = role;
    this.endpoint = endpoint;
    this.#secrets = secrets;
    this.#settings = settings;
  }

  /** application_name of its sessions, which may add a purpose behind a slash. */
  get sessionName(): string {
    return `dts/${this.#taskId}/${this.role}`;
  }

  /** `role:host:port:dbname`. */
  get key(): string {
    return `${this.role}:${this.endpoint.host}:${this.endpoint.port}:${this.endpoint.dbname}`;
  }

  /** Open connections: pooled, dedicated, and registered walsenders. */
  get connectionCount(): number {
    return this.#pooled.size + this.#sessions.size + this.#external;
  }

  /** Client configuration that has proved to connect; TLS fallback of `prefer` is decided here once. */
  async clientConfig(purpose = ''): Promise<ClientConfig> {
    this.#throwIfClosed();
    const name = this.sessionName;
    this.#config ??= this.#secrets().then((secrets) =>
      negotiate(this.endpoint, secrets, name, this.role, this.#stop.signal),
    );
    try {
      const config = await this.#config;
      return purpose === '' ? config : { ...config, application_name: `${name}/${purpose}` };
    } catch (error) {
      this.#config = null; // the next caller tries again
      throw error;
    }
  }

  /**
   * One statement on a pooled connection. Errors are MigrationErrors that name the role; `deadline_exceeded` after
   * `timeoutMs`.
   */
  async query<R extends QueryResultRow = QueryResultRow>(
    sql: string,
    params: readonly unknown[] = [],
    { timeoutMs = STATEMENT_TIMEOUT_MS }: { readonly timeoutMs?: number } = {},
  ): Promise<QueryResult<R>> {
    return this.withClient((client) => client.query<R>(sql, [...params]), { timeoutMs });
  }

  /**
   * Borrows a pooled connection; it goes back whatever happens, and is thrown away after an error. Errors:
   * `deadline_exceeded` when `work` has not ended after `timeoutMs`.
   */
  async withClient<T>(
    work: (client: PoolClient) => Promise<T>,
    { timeoutMs = TRANSACTION_TIMEOUT_MS }: Pick<TransactionOptions, 'timeoutMs'> = {},
  ): Promise<T> {
    let client: PoolClient;
    try {
      client = await (await this.#ensurePool()).connect();
    } catch (error) {
      throw fromPostgres(error, { role: this.role });
    }
    const endBackend = (pid: number): void => {
      if (!this.#closing) void this.#terminate([pid]).catch(() => undefined);
    };
    try {
      const borrowed = { client, role: this.role, timeoutMs, endBackend };
      const result = await withinDeadline(borrowed, () => work(client));
      client.release();
      return result;
    } catch (error) {
      client.release(true);
      throw fromPostgres(error, { role: this.role });
    }
  }

  /** Borrows a pooled connection inside BEGIN … COMMIT; rolled back when `work` throws. As `withClient`. */
  async transaction<T>(
    work: (client: PoolClient) => Promise<T>,
    { begin = 'begin', ...options }: TransactionOptions = {},
  ): Promise<T> {
    return this.withClient(async (client) => {
      await client.query(begin);
      const result = await work(client); // after a throw the connection is closed, which rolls back
      await client.query('commit');
      return result;
    }, options);
  }

  /** Opens a dedicated connection. The caller closes it in `finally`; aborting the signal closes it too. */
  async session(options: SessionOptions): Promise<Session> {
    const stopped = (): MigrationError => new MigrationError('aborted', `${this.role}: stopped on request`);
    if (options.signal.aborted) throw stopped();
    const config = await this.clientConfig(options.purpose);
    this.#throwIfClosed();
    if (options.signal.aborted) throw stopped();
    const client =
      (await this.#takeReady(options)) ??
      this.#makeClient({
        ...config,
        ...(options.pipeline ? { pipeline: true } : {}),
        ...(options.socket && mayReadInto(config) ? { stream: options.socket } : {}),
        ...(options.replication ? { replication: 'database' } : {}),
      });
    let terminated: Promise<void> = Promise.resolve();
    let ended: Promise<void> | null = null;
    const close = (): Promise<void> => {
      ended ??= (async () => {
        options.signal.removeEventListener('abort', onAbort);
        await closeClient(client);
        await terminated;
        this.#sessions.delete(client);
      })();
      return ended;
    };
    const onAbort = (): void => {
      // Closing the socket does not stop a statement that does not read from it (CREATE INDEX, pg_sleep).
      const pid = backendPid(client);
      destroySocket(client, stopped());
      if (pid !== null && !this.#closing) terminated = this.#terminate([pid]).catch(() => undefined);
      void close();
    };
    options.signal.addEventListener('abort', onAbort, { once: true });
    try {
      if (backendPid(client) === null) {
        await client.connect();
        await this.#prepare(client, options.replication);
      }
    } catch (error) {
      await close();
      throw fromPostgres(error, { role: this.role, purpose: options.purpose });
    }
    if (this.#closing || options.signal.aborted) {
      await close();
      throw stopped();
    }
    return { client, pid: backendPid(client) ?? 0, close };
  }

  /**
   * Opens connections ahead, so that what must be quick need not wait for them: `plain` and `replication` for `session`,
   * `pooled` for `query`. Never throws: what cannot be opened now is opened when it is needed, and says why not.
   */
  async warm(wanted: {
    readonly plain: number;
    readonly replication: number;
    readonly pooled: number;
  }): Promise<void> {
    const open = async (kind: ReadyKind): Promise<void> => {
      const client = this.#makeClient({
        ...(await this.clientConfig('ready')),
        ...(kind === 'replication' ? { replication: 'database' } : {}),
      });
      try {
        await client.connect();
        await this.#prepare(client, kind === 'replication');
        this.#throwIfClosed();
        this.#ready.put(kind, client, () => this.#sessions.delete(client));
      } catch (error) {
        await this.#end(client);
        throw error;
      }
    };
    const missing = (kind: ReadyKind): Promise<void>[] =>
      Array.from({ length: Math.max(0, wanted[kind] - this.#ready.count(kind)) }, () => open(kind));
    const borrowed = Array.from({ length: wanted.pooled }, async () => (await this.#ensurePool()).connect());
    await Promise.allSettled([...missing('plain'), ...missing('replication'), ...borrowed]);
    for (const each of borrowed) void each.then((client) => client.release()).catch(() => undefined);
  }

  /** Closes what `warm` has opened for `session` and nobody has taken. */
  async cool(): Promise<void> {
    for (const client of await this.#ready.close()) this.#sessions.delete(client);
  }

  /** One that has died meanwhile is thrown away. */
  async #takeReady({ purpose, pipeline, socket, replication }: SessionOptions): Promise<Client | null> {
    if (pipeline || socket) return null;
    for (;;) {
      const client = this.#ready.take(replication ? 'replication' : 'plain');
      if (!client) return null;
      try {
        await client.query(`set application_name to ${literal(`${this.sessionName}/${purpose}`)}`);
        return client;
      } catch {
        await this.#end(client);
      }
    }
  }

  #makeClient(config: ClientConfig): Client {
    const client = new pg.Client(config);
    client.on('error', () => undefined); // every query in flight rejects with it
    this.#sessions.add(client);
    return client;
  }

  async #end(client: Client): Promise<void> {
    await closeClient(client);
    this.#sessions.delete(client);
  }

  /** Counts a connection that another library opened (the walsender); returns the function that uncounts it. */
  registerExternal(): () => void {
    this.#external++;
    let counted = true;
    return () => {
      if (counted) this.#external--;
      counted = false;
    };
  }

  /** Cancels the running statement of one of our backends; never throws. */
  async cancelBackend(pid: number): Promise<void> {
    await this.query('select pg_cancel_backend($1)', [pid]).catch(() => undefined);
  }

  /**
   * Closes everything, whatever it is doing: statements that run end on the server, too, and their callers get
   * `aborted`. Returns what went wrong. Calling it again gives the same result.
   */
  close(): Promise<Error[]> {
    this.#closing ??= this.#closeAll();
    return this.#closing;
  }

  async #closeAll(): Promise<Error[]> {
    const errors: Error[] = [];
    const reason = new MigrationError('aborted', `${this.role}: the task's connections are closed`);
    const connecting = [...this.#pooled].filter((client) => backendPid(client) === null);
    const busy = [...this.#sessions, ...this.#borrowed, ...connecting];
    const pids = busy.map(backendPid).filter((pid) => pid !== null);
    for (const client of busy) destroySocket(client, reason);
    this.#stop.abort(reason);
    if (pids.length > 0)
      await this.#terminate(pids).catch((error: unknown) =>
        errors.push(fromPostgres(error, { role: this.role })),
      );
    await Promise.all([...busy, ...this.#pooled].map(closeClient));
    this.#sessions.clear();
    const pool = await this.#pool?.catch(() => null); // it could not connect: whoever asked for it has the error
    // Not awaited: it resolves when the last borrower has given its (dead) connection back.
    void pool?.end().catch(() => undefined);
    return errors;
  }

  async #terminate(pids: readonly number[]): Promise<void> {
    const config = await this.#config;
    if (config) await terminateBackends(pids, { config, name: this.sessionName, role: this.role });
  }

  /** A walsender takes no parameters, and writes no rows that the side's own settings could be for. */
  async #prepare(client: Client, replication = false): Promise<void> {
    const own = Object.entries(this.#settings);
    if (replication || own.length === 0) {
      await client.query(sessionSettings);
      return;
    }
    // one statement, which pipelined sessions demand; as parameters, which pg_stat_activity does not show
    const more = own.map((_, n) => `union all select set_config($${2 * n + 1}, $${2 * n + 2}, false)`);
    await client.query([sessionSettings, ...more].join(' '), own.flat());
  }

  #throwIfClosed(): void {
    if (this.#closing) throw new MigrationError('aborted', `${this.role}: the task's connections are closed`);
  }

  async #ensurePool(): Promise<Pool> {
    this.#throwIfClosed();
    this.#pool ??= this.clientConfig().then((config) =>
      makeTrackedPool(config, {
        open: this.#pooled,
        borrowed: this.#borrowed,
        prepare: (client) => this.#prepare(client),
      }),
    );
    try {
      return await this.#pool;
    } catch (error) {
      this.#pool = null;
      throw error;
    }
  }
}
