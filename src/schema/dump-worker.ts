// Worker thread of dump.ts: takes pg_dump's output apart, so that parsing does not block the service; and runs the
// bundled pg_dump for it over a connection that the main thread lends. Everything it allocated goes with it.
import { parentPort, receiveMessageOnPort, workerData, type MessagePort } from 'node:worker_threads';
import type { PGlite } from '@electric-sql/pglite';
import { pgDump } from '@electric-sql/pglite-tools/pg_dump';
import { LentConnection } from './dump-wire.ts';
import { splitDump, type DumpEntry } from './split.ts';

/** A bundled pg_dump to run. */
export interface BundledDump {
  readonly args: readonly string[];
  /** ParameterStatus values of the lent connection. */
  readonly parameters: Readonly<Record<string, string>>;
  /** Requests go out here, answers come back. */
  readonly port: MessagePort;
  /** One Int32, counted up after every answer; what this thread sleeps on. */
  readonly answered: SharedArrayBuffer;
}

/** What to do: text that a pg_dump has printed, or a pg_dump to run. */
export type DumpWorkerInput = { readonly text: string } | BundledDump;

export type DumpWorkerResult =
  | { readonly entries: readonly DumpEntry[] }
  | { readonly failed: 'pg_dump' | 'parse'; readonly message: string };

/** Should a wake-up be missed. */
const LOOK_AGAIN_MS = 100;

async function bundledDump({ args, parameters, port, answered }: BundledDump): Promise<string> {
  const counter = new Int32Array(answered);
  const connection = new LentConnection(parameters);
  const exchange = (request: Uint8Array): Uint8Array => {
    port.postMessage(Uint8Array.from(request));
    // Looked for again and again: no answer yet must never be read as an empty one, which libpq takes for the server's
    // end. The main thread ends this worker when its socket or its deadline does.
    for (;;) {
      const seen = Atomics.load(counter, 0);
      const answer: { readonly message: Uint8Array } | undefined = receiveMessageOnPort(port);
      if (answer) return answer.message;
      Atomics.wait(counter, 0, seen, LOOK_AGAIN_MS);
    }
  };
  // pgDump asks for a whole PGlite but uses only these three; `query` and `exec` restore a search_path that we never set.
  const server = {
    query: () => Promise.resolve({ rows: [{ search_path: '""' }] }),
    exec: () => Promise.resolve([]),
    execProtocolRawStream(bytes: Uint8Array, { onRawData }: { onRawData: (data: Uint8Array) => void }): void {
      const { toLibpq, toServer } = connection.write(bytes);
      const answer = toServer === null ? toLibpq : exchange(toServer);
      if (answer !== null) onRawData(answer);
    },
  };
  return (await pgDump({ pg: server as unknown as PGlite, args: [...args] })).text();
}

async function run(input: DumpWorkerInput): Promise<DumpWorkerResult> {
  const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
  let text: string;
  try {
    text = 'text' in input ? input.text : await bundledDump(input);
  } catch (error) {
    return { failed: 'pg_dump', message: messageOf(error) };
  }
  try {
    return { entries: await splitDump(text) };
  } catch (error) {
    return { failed: 'parse', message: messageOf(error) };
  }
}

parentPort?.postMessage(await run(workerData as DumpWorkerInput));
