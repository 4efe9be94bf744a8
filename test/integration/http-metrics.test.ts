// GET /metrics over real sockets: what a scrape shows of the tasks, and to whom.
import { expect, test } from 'vitest';
import type { SyncStatus } from '../../src/model/progress.ts';
import { makeServer, rawRequest, validBody } from '../support/http-server.ts';

const sync: SyncStatus = {
  feed: 'catch-up',
  sourceLsn: '1/100',
  sentLsn: '1/80',
  receivedLsn: '1/60',
  appliedLsn: '1/0',
  flushedLsn: null,
  lagBytes: 256,
  lagSeconds: 1.5,
  sentLagSeconds: 0.5,
  receivedLagSeconds: 1,
  flushedLagSeconds: null,
  sourceBytesPerSecond: 10,
  appliedBytesPerSecond: 5,
  catchUpSeconds: null,
  limitedBy: 'target',
  changesPerSecond: 7,
  transactionsApplied: 3,
  changesApplied: 12,
  inProgress: { transactions: 2, bytes: 9_000, spilledBytes: 5_000 },
  slot: {
    walStatus: 'extended',
    retainedBytes: 4096,
    confirmedFlushLsn: '1/0',
    restartLsn: '0/FF',
    safeWalBytes: null,
    secondsUntilLost: 60,
    spillBytes: null,
    warning: 'a sentence with hunter2',
  },
  sampledAt: '2026-01-02T03:04:05.000Z',
};

test('tasks are shown by id and state, lag between named positions, and never a message or a secret', async () => {
  const { server, service, post } = await makeServer();
  await post('/migrations', validBody());
  const task = service.tasks.get('orders');
  if (!task) throw new Error('the task was not made');
  service.tasks.set('orders', {
    ...task,
    state: 'syncingWal',
    progress: 99,
    connections: 6,
    error: { code: 'sql_failed', kind: 'operator', message: 'hunter2 "\n', hint: 'hunter2' },
    detail: { ...task.detail, rowsCopied: 11, bytesCopied: 2048, sync },
  });
  service.tasks.set('done', { ...task, id: 'done', state: 'completed' });
  const response = await fetch(`${server.url}/metrics`);
  expect(response.status).toBe(200);
  expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/);
  const text = await response.text();
  const samples = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  for (const sample of [
    'dts_info{version="1.2.3"} 1',
    'dts_tasks{state="syncingWal"} 1',
    'dts_tasks{state="completed"} 1',
    'dts_tasks{state="failed"} 0',
    'dts_task_state{task="orders",state="syncingWal"} 1',
    'dts_task_progress_ratio{task="orders"} 0.99',
    'dts_task_copied_rows{task="orders"} 11',
    'dts_task_copied_bytes{task="orders"} 2048',
    'dts_task_connections{task="orders"} 6',
    'dts_task_error{task="orders",code="sql_failed",kind="operator"} 1',
    'dts_task_lag_bytes{task="orders",ahead="source",behind="sent"} 128',
    'dts_task_lag_bytes{task="orders",ahead="source",behind="received"} 160',
    'dts_task_lag_bytes{task="orders",ahead="source",behind="applied"} 256',
    'dts_task_lag_seconds{task="orders",ahead="source",behind="sent"} 0.5',
    'dts_task_lag_seconds{task="orders",ahead="source",behind="received"} 1',
    'dts_task_lag_seconds{task="orders",ahead="source",behind="applied"} 1.5',
    'dts_task_feed{task="orders",feed="catch-up"} 1',
    'dts_task_catch_up_seconds{task="orders"} +Inf',
    'dts_task_limited_by{task="orders",side="target"} 1',
    'dts_task_applied_changes_total{task="orders"} 12',
    'dts_task_transactions_in_progress{task="orders"} 2',
    'dts_task_transactions_in_progress_bytes{task="orders"} 9000',
    'dts_task_transactions_in_progress_spilled_bytes{task="orders"} 5000',
    'dts_task_slot_retained_bytes{task="orders"} 4096',
    'dts_task_slot_safe_wal_bytes{task="orders"} +Inf',
    'dts_task_slot_seconds_until_lost{task="orders"} 60',
    'dts_task_slot_wal_status{task="orders",status="extended"} 1',
  ])
    expect(samples).toContain(sample);
  // neither what is not known, nor anything of a task that has ended, nor words of others
  expect(text).not.toMatch(/behind="flushed"|slot_spilled|task="done"|hunter2|a\.example/);
});

test('the slot of a task at rest is shown; a task that is gone leaves nothing', async () => {
  const { server, service, post } = await makeServer();
  await post('/migrations', validBody());
  const task = service.tasks.get('orders');
  if (!task) throw new Error('the task was not made');
  const { slot } = sync;
  service.tasks.set('orders', {
    ...task,
    state: 'paused',
    restingSlot: {
      walStatus: 'lost',
      retainedBytes: 9,
      safeWalBytes: 5,
      secondsUntilLost: null,
      sourceBytesPerSecond: 0,
      warning: slot?.warning ?? null,
      error: null,
      sampledAt: sync.sampledAt,
    },
  });
  const scrape = async (): Promise<string> => (await fetch(`${server.url}/metrics`)).text();
  expect(await scrape()).toContain('dts_task_slot_wal_status{task="orders",status="lost"} 1');
  service.tasks.delete('orders');
  expect(await scrape()).not.toContain('orders');
});

test('is behind the token and the Host rule, like the API', async () => {
  const { server } = await makeServer({ host: '0.0.0.0', token: 'sesame' });
  expect((await rawRequest(server, { path: '/metrics' })).status).toBe(401);
  const headers = { authorization: 'Bearer sesame' };
  expect((await rawRequest(server, { path: '/metrics', headers })).status).toBe(200);
  expect((await rawRequest(server, { path: '/metrics', method: 'POST', headers })).status).toBe(405);
  const loopback = await makeServer();
  const foreign = { host: 'rebound.example' };
  expect((await rawRequest(loopback.server, { path: '/metrics', headers: foreign })).status).toBe(403);
});
