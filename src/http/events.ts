// Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) from the service's event
// iterator. Pulled by the client: a slow one slows its own iterator. The subscription, the heartbeat and the iterator
// end together: when the client goes, when the server closes, or when the iterator ends.
import type { TaskEvent } from '../model/service.ts';
import type { Log } from '../postgres/task-scope.ts';
import { toSnake } from '../model/case.ts';

export interface EventStreamOptions {
  /** Aborted when the server closes. */
  readonly closing: AbortSignal;
  /** A comment line after so much silence keeps proxies and half-open connections honest. Default 15,000. */
  readonly heartbeatMs?: number;
  readonly log: Log;
}

export const EVENT_STREAM_HEADERS = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-store',
  'x-accel-buffering': 'no', // nginx would hold the events back
} as const;

const HEARTBEAT_MS = 15_000;
const RECONNECT_MS = 2_000;

/** Only journal events have an id: a client that reconnects names the last one and gets what came after it. */
function encodeEvent(event: TaskEvent): string {
  const { kind, ...data } = event;
  const id = event.kind === 'state' ? `id: ${event.seq}\n` : '';
  return `${id}event: ${kind}\ndata: ${JSON.stringify(toSnake(data))}\n\n`;
}

/** Subscribes with the first read, so an answer that nobody reads (HEAD) costs nothing. */
export function eventStream(
  subscribe: (signal: AbortSignal) => AsyncIterable<TaskEvent>,
  options: EventStreamOptions,
): ReadableStream<Uint8Array> {
  const { closing, log } = options;
  const encoder = new TextEncoder();
  const subscription = new AbortController();
  let iterator: AsyncIterator<TaskEvent> | null = null;
  let next: Promise<IteratorResult<TaskEvent>> | null = null;
  let heartbeat: NodeJS.Timeout | undefined;
  let ended = false;
  let closeStream = (): void => undefined;

  const end = (): void => {
    if (ended) return;
    ended = true;
    clearInterval(heartbeat);
    closing.removeEventListener('abort', endAndClose);
    subscription.abort();
    iterator?.return?.().catch(() => undefined);
  };
  const endAndClose = (): void => {
    if (ended) return;
    end();
    closeStream();
  };
  const advance = (from: AsyncIterator<TaskEvent>): Promise<IteratorResult<TaskEvent>> => {
    const pending = from.next();
    pending.catch(() => undefined); // reported by the pull that waits for it, if one still does
    return pending;
  };

  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        closeStream = () => controller.close();
      },
      async pull(controller) {
        if (closing.aborted) return endAndClose();
        try {
          if (iterator === null || next === null) {
            closing.addEventListener('abort', endAndClose, { once: true });
            iterator = subscribe(subscription.signal)[Symbol.asyncIterator]();
            next = advance(iterator);
            heartbeat = setInterval(() => {
              if (controller.desiredSize === 0) controller.enqueue(encoder.encode(': still here\n\n'));
            }, options.heartbeatMs ?? HEARTBEAT_MS);
            controller.enqueue(encoder.encode(`retry: ${RECONNECT_MS}\n\n`));
            return;
          }
          const result = await next;
          if (ended) return;
          if (result.done === true) return endAndClose();
          controller.enqueue(encoder.encode(encodeEvent(result.value)));
          next = advance(iterator);
        } catch (error) {
          if (ended) return;
          log.warn({ error: String(error) }, 'an event stream ended with an error');
          endAndClose(); // the client reconnects and resumes
        }
      },
      cancel: end,
    },
    { highWaterMark: 0 },
  );
}
