// Which cluster, and which timeline of it, the source is: a slot of our name elsewhere leads through another history.
import type { ClientBase } from 'pg';
import { MigrationError } from '../model/errors.ts';
import { fromPostgres } from './errors.ts';
import { recopyRemedy, type SlotRecord, type SourceSystem } from './slot-record.ts';
import type { TaskScope } from './task-scope.ts';

/** `client` is a walsender. */
export async function identifySystem(client: ClientBase): Promise<SourceSystem> {
  // The keywords of replication commands are known in capitals only. timeline is int4 until 15, int8 since.
  const { rows } = await client.query<{ systemid: string; timeline: number | string }>('IDENTIFY_SYSTEM');
  const row = rows[0];
  if (!row) throw new MigrationError('internal', 'source: it does not say which cluster it is');
  return { id: row.systemid, timeline: Number(row.timeline) };
}

/**
 * Throws `source_replaced` unless the walsender `client` is of the cluster and timeline where the slot was made. A slot of
 * our name elsewhere (a clone's, a synchronised one) leads through another history: LSNs and transaction ids mean something
 * else there, and what we have already applied may never have happened. So nothing is compared and nothing guessed.
 */
export async function verifySystem(client: ClientBase, record: SlotRecord, scope: TaskScope): Promise<void> {
  if (record.system) verifySystemOf(await identifySystem(client), record, scope);
}

export function verifySystemOf(found: SourceSystem, { system }: SlotRecord, scope: TaskScope): void {
  if (!system) return;
  if (found.id === system.id && found.timeline === system.timeline) return;
  const inWords = (each: SourceSystem): string => `system ${each.id}, timeline ${each.timeline}`;
  const what = found.id === system.id ? 'has changed its timeline' : 'is another cluster';
  throw new MigrationError(
    'source_replaced',
    `source: it ${what}: the slot was made on ${inWords(system)}, this is ${inWords(found)}`,
    {
      hint:
        'point the source at the server where the migration began, then resume; if that one is gone (failover, restore): ' +
        recopyRemedy(scope),
      details: { role: 'source', expected: system, found },
    },
  );
}

/** On a walsender of its own: it asks what the stream will ask, and for no right that the stream does not need. */
export async function sourceSystem(scope: TaskScope): Promise<SourceSystem> {
  const session = await scope.source.session({
    purpose: 'identify',
    replication: true,
    signal: scope.signal,
  });
  try {
    return await identifySystem(session.client);
  } catch (error) {
    throw fromPostgres(error, { role: 'source' });
  } finally {
    await session.close();
  }
}
