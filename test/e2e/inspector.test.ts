// The inspector as a viewer has it: the receiver of @statelyai/inspect itself, through a whole migration.
import { createWebSocketReceiver } from '@statelyai/inspect';
import type { StatelyInspectionEvent } from '@statelyai/inspect';
import { expect, onTestFinished, test } from 'vitest';
import WebSocket from 'ws';
import { makePair, waitFor } from '../support/databases.ts';
import { makeDataDir, migrationBody, startMigration, startService } from '../support/service-process.ts';

test('a late viewer gets every live actor first, then everything that happens, and no secret', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key, v text)');
  await pair.source.query(`insert into t select i, md5(i::text) from generate_series(1, 1000) i`);
  const service = await startService({ dataDir: makeDataDir() });
  const id = await startMigration(
    service,
    migrationBody(pair, { tables: ['t'], table_suffix: '_m', options: { keep_fence: false } }),
  );
  await service.reaches(id, 'syncingWal');

  (globalThis as { WebSocket?: unknown }).WebSocket ??= WebSocket;
  const receiver = createWebSocketReceiver({ server: `${service.url.replace('http', 'ws')}/inspect` });
  const seen: StatelyInspectionEvent[] = [];
  const subscription = receiver.subscribe((event) => void seen.push(event));
  onTestFinished(() => subscription.unsubscribe());
  const actors = (): { name: string; definition?: string; snapshot?: { status: string } }[] =>
    seen.filter((event) => event.type === '@xstate.actor') as never;
  await waitFor(() => actors().some((actor) => actor.name === 'stream'));
  expect(actors().map((actor) => actor.name)).toEqual(expect.arrayContaining(['manager', id, 'stream']));
  expect(JSON.parse(actors().find((actor) => actor.name === id)?.definition ?? '{}')).toMatchObject({
    id: 'task',
  });

  await service.call('POST', `/migrations/${id}/cutover`);
  await service.reaches(id, 'completed');
  const states = (): string => JSON.stringify(seen.filter((event) => event.type === '@xstate.snapshot'));
  await waitFor(() => states().includes('"completed"'));
  for (const word of ['stoppingWrites', 'validating', 'finalizing']) expect(states()).toContain(word);
  expect(
    seen.some((event) => event.type === '@xstate.event' && JSON.stringify(event).includes('CUTOVER')),
  ).toBe(true);
  expect(JSON.stringify(seen)).not.toContain(pair.source.password);

  const { body } = await service.call<{ definition?: { id: string } }>('GET', `/migrations/${id}/machine`);
  expect(JSON.stringify(body)).toContain('syncingWal');
});
