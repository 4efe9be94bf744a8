// What is set aside of one table, as a feed for a replay of its own: the chunks of dts.held_change in their order. Ends when
// there is no more; what is applied is removed by the replay's own target transactions (heldPosition).
import type { TaskScope } from '../postgres/task-scope.ts';
import type { Gulp } from '../postgres/wal-walker.ts';
import { boundsOf } from './held-changes.ts';
import type { Feed } from './replay.ts';

/** Chunks read together; one is about a megabyte, or one change that is larger. */
const CHUNKS_AT_ONCE = 4;

export class HeldFeed implements Feed {
  readonly #scope: TaskScope;
  readonly #relation: string;
  #last = '0';
  #ended = false;

  constructor(scope: TaskScope, relation: string) {
    this.#scope = scope;
    this.#relation = relation;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Nothing is here before it is asked for. */
  get drained(): boolean {
    return this.#ended;
  }

  async take(): Promise<Gulp[]> {
    this.#scope.signal.throwIfAborted();
    if (this.#ended) return [];
    const { rows } = await this.#scope.target.query<{ n: string; messages: Buffer }>(
      `select n::text, messages from dts.held_change where task_id = $1 and relation = $2 and n > $3::bigint
        order by dts.held_change.n limit ${CHUNKS_AT_ONCE}`,
      [this.#scope.taskId, this.#relation, this.#last],
    );
    this.#last = rows.at(-1)?.n ?? this.#last;
    if (rows.length < CHUNKS_AT_ONCE) this.#ended = true;
    return rows.map(({ messages }) => ({ buffer: messages, bounds: boundsOf(messages) }));
  }

  poke(): void {
    // it never waits
  }

  acknowledge(): void {
    // nobody waits for it
  }
}
