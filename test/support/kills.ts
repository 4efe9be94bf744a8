// What every crash test does: a service is brought to a named place, where it kills itself; what is done while nobody
// serves; the next one goes on. Places that lie one after the other are passed in one migration, each by a service of its own.
import { expect } from 'vitest';
import type { Failpoint } from '../../src/model/failpoints.ts';
import { waitFor } from './databases.ts';
import { makeDataDir, startService, type ServiceProcess } from './service-process.ts';

/** A name, or a name and how often it is passed before the kill. */
export type Place = Failpoint | readonly [Failpoint, number];

const KILL_TIMEOUT_MS = 90_000;

export class KilledService {
  readonly dataDir = makeDataDir();
  readonly #env: Record<string, string>;
  #running: ServiceProcess | null = null;

  constructor(env: Record<string, string> = {}) {
    this.#env = env;
  }

  /** A service that is not killed by itself, on the same data; the one before is killed if it still runs. */
  async start(): Promise<ServiceProcess> {
    return this.#restart();
  }

  /**
   * A service with the place armed, brought there by `drive`, which may fail when the service dies before it has answered,
   * and is not called when a restored task comes by before the service listens. It is dead when this resolves. What
   * `drive` met is told when the service outlives it.
   */
  async killedAt(place: Place, drive: (service: ServiceProcess) => Promise<unknown>): Promise<void> {
    const [name, nth] = typeof place === 'string' ? [place, 1] : place;
    const service = await this.#restart(`${name}:${nth}`).catch((error: unknown) => {
      const { cause } = error as { readonly cause?: { readonly signal?: unknown } };
      if (cause?.signal !== 'SIGKILL') throw error;
    });
    if (!service) {
      this.#running = null;
      return;
    }
    let end: Awaited<ServiceProcess['exited']> | undefined;
    void service.exited.then((exit) => (end = exit));
    let failure: unknown;
    const driven = drive(service).catch((error: unknown) => (failure = error));
    await waitFor(() => end, KILL_TIMEOUT_MS, `the kill at ${name}`).catch((error: unknown) => {
      const words = service.log.slice(-5).join('\n');
      throw new Error(`not killed at ${name}: ${String(failure)}; its last words:\n${words}`, {
        cause: error,
      });
    });
    await driven;
    expect({ place: name, ...end }).toEqual({ place: name, code: null, signal: 'SIGKILL' });
    this.#running = null;
  }

  async #restart(failpoint?: string): Promise<ServiceProcess> {
    await this.#running?.kill();
    const env = this.#env;
    const { dataDir } = this;
    this.#running = await startService({ dataDir, env, ...(failpoint === undefined ? {} : { failpoint }) });
    return this.#running;
  }
}

/** Asks for the cutover of `id` (by `command` on `of`) whenever it may, until it is completed: a kill under the fence un-fences. */
export async function completes(
  service: ServiceProcess,
  id: string,
  { of = id, command = 'cutover' }: { readonly of?: string; readonly command?: string } = {},
): Promise<void> {
  await waitFor(
    async () => {
      const { state, error } = await service.status(id);
      if (state === 'completed') return true;
      if (['failed', 'cancelled', 'paused'].includes(state))
        throw new Error(`task ${id} is ${state}: ${JSON.stringify(error)}`);
      if (state === 'syncingWal') await service.call('POST', `/migrations/${of}/${command}`);
      return false;
    },
    90_000,
    `${id} completed`,
  );
}
